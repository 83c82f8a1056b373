"""What a group of ranks ended of, out of what Ray Train says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from swamp_ray.errors import LostRankError, UserError
from swamp_ray.on_ray.ranked_worker import cause_of
from swamp_ray.run.failures import kind_of


class Failed(Exception):
    """As Ray Train's, with the error of each rank."""

    def __init__(self, **failures: BaseException) -> None:
        self.worker_failures = {int(rank[1:]): error for rank, error in failures.items()}


class HealthCheck(Exception):
    """As Ray Train's, of a process that does not answer."""

    __module__ = "ray.train"

    def __init__(self, text: str = "A worker health check failed.") -> None:
        super().__init__(text)
        self.health_check_failure = RayActorError()


class NoStart(Exception):
    """As Ray Train's, of workers that could not be started."""

    controller_failure = RuntimeError("no licence\nand a traceback")


MISSED = LostRankError("rank 0 of 3 lost another one: Connection closed by peer")


@pytest.mark.parametrize(("error", "kind", "text"), [
    (Failed(r0=MISSED, r2=UserError("a layer is missing")), "error", "a layer is missing."),
    (Failed(r0=MISSED, r1=torch.OutOfMemoryError("CUDA out of memory")), "machine", "CUDA out of memory"),
    (Failed(r0=MISSED, r1=HealthCheck()), "machine", "rank 1 of 3 was lost: its process or its node has gone"),
    (Failed(r1=HealthCheck(), r0=KeyError("a layer")), "error", "'a layer'"),
    (Failed(r0=MISSED), "machine", str(MISSED)),
    (NoStart(), "machine", "the 3 ranks could not be started: no licence"),
])
def test_the_error_that_came_first_is_told(error: Any, kind: str, text: str) -> None:
    cause = cause_of(error, 3)
    assert (kind_of(cause), str(cause)) == (kind, text)


def test_a_machine_short_of_memory_is_told_with_what_to_do() -> None:
    killed = HealthCheck("the node was running low on memory")
    told = str(cause_of(Failed(r0=killed), 2))
    assert told.startswith("out of memory: the node was running low on memory\nGive a worker more")
