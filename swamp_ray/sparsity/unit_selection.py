"""Plans and masks for units of weights: groups of N:M, channels, blocks. See :mod:`swamp_ray.sparsity.structure`.

What is chosen is exact, as without a structure: a round's mask keeps exactly as many weights as the plan says, and of
equal scores the unit (in a group the weight) of the lower flat index. Only, the plan counts in units:

- N:M: a mask keeps the same number n of every group. n falls from M by the rate, as weights do else, to N.
- Units that all have one size compete over all layers, or by layer.
- Channels of different sizes compete within their layers, which get whole units for their share of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity.masks import Layout, from_bits, full_values, to_bits
from swamp_ray.sparsity.schedule import plan_survivors
from swamp_ray.sparsity.selection import layer_shares
from swamp_ray.sparsity.structure import kept_of_groups, kept_units, unit_indices, unit_size
from swamp_ray.sparsity.top_k import top_k
from swamp_ray.structure import Structure


def plan_units(
    layout: Layout, structure: Structure, scope: str, rate: float, target: float, mask: np.ndarray
) -> list[int]:
    """How many weights the mask of each round keeps, the first one's included; a round that would prune nothing is not.

    Args:
        layout: The layers, each of which the structure divides.
        structure: The structure.
        scope: ``global``, ``uniform`` or ``erk``.
        rate: Share of the surviving units that each round prunes.
        target: Sparsity of the last round, as near as units allow.
        mask: Of the first round, bool ``[P]``.

    Raises:
        UserError: The mask has another structure, channels of different sizes would compete, nothing would be left, or
            what :func:`plan_survivors` refuses.
    """
    first = _first_units(layout, structure, mask)
    if structure.keeps_pattern:
        groups = layout.num_prunable // structure.second
        if first[0] < structure.first:
            raise UserError(f"the ticket keeps {first[0]} weights of each group, fewer than {structure.text} does",
                            where="pruning.structure")
        kept = plan_survivors(structure.second, rate, structure.target, first[0])
        return [groups * num for num in _falling(kept)]
    size = _common_size(layout, structure)
    if scope == "global" and size is None:
        raise UserError("channels of different sizes cannot compete for an exact number of weights", got="global",
                        where="pruning.scope", do="Set pruning.scope: uniform or erk.")
    if scope == "global" and size is not None:
        kept = plan_survivors(layout.num_prunable // size, rate, target, sum(first))
        return [size * num for num in _falling(kept)]
    return _plan_by_layer(layout, structure, scope, plan_survivors(
        layout.num_prunable, rate, target, int(np.count_nonzero(mask))), first)


def _first_units(layout: Layout, structure: Structure, mask: np.ndarray) -> list[int]:
    """Units of each layer under the first mask; N:M: the weights of every group, once."""
    try:
        if structure.keeps_pattern:
            return [kept_of_groups(layout, structure, mask)]
        return [int(kept_units(layer, structure, mask).sum()) for layer in layout.layers]
    except ValueError as error:
        raise UserError(f"the ticket's mask has not the structure {structure.text}: {error}",
                        where="pruning.structure", do="Go on from a ticket of the same structure, or without one.",
                        ) from error


def _common_size(layout: Layout, structure: Structure) -> int | None:
    """Weights of a unit, where all have the same number."""
    sizes = {unit_size(layer, structure) for layer in layout.layers}
    return sizes.pop() if len(sizes) == 1 else None


def _falling(counts: Sequence[int]) -> list[int]:
    """Counts without those that equal the one before."""
    return list(dict.fromkeys(counts))


def _plan_by_layer(
    layout: Layout, structure: Structure, scope: str, exact: Sequence[int], first: Sequence[int]
) -> list[int]:
    """Weights of each round, where every layer has whole units for its share of the exact plan's weights."""
    planned = [exact[0]]
    for k in exact[1:]:
        units = _rounded_units(layout, structure, scope, k)
        for layer, now, then in zip(layout.layers, first, units, strict=True):
            if then > now:
                raise UserError(f"the ticket keeps {now} {structure.kind} of {layer.name}, fewer than the next round's "
                                f"{then} with pruning.scope: {scope}", where="pruning.scope",
                                do="Go on with the scope that the ticket was pruned with, or lower pruning.target.")
        kept = _num_weights(layout, structure, units)
        if kept < planned[-1]:
            planned.append(kept)
    if planned[-1] == 0:
        raise UserError(f"the target leaves no whole unit of {structure.text} in any layer", where="pruning.target",
                        do="Lower it.")
    return planned


def _rounded_units(layout: Layout, structure: Structure, scope: str, k: int) -> list[int]:
    """Units of each layer: its exact share of k weights, in units, rounded to the nearest. None falls where k rises."""
    sizes = [layer.size for layer in layout.layers]
    units = []
    for layer, share in zip(layout.layers, layer_shares(layout, sizes, k, scope), strict=True):
        units.append(floor(share / unit_size(layer, structure) + Fraction(1, 2)))
    return units


