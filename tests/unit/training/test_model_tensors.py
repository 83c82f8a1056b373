"""Tensors of networks as users make them: each is trained right, or refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp_ray.config.sections import TrainingConfig
from swamp_ray.errors import UserError
from swamp_ray.training.factory_checks import InitialValues
from swamp_ray.training.hidden_state import refuse_hidden_state, refuse_random_constants, refuse_unregistered
from swamp_ray.training.model_tensors import prepare_tensors_, refuse_odd_gradients
from swamp_ray.training.optimizers import MaskedStep, build_optimizer
from swamp_ray.training.packs.packable import why_unpackable
from swamp_ray.training.packs.stacked import StackedGradients


class Subclass(Tensor):
    """A tensor class with operations of its own."""


class Named(nn.Parameter):
    """A Parameter class without operations of its own."""


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A linear layer after a product with ``extra`` of 4 x 4, and whatever a test adds."""

    def __init__(self, extra: Tensor | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.head.weight.copy_(drawn(2, 4, seed=2))
            self.head.bias.zero_()
        self.extra = nn.Parameter(extra) if extra is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if self.extra is None else x @ self.extra)


class Loss:
    """The least of a task that training needs."""

    def training_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch).square().mean(), {}


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "every second column": lambda: drawn(4, 8)[:, ::2],
    "every third row": lambda: drawn(12, 4)[::3],
    "a corner": lambda: drawn(7, 9)[2:6, 3:7],
    "a diagonal of a cube": lambda: drawn(4, 4, 4).diagonal(dim1=0, dim2=1),
    "transposed": lambda: drawn(4, 4).t(),
    "transposed, with gaps": lambda: drawn(8, 4).t()[:, ::2],
    "the end of a longer vector": lambda: drawn(20)[4:].view(4, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_views_are_trained_like_tensors_of_their_own(layout: str, optimizer: str) -> None:
    view, own = Net(LAYOUTS[layout]()), Net(LAYOUTS[layout]().clone(memory_format=torch.contiguous_format))
    for model in (view, own):
        prepare_tensors_(model)
        config = TrainingConfig.model_validate({"optimizer": optimizer, "lr": 0.1, "momentum": 0.9})
        step = MaskedStep(build_optimizer(model, config, 0.01, fused=True), [], None, None)
        for batch in range(4):
            model(drawn(8, 4, seed=batch)).square().mean().backward()
            step(0.1)
    for one, other in zip(view.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_slices_of_one_vector_get_memory_of_their_own() -> None:
    flat = drawn(24)
    model = Net(flat[:16].view(4, 4))
    model.more = nn.Parameter(flat[16:].view(2, 4))
    model.interleaved = nn.ParameterList([drawn(6)[::2], drawn(6)[1::2]])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    prepare_tensors_(model)
    places = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert len(places) == len(before)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in model.parameters())


def test_what_is_in_order_is_not_touched() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    model.tied = model[0]
    model.empty = nn.Parameter(torch.zeros(0, 3))
    model.scale = Named(torch.tensor(2.0))
    model.names = [model[0].weight]  # as nn.LSTM holds its weights
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    strides = model[0].weight.stride()
    prepare_tensors_(model)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert model[0].weight.stride() == strides


def with_attribute(**values: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Net(drawn(4, 4))
        for name, value in values.items():
            setattr(model, name, value(model))
        return model

    return build


def with_buffer(make: Callable[[Net], Tensor]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Net(drawn(4, 4))
        model.register_buffer("held", make(model))
        return model

    return build


def two_norms() -> nn.Module:
    model: Any = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].running_var.data = model[0].running_var.data
    return model


def prefixed() -> nn.Module:
    model = Net()
    model.register_buffer("scale", torch.ones(2))
    model.module = nn.Module()
    model.module.scale = nn.Parameter(torch.ones(2))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an expanded parameter": (lambda: Net(drawn(1, 4).expand(4, 4)), "extra is expanded"),
    "an overlapping parameter": (lambda: Net(drawn(16).as_strided((4, 4), (2, 1))), "extra is expanded"),
    "weights tied by their data": (with_attribute(
        more=lambda model: nn.Parameter(model.extra.detach())), "extra and the parameter more share memory"),
    "slices that overlap": (with_attribute(more=lambda model: nn.Parameter(model.extra.detach()[1:])), "share memory"),
    "an integer view": (with_attribute(
        more=lambda model: nn.Parameter(model.extra.detach().view(torch.int32), requires_grad=False)), "share memory"),
    "an attribute that looks into a parameter": (with_attribute(
        turned=lambda model: model.extra.detach().t()), "attribute turned share memory"),
    "a view in a list": (with_attribute(rows=lambda model: [model.head.weight[0]]), "attribute rows share memory"),
    "a buffer that looks into a parameter": (with_buffer(
        lambda model: model.head.weight.detach()[0]), "buffer held share memory"),
    "statistics in common": (two_norms, "share memory"),
    "no values": (lambda: Net(torch.empty(4, 4, device="meta")), "extra is on the meta device"),
    "a lazy buffer": (lambda: nn.LazyBatchNorm1d(affine=False), "not initialised"),
    "a tensor class": (lambda: Net(drawn(4, 4).as_subclass(Subclass)), "tensor class of its own"),
    "a buffer of a tensor class": (with_buffer(lambda _: torch.ones(2).as_subclass(Subclass)), "tensor class"),
    "a sparse buffer": (with_buffer(lambda _: torch.eye(3).to_sparse_csr()), "buffer held must be dense"),
    "a quantised buffer": (with_buffer(
        lambda _: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)), "buffer held must be dense"),
    "a bfloat16 buffer": (with_buffer(lambda _: torch.ones(3, dtype=torch.bfloat16)), "buffer held has a type"),
    "a float8 buffer": (with_buffer(lambda _: torch.ones(3).to(torch.float8_e5m2)), "buffer held has a type"),
    "a complex128 buffer": (with_buffer(lambda _: torch.ones(3, dtype=torch.complex128)), "buffer held has a type"),
    "a buffer with a history": (with_buffer(lambda model: model.head.weight * 2), "computed from parameters"),
    "a buffer and a parameter of one name": (prefixed, "two tensors are called 'scale'"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|Lazy modules|quantize_per_tensor|torch.ao.quantization).*")
def test_refuses_by_name(kind: str) -> None:
    build, message = REFUSED[kind]
    with pytest.raises(UserError, match=message):
        prepare_tensors_(build())


BUFFERS: dict[str, Callable[[Net], Tensor]] = {
    "expanded": lambda _: torch.tensor([3.0]).expand(5),
    "with gaps": lambda _: torch.arange(10)[::2],
    "complex": lambda _: torch.tensor([1 + 2j, 3 - 1j]),
    "half": lambda _: torch.ones(3, dtype=torch.float16),
    "bool": lambda _: torch.tensor([True, False]),
    "no dimension": lambda _: torch.tensor(7),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_keep_their_values_and_can_be_written(kind: str) -> None:
    model: Any = with_buffer(BUFFERS[kind])()
    before = model.held.clone()
    prepare_tensors_(model)
    assert torch.equal(model.held, before)
    assert model.held.dtype == before.dtype
    model.held.copy_(before)


def test_constant_buffers_may_share_memory() -> None:
    table = torch.arange(12.0)
    model: Any = Net()
    model.register_buffer("first", table[:8])
    model.register_buffer("second", table[4:])
    prepare_tensors_(model)
    assert model.second.tolist() == list(range(4, 12))


class TestGradients:
    @pytest.mark.parametrize("layer", [nn.Embedding(4, 3, sparse=True), nn.EmbeddingBag(4, 3, sparse=True)])
    def test_sparse_ones_are_refused(self, layer: nn.Module) -> None:
        layer(torch.zeros(1, 1, dtype=torch.int64)).sum().backward()
        with pytest.raises(UserError, match="weight gets sparse gradients"):
            refuse_odd_gradients(layer)

    def test_those_that_a_hook_turns_are_refused(self) -> None:
        model: Any = Net(drawn(4, 4))

        def turn(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad = parameter.grad.t().contiguous().t()

        model.extra.register_post_accumulate_grad_hook(turn)
        model(drawn(3, 4)).sum().backward()
        with pytest.raises(UserError, match="gradient of the parameter extra"):
            refuse_odd_gradients(model)

    def test_others_pass(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 3, 2).to(memory_format=torch.channels_last), nn.Flatten(), nn.LazyLinear(2))
        model(drawn(2, 1, 3, 3)).sum().backward()
        refuse_odd_gradients(model)

    @pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_a_network_with_hooks_on_gradients_is_not_stacked(self, hook: str) -> None:
        model = Net()
        assert why_unpackable(model, Loss(), drawn(2, 4), "stacked") is None  # pyright: ignore[reportArgumentType]
        getattr(model.head.weight, hook)(lambda _: None)
        reason = why_unpackable(model, Loss(), drawn(2, 4), "stacked")  # pyright: ignore[reportArgumentType]
        assert reason is not None
        assert "head.weight" in reason


def test_stacked_networks_with_gaps_keep_their_values() -> None:
    models = []
    for seed in range(2):
        model = Net(drawn(4, 8, seed=seed)[:, ::2])
        model.register_buffer("held", torch.tensor([float(seed)]).expand(3))
        prepare_tensors_(model)
        models.append(model)
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    StackedGradients(models, Loss(), autocast=torch.enable_grad)  # pyright: ignore[reportArgumentType]
    for model, values in zip(models, before, strict=True):
        assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())


class Remembering(nn.Module):
    """Changes an attribute in each forward pass."""

    def __init__(self, start: Any, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.memory, self._change = start, change

    def forward(self, x: Tensor) -> Tensor:
        self.memory = self._change(self.memory)
        return self.layer(x)


def draw(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        torch.rand(1, generator=generator)
    else:
        generator.random()
    return generator


class TestHiddenState:
    @pytest.mark.parametrize(("start", "change"), [
        (0, lambda calls: calls + 1),
        (1.0, lambda scale: scale * 0.9),
        (torch.zeros(2), lambda mean: mean + 1),
        (np.zeros(2), lambda mean: mean - 1),
        (torch.Generator(), draw),
        (np.random.default_rng(0), draw),
        (random.Random(0), draw),
    ], ids=lambda value: type(value).__name__)
    def test_what_every_step_changes_is_refused(self, start: Any, change: Callable[[Any], Any]) -> None:
        model = nn.Sequential(Remembering(start, change))
        model(torch.ones(1, 2))
        with pytest.raises(UserError, match=r"changes the attribute '0\.memory'"):
            refuse_hidden_state(model, lambda: model(torch.ones(1, 2)))

    @pytest.mark.parametrize(("start", "change"), [
        (None, lambda cache: torch.ones(3)),
        (0, lambda longest: max(longest, 7)),
        (torch.Generator(), lambda generator: generator),
        ([], lambda list_: [*list_, "a log"]),
    ])
    def test_a_cache_is_none(self, start: Any, change: Callable[[Any], Any]) -> None:
        model = Remembering(start, change)
        model(torch.ones(1, 2))
        refuse_hidden_state(model, lambda: model(torch.ones(1, 2)))

    @pytest.mark.parametrize("start", [{"mean": torch.zeros(2)}, [np.zeros(2), "name"], (torch.zeros(1),)],
                             ids=["mapping", "list", "tuple"])
    def test_state_in_a_collection_is_seen(self, start: Any) -> None:
        def change(held: Any) -> Any:
            if isinstance(held, dict):
                return {key: one + 1 for key, one in held.items()}
            return type(held)(one if isinstance(one, str) else one + 1 for one in held)

        model = nn.Sequential(Remembering(start, change))
        model(torch.ones(1, 2))
        with pytest.raises(UserError, match=r"changes the attribute '0\.memory'"):
            refuse_hidden_state(model, lambda: model(torch.ones(1, 2)))


class Holding(nn.Module):
    """Multiplies by what it holds as a plain attribute."""

    def __init__(self, held: Any, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.held, self._use = held, use

    def forward(self, x: Tensor) -> Tensor:
        return self._use(self.held, self.layer(x))


class TestUnregistered:
    @pytest.mark.parametrize(("held", "use"), [
        ([nn.Linear(4, 4)], lambda held, x: held[0](x)),
        ({"gain": nn.Parameter(torch.ones(4))}, lambda held, x: x * held["gain"]),
        ((nn.Sequential(nn.BatchNorm1d(4)),), lambda held, x: held[0](x)),
    ], ids=["list of layers", "mapping of parameters", "tuple of networks"])
    def test_what_no_optimiser_would_train_is_refused(self, held: Any, use: Any) -> None:
        model = Holding(held, use)
        with pytest.raises(UserError, match=r"none of the network's.*in the attribute held"):
            refuse_unregistered(model, model(drawn(3, 4)).sum())

    def test_a_layer_of_the_module_is_none_of_the_networks_either(self) -> None:
        layer = nn.Linear(4, 4)
        model = Holding(None, lambda _, x: layer(x))
        with pytest.raises(UserError, match="none of the network's"):
            refuse_unregistered(model, model(drawn(3, 4)).sum())

    @pytest.mark.parametrize(("held", "use"), [
        ([nn.Linear(4, 4).requires_grad_(False)], lambda held, x: held[0](x)),
        (None, lambda _, x: x * x.detach().clone().requires_grad_()),
        (torch.ones(4), lambda held, x: x * held),
    ], ids=["frozen", "input with a gradient", "constant"])
    def test_what_needs_no_training_is_right(self, held: Any, use: Any) -> None:
        model = Holding(held, use)
        refuse_unregistered(model, model(drawn(3, 4)).sum())


def hidden(held: Any) -> nn.Module:
    return Holding(held, lambda _, x: x)


def not_persistent(value: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_buffer("noise", value, persistent=False)
    return model


class TestRandomConstants:
    @pytest.mark.parametrize("build", [
        lambda: hidden(torch.randn(4)), lambda: hidden([nn.Linear(4, 4).requires_grad_(False)]),
        lambda: hidden({"a": torch.ones(1), "b": torch.rand(2)}), lambda: not_persistent(torch.randn(4)),
    ], ids=["attribute", "layer in a list", "mapping", "buffer"])
    def test_what_no_ticket_would_hold_is_refused(self, build: Callable[[], nn.Module]) -> None:
        with pytest.raises(UserError, match="drawn at random"):
            refuse_random_constants(build(), build)

    @pytest.mark.parametrize("build", [
        lambda: hidden(drawn(4)), lambda: not_persistent(torch.ones(4)), lambda: nn.Linear(4, 4),
        lambda: hidden(["a", None, 3]),
    ], ids=["a seed of its own", "constant buffer", "ordinary", "no tensors"])
    def test_what_is_always_the_same_is_right(self, build: Callable[[], nn.Module]) -> None:
        refuse_random_constants(build(), build)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_at_the_beginning_are_refused(value: float) -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight[1, 2] = value
    with pytest.raises(UserError, match=r"head\.weight has values that are not finite"):
        prepare_tensors_(model)


@pytest.mark.parametrize("view", [
    torch.ones(3, dtype=torch.complex64).conj(), torch.ones(3, dtype=torch.complex64).conj().imag], ids=["conj", "neg"])
def test_buffers_that_are_computed_when_they_are_read_are_refused(view: Tensor) -> None:
    model = Net()
    model.register_buffer("phase", view)
    with pytest.raises(UserError, match=r"phase is a conjugate or the negative"):
        prepare_tensors_(model)


def test_a_forward_pass_that_writes_into_prunable_weights_is_refused() -> None:
    model = Net()
    fresh = InitialValues(model)
    fresh.refuse_changed(model, ["head.weight"])
    with torch.no_grad():
        model.head.bias.add_(1)
    fresh.refuse_changed(model, ["head.weight"])
    with torch.no_grad():
        model.head.weight.clamp_(min=0.1)
    with pytest.raises(UserError, match=r"changes the weight head\.weight"):
        fresh.refuse_changed(model, ["head.weight"])
