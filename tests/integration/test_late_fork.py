"""Particles that part from a trunk, on a real local Ray: the same bytes as in one process, whoever dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.launch import Run, run
from swamp_ray.method.events import trunk_of
from swamp_ray.run.prepare import prepare
from swamp_ray.seeding import derive_seed
from tests.helpers import ticket_digests, tiny

FORKED: dict[str, Any] = {"particles__fork_at": 0.5, "averaging__start": 0.75, "round__length": 4,
                          "pruning__target": 0.5}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def forked(storage: Path, **values: Any) -> Run:
    return run(tiny(storage, **{**FORKED, "execution__executor": "ray", **values}))


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_in_a_trunk_changes_no_byte(tmp_path: Path) -> None:
    faulty: dict[str, Any] = {"task__name": "tests.faults:Faulty"}
    trunk_seed = prepare(tiny(tmp_path, **FORKED)).trunk_seed(1)
    marker = tmp_path / "marker"
    marker.touch()
    options = {"kills": [derive_seed(trunk_seed, "epoch", 1)], "marker": str(marker)}
    run(tiny(tmp_path / "undisturbed", **FORKED, **faulty, task__options=options))
    marker.unlink()
    killed = forked(tmp_path / "killed", **faulty, task__options=options)
    assert ticket_digests(tmp_path / "killed") == ticket_digests(tmp_path / "undisturbed")
    about = killed.rundir.read_run()
    assert about is not None
    assert [one["who"] for one in about["attempts"][0]["incidents"]] == [str(trunk_of(1))]


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_with_ranks_the_trunk_has_as_many(tmp_path: Path) -> None:
    given: dict[str, Any] = {"particle__num_workers": 2, "particles__count": 2, "pruning__target": 0.0}
    forked(tmp_path / "a", **given)
    forked(tmp_path / "b", **given, execution__checkpoint_every=0)
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")
