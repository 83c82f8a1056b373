"""Which weights survive the next pruning: the largest scores, over all layers at once or layer by layer.

`select` answers the question for any number of slices of the survivors, in this process or in others. Where there is
one slice it finds the k largest scores by itself. Several exchange counts of scores, never the scores: see
:mod:`swamp_ray.sparsity.counting`. Both keep exactly k weights, and of equal scores those of the lowest index, so that
the mask has the same bits however the survivors are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np

from swamp_ray.sparsity import counting
from swamp_ray.sparsity.bits import choose, layer_counts
from swamp_ray.sparsity.counting import Threshold, kth_half, thresholds
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.top_k import top_k

SCOPES = ("global", "uniform", "erk")

P = ParamSpec("P")
Result = TypeVar("Result")
Slice = TypeVar("Slice")
AnySlice_co = TypeVar("AnySlice_co", covariant=True)


class Ask(Protocol[AnySlice_co]):
    """A slice in this process or in another one, which is asked by its class's own methods."""

    def __call__(
        self, method: Callable[Concatenate[AnySlice_co, P], Result], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], Result]:
        """Begin a method of the slice; the result is a function that waits for what it returns."""
        ...


def here(one: Slice) -> Ask[Slice]:
    """A slice of this process; it works when its result is asked for, so that slices elsewhere have begun by then."""

    def ask(
        method: Callable[Concatenate[Slice, P], Result], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], Result]:
        return lambda: method(one, *args, **kwargs)

    return ask


def ask_all(
    slices: Sequence[Ask[Slice]], method: Callable[Concatenate[Slice, P], Result], *args: P.args, **kwargs: P.kwargs
) -> list[Result]:
    """What a method returns for each slice, in order; the slices work side by side."""
    waits = [ask(method, *args, **kwargs) for ask in slices]
    return [wait() for wait in waits]


@dataclass(frozen=True)
class Group:
    """Survivors ``first`` to ``last - 1``, which compete with each other: the next mask keeps ``k`` of them."""

    first: int
    last: int
    k: int


