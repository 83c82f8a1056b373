"""Drop and grow: how a layer's mask moves within one training, with as many weights as before.

SET (Mocanu et al., 2018) grows at random; RigL (Evci et al., 2020) grows where the dense gradient is largest. Both drop
the weights of smallest magnitude first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.top_k import top_k


@dataclass(frozen=True)
class Exchange:
    """A mask after drop and grow.

    Attributes:
        kept: The new mask, bool ``[n]``.
        continuing: Weights of both masks that were never dropped, bool ``[n]``; all others of the new mask start at 0.
    """

    kept: np.ndarray
    continuing: np.ndarray


def num_exchanged(num_kept: int, size: int, share: float) -> int:
    """How many weights of a layer are dropped and grown.

    Args:
        num_kept: Weights that the layer keeps.
        size: All weights of the layer.
        share: Of the kept ones, in [0, 1].

    Returns:
        ``floor(share * num_kept)``, and at most as many as are pruned: in a full layer nothing moves.
    """
    return min(int(share * num_kept), size - num_kept)


def drop_and_grow(magnitudes: np.ndarray, kept: np.ndarray, growth: np.ndarray, num: int) -> Exchange:
    """Exchange exactly ``num`` weights of a layer.

    A dropped weight competes for growth with those that were pruned before, as in Evci et al. (2020): what it lacks is
    magnitude, and its gradient may be the largest. Where it grows it starts at 0 like any other.

    Args:
        magnitudes: ``|w|``, float32 ``[n]``.
        kept: The present mask, bool ``[n]``.
        growth: What decides which weights grow, the largest first, float32 ``[n]``.
        num: In [0, ``kept.sum()``].

    Raises:
        ValueError: A number is out of range, or one that decides is NaN.
    """
    places = np.flatnonzero(kept)
    if not 0 <= num <= places.size:
        raise ValueError(f"of {places.size} weights between 0 and all can be dropped, but got {num}")
    continuing = np.zeros_like(kept)
    continuing[places[top_k(magnitudes[places], places.size - num)]] = True
    # Among equal ones top_k keeps the lower index, in both choices.
    candidates = np.flatnonzero(~continuing)
    following = continuing.copy()
    following[candidates[top_k(growth[candidates], num)]] = True
    return Exchange(following, continuing)


def exchange_layers(
    layout: Layout, mask: np.ndarray, magnitudes: np.ndarray, growth: np.ndarray, share: float
) -> Exchange:
    """Drop and grow in every layer, each with its own number of weights.

    Args:
        layout: The layers.
        mask: The present mask, bool ``[P]``.
        magnitudes: ``|w|``, float32 ``[P]``.
        growth: What decides which weights grow, float32 ``[P]``.
        share: Of each layer's kept weights that are exchanged.
    """
    kept = np.empty_like(mask)
    continuing = np.empty_like(mask)
    for layer in layout.layers:
        span = layer.span
        num = num_exchanged(int(np.count_nonzero(mask[span])), layer.size, share)
        found = drop_and_grow(magnitudes[span], mask[span], growth[span], num)
        kept[span] = found.kept
        continuing[span] = found.continuing
    return Exchange(kept, continuing)


def random_growth(layout: Layout, seed: int) -> np.ndarray:
    """Growth at random: uniform in [0, 1), layer after layer, from one seeded generator, float32 ``[P]``."""
    generator = torch.Generator().manual_seed(seed)
    return np.concatenate([torch.rand(layer.size, generator=generator).numpy() for layer in layout.layers])


def prune_to(layout: Layout, mask: np.ndarray, magnitudes: np.ndarray, budgets: Sequence[int] | int) -> np.ndarray:
    """The mask that keeps the weights of largest magnitude among those that are kept now.

    Args:
        layout: The layers.
        mask: The present mask, bool ``[P]``.
        magnitudes: ``|w|``, float32 ``[P]``.
        budgets: How many weights are kept: in all, or in each layer.

    Raises:
        ValueError: More are to be kept than there are, or a magnitude is NaN.
    """
    following = np.zeros_like(mask)
    if isinstance(budgets, int):
        places = np.flatnonzero(mask)
        following[places[top_k(magnitudes[places], budgets)]] = True
        return following
    for layer, budget in zip(layout.layers, budgets, strict=True):
        places = layer.offset + np.flatnonzero(mask[layer.span])
        following[places[top_k(magnitudes[places], budget)]] = True
    return following
