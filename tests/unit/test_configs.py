"""Every shipped config can be read, resolved and planned, and every arm is the arm that it claims to be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.config.reading import dump_config, load_config, parse_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.launch import run
from swamp_ray.method.events import RoundPlan
from swamp_ray.method.rounds import plan_rounds
from swamp_ray.run import worker
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.sparsity.compact import CompactState, compact_state, full_state
from swamp_ray.sparsity.masks import Layout, find_prunable
from swamp_ray.sparsity.schedule import plan_survivors, survivors_at
from swamp_ray.sparsity.structure import check_structure
from swamp_ray.sparsity.unit_selection import plan_units
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.states import read_state
from swamp_ray.structure import parse_structure
from swamp_ray.training.models import build_model
from swamp_ray.training.program import Program, TrainingSpec, dense_phase, dense_program, round_program
from swamp_ray.training.trainer import ParticleTrainer
from tests.helpers import root_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps")
ARMS = sorted(path.stem for path in (CONFIGS / "arms").glob("*.yaml"))
BEFORE = ("before_random", "before_erk", "before_magnitude", "snip", "grasp", "synflow")
# Training samples, classes and shape of each dataset that a config names.
DATASETS = {
    "digits": (1438, 10, (1, 8, 8)),
    "cifar10": (50_000, 10, (3, 32, 32)),
    "cifar100": (50_000, 100, (3, 32, 32)),
    "image_folder": (1_281_167, 1000, (3, 224, 224)),
    "benchmarks._study_data:mnist": (60_000, 10, (1, 28, 28)),
    "benchmarks._study_data:sentences": (5_452, 6, (32,)),
}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())


@dataclass(frozen=True)
class Planned:
    """What a config amounts to, known without its data."""

    config: SwampConfig
    steps_per_epoch: int
    layout: Layout
    rounds: list[RoundPlan]
    dense: Program
    programs: list[list[Program]]

    @property
    def particles(self) -> list[int]:
        return [plan.num_particles for plan in self.rounds]

    def epochs(self, round_index: int, particle: int = 0) -> float:
        return self.programs[round_index][particle].num_steps / self.steps_per_epoch

    def rates(self, round_index: int, *shares: float) -> list[float]:
        """The learning rate of a round's first particle at these shares of its length; 1 is its last step."""
        program = self.programs[round_index][0]
        return [program.rate.at(min(program.num_steps - 1, int(share * program.num_steps))) for share in shares]


