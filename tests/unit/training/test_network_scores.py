"""Scores of a network before training, each against plain torch, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import Layout, find_prunable, from_bits, layer_densities, split, to_bits
from swamp_ray.sparsity.schedule import falling_densities
from swamp_ray.sparsity.selection import ScoredSlice, here, select
from swamp_ray.training.models import build_model
from swamp_ray.training.network_scores import (
    NetworkScore,
    checked_scores,
    grasp,
    magnitude,
    make_network_score,
    snip,
    synflow,
)
from swamp_ray.training.tasks import Classification, Regression
from tests.helpers import tiny


class Few:
    """Batches that every pass gives anew."""

    def __init__(self, *batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def two_batches() -> Few:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 1])),
               (torch.randn(4, 5, generator=generator, dtype=torch.float64), torch.tensor([2, 2, 0, 1]))]
    return Few(*batches)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """A mask of ones over all weight matrices."""
    return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()
            if parameter.ndim > 1}


def loss_of(model: nn.Module, batches: Few, temperature: float = 1.0) -> Tensor:
    """The mean loss over all batches, in one expression of torch's own. The task computes in float32."""
    losses = [F.cross_entropy((model(inputs) / temperature).float(), labels) for inputs, labels in batches]
    return torch.stack(losses).mean()


class TestSnip:
    def test_is_the_gradient_times_the_weight(self) -> None:
        model, batches = small_network(), two_batches()
        found = snip(model, Classification(), batches, whole(model))
        loss_of(model, batches).backward()
        for name, parameter in model.named_parameters():
            if name in found:
                assert parameter.grad is not None
                torch.testing.assert_close(found[name], (parameter.grad * parameter).abs().detach())

    def test_is_how_strongly_the_loss_depends_on_a_factor_of_the_weight(self) -> None:
        model, batches = small_network(), two_batches()
        found = snip(model, Regression(), Few(*[(x, F.one_hot(y, 3).double()) for x, y in batches]), whole(model))
        factors = {name: torch.ones_like(parameter, requires_grad=name in found)
                   for name, parameter in model.named_parameters()}
        scaled = {name: parameter * factors[name] for name, parameter in model.named_parameters()}
        losses = [F.mse_loss(torch.func.functional_call(model, scaled, (x,)).float(), F.one_hot(y, 3).float())
                  for x, y in batches]
        torch.stack(losses).mean().backward()
        for name, scores in found.items():
            gradient = factors[name].grad
            assert gradient is not None
            torch.testing.assert_close(scores, gradient.abs())

    def test_leaves_the_network_as_it_is(self) -> None:
        model = small_network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        snip(model, Classification(), two_batches(), whole(model))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


