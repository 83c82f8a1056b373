"""Analyses of a real small run: what is measured agrees with what the run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from swamp_ray.analysis.bench import Bench, mean_point
from swamp_ray.analysis.growth import growth, subsets
from swamp_ray.analysis.paths import grid, line
from swamp_ray.analysis.sharpness import sharpness
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_ticket
from tests.helpers import tiny


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysed")
    run(tiny(folder))
    return folder


@pytest.fixture(scope="module")
def bench(storage: Path) -> Bench:
    return Bench(RunDir(storage, "tiny"))


@pytest.mark.parametrize("index", [0, 2])
def test_what_is_measured_is_what_the_run_recorded(bench: Bench, storage: Path, index: int) -> None:
    record = RunDir(storage, "tiny").read_rounds()[index]
    assert bench.measure(bench.average(index), ("validation", "test")) == record["average"]
    for point, recorded in zip(bench.particles(index), record["particles"], strict=True):
        assert bench.measure(point, ("validation", "test")) == recorded
    assert bench.mask(index).sum() == record["survivors"]
    assert mean_point(bench.particles(index)).tobytes() == bench.average(index).tobytes()
    assert not bench.average(index)[:bench.mask(index).size][~bench.mask(index)].any()


def test_statistics_of_augmented_images_are_the_runs_own_and_always_the_same_draw(tmp_path: Path) -> None:
    run(tiny(tmp_path, data__augment="crop", data__crop_padding=2, pruning__target=0.0))
    bench = Bench(RunDir(tmp_path, "tiny"))
    point = bench.average(0)
    plain, one, again = (bench.measure(point, ("test",), kind) for kind in ("unaugmented", "augmented", "augmented"))
    assert one == again == {"test": bench.rundir.read_rounds()[0]["average"]["test"]}
    assert plain != one
    assert bench.measure(point, ("test",)) == one, "nothing of it stays"


@pytest.mark.parametrize("values", [
    {"data__augment": "none"}, {"data__augment": "crop", "data__crop_padding": 0},
    {"data__augment": "crop", "model__name": "lenet_300_100"}])
def test_where_statistics_do_not_matter_all_settings_are_one_measurement(tmp_path: Path, values: dict[str, Any]
                                                                         ) -> None:
    """Data that are not augmented, and networks without normalisation."""
    found = []
    for statistics in ("unaugmented", "augmented"):
        config = tiny(tmp_path, name=statistics, averaging__statistics=statistics, pruning__target=0.0, **values)
        done = run(config)
        found.append([done.records[0].average, done.records[0].artifacts["evaluation"]])
    assert found[0] == found[1]


def test_a_run_with_augmented_statistics_differs_in_its_metrics_alone(tmp_path: Path) -> None:
    values = {"data__augment": "crop", "data__crop_padding": 2}
    for statistics in ("unaugmented", "augmented"):
        run(tiny(tmp_path, name=statistics, averaging__statistics=statistics, **values))
    plain, augmented = (Bench(RunDir(tmp_path, name)) for name in ("unaugmented", "augmented"))
    for index in plain.rounds:
        assert plain.average(index).tobytes() == augmented.average(index).tobytes()
        recorded = augmented.rundir.read_rounds()[index]["average"]
        assert augmented.measure(augmented.average(index), ("validation", "test")) == recorded
        assert recorded["test"]["loss"] != plain.rundir.read_rounds()[index]["average"]["test"]["loss"]
    ticket = load_ticket(tmp_path / augmented.rundir.read_rounds()[0]["ticket"])
    augmented.put(augmented.average(0))
    measured = {name: tensor for name, tensor in augmented.trainer.model.state_dict().items() if "running" in name}
    assert measured
    for name, tensor in measured.items():
        assert torch.equal(tensor, ticket.state[name]), "a ticket has the statistics of its metrics"


def test_the_line_between_particles_ends_at_the_particles(bench: Bench) -> None:
    first, second, _ = bench.particles(1)
    found = line(bench.measure, first, second, num_points=3)
    assert found.metrics[0] == bench.measure(first)
    assert found.metrics[2] == bench.measure(second)
    assert found.barrier("train", "loss") >= 0.0


def test_how_many_particles_it_takes(bench: Bench, storage: Path) -> None:
    record = RunDir(storage, "tiny").read_rounds()[1]
    found = growth(bench, 1)
    assert [(one.count, one.num_subsets) for one in found] == [(1, 3), (2, 3), (3, 1)]
    for split in ("validation", "test"):
        for name in ("accuracy", "loss"):
            assert found[0].average[split][name] == pytest.approx(record["mean"][split][name])
            assert found[0].ensemble[split][name] == pytest.approx(record["mean"][split][name], rel=1e-5)
            assert found[0].spread[split][name] == pytest.approx(record["std"][split][name])
            assert found[2].average[split][name] == pytest.approx(record["average"][split][name])
    assert found[2].ensemble["test"]["loss"] <= found[0].ensemble["test"]["loss"], "a mean of probabilities never loses"


def test_few_subsets_are_all_taken_and_many_are_thinned_evenly() -> None:
    assert len(list(subsets(5, 2))) == 10
    thinned = list(subsets(8, 4))
    assert len(thinned) == 8
    assert np.bincount([n for members in thinned for n in members]).tolist() == [4] * 8


def test_curvature_counts_what_survives(bench: Bench) -> None:
    found = sharpness(bench, 2, bench.average(2), num_images=50, num_directions=4)
    rest = bench.trainer.layout.num_rest
    assert found.num_parameters == int(bench.mask(2).sum()) + rest
    assert found.num_samples == 50
    assert found.trace.standard_error > 0
    assert found.largest.residual <= 1e-3 * abs(found.largest.value)
    assert found.largest.value > 0
    again = sharpness(bench, 2, bench.average(2), num_images=50, num_directions=4)
    assert again == found


def test_what_is_no_longer_there_is_said(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished round 9.*There are: 0, 1, 2"):
        Bench(RunDir(storage, "tiny")).average(9)
    run(tiny(tmp_path / "none", keep__particles="none"))
    with pytest.raises(UserError, match=r"states of round 0 of 'tiny' are no longer.*keep\.particles: all"):
        Bench(RunDir(tmp_path / "none", "tiny")).particles(0)


def test_figures_do_not_depend_on_the_threads_of_blas(bench: Bench) -> None:
    """numpy's products of long vectors do: a worker has one thread, and a command as many as there are cores."""
    def measured(num_threads: int) -> tuple[object, ...]:
        with threadpool_limits(num_threads, user_api="blas"):
            found = sharpness(bench, 1, bench.average(1), num_images=20, num_directions=2)
            points = grid(bench.particles(1), num_points=3)
        return found, points.corners.tolist(), [point.tobytes() for point in points.row(1)]

    assert measured(1) == measured(2)
