"""A pack: several particles that one process trains at the same time on one device.

Each has a seat: a network of its own, with its own mask, start, order, rate and optimiser. What they share is the
computation of gradients, in one of these forms:

- ``stacked``: the weights of all seats lie side by side, and one batched computation serves them all
  (:mod:`swamp_ray.training.packs.stacked`). Pays where a device is idle for most of a small network's step.
- ``graphs``: each seat's step is captured once as a CUDA graph and replayed on a stream of its own
  (:mod:`swamp_ray.training.packs.cuda_graphs`). Pays where launching kernels takes longer than running them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.samples import Data
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.packs.cuda_graphs import CudaGraphGradients
from swamp_ray.training.packs.stacked import StackedGradients
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.user_code.blaming import blamed

PACKED_SEED = 0
"""Seed of the global generators while a pack trains. No result depends on it: networks that draw are not packed."""


class JointGradients(Protocol):
    """Computes the gradients of several networks."""

    def __call__(self, batches: Mapping[int, Batch]) -> dict[int, Gradients]:
        """Leave the gradients of each seat's batch in that seat's parameters."""
        ...


class Pack:
    """Seats for particles of one network.

    Args:
        config: The run, or one of several that differ in their seed alone.
        data: Its decoded data.
        arithmetic: Names the form and the number of seats; the caller applies it (``arithmetic.applied``).
        batches: The batches of another trainer of the same data and arithmetic, to be shared.
    """

    def __init__(
        self, config: SwampConfig, data: Data, arithmetic: Arithmetic, batches: dict[str, Batches] | None = None
    ) -> None:
        batches = {} if batches is None else batches
        self.seats = [ParticleTrainer(config, data, arithmetic, batches) for _ in range(arithmetic.width)]
        self._joint: JointGradients = CudaGraphGradients(self.seats) if arithmetic.form == "graphs" else self._stacked()

    def _stacked(self) -> JointGradients:
        first = self.seats[0]
        return StackedGradients([seat.model for seat in self.seats], first.task, autocast=first.autocast,
                       micro_batch=first.config.training.micro_batch, channels_last=first.arithmetic.channels_last,
                       compiled=first.arithmetic.compile)

    def gradients(self, batches: Mapping[int, Batch]) -> dict[int, Gradients]:
        """Leave the gradients of the batches in the parameters of their seats.

        Args:
            batches: By seat; at least one. A seat without one is padding, and keeps its weights.
        """
        with blamed("the model or the task failed in a training step of packed particles"):
            return self._joint(batches)

    @contextlib.contextmanager
    def randomness(self) -> Iterator[None]:
        """A block in which packed particles train: whatever draws there leaves the process's generators alone."""
        with self.seats[0].randomness(PACKED_SEED):
            yield
