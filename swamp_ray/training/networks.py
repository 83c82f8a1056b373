"""The built-in networks.

Initialisation, in all of them: convolutions are Kaiming normal over fan-out (He et al., 2015) and have no bias
where normalisation follows; normalisation starts as the identity; linear layers keep torch's default.
Inputs are float32 ``[B, C, H, W]``; outputs are logits ``[B, num_classes]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.errors import UserError


def initialise_(model: nn.Module) -> nn.Module:
    """Give every convolution Kaiming normal weights (fan-out, ReLU) and zero bias, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [_conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class DigitsCNN(nn.Module):
    """Three convolutions with BatchNorm and two linear layers, for images of 8 pixels and more.

    At ``[1, 8, 8]`` and 10 classes it has 40,208 weights in convolutions and linear layers.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = image_shape("digits_cnn", input_shape, smallest=4)
        self.features = nn.Sequential(
            *_conv_bn_relu(channels, 16), nn.MaxPool2d(2),
            *_conv_bn_relu(16, 32),
            *_conv_bn_relu(32, 64), nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), 64)
        self.classifier = nn.Linear(64, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        return self.classifier(F.relu(self.hidden(self.features(images).flatten(1))))


class MLP(nn.Module):
    """Linear layers with ReLU between them; the input is flattened.

    Args:
        hidden: Widths of the hidden layers; may be empty.
        batch_norm: Normalise before every ReLU.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        hidden: Sequence[int] = (256, 256),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            layers.append(nn.Linear(inputs, outputs))
            layers += [nn.BatchNorm1d(outputs)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        return self.layers(inputs)


class LeNet300100(MLP):
    """LeNet-300-100 (LeCun et al., 1998) with ReLU, for any input, flattened."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(num_classes, input_shape, hidden=(300, 100))


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling, for images of 28 or 32 pixels.

    28 pixels are padded to 32 by the first convolution; it has 61,706 parameters at one channel and 10 classes.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet5", input_shape)
        if (height, width) not in {(28, 28), (32, 32)}:
            raise UserError("lenet5 reads images of 28x28 or 32x32 pixels", got=f"{height}x{width}",
                            where="model.name", do="Use digits_cnn, lenet_300_100 or a resnet.")
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2 if height == 28 else 0)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(hidden)))))


class _BasicBlock(nn.Module):
    """Two convolutions and a parameter-free shortcut (option A of He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)), inplace=True)
        return F.relu(self.bn2(self.conv2(hidden)) + self._shortcut(inputs), inplace=True)

    def _shortcut(self, inputs: Tensor) -> Tensor:
        if self.stride > 1:
            inputs = inputs[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            inputs = F.pad(inputs, (0, 0, 0, 0, before, self.new_channels - before))
        return inputs


class CifarResNet(nn.Module):
    """The CIFAR form of ResNet (He et al., 2016, section 4.2): 16, 32 and 64 channels, 6n + 2 layers.

    Shortcuts have no parameters: spatial slicing and zero channels (option A).
    ResNet-20 has 269,722 parameters at three input channels and 10 classes.

    Args:
        depth: 6n + 2.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], depth: int) -> None:
        super().__init__()
        channels, _, _ = image_shape(f"resnet{depth}", input_shape, smallest=4)
        num_blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, num_blocks, 1)
        self.stage2 = self._stage(16, 32, num_blocks, 2)
        self.stage3 = self._stage(32, 64, num_blocks, 2)
        self.classifier = nn.Linear(64, num_classes)
        initialise_(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, num_blocks: int, stride: int) -> nn.Sequential:
        blocks = [_BasicBlock(inputs, outputs, stride)]
        for _ in range(num_blocks - 1):
            blocks.append(_BasicBlock(outputs, outputs, 1))
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        hidden = F.relu(self.bn1(self.conv1(images)), inplace=True)
        hidden = self.stage3(self.stage2(self.stage1(hidden)))
        return self.classifier(hidden.mean(dim=(2, 3)))


class _WideBlock(nn.Module):
    """Pre-activation block; where the shape changes, the shortcut is a 1x1 convolution of the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, inputs: Tensor) -> Tensor:
        active = F.relu(self.bn1(inputs))
        hidden = self.dropout(F.relu(self.bn2(self.conv1(active))))
        return self.conv2(hidden) + (inputs if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis, 2016), pre-activation, three groups of blocks.

    WRN-28-2 has 1,467,610 parameters at three input channels and 10 classes.

    Args:
        num_blocks: Blocks a group; depth 6n + 4 in the counting of Zagoruyko & Komodakis.
        widen: Factor on 16, 32 and 64 channels.
        dropout: Share dropped between the two convolutions of a block, in [0, 1).
    """

    def __init__(
        self, num_classes: int, input_shape: tuple[int, ...], num_blocks: int, widen: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise UserError("dropout must lie in [0, 1)", got=dropout, where="model.options.dropout")
        channels, _, _ = image_shape("a wide resnet", input_shape, smallest=4)
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = _conv3x3(channels, widths[0])
        groups = []
        for group in range(3):
            outputs = widths[group + 1]
            blocks = [_WideBlock(widths[group], outputs, 1 if group == 0 else 2, dropout)]
            for _ in range(num_blocks - 1):
                blocks.append(_WideBlock(outputs, outputs, 1, dropout))
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(widths[3])
        self.classifier = nn.Linear(widths[3], num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        hidden = F.relu(self.bn(self.groups(self.conv1(images))), inplace=True)
        return self.classifier(hidden.mean(dim=(2, 3)))


VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
    """VGG (Simonyan & Zisserman, 2015) in its CIFAR form: 13 or 16 convolutions with BatchNorm, one linear layer.

    Each of the five stages ends in a 2x2 max-pooling; what is left of the image is averaged.
    VGG-16 has 14,724,042 parameters at three input channels and 10 classes (no biases before BatchNorm).

    Args:
        depth: 16 or 19.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], depth: int) -> None:
        super().__init__()
        inputs, _, _ = image_shape(f"vgg{depth}_bn", input_shape, smallest=32)
        layers: list[nn.Module] = []
        for outputs, count in zip((64, 128, 256, 512, 512), VGG_STAGES[depth], strict=True):
            for _ in range(count):
                layers += _conv_bn_relu(inputs, outputs)
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        return self.classifier(torch.mean(self.features(images), dim=(2, 3)))


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """``(channels, height, width)``, or an error that names the model.

    Raises:
        UserError: The data are no images, or a side is shorter than ``smallest`` pixels.
    """
    if len(input_shape) != 3:
        raise UserError(f"{name} reads images [channels, height, width]", got=f"inputs of shape {list(input_shape)}",
                        where="model.name", do="Use mlp or lenet_300_100, or a model of your own.")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise UserError(f"{name} needs images of at least {smallest}x{smallest} pixels", got=f"{height}x{width}",
                        where="model.name", do="Use digits_cnn or mlp, or larger images.")
    return channels, height, width
