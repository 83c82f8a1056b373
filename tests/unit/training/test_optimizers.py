"""Training under a mask that cuts off whole neurons is training of the smaller network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.config.sections import TrainingConfig
from swamp_ray.sparsity.masks import find_prunable, mask_tensors, prunable_tensors
from swamp_ray.training.optimizers import MaskedStep, build_optimizer

KEPT_1, KEPT_2 = [0, 2, 3, 6], [1, 4, 5]  # neurons of the two hidden layers that stay
# Sums over kept neurons run in another order in the larger network; float32 then differs in the last bits.
RTOL, ATOL = 1e-4, 1e-6
SETTINGS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    "momentum and decay": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05},
    "nesterov, decay, clipping": {
        "optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.05, "clip_norm": 0.3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "adamw, clipping": {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.05},
}


class Layers(nn.Module):
    def __init__(self, hidden_1: int, hidden_2: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, hidden_1)
        self.second = nn.Linear(hidden_1, hidden_2)
        self.third = nn.Linear(hidden_2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.third(self.second(self.first(inputs).tanh()).tanh())


def keep(rows: list[int], columns: list[int], shape: torch.Size) -> np.ndarray:
    part = np.zeros(tuple(shape), dtype=bool)
    part[np.ix_(rows, columns)] = True
    return part.ravel()


def twins() -> tuple[Layers, np.ndarray, Layers]:
    """A network of 7 and 6 neurons under a mask, and the network of 4 and 3 neurons that is left of it."""
    torch.manual_seed(3)
    large, small = Layers(7, 6), Layers(4, 3)
    weights = [large.first.weight, large.second.weight, large.third.weight]
    mask = np.concatenate([keep(KEPT_1, list(range(5)), weights[0].shape), keep(KEPT_2, KEPT_1, weights[1].shape),
                           keep([0, 1, 2], KEPT_2, weights[2].shape)])
    with torch.no_grad():
        for weight, part in zip(weights, mask_of(large, mask), strict=True):
            weight.mul_(part)
        # A neuron that is cut off gives tanh(bias), which no weight reads; its bias gets no gradient.
        for part, survivor in survivors(large, small):
            survivor.copy_(part)
    return large, mask, small


def survivors(large: Layers, small: Layers) -> list[tuple[Tensor, Tensor]]:
    """What the small network's tensors are in the large one, and they themselves."""
    return [(large.first.weight[KEPT_1], small.first.weight), (large.first.bias[KEPT_1], small.first.bias),
            (large.second.weight[KEPT_2][:, KEPT_1], small.second.weight),
            (large.second.bias[KEPT_2], small.second.bias),
            (large.third.weight[:, KEPT_2], small.third.weight), (large.third.bias, small.third.bias)]


def mask_of(model: nn.Module, mask: np.ndarray) -> list[Tensor]:
    return mask_tensors(find_prunable(model), mask, device="cpu")


def step_of(model: nn.Module, config: TrainingConfig, masks: list[Tensor] | None, fused: bool = False) -> MaskedStep:
    optimizer = build_optimizer(model, config, config.weight_decay, fused)
    return MaskedStep(optimizer, prunable_tensors(model, find_prunable(model)), masks, config.clip_norm)


def train(model: nn.Module, step: Callable[[float], None], parts: int = 1, num_steps: int = 25,
          check: Callable[[], None] = lambda: None) -> list[float]:
    generator = torch.Generator().manual_seed(11)
    losses = []
    for _ in range(num_steps):
        inputs, labels = torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        total = 0.0
        for x, y in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            loss = F.cross_entropy(3 * model(x), y) / parts
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        step(0.1)
        check()
    return losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_masked_training_is_training_of_the_smaller_network(
    settings: dict[str, Any], parts: int, fused: bool
) -> None:
    config = TrainingConfig(**settings)
    large, mask, small = twins()
    masks, start = mask_of(large, mask), small.first.weight.detach().clone()
    step = step_of(large, config, masks, fused)
    weights = prunable_tensors(large, find_prunable(large))

    def check() -> None:
        for weight, part in zip(weights, masks, strict=True):
            assert not weight[part == 0].any()
            for name, value in step.optimizer.state[weight].items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    assert not value[part == 0].any(), name
            assert weight.grad is None

    found = train(large, step, parts, check=check)
    expected = train(small, step_of(small, config, None, fused), parts)
    assert found == pytest.approx(expected, rel=1e-4)
    assert float((small.first.weight - start).detach().abs().max()) > 0.02
    for part, survivor in survivors(large, small):
        torch.testing.assert_close(part, survivor, rtol=RTOL, atol=ATOL)