class TestGrasp:
    @pytest.mark.parametrize("temperature", [1.0, 200.0])
    def test_is_the_weight_times_the_hessian_gradient_product_by_double_backward(self, temperature: float) -> None:
        model, batches = small_network(), two_batches()
        found = grasp(model, Classification(), batches, whole(model), temperature)
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        gradients = torch.autograd.grad(loss_of(model, batches, temperature), weights, create_graph=True)
        half_of_the_norm = torch.stack([(gradient**2).sum() for gradient in gradients]).sum() / 2
        products = torch.autograd.grad(half_of_the_norm, weights)  # H g
        for scores, weight, product in zip(found.values(), weights, products, strict=True):
            torch.testing.assert_close(scores, (weight * product).detach(), rtol=1e-4, atol=1e-9)

    def test_agrees_with_finite_differences_of_the_gradient(self) -> None:
        model, batches = small_network(), two_batches()
        found = grasp(model, Classification(), batches, whole(model))
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        start = [weight.detach().clone() for weight in weights]
        direction = torch.autograd.grad(loss_of(model, batches), weights)
        step = 1e-2
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, first, part in zip(weights, start, direction, strict=True):
                    weight.copy_(first + sign * step * part)
            ends.append(torch.autograd.grad(loss_of(model, batches), weights))
        for scores, first, ahead, behind in zip(found.values(), start, *ends, strict=True):
            torch.testing.assert_close(scores, first * (ahead - behind) / (2 * step), rtol=1e-2, atol=2e-5)

    def test_pruning_the_lowest_scores_reduces_the_gradients_norm_the_least(self) -> None:
        """To first order the squared norm changes by minus twice the sum of the scores that are pruned."""
        model, batches = small_network(), two_batches()
        found = grasp(model, Classification(), batches, whole(model))
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]

        def norm() -> float:
            return sum(float((part**2).sum()) for part in torch.autograd.grad(loss_of(model, batches), weights))

        before, share = norm(), 1e-2
        with torch.no_grad():  # a hundredth of each weight is taken away
            for weight in weights:
                weight.mul_(1 - share)
        expected = -2 * share * sum(float(scores.sum()) for scores in found.values())
        assert norm() - before == pytest.approx(expected, rel=0.1)

    def test_attention_is_differentiated_twice(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(4, 4)
                self.outer = nn.Linear(4, 3)

            def forward(self, inputs: Tensor) -> Tensor:
                hidden = self.inner(inputs)[:, None]
                return self.outer(F.scaled_dot_product_attention(hidden, hidden, hidden).mean(dim=(1, 2)))

        torch.manual_seed(0)
        model = Attention()
        found = grasp(model, Classification(), Few((torch.randn(3, 5, 4), torch.tensor([0, 1, 2]))), whole(model))
        assert all(bool(scores.any()) for scores in found.values())

    def test_what_has_no_second_derivative_is_named(self) -> None:
        class Fused(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(4, 8)
                self.outer = nn.Linear(8, 3)

            def forward(self, inputs: Tensor) -> Tensor:
                hidden = self.inner(inputs)[:, None]
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    return self.outer(F.scaled_dot_product_attention(hidden, hidden, hidden).mean(dim=(1, 2)))

        model, batches = Fused(), Few((torch.randn(3, 5, 4), torch.tensor([0, 1, 2])))
        with pytest.raises(UserError, match=r"pruning\.score: grasp needs a network that can be differentiated twice"):
            grasp(model, Classification(), batches, whole(model))


def vgg() -> tuple[nn.Module, Layout, Few]:
    """VGG-16, and a batch of random images."""
    config = tiny("nowhere", model__name="vgg16_bn").model
    model = build_model(config, num_classes=10, input_shape=(3, 32, 32), seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 10)
    return model, find_prunable(model, ("*",), ()), Few(batch)


def pruned(score: NetworkScore, density: float, steps: int) -> dict[str, float]:
    """The densities of VGG's layers after pruning by a score."""
    model, layout, batches = vgg()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    bits = to_bits(np.ones(layout.num_prunable, dtype=bool))
    last = round(density * layout.num_prunable)
    for count in falling_densities(layout.num_prunable, last, steps):
        present = from_bits(bits, layout.num_prunable)
        mask = {name: torch.tensor(part) for name, part in split(layout, present).items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] * mask[name] if name in mask else start[name])
        scores = checked_scores(score(model.train(), Classification(), batches, mask), layout, present)
        bits = select(layout, bits, count, "global", [here(ScoredSlice(0, scores))])
    found = from_bits(bits, layout.num_prunable)
    assert np.count_nonzero(found) == last
    return layer_densities(layout, found)


class TestSynflow:
    def test_is_the_sum_over_all_paths_of_the_products_of_weights(self) -> None:
        """Without a bias, R is the sum over paths, and a weight's score the sum over those that go through it."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        found = synflow(model, Classification(), Few((torch.randn(4, 2), torch.zeros(4).long())), whole(model))
        first = model.get_parameter("0.weight").detach().double().abs()
        second = model.get_parameter("2.weight").detach().double().abs()
        expected = torch.zeros(3, 2, dtype=torch.float64)
        for hidden in range(3):
            for source in range(2):
                expected[hidden, source] = sum(second[out, hidden] * first[hidden, source] for out in range(2))
        assert found["0.weight"].dtype == torch.float64
        torch.testing.assert_close(found["0.weight"], expected)

    def test_every_layer_has_the_same_sum_of_scores(self) -> None:
        """Conservation (Tanaka et al., 2020, theorem 2), in a network without biases, normalisation as the identity."""
        model, layout, batches = vgg()
        with torch.no_grad():  # normalisation has none at the initialisation
            model.get_parameter("classifier.bias").zero_()
        sums = [float(scores.sum()) for scores in synflow(
            model, Classification(), batches,
            {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in layout.layers}).values()]
        assert len(sums) == 14
        assert sums == pytest.approx([sums[0]] * 14, rel=1e-9)

    def test_sees_no_data_and_leaves_the_network_as_it_is(self) -> None:
        model, layout, batches = vgg()
        mask = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in layout.layers}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = synflow(model.train(), Classification(), batches, mask)
        other = synflow(model, Classification(), Few((torch.zeros(2, 3, 32, 32), torch.zeros(2).long())), mask)
        assert all(torch.equal(found[name], other[name]) for name in found)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert model.training

    def test_keeps_every_layer_of_vgg_where_snip_at_once_empties_some(self) -> None:
        """Layer collapse at 99.9 %: what SynFlow was made for."""
        assert min(pruned(synflow, 0.001, steps=10).values()) > 0
        assert min(pruned(snip, 0.001, steps=1).values()) == 0

    def test_overflow_is_refused_and_what_float32_could_not_hold_is_not(self) -> None:
        deep = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(20)])
        for size, fits in ((1e3, True), (1e30, False)):
            with torch.no_grad():
                for parameter in deep.parameters():
                    parameter.fill_(size)
            batches = Few((torch.randn(2, 2), torch.zeros(2).long()))
            if fits:
                found = synflow(deep, Classification(), batches, whole(deep))
                assert min(float(scores.min()) for scores in found.values()) > 1e38
                continue
            with pytest.raises(UserError, match="synflow's scores overflow float64"):
                synflow(deep, Classification(), batches, whole(deep))

    @pytest.mark.parametrize(("batch", "got"), [
        ((torch.zeros(2, 5).long(), torch.zeros(2).long()), "int64"),
        ({"tokens": torch.zeros(2, 5), "mask": torch.zeros(2), "labels": torch.zeros(2)}, "a mapping with tokens"),
        ((({"a": torch.zeros(2)}), torch.zeros(2)), "dict"),
    ])
    def test_inputs_that_are_no_floats_are_refused(self, batch: Any, got: str) -> None:
        model = small_network()
        with pytest.raises(UserError, match=rf"pruning\.score: synflow needs .*{got}"):
            synflow(model, Classification(), Few(batch), whole(model))

    @pytest.mark.parametrize("norm", [
        nn.LayerNorm(7), nn.GroupNorm(1, 7), nn.BatchNorm1d(7, track_running_stats=False)])
    def test_normalisation_by_the_sample_at_hand_is_refused(self, norm: nn.Module) -> None:
        model = nn.Sequential(nn.Linear(5, 7), norm, nn.Linear(7, 3))
        with pytest.raises(UserError, match=rf"{type(norm).__name__} at 1"):
            synflow(model, Classification(), two_batches(), whole(model))

    def test_a_network_that_nothing_passes_is_refused(self) -> None:
        model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False))
        nn.init.zeros_(model.get_parameter("0.weight"))
        with pytest.raises(UserError, match="synflow's scores are all 0"):
            synflow(model, Classification(), two_batches(), whole(model))


class TestOthers:
    def test_magnitude_is_of_the_weights(self) -> None:
        model = small_network()
        found = magnitude(model, Classification(), two_batches(), whole(model))
        assert torch.equal(found["0.weight"], model.get_parameter("0.weight").detach().abs())

    def test_random_scores_follow_from_the_seed_alone(self) -> None:
        model = small_network()
        scores = [make_network_score("random", seed=seed)(model, Classification(), two_batches(), whole(model))
                  for seed in (3, 3, 4)]
        assert torch.equal(scores[0]["2.weight"], scores[1]["2.weight"])
        assert not torch.equal(scores[0]["2.weight"], scores[2]["2.weight"])

    @pytest.mark.parametrize(("name", "words"), [
        ("snipp", "Did you mean 'snip'"), ("movement", "how far training moved a weight"),
        ("math:pi", "a score must be a function")])
    def test_what_is_no_score_is_refused(self, name: str, words: str) -> None:
        with pytest.raises(UserError, match=words):
            make_network_score(name, seed=0)


class TestChecks:
    layout = find_prunable(small_network().float(), ("*",), ())

    def scores(self, **changed: Any) -> Mapping[str, Any]:
        found: dict[str, Any] = {layer.name: torch.ones(layer.shape) for layer in self.layout.layers}
        return {name: value for name, value in (found | changed).items() if value is not None}

    def test_survivors_come_in_order_and_float64_stays(self) -> None:
        found = self.scores()
        found = {name: value * index for index, (name, value) in enumerate(reversed(list(found.items())))}
        mask = np.zeros(self.layout.num_prunable, dtype=bool)
        mask[[0, 40, -1]] = True
        assert checked_scores(found, self.layout, mask).tolist() == [2.0, 1.0, 0.0]
        huge = {name: value.double() * 1e300 for name, value in found.items()}
        assert checked_scores(huge, self.layout, mask)[0] == 2e300

    @pytest.mark.parametrize(("changed", "words"), [
        ({"0.weight": torch.ones(5, 7)}, r"score of 0\.weight must be a tensor of shape \(7, 5\), but got '\(5, 7\)'"),
        ({"0.weight": [1.0]}, "but got 'list'"),
        ({"0.weight": None}, r"none for '0\.weight'"),
        ({"0.bias": torch.ones(7)}, r"scores for '0\.bias', which is not prunable"),
        ({"2.weight": torch.full((6, 7), torch.nan)}, r"the score is NaN in 2\.weight"),
    ])
    def test_what_a_score_must_not_return_is_named(self, changed: dict[str, Any], words: str) -> None:
        with pytest.raises(UserError, match=rf"pruning\.score: .*{words}"):
            checked_scores(self.scores(**changed), self.layout, np.ones(self.layout.num_prunable, dtype=bool))

    def test_nan_of_a_pruned_weight_does_not_count(self) -> None:
        mask = np.ones(self.layout.num_prunable, dtype=bool)
        mask[0] = False
        scores = torch.ones(7, 5)
        scores[0, 0] = torch.nan
        assert checked_scores(self.scores(**{"0.weight": scores}), self.layout, mask).size == mask.size - 1

    def test_something_else_than_a_mapping_is_refused(self) -> None:
        with pytest.raises(UserError, match="must return a mapping of parameter names to tensors, but got 'list'"):
            checked_scores([torch.ones(1)], self.layout, np.ones(self.layout.num_prunable, dtype=bool))
