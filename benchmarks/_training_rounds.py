"""Rounds end to end, through the product with its embedded Ray."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from _training_cases import has_cifar10

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.messages import RoundRecord
from swamp_ray.run.reporter import Reporter
from swamp_ray.training.results import Progress


def config_of(device: str) -> dict[str, Any]:
    """One round of 4 particles of ResNet-20, after a dense phase of one epoch."""
    few = device == "cpu"
    data: dict[str, Any] = {"name": "cifar10", **({"limit_train": 1430, "limit_test": 300} if few else {})}
    if not has_cifar10():
        data = {"name": "synthetic", "augment": "crop_flip", "options": {
            "num_train": 1430 if few else 50_000, "num_test": 300 if few else 10_000, "num_classes": 10}}
    return {
        "name": "round", "data": data, "model": {"name": "resnet20"}, "training": {"schedule": {"warmup": 0}},
        "dense": {"length": 1}, "round": {"length": 1 if few else 8}, "particles": {"count": 4},
        "averaging": {"every": "2 steps" if few else "1 epoch"}, "pruning": {"target": 0.0},
        "execution": {"device": device, **({} if few else {"particles_per_worker": "auto"})},
    }


def chain_of(device: str) -> dict[str, Any]:
    """All rounds of a study: 8 of 24 epochs, to a sparsity of 0.99 at rate 0.5."""
    config = config_of(device)
    return config | {"name": "chain", "round": {"length": 24}, "pruning": {"target": 0.99, "rate": 0.5}}


class Clock(Reporter):
    """When what began, and seconds inside training loops."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ready = self.warm = self.ended = self.began
        self.training_s, self.num_workers, self.num_rounds, self.last = 0.0, 1, 0, {}
        self.images, self.width = 0, 1

    def run_started(self, prepared: Any, path: str) -> None:
        """How many images an epoch has, and how many particles a worker trains at a time."""
        self.width = prepared.arithmetic.width
        batch = prepared.config.training.batch_size
        self.images = len(prepared.data.train) // batch * batch

    def executor_started(self, num_workers: int) -> None:
        """Ray is there."""
        self.ready, self.num_workers = time.perf_counter(), num_workers

    def job_advanced(self, job: Job, progress: Progress) -> None:
        """An epoch's time, from the rate that the loop itself has measured."""
        if job.kind == "particle":
            self.training_s += self.images / progress.samples_per_s / self.width

    def job_finished(self, job: Job, found: bool) -> None:
        """The dense phase ends."""
        if job.kind == "dense":
            self.warm = time.perf_counter()

    def round_finished(self, record: RoundRecord) -> None:
        """The last of these counts."""
        self.ended, self.num_rounds = time.perf_counter(), self.num_rounds + 1


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a run in a storage of its own, from the start of Ray to the last record; and what was training."""
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as storage:
        run(with_values(build_config(given), {"storage": storage}), clock)
    rounds_s = clock.ended - clock.warm
    return {"config": given, "n": 1, "rounds": clock.num_rounds, "workers": clock.num_workers,
            "wall_s": clock.ended - clock.began, "until_ray_was_there_s": clock.ready - clock.began,
            "dense_s": clock.warm - clock.ready, "rounds_s": rounds_s,
            "training_share_of_workers_time": clock.training_s / (clock.num_workers * rounds_s)}
