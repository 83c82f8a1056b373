"""The best arm and those that cannot be told from it, on made-up values whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from swamp_ray.analysis.best_arms import BEST, TIED, UNTESTED, WORSE, verdicts

BASE = (0.90, 0.91, 0.89, 0.92, 0.90)


def shifted(shift: float, *noise: float) -> dict[int, float]:
    """The base values by seed, moved by a shift and some noise."""
    return {seed: value + shift + extra for seed, (value, extra) in enumerate(zip(BASE, noise, strict=True))}


BEST_ARM = shifted(0.0, 0, 0, 0, 0, 0)
CLOSE = shifted(-0.001, 0.004, -0.004, 0.003, -0.004, 0.001)
FAR = shifted(-0.05, 0.002, -0.001, 0.001, -0.002, 0.0)


def test_pairs_decide_and_not_the_spread_over_seeds() -> None:
    """The far arm lies within two deviations of the best one over seeds, but below it at each seed."""
    found = verdicts({"a": BEST_ARM, "b": CLOSE, "c": FAR}, higher_is_better=True)
    assert {arm: one.found for arm, one in found.items()} == {"a": BEST, "b": TIED, "c": WORSE}
    assert found["c"].difference == pytest.approx(-0.05)
    assert found["c"].num_pairs == 5
    expected = stats.ttest_rel(list(FAR.values()), list(BEST_ARM.values())).pvalue
    assert found["c"].p_value == pytest.approx(expected)
    assert found["c"].adjusted == pytest.approx(2 * expected), "the smaller of two p-values"


def test_holm_over_the_comparisons_at_one_sparsity() -> None:
    """Of four comparisons .012, .013, .02 and .3 three hold after Holm; of five, with another .013, none does."""
    noise = np.array([1.0, -1.0, 2.0, -2.0, 0.0])
    arms = {"best": BEST_ARM}
    wanted = {"w": 0.012, "x": 0.013, "y": 0.02, "z": 0.3}
    for arm, p_value in wanted.items():
        error = noise.std(ddof=1) / math.sqrt(5)
        shift = -stats.t.isf(p_value / 2, 4) * error
        arms[arm] = {seed: value + 1e-3 * (shift + extra) for seed, (value, extra) in
                     enumerate(zip(BASE, noise, strict=True))}
    found = verdicts(arms, higher_is_better=True)
    assert {arm: found[arm].p_value for arm in wanted} == pytest.approx(wanted)
    assert [found[arm].adjusted for arm in wanted] == pytest.approx([0.048, 0.048, 0.048, 0.3])
    assert [found[arm].found for arm in wanted] == [WORSE, WORSE, WORSE, TIED]
    arms["v"] = arms["x"]
    found = verdicts(arms, higher_is_better=True)
    assert found["w"].adjusted == pytest.approx(5 * 0.012)
    assert {found[arm].found for arm in "vwxyz"} == {TIED}


def test_the_lowest_is_best_of_a_loss() -> None:
    found = verdicts({"a": BEST_ARM, "b": CLOSE, "c": FAR}, higher_is_better=False)
    assert found["c"].found == BEST
    assert found["a"].found == WORSE


def test_a_lucky_seed_of_an_unfinished_arm_is_not_the_best() -> None:
    found = verdicts({"lucky": {3: 0.99}, "whole": BEST_ARM}, higher_is_better=True)
    assert (found["whole"].found, found["lucky"].found) == (BEST, UNTESTED)
    assert found["lucky"].num_pairs == 1
    assert found["lucky"].difference == pytest.approx(0.07)


def test_without_common_seeds_nothing_is_tested() -> None:
    found = verdicts({"a": {0: 0.9, 1: 0.8}, "b": {2: 0.1, 3: 0.2}}, higher_is_better=True)
    assert (found["a"].found, found["b"].found, found["b"].p_value) == (BEST, UNTESTED, None)


def test_values_that_are_not_finite_are_neither_best_nor_tested() -> None:
    found = verdicts({"a": BEST_ARM, "b": {**BEST_ARM, 2: math.inf}, "c": {0: math.nan}}, higher_is_better=True)
    assert [found[arm].found for arm in "abc"] == [BEST, UNTESTED, UNTESTED]
    assert verdicts({"a": {0: math.nan}}, higher_is_better=True)["a"].found == UNTESTED


def test_pairs_that_all_differ_equally_say_nothing_of_their_scatter() -> None:
    found = verdicts({"a": {0: 0.75, 1: 0.5}, "b": {0: 0.5, 1: 0.25}}, higher_is_better=True)
    assert (found["b"].found, found["b"].p_value) == (TIED, 1.0)
