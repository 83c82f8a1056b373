"""State that a network keeps beside parameters and buffers: no checkpoint holds it, and particles would share it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.errors import UserError

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def refuse_hidden_state(model: nn.Module, step: Callable[[], object]) -> None:
    """Raise UserError if a training step changes numbers, tensors or random generators that modules hold.

    A worker trains one particle after another with the same module, so that each would begin with what the one before
    has left there. What only the first step sets, such as a cache, is no state.

    Args:
        model: It has taken one step already.
        step: Takes the same step once more.
    """
    before = _attributes(model)
    step()
    for name, value in _attributes(model).items():
        if name not in before or before[name] == value:
            continue
        what, do = "which no checkpoint holds and which one particle would hand on to the next", (
            "Keep it constant, or compute it from the inputs.")
        if isinstance(value, _Generator):
            do = "Draw from torch's global generator, which is seeded for each particle and epoch."
        raise UserError(f"a training step changes the attribute {name!r} of the model, {what}", where="model.name",
                        do=do)


class _Generator(bytes):
    """The state of a random generator."""


def _attributes(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in _OF_EVERY_MODULE:
                continue
            state = _state(value)
            if state is not None:
                found[f"{name}.{key}" if name else key] = state
    return found


def _state(value: Any) -> Any:
    """What can be compared of a number, a tensor or a generator; None for anything else."""
    if isinstance(value, bool | int | float | np.number):
        return value
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, Tensor):
        return _bytes_of(value)
    if isinstance(value, _GENERATORS):
        return _Generator(_generator_state(value).encode())
    return None


def _bytes_of(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    flat = tensor.detach().cpu().contiguous().view(-1)
    return (tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def _generator_state(generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().tolist()).hex()
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return repr(generator.get_state(legacy=False))
    return repr(generator.getstate())
