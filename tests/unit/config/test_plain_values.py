"""The type of an option decides what a value stands for: in configs, overrides and sweeps, from YAML and Python."""

from __future__ import annotations

import enum
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from swamp_ray.config.fields import Length
from swamp_ray.config.reading import build_config, parse_config
from swamp_ray.config.sweep_reading import build_sweep, parse_sweep
from swamp_ray.errors import UserError
from tests.helpers import TINY


class Kind(enum.Enum):
    SGD = "sgd"
    FOUR = 4


class Number(enum.IntEnum):
    TWO = 2


def options(value: Any) -> Any:
    return build_config({"model": {"options": {"x": value}}}).model.options["x"]


class TestOptionsWithAType:
    @pytest.mark.parametrize(("override", "value"), [
        ("data.version=1", "1"), ("data.version=1.0", "1.0"), ("data.version=1e3", "1e3"), ("data.version=yes", "yes"),
        ("model.version=2024-01-01", "2024-01-01"), ("task.version=12:30", "12:30"), ("name=017", "017"),
        ("data.version=null", None), ("data.version='2'", "2"),
    ])
    def test_a_text_is_taken_as_it_is_written(self, override: str, value: str | None) -> None:
        config = parse_config("", [override])
        section, _, option = override.partition("=")[0].rpartition(".")
        assert getattr(getattr(config, section) if section else config, option) == value

    @pytest.mark.parametrize(("override", "read", "value"), [
        ("training.lr=3e-2", lambda c: c.training.lr, 0.03),
        ("training.betas=[9e-1, 999e-3]", lambda c: c.training.betas, (0.9, 0.999)),
        ("training.batch_size=1e2", lambda c: c.training.batch_size, 100), ("seed=1_0", lambda c: c.seed, 10),
        ("training.nesterov=on", lambda c: c.training.nesterov, True),
        ("round.length=1e1", lambda c: c.round.length, Length(10)),
        ("particles.vary.lr=[1e-1, '2e-1']", lambda c: c.particles.vary.lr, (0.1, 0.2)),
        ("particles.schedule=[{sparsity: 5e-1, count: 2}]", lambda c: c.particles.schedule[0].sparsity, 0.5),
        ("execution.num_workers=2.0", lambda c: c.execution.num_workers, 2),
    ])
    def test_a_number_is_one_in_every_spelling(self, override: str, read: Any, value: Any) -> None:
        assert read(parse_config("", [override])) == value

    @pytest.mark.parametrize("override", ["seed=1.5", "training.lr='x'", "training.nesterov=2", "training.lr=12:30",
                                          "particles.count=yes", "training.lr=.nan"])
    def test_what_means_nothing_is_refused(self, override: str) -> None:
        with pytest.raises(UserError, match=override.partition("=")[0]):
            parse_config("", [override])

    def test_python_values_of_any_library(self) -> None:
        config = build_config(OrderedDict(
            seed=np.int64(3), storage=Path("a/b"), name=np.str_("run"),
            training={"lr": np.float64(0.5), "batch_size": np.array(16), "optimizer": Kind.SGD, "nesterov": np.True_,
                      "betas": np.array([0.8, 0.9]), "weight_decay": Decimal("0.25"), "momentum": Fraction(1, 2)},
            particles={"count": Number.TWO, "vary": {"lr": pd.Series([0.1, 0.2])}},
            pruning={"target": torch.tensor(0.75), "include": ("*a", "*b")}, data={"version": 7}))
        assert (config.seed, config.storage, config.name) == (3, "a/b", "run")
        training = config.training
        assert (training.lr, training.batch_size, training.optimizer) == (0.5, 16, "sgd")
        assert (training.nesterov, training.betas) == (True, (0.8, 0.9))
        assert (training.weight_decay, training.momentum) == (0.25, 0.5)
        assert (config.particles.count, config.particles.vary.lr, config.data.version) == (2, (0.1, 0.2), "7")
        assert (config.pruning.target, config.pruning.include) == (0.75, ("*a", "*b"))


