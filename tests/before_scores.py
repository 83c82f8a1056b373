"""Scores before training for tests, as a user would write them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swamp_ray.training.tasks import Classification


def squared(model: nn.Module, task: Any, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The squared gradient of the first batch, of the weights that the mask keeps."""
    weights = {name: parameter for name, parameter in model.named_parameters() if name in mask}
    assert all(not bool(weights[name][~kept].any()) for name, kept in mask.items())
    loss = task.training_step(model, next(iter(batches)))[0]
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return {name: gradient**2 for name, gradient in zip(weights, gradients, strict=True)}


def turned(model: nn.Module, task: Any, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of another shape."""
    return {name: torch.ones(kept.shape[::-1]) for name, kept in mask.items()}


def nan(model: nn.Module, task: Any, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No numbers."""
    return {name: torch.full(kept.shape, torch.nan) for name, kept in mask.items()}


def nothing(model: nn.Module, task: Any, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No scores."""
    return {}


def labels(model: nn.Module, task: Any, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Needs what the task's batches do not have."""
    weights = [batch["weights"] for batch in batches]
    return {name: torch.ones(kept.shape) * len(weights) for name, kept in mask.items()}


def old_form(weights: Tensor, rewind: Tensor) -> Tensor:
    """A score of weights after a round."""
    return weights.abs() + rewind.abs()


class OwnLoss(Classification):
    """Classification with a loss of its own."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Twice the usual one."""
        return 2 * super().loss(model, batch)


class Marked(Classification):
    """Classification that knows a file."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = Path(marker)


def deadly(model: nn.Module, task: Marked, batches: Any, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ends a worker's process, unless the task's file is there; leaves it. Where the run is driven it does nothing."""
    if not task.marker.exists() and "ray::" in Path("/proc/self/cmdline").read_text():
        task.marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return squared(model, task, batches, mask)
