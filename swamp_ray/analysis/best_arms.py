"""Which arms of several cannot be told from the best one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from swamp_ray.analysis.statistics import holm, paired

ALPHA = 0.05
BEST = "best"
TIED = "not distinguishable"
WORSE = "distinguishable"
UNTESTED = "not tested"
"""What is found of an arm."""


@dataclass(frozen=True)
class Verdict:
    """An arm beside the best one.

    Attributes:
        found: best, not distinguishable, distinguishable, or not tested (fewer than two seeds in common).
        difference: Mean over the pairs of this arm minus the best; None without a pair.
        num_pairs: Seeds that both have.
        p_value: Of the paired t test, two-sided; None where nothing is tested.
        adjusted: The same by Holm (1979) over all arms that are tested.
    """

    found: str
    difference: float | None = None
    num_pairs: int = 0
    p_value: float | None = None
    adjusted: float | None = None


def verdicts(arms: Mapping[str, Mapping[int, float]], higher_is_better: bool, alpha: float = ALPHA
             ) -> dict[str, Verdict]:
    """Compare every arm with the best one, paired by seed.

    Best is the arm of the best mean among those that have the most seeds: one lucky seed of an unfinished arm is none.
    The best one is picked by the values that are then tested, so that a verdict is an orientation and no proof.

    Args:
        arms: Values of each arm by seed. One with a value that is not finite is neither best nor tested.
        higher_is_better: Whether a larger value is the better one.
        alpha: An arm is distinguishable where its adjusted p-value is below.
    """
    finite = {}
    for arm, values in arms.items():
        if values and all(math.isfinite(value) for value in values.values()):
            finite[arm] = values
    if not finite:
        return {arm: Verdict(UNTESTED) for arm in arms}
    best = _best(finite, higher_is_better)
    found = {arm: Verdict(UNTESTED) for arm in arms}
    for arm, values in finite.items():
        found[arm] = _beside(values, finite[best])
    found[best] = Verdict(BEST, 0.0, len(finite[best]))
    tested = {arm: one.p_value for arm, one in found.items() if one.p_value is not None}
    for arm, adjusted in holm(tested).items():
        one = found[arm]
        found[arm] = Verdict(WORSE if adjusted < alpha else TIED, one.difference, one.num_pairs, one.p_value, adjusted)
    return found


def _best(arms: Mapping[str, Mapping[int, float]], higher_is_better: bool) -> str:
    """Of equally good arms the one that is named first."""
    most = max(len(values) for values in arms.values())
    means = {arm: statistics.fmean(values.values()) for arm, values in arms.items() if len(values) == most}
    pick = max if higher_is_better else min
    return pick(means, key=lambda arm: means[arm])


def _beside(values: Mapping[int, float], best: Mapping[int, float]) -> Verdict:
    seeds = sorted(values.keys() & best.keys())
    if not seeds:
        return Verdict(UNTESTED)
    own = [values[seed] for seed in seeds]
    others = [best[seed] for seed in seeds]
    difference = statistics.fmean(own) - statistics.fmean(others)
    if len(seeds) < 2:
        return Verdict(UNTESTED, difference, len(seeds))
    return Verdict(UNTESTED, difference, len(seeds), paired(own, others).p_value)
