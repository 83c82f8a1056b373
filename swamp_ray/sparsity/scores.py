"""Scores of surviving weights: the largest survive the next pruning.

A score is computed on one slice of the survivors at a time, so that a network's weights may lie in several processes.
A score of the user's own sees whole layers, and so needs all survivors in one slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from swamp_ray.errors import RunError, UserError, nearest
from swamp_ray.sparsity.bits import between, layer_counts
from swamp_ray.sparsity.masks import Layer, Layout, from_bits, full_values
from swamp_ray.user_code.importing import is_import_path, load_object, own_traceback

UserScore = Callable[[Tensor, Tensor], Tensor]
"""``score(weights, rewind_weights) -> scores``, tensors of one layer's shape; the largest scores survive."""


@dataclass(frozen=True)
class Survivors:
    """A slice of the surviving weights, with what a score may read beside them.

    Attributes:
        layout: The layers.
        mask_bits: The round's mask, one bit a prunable weight.
        values: The slice's weights, float32 ``[n]``.
        rewind: A layer's rewind weights, float32, of the layer's shape or flat.
        first: Index among all survivors of the slice's first.
        buffer: Gives memory for the result, float32 ``[n]``; None: the score takes its own.
    """

    layout: Layout
    mask_bits: np.ndarray
    values: np.ndarray
    rewind: Callable[[Layer], np.ndarray]
    first: int = 0
    buffer: Callable[[int], np.ndarray] | None = None

    def of_layers(self, values_of: Callable[[Layer], np.ndarray]) -> np.ndarray:
        """Values of whole layers at the slice's survivors, float32 ``[n]``; one layer at a time is held."""
        last = self.first + self.values.size
        parts = [np.zeros(0, np.float32)]
        before = 0
        for layer, count in zip(self.layout.layers, layer_counts(self.layout, self.mask_bits), strict=True):
            values = values_of(layer).reshape(-1)
            if before < last and self.first < before + count:
                kept = values[between(self.mask_bits, layer.offset, layer.offset + layer.size)]
                parts.append(kept[max(0, self.first - before):last - before])
            before += count
        return np.concatenate(parts)


Score = Callable[[Survivors], np.ndarray]
"""Scores of a slice's survivors, float32 ``[n]``."""


def magnitude(survivors: Survivors) -> np.ndarray:
    """``|w|`` (Han et al., 2015)."""
    out = None if survivors.buffer is None else survivors.buffer(survivors.values.size)
    return np.abs(survivors.values, out=out)


def movement(survivors: Survivors) -> np.ndarray:
    """``|w - w0|``: how far training moved a weight."""
    with np.errstate(invalid="ignore"):  # two infinities of one sign give NaN, which is refused by layer
        return np.abs(survivors.values - survivors.of_layers(survivors.rewind))


def random_score(seed: int) -> Score:
    """Scores drawn uniformly from [0, 1), layer after layer, from one seeded generator.

    Whole layers are drawn, so that a weight's score depends neither on the mask nor on how survivors are divided.
    """

    def score(survivors: Survivors) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return survivors.of_layers(lambda layer: torch.rand(layer.size, generator=generator).numpy())

    return score


def users_score(function: UserScore) -> Score:
    """A function of the user's on whole layers, in which pruned weights are 0.

    The score raises UserError where the function fails or returns another shape.
    """

    def score(survivors: Survivors) -> np.ndarray:
        layout = survivors.layout
        mask = from_bits(survivors.mask_bits, layout.num_prunable)
        weights = full_values(mask, survivors.values)
        starts = full_values(mask, survivors.of_layers(survivors.rewind))
        scores = np.empty(layout.num_prunable, dtype=np.float32)
        for layer in layout.layers:
            scores[layer.span] = _score_layer(function, layer, weights[layer.span], starts[layer.span])
        return scores[mask]

    return score


def _score_layer(function: UserScore, layer: Layer, weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    inputs = [torch.from_numpy(flat).reshape(layer.shape) for flat in (weights, starts)]
    try:
        found = function(*inputs)
    except Exception as error:  # whatever a function of the user's raises
        raise UserError(f"the score failed on {layer.name}", where="pruning.score",
                        do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(found, Tensor) or tuple(found.shape) != layer.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"the score of {layer.name} must be a tensor of shape {layer.shape}", got=str(shape),
                        where="pruning.score")
    return found.detach().float().cpu().numpy().reshape(-1)


SCORES: dict[str, Score] = {"magnitude": magnitude, "movement": movement}


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
    function = load_object(name, "pruning.score")
    if not callable(function):
        raise UserError("a score must be a function", got=type(function).__name__, where="pruning.score")
    return users_score(cast(UserScore, function))


def checked_scores(score: Score, survivors: Survivors) -> np.ndarray:
    """Scores of a slice's survivors, float32 ``[n]``, none of them NaN.

    Raises:
        UserError: A user's score fails, or returns another shape.
        RunError: A score is NaN; names the layers.
    """
    scores = score(survivors)
    # The maximum is NaN if any score is.
    if scores.size and np.isnan(scores.max()):
        places = survivors.first + np.flatnonzero(np.isnan(scores))
        ends = list(itertools.accumulate(layer_counts(survivors.layout, survivors.mask_bits)))
        layers = np.unique(np.searchsorted(ends, places, side="right"))
        names = [survivors.layout.layers[index].name for index in layers]
        raise RunError(f"the score is NaN in {', '.join(names)}")
    return scores
