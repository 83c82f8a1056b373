"""How many weights survive each round, and which: score x scope x exact top-k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil, floor, log, log1p, sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from swamp_ray.errors import RunError, UserError, nearest
from swamp_ray.sparsity.masks import Layout, full_values, split
from swamp_ray.user_code.importing import is_import_path, load_object, own_traceback

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(weights, rewind_weights) -> scores``, tensors of one layer's shape; the largest scores survive."""

SCOPES = ("global", "uniform", "erk")
_CHUNK = 1 << 18  # stays in a core's cache
_SAMPLE = 1 << 16
_MOST_ROUNDS = 10_000


def plan_survivors(num_prunable: int, rate: float, target: float, start: int | None = None) -> list[int]:
    """How many weights the mask of each round keeps: ``[k_0, ..., k_R]``, in exact rational arithmetic.

    ``k_r = floor(start (1 - rate)^r + 1/2)``; R is the smallest r with ``start (1 - rate)^r <= P (1 - target)``,
    and ``k_R = floor(P (1 - target) + 1/2)``.

    Args:
        num_prunable: P.
        rate: Share of the surviving weights that each round prunes, in (0, 1).
        target: Sparsity of the last round, in [0, 1).
        start: Weights that the first mask keeps; default P.

    Raises:
        UserError: A value is out of range, nothing would be left, the start is sparser than the target, or it
            would take more than 10,000 rounds.
    """
    if not 0 < rate < 1:
        raise UserError("the rate must lie in (0, 1)", got=rate, where="pruning.rate")
    if not 0 <= target < 1:
        raise UserError("the target sparsity must lie in [0, 1)", got=target, where="pruning.target")
    first = num_prunable if start is None else start
    keep, goal = 1 - Fraction(repr(float(rate))), num_prunable * (1 - Fraction(repr(float(target))))
    last = floor(goal + Fraction(1, 2))
    if last == 0:
        raise UserError(f"the target must leave at least one of {num_prunable} weights", got=target,
                        where="pruning.target", do="Lower it, or prune a larger network.")
    if last > first:
        raise UserError(f"the target must not be denser than the ticket that is pruned further ({first} of "
                        f"{num_prunable} weights)", got=target, where="pruning.target",
                        do=f"Set it to at least {ceil(10_000 * (1 - Fraction(first, num_prunable))) / 10_000}.")
    if log(last / first) < _MOST_ROUNDS * log1p(-rate):
        raise UserError(f"the rate is too small to reach the target in {_MOST_ROUNDS} rounds", got=rate,
                        where="pruning.rate", do="Raise it.")
    survivors = [first]
    exact = Fraction(first)
    if last == first:
        return survivors
    while exact > goal:
        exact *= keep
        survivors.append(max(last, floor(exact + Fraction(1, 2))))
    survivors[-1] = last
    return survivors


def magnitude(weights: Tensor, rewind_weights: Tensor) -> Tensor:
    """``|w|`` (Han et al., 2015)."""
    return weights.abs()


def movement(weights: Tensor, rewind_weights: Tensor) -> Tensor:
    """``|w - w0|``: how far training moved a weight."""
    return (weights - rewind_weights).abs()


SCORES: dict[str, Score] = {"magnitude": magnitude, "movement": movement}


def random_score(seed: int) -> Score:
    """Scores drawn uniformly from [0, 1), layer after layer, from one seeded generator."""
    generator = torch.Generator().manual_seed(seed)

    def score(weights: Tensor, rewind_weights: Tensor) -> Tensor:
        return torch.rand(weights.shape, generator=generator)

    return score


def make_score(name: str, *, seed: int) -> Score:
    """A score by name (magnitude, movement, random) or import path.

    Args:
        name: Its name, or ``package.module:function``.
        seed: Seed of random scores.

    Raises:
        UserError: There is no such score, or it cannot be imported.
    """
    if name == "random":
        return random_score(seed)
    if name in SCORES:
        return SCORES[name]
    if not is_import_path(name):
        known = [*SCORES, "random"]
        raise UserError("there is no such score", got=name, where="pruning.score",
                        do=f"{nearest(name, known)} Known: {', '.join(known)}; or package.module:function.".lstrip())
    score = load_object(name, "pruning.score")
    if not callable(score):
        raise UserError("a score must be a function", got=type(score).__name__, where="pruning.score")
    return cast(Score, score)


