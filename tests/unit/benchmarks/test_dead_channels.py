"""Dead channels: exact on networks made by hand, and without them a network computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._dead_channels import LayerChannels, channels_of, saved_share
from benchmarks._narrowed import narrowed
from swamp_ray.training.networks import CifarResNet, CifarVGG

pytestmark = pytest.mark.nightly


def mask(*rows: str) -> Tensor:
    """A 0/1 matrix ``[out, in]``."""
    return torch.tensor([[int(digit) for digit in row] for row in rows])


def digits(channels: np.ndarray) -> str:
    return "".join(str(int(channel)) for channel in channels)


def outputs(layers: dict[str, LayerChannels]) -> dict[str, tuple[str, str]]:
    """Which outputs are read and which are fed."""
    return {name: (digits(layer.read), digits(layer.fed)) for name, layer in layers.items()}


def test_what_leads_to_the_output_and_what_comes_from_the_input() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    found = channels_of(model, {
        # Channel 0 is read by 0 alone, which nobody reads; 1 has no weight of its own; 3 has no reader.
        "0.weight": mask("10", "00", "01", "11"),
        # Channel 2 has only a weight that reads a channel which nothing feeds.
        "2.weight": mask("1100", "0110", "0100"),
        "5.weight": mask("011"),
    }, torch.zeros(1, 2))
    assert outputs(found) == {"0": ("0110", "1011"), "2": ("011", "110"), "5": ("1", "1")}
    assert digits(found["2"].inputs_read) == "0110"
    assert digits(found["0"].inputs_read) == "11", "the network's own input is there in any case"
    # Two products for the first layer, three for the others.
    dense = 2 * 8 + 3 * 12 + 3 * 3
    assert saved_share(found) == pytest.approx(1 - (2 * 2 * 2 + 3 * 2 * 2 + 3 * 1 * 2) / dense)
    assert saved_share(found, unfed=True) == pytest.approx(1 - (2 * 1 * 2 + 3 * 1 * 1 + 3 * 1 * 1) / dense)


class Residual(nn.Module):
    """A stream of three channels, two blocks that read it and add to it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 1)
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        stream = F.relu(self.stem(images))
        stream = F.relu(stream + self.one(stream))
        stream = F.relu(stream + self.two(stream), inplace=True)
        return self.head(F.max_pool2d(stream, 2).mean(dim=(2, 3)))


def kernels(matrix: Tensor) -> Tensor:
    """3x3 kernels with their middle alone where the matrix is 1."""
    return F.pad(matrix[..., None, None], (1, 1, 1, 1))


def test_a_channel_of_a_stream_is_unread_where_every_later_reader_ignores_it() -> None:
    found = channels_of(Residual(), {
        "stem.weight": kernels(mask("1", "1", "0")),
        "one.weight": kernels(mask("010", "000", "100")),
        # The last reader of channels 1 and 2: it adds what it reads to channel 0, the only one that the head reads.
        "two.weight": kernels(mask("001", "010", "000")),
        "head.weight": mask("100"),
    }, torch.zeros(1, 1, 4, 4))
    # Channel 1 of the stem is read by the first block, but what that block adds to it is not.
    assert outputs(found) == {"stem": ("111", "110"), "one": ("101", "101"), "two": ("100", "110"), "head": ("1", "1")}
    assert digits(found["two"].inputs_read) == "101"
    assert digits(found["head"].inputs_read) == "100"
    assert found["one"].multiply_adds == 9 * 16
    assert [layer.is_first for layer in found.values()] == [True, False, False, False]


def test_any_position_may_be_the_largest_of_a_pool() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(1, 1))
    kept = torch.zeros(1, 3, 3, 3)
    # At the bottom right of a 2x2 image channel 0 is read, and at its top left the two others, which hold more.
    kept[0, 0, 0, 0] = kept[0, 1, 2, 2] = kept[0, 2, 2, 2] = 1
    assert digits(channels_of(model, {"1.weight": kept}, torch.zeros(1, 1, 2, 2))["0"].read) == "111"


def random_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks in which each layer reads half of its input channels, a fifth of the weights of each."""
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(parameter.shape, generator=generator) < 0.2
             for name, parameter in model.named_parameters() if parameter.ndim > 1}
    for name, kept in masks.items():
        if not name.startswith(("conv1", "features.0")):
            kept[:, torch.rand(kept.shape[1], generator=generator) < 0.5] = False
    return masks


@pytest.mark.parametrize("model", [CifarResNet(10, (3, 8, 8), depth=14), CifarVGG(10, (3, 32, 32), depth=16)],
                         ids=["resnet14", "vgg16"])
def test_without_unread_channels_a_network_computes_what_it_did(model: CifarResNet | CifarVGG) -> None:
    torch.manual_seed(0)
    masks = random_masks(model)
    model = model.double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * masks.get(name, 1))
    size = 8 if isinstance(model, CifarResNet) else 32
    layers = channels_of(model, masks, torch.zeros(1, 3, size, size))
    assert saved_share(layers) > 0.15
    small = narrowed(model, {name: (one.inputs_read, one.read) for name, one in layers.items()}).double()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    wide, narrow = model(images), small(images)
    torch.testing.assert_close(narrow, wide)
    for result in (wide, narrow):
        result.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("conv2.weight") or name == "features.27.weight":
            kept, expected = layers[name.removesuffix(".weight")], parameter.grad
            assert expected is not None
            torch.testing.assert_close(small.get_parameter(name).grad, expected[kept.read][:, kept.inputs_read])
            assert not expected[~kept.read].any(), "what nobody reads gets no gradient"
