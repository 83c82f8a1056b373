"""What `auto` becomes on each kind of device, and that a process gets its settings back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.training.arithmetic import applied, local_device, machine_facts, resolve_arithmetic

CONVOLUTIONAL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
LINEAR = nn.Linear(2, 2)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield 1
    torch.set_num_threads(before)


def draw_and_fail(arithmetic: Any) -> None:
    with applied(arithmetic):
        torch.rand(3)
        raise KeyError


@pytest.mark.parametrize(("device", "model", "expected"), [
    ("cpu", CONVOLUTIONAL, {"precision": "fp32", "channels_last": True, "deterministic": True, "fused": True}),
    ("cpu", LINEAR, {"precision": "fp32", "channels_last": False}),
    ("cuda", CONVOLUTIONAL, {"precision": "bf16", "channels_last": True, "deterministic": False, "fused": True}),
    ("cuda", LINEAR, {"precision": "bf16", "channels_last": False}),
])
def test_auto(device: str, model: nn.Module, expected: dict[str, Any]) -> None:
    found = resolve_arithmetic(ExecutionConfig(), device, model).as_dict()
    assert {name: found[name] for name in expected} == expected
    assert (found["device"], found["threads"], found["compile"], found["ranks"]) == (device, 1, False, 1)
    assert torch.__version__.startswith(f"{found['torch']}.")


def test_what_is_given_is_taken() -> None:
    given = ExecutionConfig(precision="fp32", channels_last=False, fused=False, threads=3, deterministic=True)
    found = resolve_arithmetic(given, "cuda", CONVOLUTIONAL)
    assert (found.precision, found.channels_last, found.fused, found.threads, found.deterministic) \
        == ("fp32", False, False, 3, True)
    assert resolve_arithmetic(ExecutionConfig(precision="bf16"), "cpu", LINEAR).precision == "bf16"


def test_applied_gives_threads_and_random_numbers_back(threads: int) -> None:
    arithmetic = resolve_arithmetic(ExecutionConfig(threads=2), "cpu", LINEAR)
    state = torch.get_rng_state()
    with applied(arithmetic):
        assert torch.get_num_threads() == 2
        torch.manual_seed(5)
        torch.rand(3)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError):
        draw_and_fail(arithmetic)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"execution\.device: no CUDA device is visible to this process"):
        local_device("cuda")
    assert local_device("cpu") == torch.device("cpu")


def test_facts_name_versions_and_processor() -> None:
    facts = machine_facts()
    assert facts["torch"] == torch.__version__
    assert facts["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert all(isinstance(value, str) and value for value in facts.values())


@pytest.mark.gpu
def test_cuda_settings_are_given_back() -> None:
    benchmark = torch.backends.cudnn.benchmark
    arithmetic = resolve_arithmetic(ExecutionConfig(deterministic=True), "cuda", CONVOLUTIONAL)
    state = torch.cuda.get_rng_state()
    with applied(arithmetic):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum() == 512
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == benchmark
    assert torch.equal(torch.cuda.get_rng_state(), state)
