"""Factories that give one network, or parts of one, to several callers."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swamp_ray.config.sections import ModelConfig
from swamp_ray.errors import UserError
from swamp_ray.training.factory_checks import InitialValues, disturb_
from swamp_ray.training.models import build_model

NAME = "factories_of_tests:make"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], nn.Module]:
    """Build a network as a run does, from a factory that a test defines."""
    module = ModuleType("factories_of_tests")
    monkeypatch.setitem(sys.modules, "factories_of_tests", module)

    def build(make: Callable[..., Any]) -> nn.Module:
        monkeypatch.setattr(module, "make", make, raising=False)
        return build_model(ModelConfig(name=NAME), num_classes=2, input_shape=(3,), seed=0)

    return build


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def prepared_twice(build: Callable[[Callable[..., Any]], nn.Module], make: Callable[..., Any]) -> None:
    """What a run does before it starts: build, try out, build again, compare."""
    first = build(make)
    fresh = InitialValues(first)
    disturb_(first)
    fresh.compare(build(make), NAME)


class Holder(nn.Module):
    """A network with one part of its own, and one that it is given."""

    def __init__(self, part: Any, kind: str) -> None:
        super().__init__()
        self.own = nn.Linear(3, 4)
        if kind == "module":
            self.part = part
        elif kind == "parameter":
            self.weight = part
        elif kind == "tensor":
            self.weight = nn.Parameter(part)
        else:
            self.register_buffer("table", part, persistent=kind == "buffer")


SHARED = {"module": nn.Linear(4, 4), "parameter": nn.Parameter(torch.ones(4)), "tensor": torch.ones(4),
          "buffer": torch.ones(4), "non-persistent buffer": torch.arange(4)}


@pytest.mark.parametrize("kind", SHARED)
def test_networks_that_share_a_part_are_refused(build: Any, kind: str) -> None:
    with pytest.raises(UserError, match=r"model\.name: .*(share|another network)"):
        prepared_twice(build, lambda: Holder(SHARED[kind], kind))


def test_a_cached_network_and_one_of_the_module_are_refused(build: Any) -> None:
    one = network()
    for make in (functools.lru_cache(network), lambda: one, lambda num_classes, input_shape: one):
        with pytest.raises(UserError, match="gives the same network each time"):
            prepared_twice(build, make)


def test_a_wrapper_around_one_network_is_refused(build: Any) -> None:
    one = network()
    with pytest.raises(UserError, match=r"share the module '0'"):
        prepared_twice(build, lambda: nn.Sequential(one[0], nn.Linear(4, 2)))


def test_networks_that_come_round_again_are_refused_once_they_do(build: Any) -> None:
    pool = itertools.cycle([network(), network(), network()])
    given = [build(lambda: next(pool)) for _ in range(3)]
    with pytest.raises(UserError, match="gives the same network"):
        build(lambda: next(pool))
    assert len(given) == 3


def test_copies_of_a_network_that_training_changes_are_refused(build: Any) -> None:
    latest: list[nn.Module] = []

    def make() -> nn.Module:
        latest[:] = [copy.deepcopy(latest[0]) if latest else network()]
        return latest[0]

    with pytest.raises(UserError, match="gives another network at its next call"):
        prepared_twice(build, make)


@pytest.mark.parametrize("draw", [
    lambda: np.random.default_rng().normal(size=4), lambda: torch.rand(4, generator=torch.Generator().manual_seed(
        torch.Generator().seed() % 2**31)), lambda: [next(COUNTER)] * 4])
def test_weights_that_the_seed_does_not_decide_are_refused(build: Any, draw: Callable[[], Any]) -> None:
    def make() -> nn.Module:
        model = network()
        model.get_parameter("0.bias").data.copy_(torch.as_tensor(draw()))
        return model

    with pytest.raises(UserError, match=r"same seed .*'0\.bias' differs"):
        prepared_twice(build, make)


COUNTER = itertools.count()


def test_networks_of_another_form_each_time_are_refused(build: Any) -> None:
    widths = itertools.count(1)
    with pytest.raises(UserError, match="another network"):
        prepared_twice(build, lambda: nn.Linear(3, next(widths)))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def odd() -> nn.Module:
    model = nn.Linear(3, 2)
    model.register_buffer("nothing", torch.empty(0))
    model.register_buffer("unknown", torch.full((2,), float("nan")))
    model.register_buffer("narrow", torch.ones(2).expand(4, 2))
    model.register_buffer("flags", torch.tensor([True, False]))
    return model


PROTOTYPE = network()
ACTIVATION = nn.Dropout(0.5)


@pytest.mark.parametrize("make", [
    network, tied, odd, lambda: copy.deepcopy(PROTOTYPE), lambda: nn.Sequential(nn.Linear(3, 2), ACTIVATION),
    lambda: nn.LazyLinear(3), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
], ids=["plain", "tied", "odd", "copies", "a module without tensors", "lazy", "parametrised"])
def test_networks_that_share_nothing_are_built_as_often_as_one_likes(build: Any, make: Callable[..., Any]) -> None:
    prepared_twice(build, make)
    prepared_twice(build, make)
