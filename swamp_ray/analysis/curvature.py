"""How sharply the loss bends at a network: trace of the Hessian, its scale-invariant twin, its largest eigenvalue.

Everything is over the surviving weights and the parameters that are never pruned, for the mean loss of a fixed sample,
in evaluation mode, without weight decay, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from swamp_ray.analysis.vectors import inner, norm

Product = Callable[[np.ndarray], np.ndarray]
"""The Hessian times a direction, both float64 ``[n]`` over the parameters that are looked at."""


MAX_STEPS = 100
"""Of Lanczos's method: products with the Hessian that the largest eigenvalue takes at most."""


@dataclass(frozen=True)
class Estimate:
    """A mean over random directions, and its standard error."""

    mean: float
    standard_error: float
    num: int


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue as Lanczos's method gives it; ``residual`` bounds its distance from a true one."""

    value: float
    residual: float
    num_steps: int


def trace(product: Product, size: int, num: int, seed: int) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator with random signs.

    Args:
        product: The Hessian times a direction.
        size: n.
        num: Random directions, at least 2.
        seed: Of the directions.
    """
    return scaled_trace(product, np.ones(size), num, seed)


def scaled_trace(product: Product, weights: np.ndarray, num: int, seed: int) -> Estimate:
    """``sum_i w_i^2 H_ii`` by Hutchinson's estimator.

    Unlike the trace it does not change where a layer is scaled up and the next one down, as the norms of weights do
    when they are averaged (cf. Tsuzuku et al., 2020).

    Args:
        product: The Hessian times a direction.
        weights: w, float64 ``[n]``.
        num: Random directions, at least 2.
        seed: Of the directions.
    """
    if num < 2:
        raise ValueError(f"a standard error needs at least two directions, but got {num}")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num):
        direction = weights * generator.choice((-1.0, 1.0), size=weights.shape)
        values.append(inner(direction, product(direction)))
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(num), num)


def largest_eigenvalue(
    product: Product, size: int, seed: int, max_steps: int = MAX_STEPS, tolerance: float = 1e-3
) -> Eigenvalue:
    """The algebraically largest eigenvalue by Lanczos's method with full reorthogonalisation.

    Args:
        product: The Hessian times a direction.
        size: n.
        seed: Of the first direction.
        max_steps: Products at most.
        tolerance: Ends once the residual is at most this share of the value.
    """
    vector = np.random.default_rng(seed).standard_normal(size)
    basis = [vector / norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    found = Eigenvalue(math.nan, math.inf, 0)
    for step in range(1, min(max_steps, size) + 1):
        image = product(basis[-1])
        diagonal.append(inner(image, basis[-1]))
        for _ in range(2):  # once is not enough in floating point
            for known in basis:
                image = image - inner(image, known) * known
        rest = norm(image)
        values, vectors = eigh_tridiagonal(diagonal, beside)
        found = Eigenvalue(float(values[-1]), rest * abs(float(vectors[-1, -1])), step)
        if found.residual <= tolerance * abs(found.value):
            break
        beside.append(rest)
        basis.append(image / rest)
    return found


class Hessian:
    """Products with the Hessian of a network's mean loss.

    Args:
        parameters: Those that are looked at; gradients are taken of them.
        kept: For each of them which elements count, bool of its shape; None: all.
        batches: The sample.
        loss: The mean loss of a batch, and the number of its samples.
    """

    def __init__(
        self, parameters: Sequence[Tensor], kept: Sequence[Tensor | None], batches: Sequence[Any],
        loss: Callable[[Any], tuple[Tensor, int]],
    ) -> None:
        self._parameters = list(parameters)
        self._batches = batches
        self._loss = loss
        self._kept = [torch.ones_like(p, dtype=torch.bool) if one is None else one.to(p.device)
                      for p, one in zip(parameters, kept, strict=True)]
        self.size = sum(int(one.sum()) for one in self._kept)

    @property
    def weights(self) -> np.ndarray:
        """The elements that count, float64 ``[n]``."""
        return self._gathered([parameter.detach() for parameter in self._parameters])

    def __call__(self, direction: np.ndarray) -> np.ndarray:
        """The Hessian times a direction, float64 ``[n]``."""
        spread = self._spread(direction)
        total = np.zeros(self.size)
        count = 0
        for batch in self._batches:
            loss, num = self._loss(batch)
            gradients: Any = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
            inner = sum(((g * v).sum() for g, v in zip(gradients, spread, strict=True) if g is not None),
                        torch.zeros((), device=loss.device))
            if inner.requires_grad:
                products: Any = torch.autograd.grad(inner, self._parameters, allow_unused=True)
                total += num * self._gathered([torch.zeros_like(p) if one is None else one.detach()
                                               for p, one in zip(self._parameters, products, strict=True)])
            count += num
        return total / count

    def _gathered(self, tensors: Sequence[Tensor]) -> np.ndarray:
        parts = [tensor[kept].double().cpu().numpy() for tensor, kept in zip(tensors, self._kept, strict=True)]
        return np.concatenate(parts)

    def _spread(self, direction: np.ndarray) -> list[Tensor]:
        spread = []
        first = 0
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            last = first + int(kept.sum())
            full = torch.zeros_like(parameter, requires_grad=False)
            full[kept] = torch.from_numpy(direction[first:last]).to(full)
            spread.append(full)
            first = last
        return spread
