"""The curvature of a run's networks on a fixed sample of its training images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.analysis.bench import Bench, Point
from swamp_ray.analysis.curvature import (
    MAX_STEPS,
    Eigenvalue,
    Estimate,
    Hessian,
    largest_eigenvalue,
    scaled_trace,
    trace,
)
from swamp_ray.data.trees import num_samples, tree_map
from swamp_ray.sparsity.masks import mask_tensors, prunable_tensors
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.evaluation_loss import loss_of

NUM_SAMPLES = 5000
BATCH = 500
NUM_DIRECTIONS = 32
SEED = 0


@dataclass(frozen=True)
class Sharpness:
    """Curvature at one network, see :mod:`swamp_ray.analysis.curvature`.

    Attributes:
        loss: Mean loss of the sample.
        trace: Of the Hessian.
        scaled: ``sum_i w_i^2 H_ii``.
        largest: Eigenvalue.
        num_parameters: That were looked at: surviving weights, and parameters that are never pruned.
        num_samples: Training images.
    """

    loss: float
    trace: Estimate
    scaled: Estimate
    largest: Eigenvalue
    num_parameters: int
    num_samples: int

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def sharpness(
    bench: Bench, index: int, point: Point, num_images: int = NUM_SAMPLES, num_directions: int = NUM_DIRECTIONS
) -> Sharpness:
    """Measure the curvature at weights under a round's mask: evaluation mode, float32, no augmentation, no decay.

    Args:
        bench: The run.
        index: The round, whose mask says which weights survive.
        point: The weights.
        num_images: The first of the training split, or all if there are fewer.
        num_directions: Random directions of each estimate.
    """
    with applied(bench.arithmetic):
        batches = _sample(bench, num_images)
        hessian, loss = _hessian(bench, index, point, batches)
        with torch.no_grad():
            losses = [loss(batch) for batch in batches]
        count = sum(num for _, num in losses)
        return Sharpness(
            loss=sum(float(value) * num for value, num in losses) / count,
            trace=trace(hessian, hessian.size, num_directions, SEED),
            scaled=scaled_trace(hessian, hessian.weights, num_directions, SEED),
            largest=largest_eigenvalue(hessian, hessian.size, SEED),
            num_parameters=hessian.size,
            num_samples=count,
        )


def longest_s(bench: Bench, index: int, point: Point, num_images: int, num_directions: int) -> float:
    """Seconds that :func:`sharpness` takes at most, from one product with the Hessian of one batch.

    The first product is not timed, because it makes room for the others.
    """
    with applied(bench.arithmetic):
        batches = _sample(bench, num_images)
        hessian, _ = _hessian(bench, index, point, batches[:1])
        direction = np.ones(hessian.size)
        hessian(direction)
        began = time.monotonic()
        hessian(direction)
        one_s = time.monotonic() - began
    num_products = 2 * num_directions + MAX_STEPS
    return one_s * len(batches) * num_products


def _hessian(
    bench: Bench, index: int, point: Point, batches: list[Any]
) -> tuple[Hessian, Callable[[Any], tuple[Tensor, int]]]:
    """The Hessian at weights under a round's mask, and the loss of a batch with its number of samples."""
    trainer = bench.trainer
    bench.put(point)
    model = trainer.model.eval()
    model.zero_grad(set_to_none=True)

    def loss(batch: Any) -> tuple[Tensor, int]:
        return loss_of(trainer.task, model, batch), num_samples(batch)

    weights = prunable_tensors(model, trainer.layout)
    masks = mask_tensors(trainer.layout, bench.mask(index), device=trainer.device, like=weights)
    kept = {id(weight): mask.bool() for weight, mask in zip(weights, masks, strict=True)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Hessian(parameters, [kept.get(id(parameter)) for parameter in parameters], batches, loss), loss


def _sample(bench: Bench, num_images: int) -> list[Any]:
    """The first images of the training split, unaugmented, in batches."""
    batches = []
    left = num_images
    trainer = bench.trainer
    for batch in trainer.evaluation_batches("train", min(BATCH, num_images)):
        taken = min(left, num_samples(batch))
        if taken == 1 and batches and trainer.uses_batch_statistics:
            break  # a single sample has no variance
        batches.append(tree_map(lambda tensor, taken=taken: tensor[:taken], batch))
        left -= taken
        if left == 0:
            break
    return batches
