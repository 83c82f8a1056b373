"""Rounds of particles that sleep for a known time: how much longer than that they take.

Everything else is real: driver, state machine, pool, workers, averaging actor, storage.
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import ray
from _measuring import spread
from _processes import descendants, named, own_pid, share_bytes, status_bytes

from swamp_ray import launch as running
from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.method.events import Job
from swamp_ray.on_ray.executor import RayExecutor
from swamp_ray.on_ray.own_token import OwnToken
from swamp_ray.run.messages import JobSpec, RoundRecord
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.signals import Stopping

BATCH = 4
INPUTS = 64
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """Particles, workers of one CPU each, the particles' sleep, and the width of their network."""

    particles: int
    workers: int
    sleep_s: float
    width: int = 8

    @property
    def ideal_s(self) -> float:
        """A round in which nothing but the sleep takes time."""
        return math.ceil(self.particles / self.workers) * self.sleep_s


class Clock(Reporter):
    """When each round began, when the last one ended, and the driver's memory whenever a particle has finished."""

    def __init__(self) -> None:
        self.starting = self.ready = self.ended = 0.0
        self.began: dict[int, float] = {}
        self.driver_bytes: list[int] = []

    def executor_starting(self, executor: str) -> None:
        """Workers are started."""
        self.starting = time.perf_counter()

    def executor_started(self, num_workers: int) -> None:
        """All of them have answered."""
        self.ready = time.perf_counter()

    def job_submitted(self, spec: JobSpec) -> None:
        """A round begins with its first particle."""
        if spec.job.kind == "particle":
            self.began.setdefault(spec.job.round, time.perf_counter())

    def job_finished(self, job: Job, found: bool) -> None:
        """Look at this process's memory."""
        self.driver_bytes.append(status_bytes(own_pid(), "VmRSS"))

    def round_finished(self, record: RoundRecord) -> None:
        """The last of these counts."""
        self.ended = time.perf_counter()

    def rounds_s(self) -> list[float]:
        """Wall time of each round: to the beginning of the next one, of the last one to its record."""
        began = [self.began[index] for index in sorted(self.began)]
        return [end - begin for begin, end in zip(began, [*began[1:], self.ended], strict=True)]


def config_of(case: Case, rounds: int, storage: str) -> SwampConfig:
    """So many rounds and one before them."""
    side = math.isqrt(INPUTS)
    return build_config({
        "name": "scaling", "storage": storage,
        "data": {"name": "synthetic", "options": {"num_train": 40, "num_test": 8, "num_classes": CLASSES,
                                                  "shape": [1, side, side]}},
        "model": {"name": "_sleeping:network", "options": {"width": case.width}},
        "task": {"name": "_sleeping:SleepingClassification",
                 "options": {"sleep_s": case.sleep_s, "batch_size": BATCH}},
        "training": {"batch_size": BATCH, "lr": 0.01, "schedule": {"warmup": 0}},
        "dense": {"length": 0},
        "round": {"length": "1 steps"},
        "averaging": {"within": "none"},
        "particles": {"count": case.particles},
        "pruning": {"target": 1 - 0.8**rounds, "rate": 0.2},
        "execution": {"device": "cpu", "num_workers": case.workers},
    })


def warm_executor(prepared: Prepared, storage: str, stopping: Stopping) -> RayExecutor:
    """The real executor, once all its workers have answered."""
    executor = RayExecutor(prepared, storage)
    while executor._pool._workers.awaited:
        executor._pool.pump(1.0)
    return executor


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """A row: efficiency of rounds with warm workers, and what the start took; for a process of its own."""
    clock = Clock()
    OwnToken()
    ray.init(address="local", num_cpus=case.workers, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, object_store_memory=2 << 30)
    try:
        with tempfile.TemporaryDirectory() as storage:
            memory = WorkerMemory()
            running.run(config_of(case, rounds, storage), clock, executor=memory.executor)
    finally:
        ray.shutdown()
    first, *walls = clock.rounds_s()
    return {
        **asdict(case), "weights": case.width * (INPUTS + CLASSES), "ideal_s": case.ideal_s,
        "workers_start_s": clock.ready - clock.starting, "first_round_s": first, "round_s": spread(walls),
        "efficiency": spread([case.ideal_s / wall for wall in walls]),
        "overhead_s": spread([wall - case.ideal_s for wall in walls]),
        "driver_rss_mb": {"before": memory.driver_bytes / 1e6, "most": max(clock.driver_bytes) / 1e6},
        "worker_mb": memory.per_worker,
    }


class WorkerMemory:
    """Looks at workers and driver before the first job."""

    driver_bytes: int
    per_worker: dict[str, float]

    def executor(self, prepared: Prepared, storage: str, stopping: Stopping) -> RayExecutor:
        """A warm executor."""
        executor = warm_executor(prepared, storage, stopping)
        workers = named(descendants(own_pid()), "ray::ParticleActor")
        self.driver_bytes = status_bytes(own_pid(), "VmRSS")
        self.per_worker = {"rss": statistics.median(status_bytes(pid, "VmRSS") for pid in workers) / 1e6,
                           "pss": statistics.median(share_bytes(pid) for pid in workers) / 1e6}
        return executor


def line(row: dict[str, Any]) -> str:
    """A row of the terminal's table."""
    efficiency, overhead = row["efficiency"], row["overhead_s"]
    return (f"{row['particles']:>9} {row['workers']:>7} {row['sleep_s']:>7g} {row['ideal_s']:>7g} "
            f"{row['round_s']['median']:>8.2f} {efficiency['median']:>6.3f} "
            f"{efficiency['min']:.3f}-{efficiency['max']:.3f} {overhead['median']:>10.2f} "
            f"{row['workers_start_s']:>7.1f} {row['first_round_s']:>8.2f} {row['driver_rss_mb']['most']:>9.0f} "
            f"{row['worker_mb']['pss']:>9.0f}")


HEAD = (f"{'particles':>9} {'workers':>7} {'sleep s':>7} {'ideal s':>7} {'round s':>8} {'effic.':>6} {'min-max':>11} "
        f"{'overhead s':>10} {'start s':>7} {'first s':>8} {'driver MB':>9} {'worker MB':>9}")

