"""Whether a network can be packed: what its training step must not do when it serves several particles."""

from __future__ import annotations

import contextlib
import copy
import random
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
        layers = [f"{name!r} ({type(module).__name__})" for name, module in model.named_modules() if _is_random(module)]
        where = f"in layer {', '.join(layers)}" if layers else "in the network's own code"
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
        before = _generator_states()
        task.training_step(trial, batch)
        return _generator_states() != before


def _generator_states() -> tuple[Any, ...]:
    """States of the global generators of torch (CPU), NumPy and Python, as values that can be compared."""
    numpy_state: Any = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), numpy_state[1].tobytes(), numpy_state[2], random.getstate()


def _is_random(module: nn.Module) -> bool:
    """Dropout in its many forms, stochastic depth, attention with dropout: layers with a probability above 0."""
    chance = getattr(module, "p", getattr(module, "dropout", 0))
    return isinstance(chance, float | int) and not isinstance(chance, bool) and 0 < chance <= 1
