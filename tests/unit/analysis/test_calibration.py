"""Calibration of predictions whose calibration is known, and of a run's own networks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.calibration import NUM_BINS, Bins, binned, calibration_of, calibration_rows, pooled
from swamp_ray.analysis.measuring import measure_calibration
from swamp_ray.cli import main
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import tiny


def test_a_hand_made_example() -> None:
    """Of ten samples of two classes five get 0.9 and are all right, five get 0.6 and two are right."""
    log_probabilities = np.log(np.array([[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5))
    labels = np.array([0] * 5 + [1, 1, 0, 0, 0])
    found = calibration_of(log_probabilities, labels)
    assert found.accuracy == pytest.approx(0.7)
    assert found.loss == pytest.approx(-(5 * math.log(0.9) + 2 * math.log(0.6) + 3 * math.log(0.4)) / 10)
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)
    assert {place: count for place, count in enumerate(found.bins.count) if count} == {8: 5, 13: 5}
    assert found.bins.accuracy[8] == pytest.approx(0.4)
    assert found.bins.confidence[13] == pytest.approx(0.9)


def test_always_sure_and_mostly_right() -> None:
    certain = np.log(np.clip(np.eye(4)[[0, 1, 2, 3, 0]], 1e-30, None))
    found = calibration_of(certain, np.array([0, 1, 2, 0, 1]))
    assert found.ece == pytest.approx(0.4)
    assert found.bins.count == [0] * (NUM_BINS - 1) + [5]


def test_perfect_calibration_has_no_error_and_binning_alone_makes_little() -> None:
    exact = Bins([7] * NUM_BINS, list(np.linspace(0, 1, NUM_BINS)), list(np.linspace(0, 1, NUM_BINS)))
    assert exact.error == 0.0
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 1.0, 200_000)
    assert binned(confidence, generator.random(confidence.size) < confidence).error < 0.005


def test_bounds_belong_to_the_bin_below_and_nothing_is_lost() -> None:
    found = binned(np.array([1 / 3, 1.0, 1.0 + 1e-9, 1e-12, 0.0]), np.array([True] * 5))
    assert (found.count[4], found.count[-1], found.count[0]) == (1, 2, 2)
    assert Bins([0] * NUM_BINS, [0.0] * NUM_BINS, [0.0] * NUM_BINS).error == 0.0


def test_pooling_is_binning_all_samples_together() -> None:
    generator = np.random.default_rng(1)
    confidence, right = generator.random((3, 500)), generator.random((3, 500)) < 0.6
    together = binned(confidence.ravel(), right.ravel())
    parts = pooled([binned(*one) for one in zip(confidence, right, strict=True)])
    assert parts.count == together.count
    assert parts.confidence == pytest.approx(together.confidence)
    assert parts.accuracy == pytest.approx(together.accuracy)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    run(tiny(folder, pruning__target=0.5))
    return folder


def test_averages_and_particles_have_the_metrics_of_the_run(storage: Path) -> None:
    rundir = RunDir(storage, "tiny")
    stored = measure_calibration(rundir)
    assert json.loads((storage / "runs/tiny/analysis/calibration.json").read_text()) == stored
    rows = {(row["round"], row["network"]): row for row in stored["rows"]}
    assert len(rows) == 2 * 3
    for record in rundir.read_rounds():
        for network, metrics in (("average", record["average"]), ("particles", record["mean"])):
            row = rows[record["round"], network]
            for split in ("validation", "test"):
                assert row[split]["accuracy"] == pytest.approx(metrics[split]["accuracy"], abs=1e-6)
                assert row[split]["loss"] == pytest.approx(metrics[split]["loss"], abs=1e-5)
        ensemble, single = rows[record["round"], "ensemble"], rows[record["round"], "particles"]
        assert ensemble["test"]["loss"] <= single["test"]["loss"], "by the concavity of the logarithm"
        assert (sum(ensemble["bins"]["count"]), sum(single["bins"]["count"])) == (40, 120)


def test_the_ensemble_is_the_mean_of_the_probabilities(storage: Path) -> None:
    bench = Bench(RunDir(storage, "tiny"))
    ensemble = next(row for row in calibration_rows(bench, 1) if row["network"] == "ensemble")
    probabilities = np.mean([np.concatenate([one.exp().numpy() for one in bench.predict(point, "test")])
                             for point in bench.particles(1)], axis=0)
    labels = np.concatenate([batch[1].numpy() for batch in bench.batches("test")])
    assert ensemble["test"]["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
    assert ensemble["test"]["loss"] == pytest.approx(-np.log(probabilities[np.arange(40), labels]).mean(), rel=1e-5)


def test_the_command_prints_a_table_and_keeps_the_figures(storage: Path) -> None:
    result = CliRunner().invoke(main, ["analyze", "calibration", "tiny", "--storage", str(storage)])
    assert result.exit_code == 0, result.output
    assert "ECE" in result.output
    assert "ensemble" in result.output
    assert "…" not in result.output, "a number is cut off"


def test_where_particles_are_gone_the_average_is_left(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage, tmp_path, dirs_exist_ok=True)
    rundir = RunDir(tmp_path, "tiny")
    store = ArtifactStore(rundir.place)
    for entry in rundir.read_rounds()[0]["artifacts"]["particles"]:
        store.discard(entry["name"], "result")
    rows = measure_calibration(rundir)["rows"]
    assert [(row["round"], row["network"]) for row in rows] == [
        (0, "average"), (1, "average"), (1, "particles"), (1, "ensemble")]


def measured_values() -> dict[str, Any]:
    """Data without classes."""
    inputs = np.random.default_rng(0).random((60, 4))
    return {name: (inputs, inputs.sum(axis=1, keepdims=True)) for name in ("train", "test")}


def test_a_run_without_classes_is_refused(tmp_path: Path) -> None:
    run(tiny(tmp_path, task__name="regression", pruning__target=0.0, particles__count=1,
             data__name="tests.unit.analysis.test_calibration:measured_values", data__options={}, data__version="1",
             model__name="mlp", model__options={"num_classes": 1}, dense__length=0, averaging__within="none"))
    with pytest.raises(UserError, match="no classification"):
        measure_calibration(RunDir(tmp_path, "tiny"))
