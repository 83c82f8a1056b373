"""Sweep configs: what is refused and in which words, which settings a space has, and what their runs are."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from swamp_ray.config.reading import build_config, located, with_values
from swamp_ray.config.sweep import RESERVED, Domain
from swamp_ray.config.sweep_reading import build_sweep, is_sweep, load_sweep
from swamp_ray.config.sweep_settings import MAX_SETTINGS, Setting, Sweep, describe, label, setting_key
from swamp_ray.errors import UserError
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import MAX_NAME
from tests.helpers import TINY

LR = {"training.lr": {"choice": [0.1, 0.2]}}
TARGET = {"pruning.target": {"grid": [0.5, 0.75]}}
GROUPS = {"arm": {"grid": {"imp": {"particles.count": 1, "averaging.within": "none"}, "swamp": {"particles.count": 4}}}}


def sweep_of(space: Mapping[str, Any] = TARGET, **values: Any) -> Sweep:
    return build_sweep({"name": "s", "storage": "results", "base": TINY, "space": space, **values})


def refusal(space: Mapping[str, Any] = TARGET, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        sweep_of(space, **values)
    return str(caught.value)


# What is refused


@pytest.mark.parametrize(("space", "text"), [
    ({}, r"space must have at least one entry, such as pruning\.target: \{grid: \[0\.9, 0\.95\]\}"),
    ({"pruning.target": {}}, r"space\.pruning\.target: must have exactly one of grid, choice, .*, but got none"),
    ({"pruning.target": {"grid": [0.5], "uniform": [0.1, 0.2]}}, "exactly one of .*, but got grid, uniform"),
    ({"pruning.target": {"grid": []}}, r"space\.pruning\.target: grid must list at least one value"),
    ({"arm": {"choice": {}}}, r"space\.arm: choice must list at least one value"),
    ({"pruning.target": {"grid": [0.5, 0.9, 0.5]}}, r"list each value once, but got \[0\.5, 0\.9, 0\.5\]"),
    ({"pruning.target": {"gird": [0.5]}}, r"gird: there is no such option\. Did you mean 'grid'\?"),
    ({"training.lr": {"uniform": [0.5, 0.5]}}, r"from a smaller to a larger number, but got \[0\.5, 0\.5\]"),
    ({"training.lr": {"loguniform": [0, 1]}}, "space.training.lr: loguniform must start above 0, but got 0"),
    ({"training.lr": {"uniform": [0.1]}}, r"space\.training\.lr\.uniform\.1: is missing"),
    ({"training.lr": {"uniform": ["low", 1]}}, r"uniform\.0: must be a number, but got 'low'"),
    ({"training.lr": {"loguniform": [0.1, math.inf]}}, r"loguniform\.1: must be a finite number, but got inf"),
    ({"training.lrr": {"grid": [0.1]}}, r"space\.training\.lrr: there is no such option\. Did you mean 'lr'\?"),
    ({"training.lr.x": {"grid": [0.1]}}, r"space\.training\.lr\.x: training\.lr is an option, not a section"),
    ({"arm": {"grid": {"a": {"training.lrr": 1}}}}, r"space\.arm, training\.lrr: there is no such option"),
    ({"arm": {"grid": {"a": {"training.lr": math.nan}}}}, r"a: training\.lr must be finite, but is nan"),
    ({"arm": {"grid": {"a": {"training.lr": 1}}}, **LR}, r"space\.training\.lr and space\.arm both set training\.lr"),
    ({"model": {"grid": [{"name": "mlp"}]}, "model.name": {"grid": ["mlp"]}}, r"both set model\.name"),
])
def test_a_space_that_makes_no_sense_is_refused_with_its_place(space: dict[str, Any], text: str) -> None:
    assert re.search(text, refusal(space)), refusal(space)


@pytest.mark.parametrize(("values", "text"), [
    ({"seeds": 0}, "seeds: must be a list of seeds, or how many there are, but got 0"),
    ({"seeds": []}, r"seeds: must list at least one seed, each once and none negative, but got \[\]"),
    ({"seeds": [1, 1]}, r"each once and none negative, but got \[1, 1\]"),
    ({"seeds": [0, -1]}, r"each once and none negative, but got \[0, -1\]"),
    ({"seeds": [0.5]}, r"seeds\.0: must be a whole number, but got 0\.5"),
    ({"seeds": True}, "seeds: must be a number, but got true"),
    ({"mode": "most"}, "mode: must be max or min, but got 'most'"),
    ({"num_samples": 0}, "num_samples: must be greater than 0, but got 0"),
    ({"at_sparsity": [0.5, 0.3]}, r"at_sparsity: must increase, but got \[0\.5, 0\.3\]\.$"),
    ({"at_sparsity": [0.5, 0.5]}, r"at_sparsity: must increase, but got \[0\.5, 0\.5\]\.$"),
    ({"at_sparsity": [1.0]}, r"at_sparsity\.0: must be less than 1, but got 1\.0"),
    ({"at_sparsity": 0.5}, r"at_sparsity: must be a list, such as \[a, b\], but got 0\.5"),
    ({"execution": {"max_failures": -1}}, r"execution\.max_failures: must be greater than or equal to 0, but got -1"),
    ({"execution": {"worker_deadline_s": 0}}, r"execution\.worker_deadline_s: must be greater than 0, but got 0"),
    ({"search": {"seed": -1}}, r"search\.seed: must be greater than or equal to 0, but got -1"),
    ({"serch": {}}, r"serch: there is no such option\. Did you mean 'search'\?"),
    ({"base": {"trainig": {}}}, r"s(weep)?: base: trainig: there is no such option\. Did you mean 'training'\?"),
    ({"base": "nowhere.yaml"}, "base: nowhere.yaml: the config does not exist"),
])
def test_a_wrong_option_is_refused_with_its_place_and_value(values: dict[str, Any], text: str) -> None:
    assert re.search(text, refusal(**values)), refusal(**values)


@pytest.mark.parametrize("values", [{"space": {"training.lr": {"grid": 0.1}}}, {"base": 3}])
def test_no_names_of_python_types_are_in_an_error(values: dict[str, Any]) -> None:
    text = refusal(**values)
    assert not re.search(r"tuple|dict|str\b|Any|function", text), text
    assert text.count("but got") == text.count("must be"), text


def test_a_sweep_without_base_or_space_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"base: is missing\n.*space: is missing"):
        build_sweep({"name": "s"})


@pytest.mark.parametrize("key", [*RESERVED, "keep.particles"])
def test_what_a_sweep_sets_itself_cannot_be_swept(key: str) -> None:
    advice = RESERVED[key.partition(".")[0] if key.startswith("keep") else key]
    assert f"space.{key} cannot be part of a space. {advice}" in refusal({key: {"grid": [0]}})
    assert f"space.arm, {key} cannot be part of a space" in refusal({"arm": {"grid": {"a": {key: 0}}}})


def test_particles_of_several_ranks_are_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"particle\.num_workers: particles of a sweep train in one process each, but "
                                        r"got 2\. Set particle\.num_workers to 1"):
        build_sweep({"name": "s", "base": {"particle": {"num_workers": 2}}, "space": {"training.lr": {"grid": [0.1]}}})


def test_what_a_sweep_sets_itself_cannot_be_swept_with_its_whole_section() -> None:
    text = refusal({"execution": {"grid": [{"executor": "ray"}, {"executor": "inline"}]}})
    assert "space.execution cannot be part of a space" in text


@pytest.mark.parametrize("entry", [
    "pruning.target", "pruning.rate", "pruning.include", "model.name", "start_from.path", "start_from"])
@pytest.mark.parametrize("comparing", [{"search": {"name": "optuna"}}, {"scheduler": {"name": "asha"}}])
def test_settings_of_unequal_sparsities_are_only_compared_at_named_ones(entry: str, comparing: dict[str, Any]) -> None:
    space = {entry: {"choice": [0.5, 0.75]}}
    assert re.search(rf"{entry} changes the sparsities .* Set at_sparsity", refusal(space, **comparing))
    sweep_of(space, **comparing, at_sparsity=[0.5])
    sweep_of(space)  # nothing is compared while it runs


def test_a_whole_section_and_a_group_change_sparsities_too() -> None:
    asha = {"scheduler": {"name": "asha"}}
    arm = {"arm": {"choice": {"a": {"pruning.target": 0.5}}}}
    assert "pruning.target changes the sparsities" in refusal(arm, **asha)
    assert "pruning changes the sparsities" in refusal({"pruning": {"choice": [{"target": 0.5}]}}, **asha)


@pytest.mark.parametrize("entry", ["training.lr", "particles.count", "averaging.within", "pruning.score"])
def test_settings_of_equal_sparsities_are_compared_in_every_round(entry: str) -> None:
    sweep_of({entry: {"choice": [1, 2]}}, scheduler={"name": "asha"})


def test_a_search_takes_no_grid() -> None:
    assert "space.training.lr is a grid. Use choice in its place" in refusal(
        {"training.lr": {"grid": [0.1]}}, search={"name": "optuna"})
    sweep_of({"training.lr": {"grid": [0.1]}}, scheduler={"name": "asha"})


@pytest.mark.parametrize("comparing", [{"search": {"name": "optuna"}}, {"scheduler": {"name": "median"}}])
def test_nothing_is_chosen_by_the_test_set(comparing: dict[str, Any]) -> None:
    metric = "average/test/accuracy"
    assert "must be measured on validation" in refusal(LR, metric=metric, **comparing)
    sweep_of(LR, metric=metric)
    sweep_of(LR, metric="average/validation/accuracy", **comparing)


# Domains


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(0, 2**63))
def test_uniform_draws_stay_between_their_bounds(one: float, other: float, seed: int) -> None:
    assume(one != other)
    domain = Domain(uniform=(min(one, other), max(one, other)))
    found = domain.draw(random.Random(seed))
    assert min(one, other) <= found <= max(one, other)
    assert found == domain.draw(random.Random(seed))


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.integers(0, 2**63))
def test_loguniform_draws_stay_between_their_bounds(one: float, other: float, seed: int) -> None:
    assume(one != other)
    found = Domain(loguniform=(min(one, other), max(one, other))).draw(random.Random(seed))
    assert min(one, other) <= found <= max(one, other)


def test_loguniform_is_even_over_orders_of_magnitude() -> None:
    domain = Domain(loguniform=(1e-4, 1.0))
    draws = [domain.draw(random.Random(seed)) for seed in range(2000)]
    shares = [sum(10.0**low <= draw < 10.0 ** (low + 1) for draw in draws) / len(draws) for low in range(-4, 0)]
    assert shares == pytest.approx([0.25] * 4, abs=0.04)
    even = [Domain(uniform=(0.0, 1.0)).draw(random.Random(seed)) for seed in range(2000)]
    assert sum(even) / len(even) == pytest.approx(0.5, abs=0.03)


def test_a_choice_draws_every_listed_value_and_no_other() -> None:
    values = [None, "auto", 3, [1, 2]]
    domain = Domain(choice=tuple(values))
    draws = [domain.draw(random.Random(seed)) for seed in range(200)]
    assert all(draw in values for draw in draws)
    assert all(value in draws for value in values)
    groups = sweep_of({"arm": {"choice": {"a": {"training.lr": 0.1}, "b": {"training.lr": 0.2}}}}, num_samples=20)
    assert {setting["arm"] for setting in groups.settings()} == {"a", "b"}


# Settings


def test_a_grid_is_gone_through_in_the_order_of_the_file() -> None:
    space = {"pruning.target": {"grid": [0.75, 0.5]}, "particles.count": {"grid": [4, 1, 2]}}
    assert [tuple(setting.values()) for setting in sweep_of(space).settings()] == [
        (0.75, 4), (0.75, 1), (0.75, 2), (0.5, 4), (0.5, 1), (0.5, 2)]
    turned = sweep_of(dict(reversed(space.items()))).settings()
    assert [tuple(setting.values()) for setting in turned][:3] == [(4, 0.75), (4, 0.5), (1, 0.75)]


def test_where_nothing_is_drawn_a_number_of_samples_is_refused() -> None:
    with pytest.raises(UserError, match="num_samples has no effect where every entry is a grid"):
        sweep_of(num_samples=5)


def test_draws_are_made_for_each_point_of_the_grid_and_each_sample() -> None:
    space = {**TARGET, "training.lr": {"loguniform": [0.01, 1.0]}}
    settings = sweep_of(space, num_samples=3).settings()
    assert [setting["pruning.target"] for setting in settings] == [0.5, 0.75] * 3
    assert len({setting["training.lr"] for setting in settings}) == 6
    assert sweep_of(space, num_samples=3).settings() == settings, "the same file must mean the same settings"
    assert sweep_of(space, num_samples=2).settings() == settings[:4], "more samples add to those before"
    other = sweep_of(space, num_samples=3, search={"seed": 1}).settings()
    assert not {setting["training.lr"] for setting in other} & {setting["training.lr"] for setting in settings}


def test_an_entry_is_drawn_without_regard_to_the_others() -> None:
    lr = {"training.lr": {"uniform": [0.0, 1.0]}}
    alone = sweep_of(lr, num_samples=4).settings()
    both = sweep_of({"training.momentum": {"uniform": [0.0, 1.0]}, **lr}, num_samples=4).settings()
    assert [setting["training.lr"] for setting in both] == [setting["training.lr"] for setting in alone]
    assert all(setting["training.lr"] != setting["training.momentum"] for setting in both)


def test_a_setting_that_is_drawn_twice_is_run_once() -> None:
    settings = sweep_of(LR, num_samples=50).settings()
    assert sorted(setting["training.lr"] for setting in settings) == [0.1, 0.2]


def test_too_many_settings_are_refused_before_they_are_made() -> None:
    fits = {f"data.options.{name}": {"grid": list(range(100))} for name in "ab"}
    assert len(sweep_of(fits).settings()) == MAX_SETTINGS
    with pytest.raises(UserError, match=r"space: .* at most 10,000 settings, but got '1,000,000,000,000'"):
        sweep_of({f"data.options.{name}": {"grid": list(range(100))} for name in "abcdef"}).settings()
    with pytest.raises(UserError, match="'20,000'"):
        sweep_of({**LR, **TARGET}, num_samples=10_000).settings()


def test_random_settings_are_repeatable_and_of_the_space() -> None:
    sweep = sweep_of({"training.lr": {"uniform": [0.2, 0.3]}, "arm": {"choice": GROUPS["arm"]["grid"]}})
    tried = sweep.sample(20)
    assert tried == sweep.sample(20)
    assert {setting["arm"] for setting in tried} == {"imp", "swamp"}
    assert len({setting["training.lr"] for setting in tried}) == 20
    assert all(0.2 <= setting["training.lr"] <= 0.3 for setting in tried)


# Labels


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-10**6, 10**6), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12), st.text("01xbeE._+-tfn", max_size=8), st.lists(st.integers(0, 3), max_size=3))


@given(st.lists(PLAIN, min_size=2, max_size=6, unique_by=lambda value: setting_key({"": value})),
       st.lists(st.sampled_from(["", "a-b", "1", 1, 1.0, "x"]), min_size=2, max_size=2, unique_by=repr))
def test_different_settings_have_different_labels_that_name_runs(values: list[Any], others: list[Any]) -> None:
    settings: list[Setting] = [{"training.lr": value, "data.options.lr": other, "seeds-of": value}
                               for value in values for other in others]
    labels = [label(setting) for setting in settings]
    assert len(set(labels)) == len(settings)
    for found in labels:
        assert RunDir(Path("results"), f"{'n' * MAX_NAME}-{found}-seed{10**9}").name
        assert not found.startswith((".", "-"))


@given(st.lists(st.text(min_size=30, max_size=60), min_size=2, max_size=5, unique=True))
def test_long_values_have_short_labels(values: list[str]) -> None:
    settings: list[Setting] = [{"pruning.include": [value, value], "model.name": value} for value in values]
    assert len({label(setting) for setting in settings}) == len(values)
    assert max(len(label(setting)) for setting in settings) <= 130


@pytest.mark.parametrize("text", ["0x_", "0b_", "0_", "1_000", ".inf", "null", "1.e+5", "2024.01.01", "0o7"])
def test_any_text_can_be_a_value(text: str) -> None:
    assert label({"model.name": text}).startswith(f"name{text}".replace("+", "_"))


def test_labels_can_be_read() -> None:
    assert label({"pruning.target": 0.95, "particles.count": 4}) == "target0.95-count4"
    assert label({"arm": "swamp", "model.name": "mlp"}) == "armswamp-namemlp"
    assert label({"training.lr": 0.1, "averaging.lr": 0.2}) == "training.lr0.1-averaging.lr0.2"
    assert describe({"pruning.target": 0.95, "model.name": "mlp"}) == "pruning.target 0.95, model.name mlp"


def test_a_value_that_looks_like_another_is_told_apart() -> None:
    alike = [1, 1.0, "1", True, "True", None, "None", 0.1, 0.10000001]
    assert len({label({"x": value}) for value in alike}) == len(alike)


# Members


def test_a_member_is_the_base_with_the_values_of_its_setting() -> None:
    space = {"pruning.target": {"grid": [0.5]}, "training.lr": {"grid": [0.02]}}
    sweep = sweep_of(space, seeds=[3, 5])
    [setting] = sweep.settings()
    expected = with_values(build_config(TINY), {
        "pruning.target": 0.5, "training.lr": 0.02, "seed": 5, "storage": str(Path("results").absolute()),
        "name": "s-target0.5-lr0.02-seed5"})
    assert sweep.member(setting, 5) == expected
    assert sweep.base.pruning.target == 0.75, "the base stays as it is"


def test_a_named_group_sets_its_options_together() -> None:
    sweep = sweep_of(GROUPS)
    assert [setting["arm"] for setting in sweep.settings()] == ["imp", "swamp"]
    assert sweep.overrides({"arm": "imp"}) == {"particles.count": 1, "averaging.within": "none"}
    imp, swamp = (sweep.member(setting, 0) for setting in sweep.settings())
    assert (imp.particles.count, imp.averaging.within) == (1, "none")
    assert (swamp.particles.count, swamp.averaging.within) == (4, "swa"), "what a group leaves out is the base's"


def test_a_group_may_name_an_entry_that_is_no_option_and_hold_nothing() -> None:
    sweep = sweep_of({"arm": {"grid": {"as it is": {}, "less": {"particles.count": 1}}}})
    assert [sweep.member(setting, 0).particles.count for setting in sweep.settings()] == [3, 1]


@pytest.mark.parametrize(("setting", "text"), [
    ({"pruning.targt": 0.5}, "there is no such entry in the space, but got 'pruning.targt'. Did you mean"),
    ({"arm": "imq"}, "space.arm has no group of this name, but got 'imq'. There are: imp, swamp."),
])
def test_a_setting_of_another_space_is_refused(setting: Setting, text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        sweep_of({**TARGET, **GROUPS}).member(setting, 0)


def test_values_that_contradict_the_base_are_refused_when_their_member_is_made() -> None:
    sweep = sweep_of({"pruning.target": {"grid": [0.5, 1.5]}})
    sweep.member({"pruning.target": 0.5}, 0)
    with pytest.raises(UserError, match=r"pruning\.target: must be less than 1, but got 1\.5"):
        sweep.member({"pruning.target": 1.5}, 0)


def test_seeds_are_a_list_or_a_number() -> None:
    assert sweep_of(seeds=3).config.seeds == (0, 1, 2)
    assert sweep_of(seeds=[7, 2]).config.seeds == (7, 2)
    assert sweep_of().config.seeds == (0,)


def test_the_storage_is_the_sweeps_or_else_the_bases() -> None:
    tree = {"base": {**TINY, "storage": "base-root"}, "space": TARGET}
    assert build_sweep(tree).member({"pruning.target": 0.5}, 0).storage == str(Path("base-root").absolute())
    own = build_sweep({**tree, "storage": "own"})
    assert own.member({"pruning.target": 0.5}, 0).storage == str(Path("own").absolute())


# Identity


WHOLE: dict[str, Any] = {
    "space": {"arm": {"grid": {"a": {"start_from": None, "training.clip_norm": None},
                               "b": {"training.clip_norm": 1.0}}},
              "training.micro_batch": {"grid": [None, 8]}, "training.lr": {"loguniform": [1e-05, 0.1]},
              "training.weight_decay": {"choice": [0.0, 5e-4]}, "training.momentum": {"uniform": [0.5, 0.9]}},
    "seeds": [4, 1], "num_samples": 3, "at_sparsity": [0.5, 0.75], "mode": "min",
    "metric": "average/validation/loss", "search": {"seed": 2, "options": {"x": None, "y": [1, {"z": 2}]}},
    "scheduler": {"name": "asha", "options": {"reduction_factor": 2}}, "execution": {"max_concurrent": 2},
    "callbacks": {"mlflow": {"tracking_uri": None, "experiment_name": "e"}},
}


def test_a_resolved_sweep_reads_back_as_the_same_one() -> None:
    sweep = sweep_of(**WHOLE)
    plain = sweep.resolved()
    again = build_sweep(yaml.safe_load(yaml.safe_dump(plain, sort_keys=False)))
    assert again.resolved() == plain
    assert again.identity() == sweep.identity()
    assert again.base == sweep.base
    assert again.settings() == sweep.settings()
    apart = {"base": "", "storage": ""}
    assert again.config.model_copy(update=apart) == sweep.config.model_copy(update=apart)
    assert [again.member(one, 4) for one in again.settings()] == [sweep.member(one, 4) for one in sweep.settings()]


def _changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy({"base": TINY, **WHOLE})
    *parents, leaf = path.split("/")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[leaf] = value
    return tree


@pytest.mark.parametrize(("path", "value"), [
    ("space/training.momentum", {"uniform": [0.5, 0.95]}), ("space/training.eps", {"grid": [1e-8]}),
    ("space/training.micro_batch", {"grid": [8, None]}), ("space/training.weight_decay", {"grid": [0.0, 5e-4]}),
    ("space/arm/grid/b", {"training.clip_norm": 2.0}), ("seeds", [4, 1, 0]), ("seeds", [1, 4]),
    ("metric", "average/validation/accuracy"), ("mode", "max"), ("at_sparsity", [0.5]), ("num_samples", 4),
    ("search/seed", 3), ("search/options", {}), ("scheduler/options", {"reduction_factor": 3}),
    ("scheduler/name", "median"), ("base/training/lr", 0.06), ("base/data/validation", 0.2),
    ("base/round/length", 3),
])
def test_what_decides_a_sweeps_results_is_in_its_identity(path: str, value: Any) -> None:
    assert sweep_of(**_changed(path, value)).identity() != sweep_of(**WHOLE).identity()


@pytest.mark.parametrize(("path", "value"), [
    ("storage", "elsewhere"), ("execution/max_concurrent", 7), ("execution/worker_deadline_s", 5.0),
    ("callbacks", {"wandb": {"project": "p"}}), ("base/execution/num_cpus", 2.0), ("base/execution/grace_s", 1.0),
    ("base/keep", {"particles": "none"}), ("base/particles/on_failure", "drop"), ("base/seed", 9),
    ("base/name", "other"), ("base/data/root", "/somewhere"),
])
def test_where_and_how_a_sweep_is_carried_out_is_not_in_its_identity(path: str, value: Any) -> None:
    assert sweep_of(**_changed(path, value)).identity() == sweep_of(**WHOLE).identity()


def test_the_order_of_entries_names_the_members_and_belongs_to_the_identity() -> None:
    turned = sweep_of(**{**WHOLE, "space": dict(reversed(WHOLE["space"].items()))})
    assert turned.identity()["space"] == sweep_of(**WHOLE).identity()["space"]
    assert turned.identity() != sweep_of(**WHOLE).identity()


def test_a_search_may_go_on_with_more_samples() -> None:
    search = {"search": {"name": "optuna"}}
    assert sweep_of(LR, num_samples=5, **search).identity() == sweep_of(LR, num_samples=9, **search).identity()
    assert sweep_of(LR, num_samples=5).identity() != sweep_of(LR, num_samples=9).identity()


# Files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A sweep whose base is a file beside it, in a folder that is not the current one."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/base.yaml").write_text(yaml.safe_dump(TINY))
    path = tmp_path / "targets.yaml"
    path.write_text("base: runs/base.yaml\nspace:\n  pruning.target: {grid: [0.5, 0.75]}\n")
    return path


def test_a_base_is_found_relative_to_its_sweep(files: Path) -> None:
    sweep = load_sweep(files)
    assert sweep.base == located(with_values(build_config(TINY), {"name": "targets"}))
    assert sweep.name == "targets", "the name is the file's"


def test_a_missing_base_is_named_with_its_whole_path(files: Path) -> None:
    (files.parent / "runs/base.yaml").unlink()
    with pytest.raises(UserError, match=rf"targets\.yaml: base: {files.parent}/runs/base\.yaml: .* does not exist"):
        load_sweep(files)


def test_set_changes_the_sweep_and_with_base_its_base(files: Path) -> None:
    sweep = load_sweep(files, ["seeds=2", "base.training.lr=0.5", "mode=min"])
    assert (sweep.config.seeds, sweep.config.mode, sweep.base.training.lr) == ((0, 1), "min", 0.5)
    inside = files.with_name("inside.yaml")
    inside.write_text(yaml.safe_dump({"base": TINY, "space": TARGET}))
    assert load_sweep(inside, ["base.training.lr=0.5"]).base == located(with_values(
        build_config(TINY), {"name": "inside", "training.lr": 0.5}))


@pytest.mark.parametrize(("override", "text"), [
    ("seds=2", "seds: there is no such option. Did you mean 'seeds'?"),
    ("base.training.lrr=1", "training.lrr: there is no such option. Did you mean 'lr'?"),
    ("seeds", "an override must look like KEY=VALUE, but got 'seeds'"),
])
def test_a_wrong_set_is_refused(files: Path, override: str, text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        load_sweep(files, [override])


def test_name_and_storage_come_from_the_caller_then_the_file_then_the_base(files: Path, tmp_path: Path) -> None:
    files.write_text(files.read_text() + "name: own\nstorage: there\n")
    assert (load_sweep(files).name, load_sweep(files).base.storage) == ("own", str(Path("there").absolute()))
    given_ = load_sweep(files, storage="here", name="flag", base_values={"execution.address": "10.0.0.1:6379"})
    assert (given_.name, given_.base.execution.address) == ("flag", "10.0.0.1:6379")
    assert given_.base.storage == str(Path("here").absolute())


def test_a_name_that_is_left_blank_is_the_files(files: Path) -> None:
    files.write_text(files.read_text() + "name:\n")
    assert load_sweep(files).name == "targets"


@pytest.mark.parametrize(("text", "problem"), [
    ("", "a sweep must be a mapping with base and space, but got 'NoneType'"),
    ("- 1", "a sweep must be a mapping with base and space, but got 'list'"),
    ("space: [", "this is not valid YAML"),
    ("base: {}\nbase: {}", "'base' stands here twice"),
])
def test_a_file_that_is_no_sweep_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(problem)) as caught:
        load_sweep(tmp_path / "s.yaml")
    assert str(tmp_path / "s.yaml") in str(caught.value)


def test_a_file_that_is_not_there_has_a_suggestion(files: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'targets\.yaml'\?"):
        load_sweep(files.with_name("target.yaml"))


def test_a_sweep_is_told_from_a_run_by_its_space(files: Path, tmp_path: Path) -> None:
    assert is_sweep(files)
    assert not is_sweep(tmp_path / "runs/base.yaml")
    assert not is_sweep(tmp_path / "nowhere.yaml")
    for number, text in enumerate(["space: [", "space", "- space", ""]):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert not is_sweep(tmp_path / f"{number}.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert not is_sweep(tmp_path / "bytes.yaml")