def test_masking_the_weights_alone_is_caught_under_clipping() -> None:
    config = TrainingConfig(optimizer="sgd", momentum=0.9, weight_decay=0.05, clip_norm=0.3)
    large, mask, small = twins()
    masks, weights = mask_of(large, mask), prunable_tensors(large, find_prunable(large))
    unmasked = step_of(large, config, None)

    def careless(lr: float) -> None:
        unmasked(lr)
        with torch.no_grad():
            for weight, part in zip(weights, masks, strict=True):
                weight.mul_(part)

    found, expected = train(large, careless), train(small, step_of(small, config, None))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 1e-2


def test_clipping_bounds_the_norm_over_all_parameters() -> None:
    model = nn.Linear(2, 2, bias=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step = step_of(model, TrainingConfig(momentum=0.0, weight_decay=0.0, clip_norm=0.5), None)
    (100 * model(torch.ones(1, 2)).sum()).backward()
    step(1.0)
    moved = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    assert float(torch.cat([part.ravel() for part in moved]).norm()) == pytest.approx(0.5, rel=1e-4)


def test_a_weight_outside_of_the_mask_is_zero_after_one_step() -> None:
    model = nn.Linear(3, 2)
    mask = torch.tensor([[1.0, 0.0, 1.0]] * 2)
    step = MaskedStep(build_optimizer(model, TrainingConfig(), 0.0, fused=False), [model.weight], [mask], None)
    model(torch.ones(1, 3)).sum().backward()
    step(0.1)
    assert torch.equal(model.weight != 0, mask.bool())


class Mixed(nn.Module):
    """Weights, and everything that counts as normalisation or bias, in one to four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.batch = nn.BatchNorm2d(2)
        self.layer = nn.LayerNorm([2, 3, 3])
        self.group = nn.GroupNorm(1, 2)
        self.rms = nn.RMSNorm([3, 3])
        self.attention = nn.MultiheadAttention(4, 1, add_bias_kv=True)
        self.embedding = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 2)


DECAYED = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "embedding.weight", "head.weight"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("everything", [True, False])
def test_norms_and_biases_decay_only_if_asked(optimizer: str, everything: bool) -> None:
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    config = TrainingConfig(optimizer=optimizer, momentum=0.0, decay_norm_and_bias=everything)  # pyright: ignore[reportArgumentType]
    step = step_of(model, config.model_copy(update={"weight_decay": 0.5}), None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step(0.1)
    shrunk = {name for name, p in model.named_parameters() if torch.allclose(p, torch.tensor(0.95))}
    kept = {name for name, p in model.named_parameters() if torch.equal(p, torch.ones_like(p))}
    names = {name for name, _ in model.named_parameters()}
    assert (shrunk, kept) == ((names, set()) if everything else (DECAYED, names - DECAYED))


def test_the_programs_decay_and_rate_replace_the_configs() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.5, lr=9.0, momentum=0.0), 0.25, fused=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.weight.grad = torch.zeros(1, 1)
    MaskedStep(optimizer, [model.weight], None, None)(0.4)
    assert float(model.weight.detach()) == pytest.approx(1 - 0.4 * 0.25)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_and_unused_parameters_stay_as_they_are(optimizer: str) -> None:
    used, unused, frozen = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
    model = nn.ModuleDict({"used": used, "unused": unused, "frozen": frozen})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.1, clip_norm=1.0)  # pyright: ignore[reportArgumentType]
    weights = [used.weight, unused.weight]
    masks = [torch.tensor([[1.0, 0.0, 1.0]] * 2)] * 2
    with torch.no_grad():
        for weight in weights:
            weight.mul_(masks[0])
    before["unused.weight"] = before["unused.weight"] * masks[1]
    step = MaskedStep(build_optimizer(model, config, 0.1, fused=True), weights, masks, config.clip_norm)
    for _ in range(3):
        (used(torch.ones(2, 3)) + frozen(torch.ones(2, 3))).square().sum().backward()
        step(0.1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"used.weight", "used.bias"}