def _num_weights(layout: Layout, structure: Structure, units: Sequence[int]) -> int:
    total = 0
    for layer, count in zip(layout.layers, units, strict=True):
        total += count * unit_size(layer, structure)
    return total


def units_by_layer(layout: Layout, structure: Structure, scope: str, survivors: int) -> list[int]:
    """Units of each layer, from the weights that a plan by layer gives a round.

    Raises:
        ValueError: No plan has so many.
    """
    # Units of a layer never fall where the exact k rises, so that equal totals are equal layer by layer.
    low = 0
    high = layout.num_prunable
    while low < high:
        middle = (low + high) // 2
        if _num_weights(layout, structure, _rounded_units(layout, structure, scope, middle)) >= survivors:
            high = middle
        else:
            low = middle + 1
    units = _rounded_units(layout, structure, scope, low)
    if _num_weights(layout, structure, units) != survivors:
        raise ValueError(f"layers of whole {structure.kind} never keep exactly {survivors} weights")
    return units


def select_units(
    layout: Layout, mask_bits: np.ndarray, k: int, scope: str, structure: Structure, scores: np.ndarray
) -> np.ndarray:
    """The next mask: exactly k of the present one's weights, in whole units or in the pattern.

    A unit's score is the sum of its weights' scores: of magnitudes, its L1 norm.

    Args:
        layout: The layers.
        mask_bits: The present mask, one bit a prunable weight.
        k: Weights that the next one keeps, as planned.
        scope: ``global``, ``uniform`` or ``erk``.
        structure: The structure.
        scores: Of all survivors, in order, float32, not NaN.

    Returns:
        The next mask's bits, a subset of the present one's.

    Raises:
        RunError: The present mask has another structure, or no mask of the structure keeps k weights.
    """
    mask = from_bits(mask_bits, layout.num_prunable)
    full = full_values(mask, scores)
    try:
        if structure.keeps_pattern:
            following = _in_pattern(layout, structure, mask, full, k)
        else:
            following = _whole_units(layout, structure, scope, mask, full, k)
    except ValueError as error:
        raise RunError(f"the next mask cannot have the structure {structure.text}: {error}") from error
    return to_bits(following)


def _in_pattern(layout: Layout, structure: Structure, mask: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """N:M: of each group the weights of the largest scores."""
    kept, left = divmod(k * structure.second, layout.num_prunable)
    if left or kept > kept_of_groups(layout, structure, mask):
        raise ValueError(f"{k} weights are not the same number of every group of {structure.second}")
    following = np.zeros_like(mask)
    for layer in layout.layers:
        groups = layer.offset + unit_indices(layer, structure)
        # Survivors first, then by falling score; a stable sort leaves equal ones in the order of their indices.
        order = np.lexsort((-scores[groups], ~mask[groups]), axis=1)
        chosen = np.take_along_axis(groups, order[:, :kept], axis=1)
        following[chosen.reshape(-1)] = True
    return following


def _whole_units(
    layout: Layout, structure: Structure, scope: str, mask: np.ndarray, scores: np.ndarray, k: int
) -> np.ndarray:
    """Channels and blocks: the units of the largest sums of scores, over all layers or by layer."""
    units: list[np.ndarray] = []  # of each layer the survivors, as flat indices [units, weights of a unit]
    sums: list[np.ndarray] = []
    for layer in layout.layers:
        own = layer.offset + unit_indices(layer, structure)[kept_units(layer, structure, mask)]
        units.append(own)
        sums.append(_sums(scores, own))
    if scope == "global":
        chosen = _chosen_anywhere(sums, k, _common_size(layout, structure))
    else:
        budgets = units_by_layer(layout, structure, scope, k)
        chosen = [top_k(own, budget) for own, budget in zip(sums, budgets, strict=True)]
    following = np.zeros_like(mask)
    for own, keep in zip(units, chosen, strict=True):
        following[own[keep].reshape(-1)] = True
    return following


def _chosen_anywhere(sums: Sequence[np.ndarray], k: int, size: int | None) -> list[np.ndarray]:
    """Which units of each layer are among the largest of all layers together."""
    if size is None or k % size:
        raise ValueError(f"{k} weights are no whole number of units")
    chosen = top_k(np.concatenate(sums), k // size)
    return np.split(chosen, np.cumsum([own.size for own in sums])[:-1])


def _sums(scores: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The sum of each unit's scores, float64 ``[units]``."""
    total = np.zeros(units.shape[0])
    # Weight after weight, not with sum(): how that one divides a row depends on the processor, and so would near ties.
    for place in range(units.shape[1]):
        total += scores[units[:, place]]
    return total
