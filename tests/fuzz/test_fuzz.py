"""Random networks, data and states of the caller's process: the right accuracy, or a refusal in words; nothing else."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swamp_ray import SwampTrainer
from swamp_ray.errors import UserError
from tests.fuzz import fuzzed, reference

TOLERANCE = 2.5 / fuzzed.NUM_TEST
"""Two samples of the test split: what rounding may flip."""
DEFAULT = range(10)
NIGHTLY = range(10, 30)
SLOW = range(30, 330)
PLAIN = {"layout": "plain", "buffer": "none", "norm": "none", "freezing": "none", "labels": "int64", "form": "arrays",
         "caller": "nothing", "optimizer": "sgd"}


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(1)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CALLERS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16), "default_dtype": default_dtype,
    "meta_device": lambda: torch.device("meta"), "two_threads": two_threads, "deterministic": deterministic,
    "anomaly": torch.autograd.detect_anomaly,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "layout": fuzzed.LAYOUTS, "buffer": fuzzed.BUFFERS, "norm": fuzzed.NORMS, "freezing": fuzzed.FREEZING,
    "labels": fuzzed.LABELS, "form": fuzzed.FORMS, "caller": tuple(CALLERS), "optimizer": ("sgd", "adamw"),
}


def drawn(seed: int) -> dict[str, str]:
    """A combination: ordinary but for about three of its parts."""
    choose = random.Random(seed)
    odd = choose.sample(sorted(CHOICES), 3)
    return {part: choose.choice(CHOICES[part]) if part in odd else PLAIN[part] for part in CHOICES}


def config(folder: Path, chosen: dict[str, str]) -> dict[str, Any]:
    network = {part: chosen[part] for part in ("layout", "buffer", "norm", "freezing")}
    return {
        "name": "fuzzed", "storage": str(folder),
        "data": {"name": "tests.fuzz.fuzzed:data", "options": {"labels": chosen["labels"], "form": chosen["form"]}},
        "model": {"name": "tests.fuzz.fuzzed:network", "options": network},
        "training": {"batch_size": fuzzed.NUM_TRAIN, "lr": reference.LR[chosen["optimizer"]],
                     "optimizer": chosen["optimizer"], "momentum": reference.MOMENTUM,
                     "weight_decay": reference.DECAY, "schedule": {"name": "constant", "warmup": 0}},
        "dense": {"length": f"{reference.DENSE_STEPS} steps", "warmup": 0},
        "round": {"length": f"{reference.ROUND_STEPS} steps"}, "averaging": {"within": "none"},
        "particles": {"count": 2},
        "pruning": {"target": 1 - (1 - reference.RATE) ** reference.ROUNDS, "rate": reference.RATE},
        "execution": {"executor": "inline", "device": "cpu", "checkpoint_interval_s": 600},
    }


def state() -> tuple[Any, ...]:
    """What of the process belongs to the caller."""
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(),
            torch.random.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
            random.getstate(), torch.get_float32_matmul_precision())


def outcome(folder: Path, chosen: dict[str, str]) -> list[float] | UserError:
    """Accuracy of each round, or the refusal; the caller's state is the same afterwards."""
    with warnings.catch_warnings(action="ignore"), CALLERS[chosen["caller"]]():
        before = state()
        try:
            result = SwampTrainer(config(folder, chosen), quiet=True).fit()
            found: list[float] | UserError = result.summary["average/test/accuracy"].tolist()
        except UserError as error:
            found = error
        assert state() == before, "the caller's state has changed"
    return found


def expected(chosen: dict[str, str]) -> list[float]:
    """The accuracies of plain torch."""
    parts = {part: chosen[part] for part in ("optimizer", "layout", "buffer", "norm", "freezing", "form")}
    return reference.accuracies(**parts)


def check(folder: Path, seed: int) -> None:
    chosen = drawn(seed)
    found = outcome(folder, chosen)
    if isinstance(found, UserError):
        assert "Traceback" not in str(found), chosen
        return
    assert found == pytest.approx(expected(chosen), abs=TOLERANCE), chosen


@pytest.mark.parametrize("seed", DEFAULT)
def test_right_or_refused(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


@pytest.mark.parametrize("seed", [
    *(pytest.param(seed, marks=pytest.mark.nightly) for seed in NIGHTLY),
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in SLOW),
])
def test_right_or_refused_at_length(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


ORDINARY = [
    {}, {"optimizer": "adamw"}, {"norm": "batch"}, {"norm": "layer"}, {"norm": "kept_in_eval"}, {"layout": "tied"},
    {"labels": "int32"}, {"form": "mapping"}, {"form": "dataset"}, {"form": "float64"}, {"buffer": "not_persistent"},
    {"buffer": "integer"}, {"caller": "no_grad"}, {"caller": "autocast"}, {"caller": "two_threads"},
]


@pytest.mark.parametrize("odd", ORDINARY, ids=lambda odd: "-".join(odd.values()) or "plain")
def test_what_is_ordinary_is_trained_and_right(tmp_path: Path, odd: dict[str, str]) -> None:
    chosen = PLAIN | odd
    found = outcome(tmp_path, chosen)
    assert not isinstance(found, UserError), str(found)
    assert found == pytest.approx(expected(chosen), abs=TOLERANCE)
    assert 0.5 < found[0] <= 1.0, "there is something to learn"


def test_the_reference_learns_and_loses_by_pruning() -> None:
    found = expected(PLAIN)
    assert found[0] > 0.6
    assert len(found) == reference.ROUNDS + 1