def score_survivors(
    layout: Layout, mask: np.ndarray, values: np.ndarray, rewind: np.ndarray, score: Score
) -> np.ndarray:
    """Scores of the surviving weights.

    Args:
        layout: The layers.
        mask: The round's mask, bool ``[P]``.
        values: Surviving weights, float32 ``[k]``.
        rewind: Rewind weights at the same places, float32 ``[k]``.
        score: The built-in ones are computed on the survivors; others get whole layers, pruned weights being 0.

    Returns:
        float32 ``[k]``.

    Raises:
        UserError: A user's score fails, or returns another shape.
        RunError: A score is NaN.
    """
    if score in (magnitude, movement):
        scores = score(_tensor(values), _tensor(rewind)).numpy()
    else:
        scores = _score_layers(layout, mask, values, rewind, score)[mask]
    if np.isnan(scores).any():
        layers = split(layout, _places(mask, np.isnan(scores)))
        bad = [name for name, part in layers.items() if part.any()]
        raise RunError(f"the score is NaN in {', '.join(bad)}")
    return scores


def _tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, copied only where it is read-only (as from Ray's object store): torch warns of those."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _places(mask: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Survivors that were chosen, as a mask over all weights."""
    full = np.zeros_like(mask)
    full[mask] = chosen
    return full


def _score_layers(layout: Layout, mask: np.ndarray, values: np.ndarray, rewind: np.ndarray, score: Score) -> np.ndarray:
    weights, starts = full_values(mask, values), full_values(mask, rewind)
    scores = np.empty(layout.num_prunable, dtype=np.float32)
    for layer in layout.layers:
        inputs = [torch.from_numpy(flat[layer.span]).reshape(layer.shape) for flat in (weights, starts)]
        try:
            found = score(*inputs)
        except Exception as error:
            raise UserError(f"the score failed on {layer.name}", where="pruning.score",
                            do=f"Its own error:\n{own_traceback(error)}") from error
        if not isinstance(found, Tensor) or tuple(found.shape) != layer.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the score of {layer.name} must be a tensor of shape {layer.shape}", got=str(shape),
                            where="pruning.score")
        scores[layer.span] = found.detach().float().cpu().numpy().reshape(-1)
    return scores


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
    """Keep the first ``missing`` of the scores that equal the threshold too, in place."""
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
    above, at_least = 0, 0
    inside: list[np.ndarray] = []
    for first in range(0, num, _CHUNK):
        chunk = scores[first:first + _CHUNK]
        beyond, reached = chunk > high, chunk >= low
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
    center, margin = share * _SAMPLE, 4 * sqrt(share * (1 - share) * _SAMPLE) + 1
    low, high = int(center - margin), int(center + margin)
    # Beyond the sample's ends the bracket is open.
    return (sample[low] if low >= 0 else scores.dtype.type(-np.inf),
            sample[high] if high < _SAMPLE else scores.dtype.type(np.inf))


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
    sizes = [layer.size for layer in layout.layers]
    weights = [Fraction(size if scope == "uniform" else sum(layer.shape))
               for size, layer in zip(sizes, layout.layers, strict=True)]
    shares = _capped_shares(weights, [Fraction(count) for count in counts], Fraction(k))
    budgets = [floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (budgets[index] - shares[index], index))
    for index in by_remainder[:k - sum(budgets)]:
        budgets[index] += 1
    return budgets


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


def select(layout: Layout, mask: np.ndarray, scores: np.ndarray, k: int, scope: str) -> np.ndarray:
    """The next mask: exactly k of the survivors, from all scores in one place.

    The obvious twin of what the shards of an average find together.

    Args:
        layout: The layers.
        mask: The current mask, bool ``[P]``.
        scores: Scores of its survivors, ``[mask.sum()]``.
        k: Survivors of the next mask.
        scope: ``global``: the largest scores of all layers at once. ``uniform``, ``erk``: the largest of each
            layer, see :func:`layer_budgets`.

    Returns:
        bool ``[P]``, a subset of ``mask``.
    """
    if scope not in SCOPES:
        raise ValueError(f"the scope must be one of {SCOPES}, but got {scope!r}")
    if scores.shape != (int(np.count_nonzero(mask)),):
        raise ValueError(f"the mask keeps {int(np.count_nonzero(mask))} weights, but got {scores.shape} scores")
    if scope == "global":
        return _places(mask, top_k(scores, k))
    counts = [int(np.count_nonzero(mask[layer.span])) for layer in layout.layers]
    chosen = np.zeros(scores.size, dtype=bool)
    first = 0
    for count, budget in zip(counts, layer_budgets(layout, counts, k, scope), strict=True):
        chosen[first:first + count] = top_k(scores[first:first + count], budget)
        first += count
    return _places(mask, chosen)