@cache
def planned(path: Path) -> Planned:
    config = load_config(path)
    num_train, num_classes, shape = DATASETS[config.data.name]
    steps = round(num_train * (1 - config.data.validation)) // config.training.batch_size
    model = build_model(config.model, num_classes=num_classes, input_shape=shape, seed=0)
    layout = find_prunable(model, config.pruning.include, config.pruning.exclude)
    # A ticket that a config goes on from does not come with it: any mask with fewer weights than P will do.
    is_ticket = config.start_from is not None and "/tickets/" in config.start_from.path
    start = round(0.1074 * layout.num_prunable) if is_ticket else None
    pruning = config.pruning
    if pruning.when == "rounds":
        survivors = plan_survivors(layout.num_prunable, pruning.rate, pruning.target, start)
    else:
        survivors = [survivors_at(layout.num_prunable, pruning.target, start)]
    if (structure := parse_structure(pruning.structure)) is not None:
        check_structure(layout, structure)
        whole = np.ones(layout.num_prunable, dtype=bool)
        survivors = plan_units(layout, structure, pruning.scope, pruning.rate, pruning.target, whole)
    counts = [config.particles.at(1 - kept / layout.num_prunable) // config.num_replicas for kept in survivors]
    rounds = plan_rounds(layout.num_prunable, survivors, counts)
    programs = [[round_program(config, steps, plan.index, n) for n in range(plan.num_particles)] for plan in rounds]
    return Planned(config, steps, layout, rounds, dense_program(config, steps), programs)


def arm(name: str) -> Planned:
    return planned(CONFIGS / "arms" / f"{name}.yaml")


class TestEveryFile:
    @each_file
    def test_reads_back_what_it_resolves_to(self, path: Path) -> None:
        config = load_config(path)
        assert parse_config(dump_config(config)) == config

    @each_file
    def test_says_in_its_first_line_what_it_is(self, path: Path) -> None:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# ")
        assert len(first) > 20

    @each_file
    def test_can_be_planned(self, path: Path) -> None:
        plan = planned(path)
        near = 0.02 if plan.config.pruning.structure == "channels" else 1e-4
        assert plan.rounds[-1].sparsity == pytest.approx(plan.config.pruning.target, abs=near)
        assert all(plan.config.particles.count <= count * plan.config.num_replicas for count in plan.particles)
        assert all(program.num_steps > 0 for programs in plan.programs for program in programs)

    def test_no_two_runs_have_one_name(self) -> None:
        names = [path.stem for path in FILES]
        assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def imp() -> Planned:
    return planned(CONFIGS / "imagenet_resnet50.yaml")


class TestImageNet:
    """The protocol of the public IMP run by one of SWAMP's authors."""

    def test_prunes_18_times_a_fifth_of_all_convolutions(self, imp: Planned) -> None:
        assert imp.layout.num_prunable == 23_454_912
        assert {layer.kind for layer in imp.layout.layers} == {"conv"}
        assert len(imp.rounds) == 19
        assert imp.rounds[-1].survivors == round(23_454_912 * 0.8**18)

    def test_trains_as_long_as_the_public_run(self, imp: Planned) -> None:
        assert imp.config.training.batch_size == 2048
        assert imp.dense.num_steps == 16_000
        assert {program.num_steps for programs in imp.programs for program in programs} == {48_000}

    def test_warms_up_for_a_tenth_and_falls_to_zero(self, imp: Planned) -> None:
        rate = imp.programs[1][0].rate
        assert [rate.at(step) for step in (0, 2399, 4799)] == pytest.approx([0.8 / 4800, 0.4, 0.8])
        assert [rate.at(step) for step in (26_400, 47_999)] == pytest.approx([0.4, 0.0], abs=1e-6)
        assert imp.programs[1][0].weight_decay == 1e-4
        assert imp.particles == [1] * 19

    def test_swamp_differs_in_particles_and_averaging_only(self, imp: Planned) -> None:
        swamp = planned(CONFIGS / "imagenet_resnet50_swamp.yaml")
        assert swamp.particles == [4] * 19
        assert swamp.rates(1, 0.75, 0.9, 1.0) == pytest.approx([0.4] * 3)
        changed = {"averaging", "particles"}
        assert {key for key, value in imp.config.recipe().items() if value != swamp.config.recipe()[key]} == changed


class TestArms:
    def test_share_data_network_optimiser_and_lengths(self) -> None:
        common = ("seed", "data", "model", "task", "training", "dense")
        recipes = [arm(name).config.recipe() for name in ARMS]
        assert [recipe["training"].pop("sam_rho") for recipe in recipes if "sam_rho" in recipe["training"]] == [0.05]
        assert all(recipe[section] == recipes[0][section] for recipe in recipes for section in common)
        assert {name for name in ARMS if arm(name).epochs(0) != 60} == {"imp_4t", "swamp_late_fork"}

    def test_most_share_their_sparsities(self) -> None:
        in_rounds = [name for name in ARMS if arm(name).config.pruning.when == "rounds"]
        survivors = {name: [plan.survivors for plan in arm(name).rounds] for name in in_rounds}
        assert {name for name in in_rounds if survivors[name] != survivors["imp"]} == {
            "continue_ticket", "one_shot", "imp_2_4", "imp_blocks", "imp_channels"}
        assert all(arm(name).rounds[-1].survivors == survivors["imp"][-1] for name in BEFORE)

    def test_the_greedy_soup_is_the_soup_but_for_what_is_averaged(self) -> None:
        greedy, soup = arm("soup_greedy").config, arm("sparse_model_soups").config
        assert with_values(greedy, {"particles.combine": "average"}).recipe() == soup.recipe()

    def test_main_config_is_the_arm_swamp(self) -> None:
        assert load_config(CONFIGS / "cifar10_resnet20.yaml").recipe() == arm("swamp").config.recipe()

    @pytest.mark.parametrize(("name", "count", "within"), [
        ("imp", 1, "none"), ("imp_swa", 1, "swa"), ("swamp_without_swa", 4, "none"), ("swamp", 4, "swa"),
        ("imp_rewind_init", 1, "none"), ("lr_rewinding", 1, "none"), ("imp_best_of_4", 4, "none"),
        ("imp_4t", 1, "none"), ("imp_ema", 1, "ema"), ("one_shot", 1, "none"), ("random_pruning", 1, "none"),
        ("imp_erk", 1, "none"), ("imp_uniform", 1, "none"), ("imp_sam", 1, "none"), ("imp_2_4", 1, "none"),
        ("imp_blocks", 1, "none"), ("imp_channels", 1, "none"), ("continue_ticket", 4, "swa"),
        ("fine_tune_checkpoint", 4, "swa"), *((name, 1, "none") for name in BEFORE),
    ])
    def test_particles_and_averaging(self, name: str, count: int, within: str) -> None:
        plan = arm(name)
        assert set(plan.particles) == {count}
        assert {program.averaging for programs in plan.programs for program in programs} == {within}
        assert plan.config.particles.combine == ("best" if name == "imp_best_of_4" else "average")

    @pytest.mark.parametrize("name", ["imp", "swamp_without_swa", "imp_rewind_init", "lr_rewinding", "imp_best_of_4",
                                      "imp_4t", "imp_ema", "one_shot", "random_pruning", "imp_erk", "imp_uniform",
                                      *BEFORE])
    def test_without_swa_warms_up_and_falls_to_zero_in_every_round(self, name: str) -> None:
        plan = arm(name)
        for index in (0, len(plan.rounds) - 1):
            rate, steps = plan.programs[index][0].rate, plan.steps_per_epoch
            assert [rate.at(0), rate.at(steps - 1), rate.at(steps)] == pytest.approx([0.1 / steps, 0.1, 0.1], rel=1e-3)
            assert plan.rates(index, 1.0) == pytest.approx([0.0], abs=1e-6)

    @pytest.mark.parametrize("name", ["imp_swa", "swamp", "swamp_plus", "continue_ticket", "fine_tune_checkpoint"])
    def test_with_swa_falls_to_its_rate_and_averages_the_last_quarter(self, name: str) -> None:
        plan = arm(name)
        for index in (0, len(plan.rounds) - 1):
            assert plan.rates(index, 0.0, 0.375, 0.75, 0.9, 1.0) == pytest.approx([0.1, 0.075, *[0.05] * 3], rel=1e-3)
            program = plan.programs[index][0]
            taken = [step for step in range(program.num_steps + 1) if program.snapshot_after(step)]
            assert [step / plan.steps_per_epoch for step in taken] == list(range(46, 61))

    def test_swamp_plus_begins_with_one_particle(self) -> None:
        plan = arm("swamp_plus")
        assert all(one.num_particles == (4 if one.sparsity >= 0.9 else 1) for one in plan.rounds)
        assert {1, 4} == set(plan.particles)

    def test_imp_4t_trains_four_times_as_long(self) -> None:
        assert {arm("imp_4t").epochs(index) for index in range(19)} == {240}

    def test_one_shot_prunes_once(self) -> None:
        plan = arm("one_shot")
        assert [one.survivors for one in plan.rounds] == [plan.layout.num_prunable, arm("imp").rounds[-1].survivors]

    def test_sparse_model_soups_retrain_briefly_with_varied_decay(self) -> None:
        plan = arm("sparse_model_soups")
        assert plan.particles == [1] + [4] * 18
        assert plan.epochs(0) == 60
        assert {plan.epochs(index, n) for index in range(1, 19) for n in range(4)} == {15}
        assert plan.rates(1, 0.0, 0.5, 1.0) == pytest.approx([0.1, 0.05, 0.0], abs=1e-4)
        assert plan.programs[0][0].weight_decay == plan.config.training.weight_decay
        assert len({program.weight_decay for program in plan.programs[1]}) == 4

    @pytest.mark.parametrize(("name", "score", "scope"), [
        ("imp", "magnitude", "global"), ("random_pruning", "random", "global"), ("imp_erk", "magnitude", "erk"),
        ("imp_uniform", "magnitude", "uniform"),
    ])
    def test_what_chooses_the_weights(self, name: str, score: str, scope: str) -> None:
        pruning = arm(name).config.pruning
        assert (pruning.score, pruning.scope) == (score, scope)


class TestMasksThatChange:
    """Arms of one training within which the mask changes; 351 steps an epoch, so 21,060 in all."""

    @pytest.mark.parametrize(("name", "method", "replicas"), [
        ("set", "random", 1), ("rigl", "gradient", 1), ("rigl_averaged", "gradient", 4)])
    def test_dynamic_ones_have_the_schedule_of_evci_and_others(self, name: str, method: str, replicas: int) -> None:
        plan = arm(name)
        [[program]] = plan.programs
        updates = program.mask_updates
        assert updates is not None
        assert (updates.method, program.num_replicas) == (method, replicas)
        assert plan.config.pruning.scope == "erk"
        assert updates.steps == tuple(range(100, 15_795, 100))
        assert updates.share_at(0) == pytest.approx(0.3)
        assert updates.share_at(updates.last) < 1e-4
        assert dense_phase(plan.config, plan.steps_per_epoch) is None

    def test_gradual_pruning_ends_at_three_quarters(self) -> None:
        [[program]] = arm("gradual_magnitude_pruning").programs
        assert program.mask_updates is not None
        assert program.mask_updates.last == 15_795
        assert len(program.mask_updates.steps) == 158

    def test_one_shot_with_fine_tuning_prunes_once_in_the_middle(self) -> None:
        [[program]] = arm("one_shot_fine_tuning").programs
        assert program.mask_updates is not None
        assert program.mask_updates.steps == (10_530,)

    @pytest.mark.parametrize("name", ["set", "rigl", "rigl_averaged", "gradual_magnitude_pruning",
                                      "one_shot_fine_tuning"])
    def test_each_has_the_target_of_imp(self, name: str) -> None:
        assert arm(name).rounds[-1].survivors == arm("imp").rounds[-1].survivors
        assert arm(name).rates(0, 1.0) == pytest.approx([0.0], abs=1e-6)


class _Watch(Reporter):
    def __init__(self) -> None:
        self.prepared: Prepared | None = None

    def run_started(self, prepared: Prepared, path: str) -> None:
        self.prepared = prepared


@dataclass(frozen=True)
class _Begun:
    """What a training run began with."""

    label: str
    compact: CompactState
    mask: np.ndarray


class TestStartingWeights:
    """Each arm in miniature, on the digits: where do the particles of a pruned round really start?"""

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[_Begun]:
        begun: list[_Begun] = []
        begin = worker.begin_run

        def watched(trainer: ParticleTrainer, job: TrainingSpec, start: CompactState, mask: np.ndarray,
                    *rest: Any) -> Any:
            begun.append(_Begun(job.label, start, mask))
            return begin(trainer, job, start, mask, *rest)

        monkeypatch.setattr(worker, "begin_run", watched)
        return begun

    @pytest.mark.parametrize(("name", "origin"), [
        ("imp", "t0"), ("swamp", "t0"), ("imp_rewind_init", "init"), ("lr_rewinding", "average"),
        ("sparse_model_soups", "average"), ("imp_best_of_4", "t0"), ("fine_tune_checkpoint", "init"),
    ])
    def test_of_the_second_round(self, name: str, origin: str, begun: list[_Begun], tmp_path: Path) -> None:
        watch = _Watch()
        done = run(miniature(name, tmp_path), watch)
        assert watch.prepared is not None
        layout, initial = watch.prepared.layout, watch.prepared.initial.parameters
        assert (begun[0].label == "dense phase") == (origin != "init")
        first, second = ([one for one in begun if one.label.startswith(f"round {index},")] for index in (0, 1))
        rewind = full_state(first[0].compact, layout, first[0].mask)
        trained = any(not np.array_equal(rewind[key], initial[key]) for key in initial)
        assert trained == (origin != "init")
        if origin == "average":
            store = ArtifactStore(root_of(done.rundir))
            average = store.find(done.records[0].artifacts["average"]["name"])
            assert average is not None
            rewind = full_state(read_state(store, average), layout, first[0].mask)
        expected = compact_state(rewind, layout, second[0].mask, drop_outside=True)
        assert len(second) == done.records[1].num_particles
        for one in second:
            assert np.array_equal(one.compact.values, expected.values)
            assert np.array_equal(one.compact.rest, expected.rest)


def miniature(name: str, folder: Path) -> SwampConfig:
    """An arm with its own settings of the method, but a small network and a few steps."""
    config = load_config(CONFIGS / "arms" / f"{name}.yaml")
    values: dict[str, Any] = {
        "name": name, "storage": str(folder), "execution.executor": "inline", "execution.device": "cpu",
        "data.name": "digits", "data.limit_train": 150, "data.limit_test": 50, "model.name": "lenet_300_100",
        "training.batch_size": 32, "dense.length": "4 steps", "dense.warmup": "1 steps", "round.length": "8 steps",
        "averaging.every": "1 steps", "pruning.target": 0.5, "pruning.rate": 0.5,
        "training.schedule.warmup": "1 steps",
    }
    if config.round.schedule == "retrain":
        values["round.retrain_length"] = "4 steps"
    if config.start_from is not None:
        values["start_from.path"] = str(_checkpoint(config, folder))
    return with_values(config, values)


def _checkpoint(config: SwampConfig, folder: Path) -> Path:
    import torch

    model = build_model(config.model.model_copy(update={"name": "lenet_300_100"}), num_classes=10,
                        input_shape=(1, 8, 8), seed=99)
    path = folder / "dense.pt"
    torch.save(model.state_dict(), path)
    return path
