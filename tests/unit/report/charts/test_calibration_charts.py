"""Calibration as pictures: the right numbers, for arms that have been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swamp_ray.analysis.calibration import NUM_BINS
from swamp_ray.report.charts.calibration import calibration_charts
from swamp_ray.report.load.runs import ReportRun
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
    error, loss = calibration_charts(runs)
    assert (error.name, loss.name) == ("calibration_ece", "calibration_loss")
    means = drawn(error).set_index(["network", "density"])["mean"]
    assert means["average", 0.25] == pytest.approx(0.02)
    assert means["ensemble", 0.25] == pytest.approx(0.04)
    assert drawn(loss)["mean"].unique().tolist() == [0.5]
    assert "Mean and range over 2 runs." in error.caption
    assert "(100 samples; with so few, chance alone lifts it above 0)" in error.caption
    (line, *_) = error.figure.axes[0].lines
    assert [y for _, y in points(line)] == pytest.approx([2.0] * 4), "percent"


def test_runs_that_were_not_measured_do_not_hide_the_others(tmp_path: Path) -> None:
    bare = made_run(tmp_path, "bare", [record(0, 1.0)])
    assert calibration_charts([]) == calibration_charts([bare]) == []
    alone = measured(tmp_path, "alone", networks=("average",))
    charts = calibration_charts([bare, alone])
    assert [set(drawn(chart)["arm"]) for chart in charts] == [{"alone"}] * 2
    assert all(chart.caption.endswith("of each round's network. One run.") for chart in charts)


def test_of_one_arm_the_legend_has_its_networks_in_its_colour(tmp_path: Path) -> None:
    error, _ = calibration_charts([measured(tmp_path, "a")])
    (legend,) = error.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["average", "particles", "ensemble"]
    several, _ = calibration_charts([measured(tmp_path, name) for name in ("a", "b")])
    names = [text.get_text() for text in several.figure.legends[0].get_texts()]
    assert names == ["a", "b", "average", "particles", "ensemble"]


def test_many_arms_stay_legible(tmp_path: Path) -> None:
    runs = [measured(tmp_path, f"an-arm-with-a-long-name-{number}") for number in range(6)]
    for chart in calibration_charts(runs):
        assert flaws(chart.figure) == [], chart.name
