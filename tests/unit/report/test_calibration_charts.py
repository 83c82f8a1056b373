"""Calibration as pictures: the right numbers, for arms that have been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swamp_ray.analysis.calibration import NUM_BINS
from swamp_ray.report.calibration import calibration_charts
from swamp_ray.report.reading import ReportRun
from tests.figures import drawn, flaws, made_run, points, record


def measured(folder: Path, name: str, *, rounds: int = 4, ece: float = 0.02, networks: tuple[str, ...] = (
        "average", "particles", "ensemble"), **values: Any) -> ReportRun:
    """All samples are in the last bin but 20, which are in bin 10; the ensemble's error is twice the average's."""
    count = [0] * NUM_BINS
    count[10], count[14] = 20, 80
    bins = {"count": count, "confidence": [0.7 if n else 0.0 for n in count], "accuracy": [0.6 if n else 0.0 for n in
                                                                                           count]}
    rows = [{"round": index, "sparsity": 1 - 0.5**index, "network": network, "bins": bins, "count": 3,
             "test": {"loss": 0.5, "accuracy": 0.9, "ece": ece * (2 if network == "ensemble" else 1)}}
            for index in range(rounds) for network in networks]
    return made_run(folder, name, [record(index, 0.5**index) for index in range(rounds)],
                    analyses={"calibration": {"rows": rows}}, **values)


def test_the_error_is_the_mean_over_seeds_by_network(tmp_path: Path) -> None:
    runs = [measured(tmp_path, f"a{seed}", ece=ece, arm="a", seed=seed) for seed, ece in enumerate((0.01, 0.03))]
    error, loss, _ = calibration_charts(runs)
    assert (error.name, loss.name) == ("calibration_ece", "calibration_loss")
    means = drawn(error).set_index(["network", "density"])["mean"]
    assert means["average", 0.25] == pytest.approx(0.02)
    assert means["ensemble", 0.25] == pytest.approx(0.04)
    assert drawn(loss)["mean"].unique().tolist() == [0.5]
    assert "2 runs an arm" in error.caption
    (line, *_) = error.figure.axes[0].lines
    assert [y for _, y in points(line)] == pytest.approx([2.0] * 4), "percent"


def test_reliability_is_shown_dense_in_the_middle_and_sparse_with_seeds_together(tmp_path: Path) -> None:
    runs = [measured(tmp_path, f"a{seed}", rounds=9, arm="a", seed=seed) for seed in range(2)]
    reliability = calibration_charts(runs)[-1]
    data = drawn(reliability)
    assert sorted(data["round"].unique()) == [0, 4, 8]
    one = data[(data["round"] == 0) & (data["network"] == "average") & (data["count"] > 0)]
    assert one["count"].tolist() == [40, 160]
    assert one["accuracy"].tolist() == pytest.approx([0.6, 0.6])
    assert flaws(reliability.figure) == []


def test_runs_that_were_not_measured_do_not_hide_the_others(tmp_path: Path) -> None:
    bare = made_run(tmp_path, "bare", [record(0, 1.0)])
    assert calibration_charts([]) == calibration_charts([bare]) == []
    alone = measured(tmp_path, "alone", networks=("average",))
    charts = calibration_charts([bare, alone])
    assert [set(drawn(chart)["arm"]) for chart in charts] == [{"alone"}] * 3
    assert "1 run," in charts[-1].caption


def test_many_arms_stay_legible(tmp_path: Path) -> None:
    runs = [measured(tmp_path, f"an-arm-with-a-long-name-{number}") for number in range(6)]
    for chart in calibration_charts(runs):
        assert flaws(chart.figure) == [], chart.name
