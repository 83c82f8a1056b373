"""Particles of several ranks on a real local Ray: gloo between processes on the CPU."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.orchestration.running import Run, run
from tests.faults import epoch_seed
from tests.helpers import ticket_digests, tiny


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def ranked(storage: Path, options: dict[str, Any] | None = None, **values: Any) -> Run:
    return run(tiny(storage, execution__executor="ray", particle__num_workers=2, task__name="tests.faults:Faulty",
                    task__options=options or {}, **{"particles__count": 2, "pruning__target": 0.5, **values}))


def incidents(done: Run) -> list[tuple[str, str, str]]:
    attempt = json.loads(done.rundir.run_json_path.read_text())["attempts"][0]
    return [(one["who"], one["kind"], one["reason"]) for one in attempt["incidents"]]


@pytest.mark.usefixtures("cluster")
def test_a_rank_that_is_killed_changes_no_byte(tmp_path: Path) -> None:
    nan = [epoch_seed(0, 1, rank=1)]
    options = {"nan": nan, "kills": [epoch_seed(0, 0, epoch=1, rank=1)], "marker": str(tmp_path / "marker")}
    (tmp_path / "marker").touch()
    undisturbed = ranked(tmp_path / "a", options, particles__on_failure="retry")
    (tmp_path / "marker").unlink()
    killed = ranked(tmp_path / "b", options, particles__on_failure="retry")
    print(incidents(undisturbed), incidents(killed))
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")
