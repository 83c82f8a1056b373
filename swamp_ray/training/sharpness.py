"""The way up of sharpness-aware minimisation (SAM; Foret et al., 2021): where a step's gradient is taken.

A step of SAM at the weights ``w`` takes the gradient ``g`` of its batch there, moves to ``w + rho * g / ||g||``, takes
the gradient of the same batch there, and lets the optimiser step from ``w`` with that one. The norm is over all trained
parameters together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import get_total_norm

from swamp_ray.training.optimizers import MaskedStep

_TINY = 1e-30
"""A gradient of zeros moves nothing, instead of dividing by zero."""


class Ascent:
    """The move from a step's weights to where SAM takes its gradient, and back.

    Gradients are masked before their norm is taken, so that pruned weights neither move nor count. Clipping is left to
    the optimiser's step. Running statistics are those of the pass at the step's own weights: what the second pass
    makes of them is undone, or they would move twice a step.

    Args:
        step: Knows the trained parameters and their masks.
        rho: Length of the move.
        norms: Modules whose running statistics training moves.
    """

    def __init__(self, step: MaskedStep, rho: float, norms: Sequence[_NormBase]) -> None:
        self._step = step
        self._rho = rho
        self._weights = [torch.empty_like(parameter) for parameter in step.parameters]
        self._statistics: list[Tensor] = []
        for module in norms:
            self._statistics += list(module.buffers(recurse=False))
        self._before = _copies(self._statistics)
        self._after = _copies(self._statistics)

    def begin(self) -> None:
        """Note the statistics before the first pass of a step."""
        _copy(self._before, self._statistics)

    @torch.no_grad()
    def climb(self) -> None:
        """Move along the parameters' gradients, and clear them."""
        _copy(self._after, self._statistics)
        _copy(self._weights, self._step.parameters)
        self._step.mask_gradients()
        moved = [parameter for parameter in self._step.parameters if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in moved if parameter.grad is not None])
        # A tensor, not a number: reading it would make every step wait for the GPU.
        scale = self._rho / norm.clamp(min=_TINY)
        for parameter in moved:
            if parameter.grad is not None:
                parameter.add_(parameter.grad * scale)
        self._step.clear_gradients()

    def descend(self) -> None:
        """Put back the weights, and the statistics as the first pass left them."""
        # From a copy: to subtract the move would leave its rounding in the weights.
        _copy(self._step.parameters, self._weights)
        _copy(self._statistics, self._after)

    def abandon(self) -> None:
        """Put back everything that a step has moved that is not finished."""
        _copy(self._step.parameters, self._weights)
        _copy(self._statistics, self._before)
        self._step.clear_gradients()


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
