"""The built-in CIFAR networks without channels that nobody reads: the same function, and the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.training.networks import CifarResNet, CifarVGG, _BasicBlock

Kept = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Input and output channels that stay, bool ``[in]`` and ``[out]``, by the name of the layer."""


def narrowed(model: CifarResNet | CifarVGG, kept: Kept) -> nn.Module:
    """A copy without the other channels; where a tensor would have none left, its first one stays.

    Args:
        model: With zeros where weights are pruned.
        kept: For every convolution and linear layer. An input that stays is an output that stays of what feeds it.
    """
    places = {name: (_places(inputs), _places(outputs)) for name, (inputs, outputs) in kept.items()}
    model = copy.deepcopy(model)
    if isinstance(model, CifarVGG):
        _narrow_in_order_(model.features, "features", places)
    else:
        first = places["conv1"]
        model.conv1, model.bn1 = _convolution(model.conv1, *first), _normalisation(model.bn1, first[1])
        for stage in ("stage1", "stage2", "stage3"):
            blocks = getattr(model, stage)
            for index, block in enumerate(blocks):
                name = f"{stage}.{index}"
                blocks[index] = _NarrowBlock(block, places[f"{name}.conv1"], places[f"{name}.conv2"])
    inputs, outputs = places["classifier"]
    model.classifier = _linear(model.classifier, inputs, outputs)
    return model


def _narrow_in_order_(layers: nn.Sequential, prefix: str, places: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Layers each of which reads all of the one before it, in place."""
    outputs = torch.empty(0)
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            inputs, outputs = places[f"{prefix}.{index}"]
            layers[index] = _convolution(layer, inputs, outputs)
        elif isinstance(layer, nn.BatchNorm2d):
            layers[index] = _normalisation(layer, outputs)


class _NarrowBlock(_BasicBlock):
    """A basic block between narrower tensors; the shortcut takes out what the rest of the network reads."""

    def __init__(self, block: Any, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
        nn.Module.__init__(self)  # its layers are another block's, cut out
        self.conv1, self.bn1 = _convolution(block.conv1, *first), _normalisation(block.bn1, first[1])
        self.conv2, self.bn2 = _convolution(block.conv2, *second), _normalisation(block.bn2, second[1])
        self.stride: int = block.stride
        (inputs, _), (_, outputs), new = first, second, block.new_channels
        before = {int(channel) + new // 2: place for place, channel in enumerate(inputs)}
        # A channel that the wide shortcut fills with zeros is taken from one that is appended.
        sources = torch.tensor([before.get(int(channel), len(inputs)) for channel in outputs])
        self.is_whole = sources.tolist() == list(range(len(inputs)))
        self.register_buffer("sources", sources, persistent=False)

    def _shortcut(self, inputs: Tensor) -> Tensor:
        if self.stride > 1:
            inputs = inputs[:, :, :: self.stride, :: self.stride]
        if self.is_whole:
            return inputs
        return F.pad(inputs, (0, 0, 0, 0, 0, 1)).index_select(1, self.get_buffer("sources"))


def _places(kept: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(kept) if kept.any() else np.zeros(1, dtype=np.int64))


def _convolution(layer: Any, inputs: Tensor, outputs: Tensor) -> nn.Conv2d:
    made = nn.Conv2d(len(inputs), len(outputs), layer.kernel_size, layer.stride, layer.padding, bias=False)
    made.weight = nn.Parameter(layer.weight.detach()[outputs][:, inputs].clone())
    return made


def _linear(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> nn.Linear:
    made = nn.Linear(len(inputs), len(outputs))
    made.weight = nn.Parameter(layer.weight.detach()[outputs][:, inputs].clone())
    made.bias = nn.Parameter(layer.bias.detach()[outputs].clone())
    return made


def _normalisation(layer: nn.BatchNorm2d, channels: Tensor) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(len(channels), layer.eps, layer.momentum)
    for name in ("weight", "bias"):
        setattr(made, name, nn.Parameter(getattr(layer, name).detach()[channels].clone()))
    for name in ("running_mean", "running_var"):
        getattr(made, name).copy_(getattr(layer, name)[channels])
    return made
