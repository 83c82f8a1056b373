"""The study's results as tables of numbers: by seed and round, in percent, and paired by seed."""

from __future__ import annotations

from typing import Any

import pandas as pd

from swamp_ray.analysis.statistics import Paired, paired

Frame = Any
"""A DataFrame or a Series."""
MIN_SEEDS = 3
"""Of fewer nothing is said."""
ENDPOINT = 3
"""The primary endpoint is the mean over so many of the sparsest rounds."""
MARGIN = 0.5
"""Points of accuracy within which C3 calls two methods equivalent, and C1 and C5 a loss nothing."""
COLLAPSED = 0.15
"""A network that is no more accurate than this has collapsed; it stays in all means."""
AGAINST = ("imp", "imp_4t", "swamp_without_swa", "imp_swa")
"""SWAMP is compared with each of these, as far as the tier has it; Holm's correction is over all of them."""
LABELS = {
    "imp": "IMP", "imp_second": "IMP, second seed", "imp_ensemble": "two IMP solutions (ensemble)",
    "imp_swa": "IMP + SWA", "swamp": "SWAMP", "swamp_without_swa": "SWAMP without SWA", "imp_4t": "IMP, 4 T",
    "imp_best_of_4": "IMP, best of 4", "swamp_plus": "SWAMP+", "sms": "Sparse Model Soups", "one_shot": "one-shot",
    "swamp_2_particles": "SWAMP, 2 particles", "swamp_8_particles": "SWAMP, 8 particles",
    "imp_t0_0": "IMP, T0 = 0", "swamp_t0_0": "SWAMP, T0 = 0", "imp_t0_1": "IMP, T0 = 1", "swamp_t0_1": "SWAMP, T0 = 1",
    "imp_rate_20": "IMP, rate 0.2", "swamp_rate_20": "SWAMP, rate 0.2", "imp_wrn": "IMP, WRN-28-2",
    "imp_swa_wrn": "IMP + SWA, WRN-28-2", "swamp_wrn": "SWAMP, WRN-28-2", "dense_2t": "dense, 2 T",
}


WITH_AUGMENTATION = "with augmented statistics"
"""Networks whose normalisation statistics are those of augmented images."""
OVER_MEAN = "excess over the mean of the ends"
"""The barrier of Frankle et al. (2020): the largest error on a line minus the mean of its ends."""
MASKS = ("mask of swamp", "mask of imp", "shuffled mask of swamp", "shuffled mask of imp")
"""What is swapped for C7."""


def values(frame: Frame, arm: str, what: str, metric: str = "accuracy", split: str = "test") -> Frame:
    """One row a seed and one column a round."""
    chosen = frame[(frame["arm"] == arm) & (frame["what"] == what) & (frame["split"] == split)
                   & (frame["metric"] == metric)]
    return chosen.pivot(index="seed", columns="round", values="value")


def accuracy(frame: Frame, arm: str, what: str | None = None) -> Frame:
    """Test accuracy in percent, one row a seed and one column a round."""
    return 100 * values(frame, arm, what or ("ensemble" if arm.endswith("_ensemble") else "average"))


def arms_of(frame: Frame) -> list[str]:
    """Arms with results, in the order of the labels."""
    present = set(frame["arm"])
    return [arm for arm in LABELS if arm in present]


def sparsities(frame: Frame, arm: str) -> dict[int, float]:
    """The sparsity of each round of an arm."""
    found = frame[frame["arm"] == arm].groupby("round")["sparsity"].first()
    return {int(index): float(value) for index, value in found.items()}


def endpoint(frame: Frame, arm: str, what: str | None = None) -> Frame:
    """The primary endpoint of each seed: mean test accuracy over the sparsest rounds, in percent."""
    found = accuracy(frame, arm, what)
    return found[sorted(found.columns)[-ENDPOINT:]].mean(axis=1)


def pairs(first: Frame, second: Frame) -> tuple[list[float], list[float]]:
    """The values of two arms at the seeds that both have."""
    first, second = first.dropna(), second.dropna()
    common = [seed for seed in first.index if seed in second.index]
    return [float(first[seed]) for seed in common], [float(second[seed]) for seed in common]


def compared(first: Frame, second: Frame) -> Paired | None:
    """Two arms paired by seed; None with too few pairs."""
    found = pairs(first, second)
    return paired(*found) if len(found[0]) >= MIN_SEEDS else None


def against_zero(series: Frame) -> Paired | None:
    """Values of seeds as differences; None with too few."""
    found = [float(value) for value in series.dropna()]
    return paired(found, [0.0] * len(found)) if len(found) >= MIN_SEEDS else None


def by_round(frame: Frame, arm: str, what: str = "average", minus: tuple[str, str] | None = None) -> dict[int, Paired]:
    """Test accuracy, or its difference to another arm's or network's (`minus`: arm, what), of each round with pairs."""
    first = accuracy(frame, arm, what)
    second = None if minus is None else accuracy(frame, *minus)
    found = {}
    for index in sorted(first.columns):
        if second is None:
            one = against_zero(first[index])
        else:
            one = compared(first[index], second[index]) if index in second else None
        if one is not None:
            found[int(index)] = one
    return found


def lines(frame: Frame, what: str, arm: str = "swamp") -> dict[int, Paired]:
    """Error barriers or dips on lines, in points, of each round with at least two seeds."""
    found = 100 * values(frame, arm, what, "error")
    return {int(index): one for index in sorted(found.columns) if (one := against_zero(found[index])) is not None}


def over_mean(frame: Frame, arm: str = "swamp") -> dict[int, tuple[Paired, bool]]:
    """The excess over the mean of the ends between successive rounds, in points, and whether it was measured.

    Where it was not, half the distance between the ends stands for it, which it cannot be less than.
    """
    measured = lines(frame, f"{OVER_MEAN} between rounds", arm)
    if measured:
        return {index: (one, True) for index, one in measured.items()}
    found = {}
    ends = accuracy(frame, arm)
    for index in lines(frame, "barrier between rounds", arm):
        half = (ends[index] - ends[index + 1]).abs() / 2 if index + 1 in ends else pd.Series(dtype=float)
        one = against_zero(half)
        if one is not None:
            found[index] = (one, False)
    return found


def masked(frame: Frame, arm: str, what: str) -> Frame:
    """Test accuracy in percent of an arm's training under a swapped mask, by seed."""
    found = accuracy(frame, arm, what)
    return found.iloc[:, -1] if len(found.columns) else pd.Series(dtype=float)


def log_ratio(frame: Frame, first: tuple[str, str], second: tuple[str, str], metric: str) -> Paired | None:
    """Mean logarithm of the ratio of two networks' curvature, paired by seed; each network is (arm, what)."""
    import numpy as np

    found = [values(frame, arm, f"curvature of {what}", metric, "train") for arm, what in (first, second)]
    if any(one.empty for one in found):
        return None
    return compared(*(np.log(one[one.columns[-1]]) for one in found))
