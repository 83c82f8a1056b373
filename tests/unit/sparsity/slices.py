"""Scores and masks of survivors that all lie in one slice: the usual case, and the yardstick for several."""

from __future__ import annotations

import numpy as np

from swamp_ray.sparsity.masks import Layout, from_bits, full_values, to_bits
from swamp_ray.sparsity.scores import Score, Survivors, checked_scores
from swamp_ray.sparsity.selection import ScoredSlice, here, select


def scores_of(layout: Layout, mask: np.ndarray, values: np.ndarray, rewind: np.ndarray, score: Score) -> np.ndarray:
    """Scores of survivors, from their weights and their rewind weights, float32 ``[k]``."""
    starts = full_values(mask, rewind)
    return checked_scores(score, Survivors(layout, to_bits(mask), values, lambda layer: starts[layer.span]))


def mask_of(layout: Layout, mask: np.ndarray, scores: np.ndarray, k: int, scope: str) -> np.ndarray:
    """The next mask, bool ``[P]``."""
    following = select(layout, to_bits(mask), k, scope, [here(ScoredSlice(0, scores))])
    return from_bits(following, layout.num_prunable)