class ScoredSlice:
    """The scores of some survivors that follow one another, and their part in the next mask.

    Attributes:
        first: Index among all survivors of the slice's first.
        scores: float32 ``[n]``, not NaN.
    """

    def __init__(self, first: int = 0, scores: np.ndarray | None = None) -> None:
        self.first = first
        self.scores = np.zeros(0, np.float32) if scores is None else scores

    def upper_counts(self, group: Group) -> np.ndarray:
        """How many scores of a group have each upper half of their bits, int64 ``[65536]``."""
        return counting.upper_counts(self._of(group))

    def lower_counts(self, group: Group, upper: int) -> np.ndarray:
        """How many scores of a group with this upper half have each lower half, int64 ``[65536]``."""
        return counting.lower_counts(self._of(group), upper)

    def keep(
        self, groups: Sequence[Group], found: Sequence[Threshold] | None, mask_bits: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """The slice's part of the next mask; its scores are released.

        Args:
            groups: All survivors, in order.
            found: The threshold of each group; None where this is the only slice and can tell by itself.
            mask_bits: The present mask.

        Returns:
            Where the part begins in the mask's bytes, and its bytes.
        """
        parts = [np.zeros(0, np.bool_)]
        for index, group in enumerate(groups):
            scores = self._of(group)
            parts.append(top_k(scores, group.k) if found is None else counting.keep(scores, found[index]))
        self.scores = np.zeros(0, np.float32)
        # A network of one group is not copied: it may have billions of weights.
        chosen = parts[1] if len(parts) == 2 else np.concatenate(parts)
        return choose(mask_bits, self.first, chosen)

    def _of(self, group: Group) -> np.ndarray:
        """Those of a group's scores that lie in the slice; a view."""
        return self.scores[max(0, group.first - self.first):max(0, group.last - self.first)]


def select(
    layout: Layout, mask_bits: np.ndarray, k: int, scope: str, slices: Sequence[Ask[ScoredSlice]],
    counts: Sequence[int] | None = None,
) -> np.ndarray:
    """The next mask: exactly k of the survivors of the present one.

    Args:
        layout: The layers.
        mask_bits: The present mask, one bit a prunable weight.
        k: Survivors of the next mask.
        scope: ``global``: the largest scores of all layers at once. ``uniform``, ``erk``: the largest of each
            layer, see :func:`layer_budgets`.
        slices: The scores of all survivors, in order.
        counts: Survivors of each layer, where they are known already.

    Returns:
        The next mask's bits, a subset of the present one's.

    Raises:
        ValueError: The scope is unknown, or there are fewer than k survivors.
    """
    groups = _groups(layout, layer_counts(layout, mask_bits) if counts is None else counts, k, scope)
    found: list[list[Threshold] | None] = [None]
    if len(slices) > 1:
        found = list(_thresholds(slices, groups))
    waits = [ask(ScoredSlice.keep, groups, own, mask_bits) for ask, own in zip(slices, found, strict=True)]
    parts = [wait() for wait in waits]
    if len(parts) == 1 and parts[0][1].size == mask_bits.size:  # nothing to put together
        return parts[0][1]
    following = np.zeros_like(mask_bits)
    for first, bits in parts:
        # Two slices may share a byte: each has zeros at the other's bits.
        following[first:first + bits.size] |= bits
    return following


def _groups(layout: Layout, counts: Sequence[int], k: int, scope: str) -> list[Group]:
    """Which survivors compete with each other: all of them, or those of each layer."""
    if scope not in SCOPES:
        raise ValueError(f"the scope must be one of {SCOPES}, but got {scope!r}")
    if scope == "global":
        return [Group(0, sum(counts), k)]
    groups = []
    first = 0
    for count, budget in zip(counts, layer_budgets(layout, counts, k, scope), strict=True):
        groups.append(Group(first, first + count, budget))
        first += count
    return groups


def _thresholds(slices: Sequence[Ask[ScoredSlice]], groups: Sequence[Group]) -> list[list[Threshold]]:
    """For each slice the threshold of every group, from what the slices count."""
    found: list[list[Threshold]] = [[] for _ in slices]
    for group in groups:
        if group.k == 0:
            of_slices = [Threshold(np.float32(np.inf), 0)] * len(slices)
        else:
            upper, above = kth_half(np.sum(ask_all(slices, ScoredSlice.upper_counts, group), axis=0), group.k)
            lower = ask_all(slices, ScoredSlice.lower_counts, group, upper)
            of_slices = thresholds(upper, above, lower, group.k)
        for own, threshold in zip(found, of_slices, strict=True):
            own.append(threshold)
    return found


def layer_budgets(layout: Layout, counts: Sequence[int], k: int, scope: str) -> list[int]:
    """How many weights each layer keeps.

    Args:
        layout: The layers.
        counts: Survivors of each layer now; no layer can keep more.
        k: Survivors in all.
        scope: ``uniform``: every layer has the same density. ``erk``: a layer's density is proportional to
            ``sum(shape) / prod(shape)`` (Erdos-Renyi kernel; Evci et al., 2020), at most 1.

    Returns:
        Budgets that sum to k exactly; remainders go to the layers with the largest ones, the earlier layer first.
    """
    if scope not in ("uniform", "erk"):
        raise ValueError(f"budgets are for the scopes uniform and erk, but got {scope!r}")
    if not 0 <= k <= sum(counts):
        raise ValueError(f"k must be at least 0 and at most the {sum(counts)} survivors, but got {k}")
    shares = layer_shares(layout, counts, k, scope)
    budgets = [floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (budgets[index] - shares[index], index))
    for index in by_remainder[:k - sum(budgets)]:
        budgets[index] += 1
    return budgets


def layer_shares(layout: Layout, counts: Sequence[int], k: int, scope: str) -> list[Fraction]:
    """The exact shares that :func:`layer_budgets` rounds; none falls where k rises."""
    sizes = [layer.size for layer in layout.layers]
    weights = [Fraction(size if scope == "uniform" else sum(layer.shape))
               for size, layer in zip(sizes, layout.layers, strict=True)]
    return _capped_shares(weights, [Fraction(count) for count in counts], Fraction(k))


def _capped_shares(weights: list[Fraction], caps: list[Fraction], total: Fraction) -> list[Fraction]:
    """Shares proportional to weights that sum to the total; what a cap cuts off goes to the others in proportion."""
    shares = [Fraction(0)] * len(weights)
    free = {index for index, weight in enumerate(weights) if weight > 0}
    left = total
    while free:
        factor = left / sum(weights[index] for index in free)
        full = {index for index in free if weights[index] * factor >= caps[index]}
        if not full:
            for index in free:
                shares[index] = weights[index] * factor
            break
        for index in full:
            shares[index] = caps[index]
            left -= caps[index]
        free -= full
    return shares
