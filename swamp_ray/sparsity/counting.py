"""The exact k-th largest score of scores that are spread over several places, from counts alone.

A score of 0 or more has the order of its bit pattern, so that the k-th largest is found in two passes of 16 bits: how
many scores have each upper half, then how many of those with the k-th's upper half have each lower half. Each place
sends 65,536 counts a pass, whatever the number of its scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swamp_ray.sparsity.top_k import keep_ties

NUM_COUNTS = 1 << 16
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Threshold:
    """The k-th largest score, and how many scores that equal it are kept too."""

    score: np.float32
    num_ties: int


def upper_counts(scores: np.ndarray) -> np.ndarray:
    """How many scores have each upper half of their bits, int64 ``[65536]``.

    Args:
        scores: float32, none of them negative or NaN.

    Raises:
        ValueError: One of them is.
    """
    if scores.size and not scores.min() >= 0:
        raise ValueError("scores must be at least 0 and not NaN")
    return _counts(scores, None)


def lower_counts(scores: np.ndarray, upper: int) -> np.ndarray:
    """How many scores with this upper half of their bits have each lower half, int64 ``[65536]``."""
    return _counts(scores, upper)


def _counts(scores: np.ndarray, upper: int | None) -> np.ndarray:
    scores = np.ascontiguousarray(scores)
    if scores.size and scores.view(np.int32).min() < 0:
        scores = np.abs(scores)  # a negative zero is a zero, but has other bits
    keys = scores.view(np.uint32)
    counts = np.zeros(NUM_COUNTS, dtype=np.int64)
    for begin in range(0, keys.size, _BLOCK):
        block = keys[begin:begin + _BLOCK]
        halves = block >> 16 if upper is None else block[block >> 16 == upper] & 0xFFFF
        counts += np.bincount(halves, minlength=NUM_COUNTS)
    return counts


def kth_half(counts: np.ndarray, k: int) -> tuple[int, int]:
    """Which half of the bits the k-th largest score has, and how many scores have a larger one.

    Args:
        counts: Of all places together.
        k: In [1, the sum of the counts].
    """
    at_least = np.cumsum(counts[::-1])[::-1]
    half = int(np.flatnonzero(at_least >= k)[-1])
    return half, int(at_least[half] - counts[half])


def thresholds(upper: int, above: int, lower: list[np.ndarray], k: int) -> list[Threshold]:
    """The threshold for each place; of equal scores those of earlier places are kept first.

    Args:
        upper: Upper half of the k-th largest score.
        above: How many scores have a larger one.
        lower: Lower counts of each place.
        k: How many scores are kept in all.
    """
    half, between = kth_half(np.sum(lower, axis=0), k - above)
    score = np.uint32(upper << 16 | half).view(np.float32)
    left = k - above - between
    found = []
    for counts in lower:
        ties = min(left, int(counts[half]))
        found.append(Threshold(score, ties))
        left -= ties
    return found


def keep(scores: np.ndarray, threshold: Threshold) -> np.ndarray:
    """The scores above the threshold and the first of those that equal it, bool ``[n]``."""
    kept = scores > threshold.score
    keep_ties(kept, scores, threshold.score, threshold.num_ties)
    return kept
