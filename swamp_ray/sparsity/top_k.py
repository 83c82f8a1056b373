"""The k largest of many scores, exactly, ties included."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

_CHUNK = 1 << 18  # stays in a core's cache
_SAMPLE = 1 << 16


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The k largest of the scores, exactly; equal scores keep the lower index.

    ``scores > threshold`` alone would keep too few weights, and ``>=`` too many, whenever scores are equal.

    Args:
        scores: ``[n]``, float32 or float64.
        k: In [0, n].

    Returns:
        bool ``[n]`` with exactly k True.

    Raises:
        ValueError: k is out of range, or a score is NaN.
    """
    num = scores.size
    if not 0 <= k <= num:
        raise ValueError(f"k must lie in [0, {num}], but got {k}")
    # The maximum is NaN if any score is.
    if num and np.isnan(scores.max()):
        raise ValueError("scores must not be NaN")
    if k == 0 or k == num:
        return np.full(num, k == num)
    threshold = _kth_largest(scores, k)
    keep = scores > threshold
    keep_ties(keep, scores, threshold, k - int(np.count_nonzero(keep)))
    return keep


def keep_ties(keep: np.ndarray, scores: np.ndarray, threshold: np.floating[Any], missing: int) -> None:
    """Keep the first ``missing`` of the scores that equal the threshold too, in place.

    Which of several equal scores are kept must not depend on how the scores are divided into chunks or slices, so it
    is always those of the lowest index.
    """
    for first in range(0, scores.size, _CHUNK):
        if missing == 0:
            return
        ties = scores[first:first + _CHUNK] == threshold
        if np.count_nonzero(ties) > missing:
            ties[np.flatnonzero(ties)[missing:]] = False
        keep[first:first + _CHUNK] |= ties
        missing -= int(np.count_nonzero(ties))


def _kth_largest(scores: np.ndarray, k: int) -> np.floating[Any]:
    """The k-th largest score, k in [1, n).

    A sample brackets it, one pass collects the scores inside the bracket, and only those are partitioned
    (Floyd and Rivest, 1975). The sample decides how long this takes, never what comes out.
    """
    num = scores.size
    if num <= 16 * _SAMPLE:
        return np.partition(scores, num - k)[num - k]
    low, high = _bracket(scores, k)
    above = 0
    at_least = 0
    inside: list[np.ndarray] = []
    for first in range(0, num, _CHUNK):
        chunk = scores[first:first + _CHUNK]
        beyond = chunk > high
        reached = chunk >= low
        above += int(np.count_nonzero(beyond))
        at_least += int(np.count_nonzero(reached))
        if low < high:
            inside.append(chunk[reached & ~beyond])
    if not above < k <= at_least:
        return np.partition(scores, num - k)[num - k]
    if low == high:
        return low
    candidates = np.concatenate(inside)
    place = candidates.size - (k - above)
    candidates.partition(place)
    return candidates[place]


def _bracket(scores: np.ndarray, k: int) -> tuple[np.floating[Any], np.floating[Any]]:
    """Two scores that most likely have the k-th largest between them, or at one of them."""
    # Random places: evenly spaced ones would see a single column of a matrix whose width divides the spacing.
    places = np.random.default_rng(0).integers(scores.size, size=_SAMPLE)
    sample = np.sort(scores[places])
    share = 1 - k / scores.size
    center = share * _SAMPLE
    margin = 4 * sqrt(share * (1 - share) * _SAMPLE) + 1
    low = int(center - margin)
    high = int(center + margin)
    # Beyond the sample's ends the bracket is open.
    return (sample[low] if low >= 0 else scores.dtype.type(-np.inf),
            sample[high] if high < _SAMPLE else scores.dtype.type(np.inf))