class TestOptionsWithoutAType:
    @pytest.mark.parametrize(("value", "plain"), [
        (np.float32(0.5), 0.5), (np.int8(-1), -1), (np.bool_(False), False), (np.array([[1, 2]]), [[1, 2]]),
        ((1, (2.5, "x")), [1, [2.5, "x"]]), (range(3), [0, 1, 2]), (PurePosixPath("/a"), "/a"), (Kind.FOUR, 4),
        (Number.TWO, 2), (pd.Index(["a", "b"]), ["a", "b"]), ({"k": np.int64(1)}, {"k": 1}), ({}.keys(), []),
        ({np.str_("k"): None}, {"k": None}), (torch.tensor([1, 2]), [1, 2]), ("3e-4", "3e-4"), (1, 1), (True, True),
    ])
    def test_become_plain(self, value: Any, plain: Any) -> None:
        found = options(value)
        assert found == plain
        assert type(found) is type(plain)

    @pytest.mark.parametrize("value", [
        {1, 2}, frozenset(), b"x", 1j, np.nan, pd.NA, pd.NaT, pd.Timestamp("2024-01-01"), object(), print, np.inf])
    def test_what_no_name_can_hold_is_refused(self, value: Any) -> None:
        with pytest.raises(UserError, match=r"model\.options"):
            options(value)

    def test_what_holds_itself_is_refused(self) -> None:
        endless: list[Any] = []
        endless.append({"again": endless})
        with pytest.raises(UserError, match="holds itself"):
            options(endless)

    def test_a_set_is_no_list(self) -> None:
        with pytest.raises(UserError, match=r"pruning\.include: must be a list, because a set has no order"):
            build_config({"pruning": {"include": {"a", "b"}}})


class TestSpaces:
    @pytest.mark.parametrize(("entry", "values", "settings"), [
        ("training.weight_decay", "[0, 5e-4, 0.0005, 5E-4]", [0, 5e-4]),
        ("training.batch_size", "[1e1, 10, 20.0]", [10, 20]),
        ("data.version", "[1, 1.0, yes]", ["1", "1.0", "yes"]),
        ("training.nesterov", "[no, off, true]", [False, True]),
        ("round.length", "[8, '8 epochs', 800 steps]", [8, "800 steps"]),
        ("model.options.rate", "[1e-3, 1.0e-3]", [1e-3]),
        ("training.lr", "['3e-2', 0.03, 1]", [0.03, 1]),
    ])
    def test_have_the_types_of_their_options(self, entry: str, values: str, settings: list[Any]) -> None:
        sweep = parse_sweep(f"base: {{}}\nspace: {{{entry}: {{grid: {values}}}}}\n", Path())
        found = [setting[entry] for setting in sweep.settings()]
        assert found == settings
        assert [type(value) for value in found] == [type(value) for value in settings]

    def test_what_is_written_twice_is_still_refused(self) -> None:
        with pytest.raises(UserError, match="must list each value once"):
            parse_sweep("base: {}\nspace: {training.lr: {grid: [3e-2, 3e-2]}}\n", Path())

    def test_groups_and_ranges_too(self) -> None:
        sweep = parse_sweep("base: {training: {lr: 2e-1}}\nspace:\n  training.momentum: {uniform: [1e-1, 5e-1]}\n"
                            "  arm: {grid: {a: {training.lr: 1e-3, model.version: 3}}}\n", Path())
        assert sweep.config.space["training.momentum"].uniform == (0.1, 0.5)
        assert sweep.overrides({"arm": "a"}) == {"training.lr": 1e-3, "model.version": "3"}
        assert sweep.base.training.lr == 0.2

    def test_values_of_numpy_and_pandas(self) -> None:
        sweep = build_sweep({"base": TINY, "seeds": np.arange(2), "at_sparsity": np.array([0.5]), "space": {
            "training.lr": {"grid": np.array([0.5, 0.25])}, "training.batch_size": {"grid": pd.Series([16, 32])},
            "training.optimizer": {"choice": [Kind.SGD]}, "training.momentum": {"uniform": np.array([0.1, 0.2])}}})
        first = sweep.settings()[0]
        assert (first["training.lr"], first["training.batch_size"], first["training.optimizer"]) == (0.5, 16, "sgd")
        assert sweep.config.seeds == (0, 1)
        assert sweep.resolved()["space"]["training.batch_size"] == {"grid": [16, 32]}
        assert build_sweep({**sweep.resolved(), "base": build_config(TINY)}).settings() == sweep.settings()
