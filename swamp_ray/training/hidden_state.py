"""Refuses networks with hidden state: state outside of parameters and buffers, which no checkpoint would hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.errors import UserError

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def refuse_hidden_state(model: nn.Module, step: Callable[[], object]) -> None:
    """Raise UserError if a training step changes numbers, tensors or random generators that modules hold.

    A worker trains one particle after another with the same module, so that each would begin with the state that the
    one before has left. What only the first step sets, such as a cache, is no state.

    Args:
        model: It has taken one step already.
        step: Takes the same step once more.
    """
    before = _attributes(model)
    step()
    for name, value in _attributes(model).items():
        if name not in before or before[name] == value or _has_grown(before[name], value):
            continue
        do = "Keep it constant, or compute it from the inputs."
        if isinstance(value, _Generator):
            do = "Draw from torch's global generator, which is seeded for each particle and epoch."
        raise UserError(f"a training step changes the attribute {name!r} of the model, which no checkpoint holds and "
                        "which one particle would hand on to the next", where="model.name", do=do)


def refuse_unregistered(model: nn.Module, loss: Tensor) -> None:
    """Raise UserError if the loss depends on a parameter that the network does not have.

    Layers in a plain list are such: no optimiser trains them, and no stored state and no ticket holds them.

    Args:
        model: The network.
        loss: Of a training step.
    """
    known = {id(parameter) for parameter in model.parameters()}
    for parameter in _parameters_behind(loss):
        if id(parameter) not in known:
            raise UserError("the loss depends on a parameter that is none of the network's: it is not trained, and no "
                            f"ticket holds it{_where(model, parameter)}", got=f"shape {list(parameter.shape)}",
                            where="model.name", do="Keep layers in nn.ModuleList or nn.ModuleDict, and parameters in "
                            "nn.ParameterList, or set requires_grad_(False) for what is constant.")


def refuse_random_constants(model: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Raise UserError if the network holds tensors that are drawn at random and that ``state_dict()`` leaves out.

    A ticket that is loaded into a network which was built later would be used with others.

    Args:
        model: As its factory gave it, under the run's seed.
        build: Calls the factory once more, under another seed.
    """
    found = _unsaved(model)
    if not found:
        return
    for name, other in _unsaved(build()).items():
        if name in found and found[name] != other:
            raise UserError(f"the tensor {name!r} is drawn at random, and state_dict() does not hold it, so that no "
                            "ticket would hold it either", where="model.name", do="Register it as a persistent buffer, "
                            "or draw it from a generator with a seed of its own.")


def _unsaved(model: nn.Module) -> dict[str, Any]:
    """The bytes of all tensors that a network holds outside of what ``state_dict()`` lists."""
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers[key]
            if buffer is not None:
                found[_joined(path, key)] = _bytes_of(buffer)
        for key, value in _own_attributes(module):
            unknown = [tensor for tensor in _tensors_in(value) if id(tensor) not in known]
            for index, tensor in enumerate(unknown):
                suffix = f"[{index}]" if index else ""
                found[_joined(path, key) + suffix] = _bytes_of(tensor)
    return found


def _own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that torch does not give to every module."""
    for key, value in vars(module).items():
        if key not in _OF_EVERY_MODULE:
            yield key, value


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _parameters_behind(loss: Tensor) -> Iterator[nn.Parameter]:
    """Parameters that a loss depends on, each once: the leaves of its graph."""
    to_visit = [loss.grad_fn]
    seen: set[Any] = set()
    while to_visit:
        node: Any = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            yield leaf
        to_visit.extend(following for following, _ in node.next_functions)


def _where(model: nn.Module, parameter: Tensor) -> str:
    """The attribute that holds a parameter, in brackets; empty where it is not found."""
    for path, module in model.named_modules():
        for key, value in _own_attributes(module):
            if any(tensor is parameter for tensor in _tensors_in(value)):
                return f" (in the attribute {_joined(path, key)})"
    return ""


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in a value, also those of modules in plain lists and dicts."""
    parts: Any = [value]
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple | set):
        parts = value
    for part in parts:
        if isinstance(part, nn.Module):
            yield from (*part.parameters(), *part.buffers())
        elif isinstance(part, Tensor):
            yield part


class _Generator(bytes):
    """The state of a random generator."""


class _Parts(tuple[Any, ...]):
    """The tensors and arrays in a list or mapping."""

    __slots__ = ()


def _has_grown(before: Any, value: Any) -> bool:
    """Whether a list or mapping holds more than before: it is a log, or a cache."""
    return isinstance(value, _Parts) and isinstance(before, _Parts) and len(value) != len(before)


def _attributes(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in _own_attributes(module):
            state = _state(value)
            if state is not None:
                found[_joined(path, key)] = state
    return found


def _state(value: Any) -> Any:
    """A value that can be compared, of a number, a tensor or a generator; None for anything else."""
    if isinstance(value, bool | int | float | np.number):
        return value
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, Tensor):
        return _bytes_of(value)
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return _Parts(_state(part) for part in parts if isinstance(part, Tensor | np.ndarray))
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
