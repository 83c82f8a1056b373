"""Paired statistics against scipy's own tests, and against simulated studies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from swamp_ray.analysis.statistics import detectable_difference, equivalence, holm, paired

stats: Any = scipy_stats
FIRST = [91.2, 90.8, 91.9, 91.0, 91.5]
SECOND = [90.9, 90.1, 91.2, 90.9, 90.8]


def test_interval_and_p_value_are_scipy_s() -> None:
    found, reference = paired(FIRST, SECOND), stats.ttest_rel(FIRST, SECOND)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.mean == pytest.approx(0.5)
    assert found.num == 5
    turned = paired(SECOND, FIRST)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_no_spread_is_no_reason_to_fail() -> None:
    assert paired([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert paired([2.0, 3.0], [1.0, 2.0]).p_value == 1.0
    assert equivalence([1.0, 2.0], [1.0, 2.0], 0.5) == 0.0
    assert equivalence([2.0, 3.0], [1.0, 2.0], 0.5) == 1.0
    with pytest.raises(ValueError, match="at least two seeds"):
        paired([1.0], [2.0])


@pytest.mark.parametrize("num", [2, 3, 4, 6, 20])
def test_what_could_have_been_seen_is_seen_in_four_of_five_studies(num: int) -> None:
    error = 0.4 / np.sqrt(num)
    shift = detectable_difference(error, num)
    draw = np.random.default_rng(0).normal(shift, 0.4, (20_000, num))
    assert (stats.ttest_1samp(draw, 0, axis=1)[1] < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_holm_multiplies_by_what_is_left_and_never_decreases() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"only": 0.9, "other": 0.8}) == pytest.approx({"only": 1.0, "other": 1.0})


def test_equivalence_is_two_one_sided_tests() -> None:
    differences = np.array(FIRST) - np.array(SECOND)
    expected = max(stats.ttest_1samp(differences, -0.9, alternative="greater")[1],
                   stats.ttest_1samp(differences, 0.9, alternative="less")[1])
    assert equivalence(FIRST, SECOND, 0.9) == pytest.approx(expected)
    assert equivalence(FIRST, SECOND, 0.4) > 0.5
