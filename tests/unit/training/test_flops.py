"""FLOPs of networks by formula, and by torch's own counter of modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from swamp_ray.config.sections import ModelConfig
from swamp_ray.sparsity.masks import find_prunable
from swamp_ray.training.cost import NetworkFlops
from swamp_ray.training.flops import CountedFlops, count_flops
from swamp_ray.training.models import build_model
from swamp_ray.training.tasks import Batch, Classification


def counted(model: nn.Module, shape: tuple[int, ...], exclude: tuple[str, ...] = (), num: int = 2) -> CountedFlops:
    batch = torch.randn(num, *shape), torch.zeros(num, dtype=torch.int64)
    return count_flops(model, Classification(), batch, find_prunable(model, exclude=exclude))


def network_of(model: nn.Module, shape: tuple[int, ...], exclude: tuple[str, ...] = (), num: int = 2) -> NetworkFlops:
    found = counted(model, shape, exclude, num)
    assert found.network is not None, found.reason
    return found.network


def built(name: str, shape: tuple[int, ...]) -> nn.Module:
    return build_model(ModelConfig(name=name), num_classes=10, input_shape=shape, seed=0)


class Small(nn.Module):
    """A convolution of stride 2 with padding, a grouped one, normalisation, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, groups=4)
        self.last = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.norm(self.first(images)).relu()).relu()
        return self.last(hidden.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Standardised(nn.Conv2d):
    """Its weight is another tensor whenever it is used."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


class Twice(nn.Module):
    """Uses one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.layer(inputs))


class Unused(nn.Module):
    """Has a layer whose output nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class Broken(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        raise ArithmeticError("no such luck")


def test_lenet_300_100() -> None:
    model = built("lenet_300_100", (1, 28, 28))
    found = network_of(model, (1, 28, 28))
    assert list(found.layers.values()) == [2 * 784 * 300, 2 * 300 * 100, 2 * 100 * 10]
    assert found.rest == 0
    assert found.dense == 532_400
    densities = dict(zip(found.layers, (0.1, 0.5, 1.0), strict=True))
    assert found.at(densities) == pytest.approx(2 * (0.1 * 784 * 300 + 0.5 * 300 * 100 + 100 * 10))


@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_small_convolutional_network_by_formula(num: int) -> None:
    model = Small() if num > 1 else Small().eval()
    found = network_of(model, (3, 8, 8), num=num)
    # Maps of 4 x 4 after the first convolution, 2 x 2 after the second; each output adds 27, 2 x 9 or 16 products.
    assert found == NetworkFlops({"first.weight": 2 * 27 * 8 * 16, "second.weight": 2 * 18 * 16 * 4,
                                  "last.weight": 2 * 16 * 5}, rest=0.0)


def test_what_is_not_pruned_counts_in_full() -> None:
    found = network_of(Small(), (3, 8, 8), exclude=("last.weight",))
    assert list(found.layers) == ["first.weight", "second.weight"]
    assert found.rest == 2 * 16 * 5
    assert found.at({"first.weight": 0.0, "second.weight": 0.0}) == 2 * 16 * 5


def test_attention_tells_its_projections_from_what_no_weight_multiplies() -> None:
    found = network_of(Attention(), (5, 8))
    assert found.layers == {"attention.in_proj_weight": 2 * 5 * 8 * 24, "attention.out_proj.weight": 2 * 5 * 8 * 8,
                            "last.weight": 2 * 8 * 3}
    assert found.rest == 2 * 2 * 5 * 5 * 8, "scores, and their product with the values"


def test_a_weight_that_is_changed_before_it_is_used_belongs_to_its_module() -> None:
    model = nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    assert network_of(model, (3, 3, 3)).layers == {"0.weight": 2 * 27 * 4, "2.weight": 2 * 4 * 3}


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    assert network_of(Twice(), (6,)).layers == {"layer.weight": 2 * 2 * 36}


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "wrn_28_2"])
def test_the_sum_is_that_of_torchs_counter(name: str) -> None:
    model = built(name, (3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train()(images)
    assert 2 * network_of(model, (3, 32, 32)).dense == counter.get_total_flops()


def test_a_network_that_cannot_be_counted_says_why() -> None:
    assert counted(Unused(), (4,)).reason == "no operation that torch has a formula for multiplies by idle.weight"
    broken = counted(Broken(4, 3), (4,))
    assert broken.network is None
    assert broken.reason == "ArithmeticError: no such luck"


def test_nothing_is_left_at_the_network() -> None:
    model = Small()
    before = [torch.get_rng_state(), *(parameter.clone() for parameter in model.parameters())]
    batch: Batch = torch.ones(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    count_flops(model, Classification(), batch, find_prunable(model))
    after = [torch.get_rng_state(), *model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
