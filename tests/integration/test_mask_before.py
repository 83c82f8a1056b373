"""The mask before training on a real local Ray: the same bytes as in one process, whoever dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.launch import run
from swamp_ray.method.events import MASK
from tests.helpers import ticket_digests, tiny

BEFORE: dict[str, Any] = {"pruning__when": "before", "pruning__target": 0.9, "particles__count": 2,
                          "round__length": 1, "averaging__within": "none"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_over_the_mask_changes_no_byte(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    values: dict[str, Any] = {**BEFORE, "pruning__score": "tests.before_scores:deadly",
                              "model__options": {}, "task__name": "tests.before_scores:Marked",
                              "task__options": {"marker": str(marker)}}
    run(tiny(tmp_path / "inline", **values))
    marker.unlink()
    done = run(tiny(tmp_path / "ray", **values, execution__executor="ray"))
    assert ticket_digests(tmp_path / "ray") == ticket_digests(tmp_path / "inline")
    about = done.rundir.read_run()
    assert about is not None
    assert [one["who"] for one in about["attempts"][0]["incidents"]] == [str(MASK)]


@pytest.mark.usefixtures("cluster")
@pytest.mark.nightly
def test_with_ranks_the_first_one_chooses_the_mask(tmp_path: Path) -> None:
    values: dict[str, Any] = {**BEFORE, "pruning__score": "snip", "particle__num_workers": 2}
    done = run(tiny(tmp_path, **values, execution__executor="ray"))
    assert done.records[0].sparsity == pytest.approx(0.9, abs=1e-3)
