"""Runs a function on several ranks, each a process of its own."""

from __future__ import annotations

import faulthandler
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

# Ranks are forks of a process that has imported torch: once, instead of once a rank.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "swamp_ray.run.prepare"])


def on_ranks(count: int, function: Callable[..., Any], *given: Any, seconds: float = 90) -> list[Any]:
    """What the function returns on each rank of a gloo group, or its traceback; None for a rank that was killed.

    Args:
        count: k.
        function: Of a module; called with the rank and what is given.
        seconds: Ranks that take longer are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [PROCESSES.Process(target=_rank, args=(rank, count, folder, seconds, function, given), daemon=True)
                     for rank in range(count)]
        for process in processes:
            process.start()
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
            process.join()
        answers = [Path(folder, f"answer-{rank}") for rank in range(count)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in answers]


def _rank(rank: int, count: int, folder: str, seconds: float, function: Callable[..., Any],
          given: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(seconds - 5)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        answer = function(rank, *given)
    except Exception:
        answer = traceback.format_exc()
    written = Path(folder, f"writing-{rank}")
    written.write_bytes(pickle.dumps(answer))
    written.rename(Path(folder, f"answer-{rank}"))
