"""Differences of arms, paired by seed: intervals, tests, and what could have been seen at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr

LEVEL = 0.95
NUM_MIDPOINTS = 20_000


@dataclass(frozen=True)
class Paired:
    """The mean difference of two arms over seeds.

    Attributes:
        mean: First arm minus second.
        standard_error: Of the mean.
        low, high: The interval that a t distribution with n - 1 degrees of freedom gives.
        p_value: Two-sided, of no difference; 1 where all pairs differ equally, which says nothing of their scatter.
        num: n, seeds.
        detectable: The smallest true difference that a two-sided 5 % test of n such pairs finds in 80 % of studies.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float
    num: int
    detectable: float


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Paired:
    """Compare two arms by the differences of their values at equal seeds.

    Raises:
        ValueError: They do not have equally many values, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"pairs of at least two seeds are needed, but got {len(first)} and {len(second)} values")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    num = len(differences)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(num)
    reach = float(stats.t.ppf(0.5 + level / 2, num - 1)) * error
    # Where pairs do not scatter at all, nothing is known of how far others would.
    p_value = 2 * float(stats.t.sf(abs(mean) / error, num - 1)) if error else 1.0
    return Paired(mean, error, mean - reach, mean + reach, p_value, num, detectable_difference(error, num))


def detectable_difference(standard_error: float, num: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided paired t test of ``num`` pairs finds with this power.

    The power is computed as the mean over the distribution of the standard error, at midpoints of equal probability:
    scipy's noncentral t distribution gives NaN at some arguments, most for few pairs.
    """
    if standard_error == 0:
        return 0.0
    critical = float(stats.t.ppf(1 - alpha / 2, num - 1))
    middles = (np.arange(NUM_MIDPOINTS) + 0.5) / NUM_MIDPOINTS
    bounds = critical * np.sqrt(stats.chi2.ppf(middles, num - 1) / (num - 1))

    def lacking(shift: float) -> float:
        return power - float(np.mean(ndtr(shift - bounds) + ndtr(-shift - bounds)))

    return float(brentq(lacking, 0.0, 4 * critical + 10)) * standard_error  # type: ignore[arg-type]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for several comparisons (Holm, 1979): each holds at a level if the adjusted one is below it."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted = {}
    largest = 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def equivalence(first: Sequence[float], second: Sequence[float], margin: float) -> float:
    """The p-value of two one-sided t tests that the mean difference lies outside of ±margin (Schuirmann, 1987).

    Below 0.05 the arms are equivalent to within the margin.
    """
    found = paired(first, second)
    if found.standard_error == 0:
        return float(abs(found.mean) >= margin)
    freedom = found.num - 1
    below = float(stats.t.sf((found.mean + margin) / found.standard_error, freedom))
    above = float(stats.t.cdf((found.mean - margin) / found.standard_error, freedom))
    return max(below, above)
