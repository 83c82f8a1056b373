"""Which networks can be packed: what a training step must not do when it serves several of them."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from swamp_ray.errors import UserError, first_line
from swamp_ray.random_state import seeded
from swamp_ray.training.packs.stacked import StackedGradients
from swamp_ray.training.tasks import Batch, Task


def why_unpackable(model: nn.Module, task: Task, batch: Batch, form: str) -> str | None:
    """Why particles of this network cannot be trained together; None if they can.

    Args:
        model: On the CPU; it is left alone.
        task: What is learned.
        batch: A small training batch.
        form: ``"stacked"`` or ``"graphs"``.
    """
    if _draws(model, task, batch):
        names = [f"{name!r} ({type(module).__name__})" for name, module in model.named_modules() if _is_random(module)]
        where = f"in layer {', '.join(names)}" if names else "in the network's own code"
        return f"a training step draws random numbers {where}, which packed particles would share"
    if form != "stacked":
        return None
    hooked = [name for name, parameter in model.named_parameters()
              if parameter._backward_hooks or parameter._post_accumulate_grad_hooks]
    if hooked:
        return f"hooks on the gradients of {', '.join(hooked)} would not be called"
    models = [copy.deepcopy(model).train() for _ in range(2)]
    try:
        StackedGradients(models, task, autocast=contextlib.nullcontext)({0: batch, 1: batch})
    except UserError:
        raise
    except Exception as error:  # whatever a network of the user's does under torch.func
        return f"torch.func.vmap cannot transform its training step: {first_line(error)}"
    return None


def _draws(model: nn.Module, task: Task, batch: Batch) -> bool:
    """Whether a training step moves one of the global generators."""
    trial = copy.deepcopy(model).train()
    with seeded(0):
        before = list(_generators())
        task.training_step(trial, batch)
        return any(not _same(a, b) for a, b in zip(before, _generators(), strict=True))


def _generators() -> Iterator[Any]:
    yield torch.get_rng_state().clone()
    state: Any = np.random.get_state(legacy=True)
    yield from state[1:3]
    yield random.getstate()


def _same(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, tuple) else bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _is_random(module: nn.Module) -> bool:
    """Dropout in its many forms, stochastic depth, attention with dropout: layers with a probability above 0."""
    chance = getattr(module, "p", getattr(module, "dropout", 0))
    return isinstance(chance, float | int) and not isinstance(chance, bool) and 0 < chance <= 1
