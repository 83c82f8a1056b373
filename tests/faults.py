"""A task that fails where a test wants it to: each seed names one epoch of one particle with one of its seeds."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swamp_ray.seeding import derive_seed
from swamp_ray.training.tasks import Classification


def uneven(marker: Path) -> dict[str, Any]:
    """Changes of the tiny run: one round, in which particle 0 waits for a file and the others wait for particle 0."""
    return {"task__name": "tests.faults:Faulty", "pruning__target": 0.0,
            "task__options": {"waits": [epoch_seed(0, 0)], "marker": str(marker)}}


def epoch_seed(round_index: int, particle: int, attempt: int = 0, epoch: int = 0, run_seed: int = 0,
               rank: int | None = None) -> int:
    """What torch's generator is seeded with when an epoch of a particle begins, on one of several ranks."""
    seed = derive_seed(run_seed, "particle", round_index, particle, attempt)
    return derive_seed(seed, "epoch", epoch, *(() if rank is None else (rank,)))


class Faulty(Classification):
    """Classification that fails in some epochs.

    Args:
        nan: The loss is NaN.
        memory: Memory is used up; with a ``marker`` only once.
        slow: A step takes an hour.
        kills: The process is killed; with a ``marker`` only once.
        broken: The user's own code fails.
        waits: A step waits until there is the ``marker``.
        stillborn: A worker process cannot be started; with a ``marker`` only the first.
        marker: A file that is made when memory is used up, or when a worker was not started.
    """

    def __init__(self, nan: Sequence[int] = (), memory: Sequence[int] = (), slow: Sequence[int] = (),
                 waits: Sequence[int] = (), kills: Sequence[int] = (), broken: Sequence[int] = (),
                 stillborn: bool = False, marker: str = "") -> None:
        super().__init__()
        self.nan, self.memory, self.slow, self.marker = nan, memory, slow, marker
        self.waits, self.kills, self.broken = waits, kills, broken
        if stillborn and "default_worker" in sys.argv[0] and self._first():
            raise RuntimeError("there is no licence for this process")

    def _first(self) -> bool:
        """Whether the marker was missing; it is made then."""
        if not self.marker:
            return True
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def training_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """As without faults, or not."""
        seed = torch.initial_seed()
        if seed in self.memory and self._first():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if seed in self.kills and self._first():
            os.kill(os.getpid(), signal.SIGKILL)
        if seed in self.broken:
            raise KeyError("a layer that is not there")
        while seed in self.waits and not Path(self.marker).exists():
            time.sleep(0.05)
        if seed in self.slow:
            time.sleep(3600)
        loss, metrics = super().training_step(model, batch)
        return (loss * float("nan") if seed in self.nan else loss), metrics
