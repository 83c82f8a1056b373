"""Reliability diagrams: bins with too few samples are drawn together, and how sure a share is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from swamp_ray.analysis.calibration import NUM_BINS, Bins
from swamp_ray.report.charts.reliability import FEWEST, merged, reliability_charts, wilson
from swamp_ray.report.load.runs import ReportRun
from tests.figures import drawn, flaws, made_run, record

FULL = dict.fromkeys(range(NUM_BINS), 100)
SMALL = {5: 1, 9: 3, 11: 8, 12: 2, 13: 4, 14: 341}


def bins_of(counts: dict[int, int]) -> Bins:
    """Samples of a bin have the probability of its middle, and half of them are right."""
    count = [counts.get(place, 0) for place in range(NUM_BINS)]
    return Bins(count, [(place + 0.5) / NUM_BINS if n else 0.0 for place, n in enumerate(count)],
                [0.5 if n else 0.0 for n in count])


def measured(folder: Path, name: str, counts: dict[int, int], *, rounds: int = 3, networks: Sequence[str] = (
        "average", "ensemble"), arm: str | None = None, seed: int = 0) -> ReportRun:
    bins = vars(bins_of(counts))
    rows = [{"round": index, "sparsity": 1 - 0.5**index, "network": network, "bins": bins}
            for index in range(rounds) for network in networks]
    return made_run(folder, name, [record(index, 0.5**index) for index in range(rounds)], arm=arm, seed=seed,
                    analyses={"calibration": {"rows": rows}})


@given(st.lists(st.integers(0, 30), min_size=NUM_BINS, max_size=NUM_BINS))
def test_every_sample_is_in_one_point_and_no_point_has_too_few(counts: list[int]) -> None:
    bins = bins_of(dict(enumerate(counts)))
    groups = merged(bins)
    assert sum(group["count"] for group in groups) == sum(counts)
    assert all(group["count"] >= FEWEST for group in groups) or len(groups) == 1
    assert all(one["to"] <= other["from"] for one, other in pairwise(groups))
    for name, values in (("confidence", bins.confidence), ("accuracy", bins.accuracy)):
        whole = sum(group["count"] * group[name] for group in groups)
        assert whole == pytest.approx(float(np.dot(counts, values)))


def test_full_bins_stay_as_they_are_and_few_samples_become_few_points() -> None:
    assert [group["count"] for group in merged(bins_of(FULL))] == [100] * NUM_BINS
    small = merged(bins_of(SMALL))
    assert [group["count"] for group in small] == [12, 347]
    assert small[0]["from"] == 5 / NUM_BINS
    assert merged(bins_of({})) == []


@pytest.mark.parametrize(("right", "num"), [(0, 12), (12, 12), (5, 12), (300, 341)])
def test_the_interval_is_wilsons(right: int, num: int) -> None:
    expected = binomtest(right, num).proportion_ci(method="wilson")
    assert wilson(right / num, num) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_it_is_shown_dense_in_the_middle_and_sparse_with_seeds_together(tmp_path: Path) -> None:
    runs = [measured(tmp_path, f"a{seed}", {10: 20, 14: 80}, rounds=9, arm="a", seed=seed) for seed in range(2)]
    (chart,) = reliability_charts(runs)
    data = drawn(chart)
    assert sorted(data["round"].unique()) == [0, 4, 8]
    points = data[(data["round"] == 0) & (data["network"] == "average") & (data["what"] == "point")]
    assert points["count"].tolist() == [40, 160]
    assert points["accuracy"].tolist() == pytest.approx([0.5, 0.5])
    grey = data[(data["round"] == 0) & (data["what"] == "bin")]
    assert (len(grey), int(grey["count"].sum())) == (NUM_BINS, 200)
    assert "2 runs, the samples of an arm's seeds together." in chart.caption
    assert flaws(chart.figure) == []


def test_a_small_test_set_has_a_point_below_its_fullest_bin(tmp_path: Path) -> None:
    (chart,) = reliability_charts([measured(tmp_path, "a", SMALL)])
    panel = chart.figure.axes[0]
    marked = [line for line in panel.lines if line.get_marker() == "o"]
    assert [len(np.asarray(line.get_xdata())) for line in marked] == [2]
    assert panel.get_title(loc="left") == "0 % sparse\n95 % above 0.93"
    assert chart.caption.endswith("One run.")


def test_without_an_ensemble_none_is_spoken_of(tmp_path: Path) -> None:
    (chart,) = reliability_charts([measured(tmp_path, "a", FULL, networks=("average",))])
    assert "ensemble" not in chart.caption
    assert [text.get_text() for text in chart.figure.legends[0].get_texts()] == ["average", "share of samples"]


def test_nothing_measured_nothing_drawn(tmp_path: Path) -> None:
    bare = made_run(tmp_path, "bare", [record(0, 1.0)])
    assert reliability_charts([]) == reliability_charts([bare]) == []
    assert set(drawn(reliability_charts([bare, measured(tmp_path, "a", FULL)])[0])["arm"]) == {"a"}


@pytest.mark.parametrize(("arms", "rounds"), [(1, 1), (1, 2), (2, 3), (6, 3)])
def test_any_number_of_arms_and_rounds_is_legible(tmp_path: Path, arms: int, rounds: int) -> None:
    runs = [measured(tmp_path, f"an-arm-with-a-long-name-{number}", SMALL, rounds=rounds) for number in range(arms)]
    assert flaws(reliability_charts(runs)[0].figure) == []
