"""Which channels of a masked network nobody reads, which ones nothing feeds, and what they cost.

A channel is *unread* if no path over weights that are left leads from it to the output, and *unfed* if none leads to it
from the input: what it holds then depends on no sample. Paths are found by running the network itself once each way,
with 1 in place of every weight that is left. All values are then positive, so that nothing cancels: a gradient of zero
means that there is no path. Residual sums, slices and means need no rules of their own, and what is read by unread
channels alone is unread as well. Only the largest of some values would hide the others, and gives way to their mean.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class LayerChannels:
    """The channels of one convolution or linear layer.

    Attributes:
        read: Of its outputs: whether the network's output depends on them, bool ``[out]``.
        fed: Of its outputs: whether they depend on the network's input, bool ``[out]``.
        inputs_read: Of the tensor that it gets: whether this layer, or whoever else gets it, passes them on to the
            output, bool ``[in]``; all channels where the tensor needs no gradient, as the network's own input.
        inputs_fed: Of the tensor that it gets: whether they depend on the network's input, bool ``[in]``.
        multiply_adds: Of a sample, for one output and one input channel.
        is_first: Whether its input needs no gradient.
    """

    read: np.ndarray
    fed: np.ndarray
    inputs_read: np.ndarray
    inputs_fed: np.ndarray
    multiply_adds: int
    is_first: bool


def channels_of(model: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor) -> dict[str, LayerChannels]:
    """The channels of every convolution and linear layer, by its name.

    Args:
        model: Made of 2-D convolutions without groups, linear layers, normalisation, ReLUs, poolings, sums and slices.
        masks: Kept weights by parameter name, of any dtype; weights without a mask count as kept.
        inputs: A sample of the right shape ``[1, ...]``; its values do not matter.
    """
    # A bias keeps the ReLUs behind unfed channels open for gradients; without one, what is not 0 comes from the input.
    backward, forward = _Probe(model, masks, bias=1.0), _Probe(model, masks, bias=0.0)
    backward.run(inputs).sum().backward()
    forward.run(inputs)
    found = {}
    for name, layer in backward.layers.items():
        given, made = backward.passed[name]
        is_first = not given.requires_grad
        found[name] = LayerChannels(
            read=_is_any(made.grad, made), fed=_is_any(forward.passed[name][1], made),
            inputs_read=np.ones(given.shape[1], dtype=bool) if is_first else _is_any(given.grad, given),
            inputs_fed=_is_any(forward.passed[name][0], given),
            multiply_adds=made[0, 0].numel() * layer.weight[0, 0].numel(), is_first=is_first)
    return found


def saved_share(layers: Mapping[str, LayerChannels], unfed: bool = False) -> float:
    """Share of a training step's multiply-adds that is saved where unread channels are left out of all tensors.

    A step has three products a layer: the output, the weight's gradient and, but for the first layer, the input's.

    Args:
        layers: From :func:`channels_of`.
        unfed: Leave unfed channels out as well.
    """
    whole = left = 0
    for layer in layers.values():
        outputs, inputs = layer.read, layer.inputs_read
        if unfed:
            outputs, inputs = outputs & layer.fed, inputs & layer.inputs_fed
        products = layer.multiply_adds * (2 if layer.is_first else 3)
        whole += products * outputs.size * inputs.size
        left += products * int(outputs.sum()) * int(inputs.sum())
    return 1 - left / whole


class _Probe:
    """A copy of a network with 1 for every weight that is left, in float64, since values grow with the paths.

    Attributes:
        layers: Convolutions and linear layers by name.
        passed: Input and output of each, once it has run.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], bias: float) -> None:
        self._model = copy.deepcopy(model).double().eval()
        self.layers: dict[str, Any] = {name: module for name, module in self._model.named_modules()
                                       if isinstance(module, nn.Conv2d | nn.Linear)}
        self.passed: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in masks:
                    parameter.copy_(masks[name] != 0)
                else:
                    parameter.fill_(1.0 if name.endswith("weight") else bias)
        for module in self._model.modules():
            if isinstance(module, _NormBase):
                module.reset_running_stats()
        for name, layer in self.layers.items():
            layer.register_forward_hook(lambda _, given, made, name=name: self._note(name, given[0], made))

    def run(self, inputs: Tensor) -> Tensor:
        """The output for a sample of ones."""
        with _MeansForMaxima():
            return self._model(torch.ones_like(inputs, dtype=torch.float64))

    def _note(self, name: str, given: Tensor, made: Tensor) -> None:
        for tensor in (given, made):
            if tensor.requires_grad:
                tensor.retain_grad()
        self.passed[name] = given, made


class _MeansForMaxima(TorchFunctionMode):
    """Which position is the largest depends on the sample: any of them may be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, or what stands for it."""
        if func in (F.max_pool2d, torch.max_pool2d):
            return _mean_pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _mean_pool(values: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Tensor:
    assert dilation in (1, (1, 1), [1, 1])
    assert not return_indices
    return F.avg_pool2d(values, kernel_size, stride, padding, ceil_mode)


def _is_any(values: Tensor | None, like: Tensor) -> np.ndarray:
    """Which channels of ``[1, channels, ...]`` hold anything but 0; none of ``like``'s where there are no values."""
    if values is None:
        return np.zeros(like.shape[1], dtype=bool)
    return (values.detach()[0].reshape(values.shape[1], -1) != 0).any(dim=1).numpy()
