"""Where particles part from a trunk: its weights, normalisation buffers, optimiser state and exponential mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.sparsity.averaging import ExponentialMean
from swamp_ray.sparsity.compact import CompactState, compact_model
from swamp_ray.sparsity.masks import Layout, clean_name

BUFFER = "buffer"
OPTIMIZER = "optimizer"
MEAN = "mean"
MEAN_COUNT = "mean_count"


@dataclass(frozen=True)
class ForkPoint:
    """All that a particle goes on from where its trunk has stopped.

    Attributes:
        weights: The trunk's last weights.
        arrays: By name: ``buffer/NAME``; ``optimizer/ENTRY/PARAMETER``, the optimiser's state; ``mean/PARAMETER`` and
            ``mean_count``, the exponential mean, where there is one. Of prunable weights only the survivors are there.
    """

    weights: CompactState
    arrays: Mapping[str, np.ndarray]


def fork_point(
    model: nn.Module, layout: Layout, mask: np.ndarray, optimizer: torch.optim.Optimizer, mean: ExponentialMean | None
) -> ForkPoint:
    """Where a training run stands now.

    Args:
        model: Its network.
        layout: Prunable weights and the rest.
        mask: Kept weights, bool ``[P]``.
        optimizer: Its optimiser.
        mean: Its exponential mean, if it has one.

    Raises:
        RunError: A weight outside the mask is not zero.
    """
    survivors = _Survivors(layout, mask)
    arrays: dict[str, np.ndarray] = {}
    for name, buffer in model.named_buffers():
        arrays[f"{BUFFER}/{clean_name(name)}"] = _array(buffer)
    for name, parameter in _named(model):
        for entry, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # SGD without momentum has an entry without a value
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                arrays[f"{OPTIMIZER}/{entry}/{name}"] = survivors.take(name, _array(tensor))
    if mean is not None:
        state = mean.state_dict()
        arrays[MEAN_COUNT] = np.array(state["count"])
        for (name, _), tensor in zip(_trained(model), state["means"], strict=True):
            arrays[f"{MEAN}/{name}"] = survivors.take(name, _array(tensor))
    return ForkPoint(compact_model(model, layout, mask), arrays)


def part_from_(
    fork: ForkPoint, model: nn.Module, layout: Layout, mask: np.ndarray, optimizer: torch.optim.Optimizer,
    mean: ExponentialMean | None,
) -> None:
    """Take up buffers, optimiser and exponential mean of a trunk, in place; the weights are loaded already.

    Args:
        fork: Where the trunk has stopped.
        model, layout, mask, optimizer, mean: Of the particle, as for :func:`fork_point`.

    Raises:
        CorruptArtifactError: The state is of another network, mask or optimiser.
    """
    survivors = _Survivors(layout, mask)
    try:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(torch.from_numpy(np.array(fork.arrays[f"{BUFFER}/{clean_name(name)}"])))
        optimizer.load_state_dict(_optimizer_state(fork, model, survivors, optimizer))
        if mean is not None:
            means = [survivors.spread(name, fork.arrays[f"{MEAN}/{name}"], tuple(parameter.shape))
                     for name, parameter in _trained(model)]
            mean.load_state_dict({"count": int(fork.arrays[MEAN_COUNT]), "means": means})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CorruptArtifactError(f"the trunk's state does not fit: {error}") from error


def _optimizer_state(
    fork: ForkPoint, model: nn.Module, survivors: _Survivors, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The trunk's state in the form of ``Optimizer.state_dict``, with the particle's own rates and decays."""
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[id(parameter)] = len(numbers)
    parameters = dict(_named(model))
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in fork.arrays.items():
        kind, _, rest = key.partition("/")
        if kind != OPTIMIZER:
            continue
        entry, _, name = rest.partition("/")
        parameter = parameters[name]
        value = survivors.spread(name, array, tuple(parameter.shape))
        state.setdefault(numbers[id(parameter)], {})[entry] = _laid_out_like(parameter, value)
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


class _Survivors:
    """Takes the survivors out of what is shaped like a prunable weight, and puts them back."""

    def __init__(self, layout: Layout, mask: np.ndarray) -> None:
        self._masks = {layer.name: mask[layer.span].reshape(layer.shape) for layer in layout.layers}

    def take(self, name: str, array: np.ndarray) -> np.ndarray:
        """The survivors ``[k]`` of an array that is zero elsewhere; any other array as it is."""
        mask = self._masks.get(name)
        if mask is None or mask.shape != array.shape or np.any(array[~mask]):
            return array
        return array[mask]

    def spread(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """What :meth:`take` was given, for a parameter of a shape."""
        mask = self._masks.get(name)
        if mask is None or array.ndim != 1 or array.shape == shape:
            return torch.from_numpy(np.array(array))
        whole = np.zeros(shape, dtype=array.dtype)
        whole[mask] = array
        return torch.from_numpy(whole)


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(clean_name(name), parameter) for name, parameter in model.named_parameters()]


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in _named(model) if parameter.requires_grad]


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the memory layout of its parameter: fused optimisers walk through both side by side."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu", requires_grad=False).copy_(value)


def _array(tensor: Tensor) -> np.ndarray:
    """A copy on the host; half precision, which numpy and safetensors' arrays lack in part, as float32."""
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return wide.detach().cpu().contiguous().numpy().copy()
