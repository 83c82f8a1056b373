"""What a sweep plans, against what its members really train when they share a storage; nothing here starts Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Sweep, label
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.run.capacity import Resources
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.plan import TRIED, SweepPlan, num_workers, plan_sweep
from tests.helpers import TINY

BASE: dict[str, Any] = {
    # In a network of a few hundred weights other averages would give the same masks, and share more than was planned.
    **TINY, "model": {"name": "digits_cnn"}, "round": {"length": 1},
    "averaging": {"within": "none"}, "particles": {"count": 2},
    "training": {"batch_size": 16, "lr": 0.05, "schedule": {"warmup": 0}},
    "execution": {"executor": "inline", "device": "cpu", "checkpoint_every": 0},
}
SHORT = {"pruning": {"target": 0.5, "rate": 0.5}}
LONG = {**SHORT, "round": {"length": 2}, "averaging": {"within": "none", "start": 0.5}}
RAY = {"execution": {"executor": "ray"}}


def grid(**values: Sequence[Any]) -> dict[str, Any]:
    """A space of grids; ``__`` stands for a dot."""
    return {key.replace("__", "."): {"grid": list(listed)} for key, listed in values.items()}


def sweep_of(storage: Path, space: Mapping[str, Any], base: Mapping[str, Any] = {}, **values: Any) -> Sweep:
    return build_sweep({"name": "s", "storage": str(storage), "base": {**BASE, **base}, "space": space, **values})


def planned(sweep: Sweep, nodes: Sequence[Resources] = ({"CPU": 2.0, "GPU": 0.0},), device: str = "cpu") -> SweepPlan:
    return plan_sweep(sweep, device, nodes)


def run_all(sweep: Sweep) -> None:
    """Every setting with every seed, one after the other in this process."""
    for setting in sweep.settings():
        for seed in sweep.config.seeds:
            run(sweep.member(setting, seed))


def results(storage: Path) -> list[dict[str, Any]]:
    """What is stored about each training run, read without the code under test."""
    found = [json.loads(path.read_bytes())["info"] for path in storage.glob("artifacts/*/*/result.json")]
    return [info for info in found if "history" in info]


def num_stored(storage: Path) -> tuple[int, int]:
    """Particles and dense phases."""
    dense = sum(info["work"] == "dense phase" for info in results(storage))
    return len(results(storage)) - dense, dense


def num_used(sweep: Sweep) -> tuple[int, int]:
    """Particles and dense phases that the runs say they use, however many of them are the same."""
    kinds = [use["kind"] for setting in sweep.settings() for seed in sweep.config.seeds
             for use in RunDir(sweep.base.storage, sweep.member_name(setting, seed)).read_results()]
    return kinds.count("particle"), kinds.count("dense")


SPACES: dict[str, dict[str, Any]] = {
    "target and count": {"space": grid(pruning__target=[0.5, 0.75], particles__count=[1, 2])},
    "seeds": {"space": grid(pruning__target=[0.0, 0.5]), "seeds": 2, "base": {"particles": {"count": 1}}},
    "rates": {"space": grid(pruning__rate=[0.5, 0.75])},
    "rates that prune alike": {"space": grid(pruning__rate=[0.5, 0.6], pruning__target=[0.5])},
    "averaging": {"space": grid(averaging__within=["none", "swa"]), "base": LONG},
    "what a round starts from": {"space": grid(rewind__weights=["t0", "init", "none"]), "base": SHORT},
    "pruning the average": {"space": grid(pruning__target=[0.5, 0.75], particles__count=[1, 2]),
                            "base": {"rewind": {"weights": "none"}}},
    "scores": {"space": grid(pruning__score=["magnitude", "random"]),
               "base": {**SHORT, "particles": {"count": 1}}},
    "scopes": {"space": grid(pruning__scope=["global", "uniform"]), "base": {**SHORT, "particles": {"count": 1}}},
    "learning rates": {"space": grid(training__lr=[0.05, 0.06]), "base": SHORT},
    "more particles when sparse": {"space": grid(particles__schedule=[[], [{"sparsity": 0.5, "count": 3}]])},
    "particles that differ": {"space": grid(particles__vary=[{}, {"weight_decay": [5e-4, 0.1]}]), "base": SHORT},
    "no dense phase": {"space": grid(dense__length=[0, 1]), "base": {"pruning": {"target": 0.0}}},
    "drawn twice": {"space": {"training.lr": {"choice": [0.05, 0.06]}}, "num_samples": 8,
                    "base": {"pruning": {"target": 0.0}}},
}


DAILY = ("target and count", "seeds", "rates that prune alike", "what a round starts from", "pruning the average",
         "more particles when sparse", "drawn twice")
"""What settings share differs in kind among these; the others are further options that no two settings share."""


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in DAILY else pytest.mark.nightly) for name in SPACES])
def test_as_much_is_trained_as_was_planned(tmp_path: Path, name: str) -> None:
    sweep = sweep_of(tmp_path, **SPACES[name])
    plan = planned(sweep)
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    run_all(sweep)
    assert (plan.num_distinct("particle"), plan.num_distinct("dense")) == num_stored(tmp_path)
    assert (plan.named("particle"), plan.named("dense")) == num_used(sweep)
    assert plan.distinct_epochs == sum(len(info["history"]) for info in results(tmp_path))
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 0.75 * written < plan.num_bytes < 1.25 * written
    assert plan.is_exact
    assert plan.as_record() | {"bytes": 0} == {
        "named": plan.named("particle"), "distinct": plan.num_distinct("particle"), "dense_named": plan.named("dense"),
        "dense_distinct": plan.num_distinct("dense"), "trunks_named": 0, "trunks_distinct": 0,
        "distinct_epochs": plan.distinct_epochs, "bytes": 0, "exact": True}


def test_the_spaces_above_share_something(tmp_path: Path) -> None:
    names = ("target and count", "seeds", "rates that prune alike", "learning rates", "pruning the average")
    plans = {name: planned(sweep_of(tmp_path, **SPACES[name])) for name in names}
    shared = {name: plan.named("particle") - plan.num_distinct("particle") for name, plan in plans.items()}
    # Round 0 of one or two particles is in four settings, and round 1 of each count in two.
    assert shared["target and count"] == (6 - 2) + (6 - 3)
    assert shared["seeds"] == 2
    assert shared["rates that prune alike"] == 2 * 2, "both settings are one"
    assert shared["learning rates"] == 0
    assert shared["pruning the average"] > 0
    assert plans["learning rates"].num_distinct("dense") == 2


def test_settings_that_go_on_from_a_ticket_share_its_start(tmp_path: Path) -> None:
    ticket = run(sweep_of(tmp_path / "first", grid(particles__count=[1])).member({"particles.count": 1}, 0)).records[1]
    start = {"path": str(tmp_path / "first" / ticket.ticket)}
    sweep = sweep_of(tmp_path / "sweep", grid(start_from=[None, start], pruning__target=[0.6]), seeds=2)
    plan = planned(sweep)
    run_all(sweep)
    assert (plan.num_distinct("particle"), plan.num_distinct("dense")) == num_stored(tmp_path / "sweep")
    assert (plan.named("particle"), plan.named("dense")) == num_used(sweep)
    assert plan.num_distinct("dense") == 2, "one a seed, and none from a ticket"


def test_where_the_best_particle_goes_on_the_plan_is_a_bound(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, grid(particles__count=[1, 3]), {
        "particles": {"combine": "best"}, **SHORT})
    plan = planned(sweep)
    assert not plan.is_exact
    assert not plan.as_record()["exact"]
    run_all(sweep)
    particles, dense = num_stored(tmp_path)
    assert particles <= plan.num_distinct("particle")
    assert dense == plan.num_distinct("dense")
    assert (plan.named("particle"), plan.named("dense")) == num_used(sweep)


def test_the_best_of_one_is_no_choice(tmp_path: Path) -> None:
    base = {"particles": {"combine": "best", "count": 1}}
    assert planned(sweep_of(tmp_path, grid(pruning__target=[0.5, 0.75]), base)).is_exact


# Order


def test_settings_that_share_little_come_first_and_those_they_carry_later(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, grid(
        pruning__target=[0.5, 0.75], training__lr=[0.05, 0.06], particles__count=[1, 2]))
    order = [tuple(setting.values()) for setting in planned(sweep).settings.values()]
    assert order[:2] == [(0.75, 0.05, 2), (0.75, 0.06, 2)]
    assert sorted(order) == sorted(tuple(setting.values()) for setting in sweep.settings())


def test_equal_settings_keep_the_order_of_the_file(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, grid(training__lr=[0.07, 0.05, 0.06]))
    assert [setting["training.lr"] for setting in planned(sweep).settings.values()] == [0.07, 0.05, 0.06]


# What cannot run


def test_settings_that_cannot_run_are_listed_and_the_others_go_on(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, grid(model__name=["digits_cnn", "mpl"], pruning__target=[0.5, 1.5]))
    plan = planned(sweep)
    assert list(plan.settings) == ["namedigits_cnn-target0.5"]
    assert list(plan.trainings) == list(plan.settings)
    assert list(plan.invalid) == ["namedigits_cnn-target1.5", "namempl-target0.5", "namempl-target1.5"]
    assert "pruning.target: must be less than 1, but got 1.5" in plan.invalid["namedigits_cnn-target1.5"]
    assert "mpl" in plan.invalid["namempl-target0.5"]
    assert plan.excluded["namempl-target0.5"] == {"model.name": "mpl", "pruning.target": 0.5}


def test_a_sweep_without_any_setting_that_can_run_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(sweep_of(tmp_path, grid(pruning__target=[1.5, 2.5])))
    lines = str(caught.value).splitlines()
    assert lines[0] == "space: the sweep cannot start, because none of its settings can run:"
    assert [line.partition(":")[0] for line in lines[1:]] == ["  pruning.target 1.5", "  pruning.target 2.5"]
    with pytest.raises(UserError, match=r"because its only setting cannot:\n  pruning\.target 1\.5: "):
        planned(sweep_of(tmp_path, grid(pruning__target=[1.5])))
    with pytest.raises(UserError, match=r"pruning\.target 1\.5: .*\n  and 3 more$"):
        planned(sweep_of(tmp_path, grid(pruning__target=[1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8])))


def test_a_metric_that_nobody_reports_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(sweep_of(tmp_path, grid(pruning__target=[0.5]), metric="average/validation/acuracy"))
    text = str(caught.value)
    assert "metric: no setting reports this metric, but got 'average/validation/acuracy'" in text
    assert "Did you mean 'average/validation/accuracy'? There are: average/validation/accuracy, " in text
    for network in ("average", "particles_mean", "particles_std"):
        planned(sweep_of(tmp_path, grid(pruning__target=[0.5]), metric=f"{network}/test/loss"))


# Milestones


def test_a_milestone_that_a_setting_does_not_reach_is_refused_by_name(tmp_path: Path) -> None:
    space = grid(pruning__target=[0.75, 0.5])
    with pytest.raises(UserError, match=r"at_sparsity: every setting must reach the sparsity 0\.6, but "
                                        r"pruning\.target 0\.5 ends at 0\.5\. Lower the last milestone, or raise"):
        planned(sweep_of(tmp_path, space, at_sparsity=[0.5, 0.6]))
    assert planned(sweep_of(tmp_path, space, at_sparsity=[0.25, 0.5])).num_milestones == 2


def test_half_a_weight_short_of_a_milestone_is_there(tmp_path: Path) -> None:
    # Of the 27,472 weights no whole number is left at a sparsity of 0.7.
    assert planned(sweep_of(tmp_path, grid(pruning__target=[0.7]), at_sparsity=[0.7])).num_milestones == 1


def test_without_named_milestones_all_rounds_are_if_settings_have_equally_many(tmp_path: Path) -> None:
    assert planned(sweep_of(tmp_path, grid(training__lr=[0.05, 0.06]))).num_milestones == 3
    assert planned(sweep_of(tmp_path, grid(pruning__target=[0.5, 0.75]))).num_milestones == 0


# Workers


def workers(tmp_path: Path, space: Mapping[str, Any], nodes: Sequence[Resources], device: str = "cpu",
            **execution: Any) -> list[int]:
    sweep = sweep_of(tmp_path, space, {"execution": {"executor": "ray", **execution}})
    plan = planned(sweep, nodes, device)
    return [plan.workers[label(setting)] for setting in sweep.settings()]


def test_a_setting_has_a_worker_for_each_particle_as_far_as_the_cluster_holds_them(tmp_path: Path) -> None:
    counts = grid(particles__count=[1, 2, 8])
    assert workers(tmp_path, counts, [{"CPU": 3.0}]) == [1, 2, 3]
    assert workers(tmp_path, counts, [{"CPU": 3.0}, {"CPU": 2.0}]) == [1, 2, 5]
    assert workers(tmp_path, counts, [{"CPU": 16.0, "GPU": 2.0}], "cuda") == [1, 2, 2]
    assert workers(tmp_path, counts, [{"CPU": 16.0, "GPU": 2.0}], "cuda", num_gpus=0.5) == [1, 2, 4]
    assert workers(tmp_path, counts, [{"CPU": 5.0}], num_cpus=2) == [1, 2, 2]
    assert workers(tmp_path, counts, [{"CPU": 16.0}], num_workers=2) == [1, 2, 2]


def test_workers_are_for_the_largest_round_that_a_setting_has(tmp_path: Path) -> None:
    space = grid(pruning__target=[0.5, 0.75])
    sweep = sweep_of(tmp_path, space, {**RAY, "particles": {"count": 1, "schedule": [{"sparsity": 0.7, "count": 4}]}})
    assert list(planned(sweep, [{"CPU": 16.0}]).workers.values()) == [1, 4]


def test_an_inline_setting_has_one_worker(tmp_path: Path) -> None:
    assert planned(sweep_of(tmp_path, grid(particles__count=[8])), []).workers == {"count8": 1}


def test_a_cluster_that_holds_no_worker_is_refused(tmp_path: Path) -> None:
    space = grid(particles__count=[2])
    with pytest.raises(UserError, match=r"needs 1 CPU \(the largest node has 0\.5\)"):
        workers(tmp_path, space, [{"CPU": 0.5}])
    with pytest.raises(UserError, match=r"needs 1 GPU \(the largest node has 0\)"):
        workers(tmp_path, space, [{"CPU": 8.0}], "cuda")
    with pytest.raises(UserError, match=r"execution\.num_workers: 9 workers need .*: 4 fit at a time"):
        workers(tmp_path, space, [{"CPU": 4.0}], num_workers=9)
    config = sweep_of(tmp_path, space, RAY).member({"particles.count": 2}, 0)
    with pytest.raises(UserError, match="no node can hold a single worker"):
        num_workers(config, "cpu", [])


# Data, and settings that nobody knows beforehand


def test_data_are_decoded_once_for_all_settings_that_read_them(tmp_path: Path) -> None:
    plan = planned(sweep_of(tmp_path, grid(data__validation=[0.1, 0.2], training__lr=[0.05, 0.06])))
    assert sorted(len(data.validation) for data in plan.data.values()) == [10, 19]


def test_of_a_search_some_random_settings_are_tried(tmp_path: Path) -> None:
    space = {"training.lr": {"choice": [0.05, 0.06]}, "model.name": {"choice": ["mlp", "mpl"]}}
    sweep = sweep_of(tmp_path, space, num_samples=4, search={"name": "optuna"}, at_sparsity=[0.5])
    plan = planned(sweep)
    assert (plan.settings, plan.trainings, plan.named("particle")) == ({}, {}, 0)
    assert set(plan.invalid) == {"lr0.05-namempl", "lr0.06-namempl"}, "of 20 drawn settings all kinds are there"
    assert set(plan.workers) == {"lr0.05-namemlp", "lr0.06-namemlp"}
    assert (plan.num_milestones, len(plan.data)) == (1, 1)
    with pytest.raises(UserError, match=r"none of its settings can run(.|\n)*model\.name mpl"):
        planned(sweep_of(tmp_path, {"model.name": {"choice": ["mpl", "mmlp"]}}, search={"name": "optuna"},
                         at_sparsity=[0.5]))
    assert len(sweep.sample(TRIED)) == TRIED


def test_what_is_odd_about_the_networks_of_settings_is_told_once(tmp_path: Path) -> None:
    few = {"pruning": {"target": 0.5, "rate": 0.5, "include": ["classifier.weight"]}}
    remarks = planned(sweep_of(tmp_path, grid(training__lr=[0.05, 0.1]), few)).remarks
    assert [text.partition(" parameters")[0].partition(" of ")[0] for text in remarks] == ["only 192"]
    assert planned(sweep_of(tmp_path, grid(training__lr=[0.05]), SHORT)).remarks == []
