"""Every shipped sweep can be read and planned, and compares what it says that it compares."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from swamp_ray.config.reading import load_config
from swamp_ray.config.sweep_reading import build_sweep, is_sweep, load_sweep
from swamp_ray.config.sweep_settings import Sweep, label
from swamp_ray.method.rounds import plan_rounds
from swamp_ray.sparsity.schedule import plan_survivors
from swamp_ray.sweep.members import milestone_rounds
from swamp_ray.sweep.plan import SweepPlan, plan_sweep
from swamp_ray.sweep.search import check_search

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted((CONFIGS / "sweeps").glob("*.yaml"))
ARMS = {"IMP": "imp", "IMP+SWA": "imp_swa", "SWAMP-SGD": "swamp_without_swa", "SWAMP": "swamp",
        "SWAMP+": "swamp_plus", "SMS": "sparse_model_soups",
        "greedy soup": "soup_greedy", "late fork": "swamp_late_fork",
        "IMP-best-of-4": "imp_best_of_4", "IMP+EMA": "imp_ema", "IMP+SAM": "imp_sam", "LR rewinding": "lr_rewinding",
        "IMP-init": "imp_rewind_init", "IMP-ERK": "imp_erk", "IMP-uniform": "imp_uniform",
        "random": "random_pruning", "one-shot": "one_shot",
        "before random": "before_random",
        "before ERK": "before_erk",
        "before magnitude": "before_magnitude",
        "SNIP": "snip",
        "GraSP": "grasp",
        "SynFlow": "synflow",
        "SET": "set",
        "RigL": "rigl",
        "RigL averaged": "rigl_averaged",
        "GMP": "gradual_magnitude_pruning",
        "one-shot FT": "one_shot_fine_tuning"}
"""The file in configs/arms of each method that is compared."""
FORMS = {"total": 514.0, "critical": 130.0}
"""What the comparison's two forms spend on each run, by what is equal."""
NODE = {"CPU": 2.0, "GPU": 0.0}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def sweep_of(name: str) -> Sweep:
    return load_sweep(CONFIGS / "sweeps" / f"{name}.yaml")


@cache
def planned(name: str) -> SweepPlan:
    """The plan of a shipped sweep, made once."""
    return plan_sweep(sweep_of(name), "cpu", [NODE])


def epochs(name: str) -> dict[str, float]:
    """What each setting trains in its rounds, by label, for one of its seeds."""
    num_seeds = len(sweep_of(name).config.seeds)
    return {key: sum(one.epochs for one in found if one.kind == "particle") / num_seeds
            for key, found in planned(name).trainings.items()}


class TestEveryFile:
    @each_file
    def test_reads_back_what_it_resolves_to(self, path: Path) -> None:
        assert is_sweep(path)
        sweep = load_sweep(path)
        assert sweep.name == path.stem
        text = yaml.safe_dump(sweep.resolved(), sort_keys=False)
        assert build_sweep(yaml.safe_load(text)).identity() == sweep.identity()

    @each_file
    def test_all_its_settings_can_run(self, path: Path) -> None:
        sweep = load_sweep(path)
        check_search(sweep)
        plan = planned(path.stem)
        check_search(sweep, plan.num_milestones)
        assert plan.invalid == {}
        assert set(plan.settings) == {label(setting) for setting in sweep.settings()}

    @each_file
    def test_says_what_it_asks_how_long_it_takes_and_how_to_ask_it_on_cifar10(self, path: Path) -> None:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert "?" in head[0]
        assert "minutes on two cores" in " ".join(head)
        assert "--set base=../cifar10_resnet20.yaml" in " ".join(head)

    @each_file
    def test_is_a_sweep_of_cifar10_as_well(self, path: Path) -> None:
        """Its settings fit that config too. The data are not at hand, so nothing is planned."""
        sweep = load_sweep(path, ["base=../cifar10_resnet20.yaml", "base.pruning.rate=0.45"])
        members = [sweep.member(setting, seed) for setting in sweep.settings() for seed in sweep.config.seeds]
        assert {member.model.name for member in members} == {"resnet20"}


