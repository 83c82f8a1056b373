"""Epochs and device hours, as the results that they bought say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swamp_ray.launch import run
from swamp_ray.report.load.costs import DENSE_ROUND, device_time, epochs_by_round, epochs_so_far
from swamp_ray.report.load.runs import ReportRun, read_runs
from swamp_ray.storage.artifacts import ArtifactStore
from tests.helpers import tiny


def test_epochs_of_all_particles_count(swamp: ReportRun) -> None:
    assert epochs_by_round(swamp) == {DENSE_ROUND: 1, 0: 6, 1: 6, 2: 6}
    assert epochs_so_far(swamp) == {0: 7, 1: 13, 2: 19}


def test_seconds_are_those_that_lie_with_the_results(swamp: ReportRun) -> None:
    store = ArtifactStore(swamp.rundir.place)
    names = [entry["name"] for record in swamp.records for entry in record["artifacts"]["particles"]]
    names += [line["name"] for line in swamp.rundir.read_results() if line["kind"] == "dense"]
    seconds = []
    for name in names:
        manifest = store.find(name)
        assert manifest is not None
        seconds.append(manifest.info["seconds"])
    found = device_time(swamp)
    assert found is not None
    assert (found.unit, found.num_unknown) == ("core", 0)
    assert found.seconds == pytest.approx(sum(seconds))


def test_particles_side_by_side_share_their_device(swamp: ReportRun) -> None:
    def changed(**arithmetic: object) -> ReportRun:
        return replace(swamp, about={**swamp.about, "arithmetic": {**swamp.about["arithmetic"], **arithmetic}})

    dense = next(line["name"] for line in swamp.rundir.read_results() if line["kind"] == "dense")
    manifest = ArtifactStore(swamp.rundir.place).find(dense)
    alone, packed, ranks = (device_time(one) for one in (swamp, changed(packing="graphs:3"), changed(ranks=2)))
    assert manifest is not None
    assert alone is not None
    assert packed is not None
    assert ranks is not None
    assert packed.seconds == pytest.approx(manifest.info["seconds"] + (alone.seconds - manifest.info["seconds"]) / 3)
    assert ranks.seconds == pytest.approx(2 * alone.seconds)
    on_gpu = device_time(changed(device="cuda"))
    assert on_gpu is not None
    assert on_gpu.unit == "GPU"


def test_what_another_run_trained_is_told_apart(tmp_path: Path) -> None:
    run(tiny(tmp_path, name="first", pruning__target=0.5))
    run(tiny(tmp_path, name="second", pruning__target=0.75))
    first, second = read_runs(["first", "second"], str(tmp_path))
    own, both = device_time(first), device_time(second)
    assert own is not None
    assert both is not None
    assert own.own_seconds == own.seconds
    assert both.seconds - both.own_seconds == pytest.approx(own.seconds)