class TestRateByRounds:
    def test_all_settings_pass_the_same_sparsities(self) -> None:
        sweep = sweep_of("rate_x_rounds")
        layout = planned("rate_x_rounds").example.layout
        passed = set()
        for setting in sweep.settings():
            pruning = sweep.member(setting, 0).pruning
            survivors = plan_survivors(layout.num_prunable, pruning.rate, pruning.target)
            rounds = plan_rounds(layout.num_prunable, survivors, [1] * len(survivors))
            passed.add(tuple(rounds[one].survivors for one in milestone_rounds(rounds, sweep.config.at_sparsity)))
            assert len(survivors) == {0.2: 13, 0.36: 7, 0.5904: 4}[pruning.rate]
        (survivors,) = passed
        assert len(survivors) == 3

    def test_rates_and_lengths_that_belong_together_train_equally_long(self) -> None:
        found = epochs("rate_x_rounds")
        matched = {key: value for key, value in found.items()
                   if key.startswith(("rate0.2-length7-", "rate0.36-length13-", "rate0.5904-length22.75-"))}
        assert list(matched.values()) == pytest.approx([3 * 91] * 3)


class TestMethodComparison:
    @pytest.mark.parametrize("of", FORMS)
    def test_all_methods_cost_the_same(self, of: str) -> None:
        """By the account of programs in whole steps, which knows nothing of the budget's arithmetic.

        Half a step of each of up to 32 trainings, of two gradients with SAM, is half an epoch of 20 steps.
        """
        overrides = [f"budget.of={of}", f"budget.epochs={FORMS[of]:g}", "seeds=1"]
        sweep = load_sweep(CONFIGS / "sweeps" / "method_comparison.yaml", overrides)
        plan = plan_sweep(sweep, "cpu", [NODE])
        assert len(plan.costs) == len(ARMS)
        found = {key: getattr(cost, f"{of}_epochs") for key, cost in plan.costs.items()}
        assert found == pytest.approx(dict.fromkeys(found, FORMS[of]), abs=0.5)

    def test_lengths_that_meet_the_budget_already_stay_to_the_bit(self) -> None:
        """So that results of before are found."""
        sweep = sweep_of("method_comparison")
        lengths = {method: sweep.member({"method": method}, 0).round.length.amount for method in list(ARMS)[:6]}
        assert lengths == {"IMP": 64, "IMP+SWA": 64, "SWAMP-SGD": 16, "SWAMP": 16, "SWAMP+": 25.6, "SMS": 64}
        assert str(sweep.member({"method": "SMS"}, 0).round.retrain_length) == "16 epochs"

    @pytest.mark.parametrize("method", ARMS)
    def test_a_method_is_its_arm_but_for_lengths(self, method: str) -> None:
        member = sweep_of("method_comparison").member({"method": method}, 0).model_dump(mode="json")
        arm = load_config(CONFIGS / "arms" / f"{ARMS[method]}.yaml").model_dump(mode="json")
        sections = ("averaging", "particles", "rewind", "round", "pruning")
        assert {key: without_lengths(member[key]) for key in sections} == {
            key: without_lengths(arm[key]) for key in sections}

    def test_every_arm_of_the_comparison_is_there(self) -> None:
        assert sweep_of("method_comparison").config.space["method"].values == tuple(ARMS)


def without_lengths(section: dict[str, Any]) -> dict[str, Any]:
    """A section without lengths; the SWA rate of the arms is the default, half of their base rate.

    How much a round prunes is the base's, but where it prunes all at once.
    """
    plain = {key: value for key, value in section.items() if key not in ("length", "retrain_length", "rate")}
    if "rate" in section:
        plain["at_once"] = section["rate"] == section["target"]
    return plain | ({"lr": None} if plain.get("within") == "swa" and plain["lr"] == 0.05 else {})


def test_the_search_draws_distinct_settings_that_asha_can_compare() -> None:
    sweep = sweep_of("lr_search")
    assert sweep.config.compares
    assert len(sweep.settings()) == sweep.config.num_samples
    assert planned("lr_search").num_milestones == len(sweep.config.at_sparsity)


def test_the_grid_of_sparsities_and_particles_shares_most_of_its_work() -> None:
    plan = planned("sparsity_x_particles")
    assert plan.is_exact
    assert plan.named("particle") > 2 * plan.num_distinct("particle")
