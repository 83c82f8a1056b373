"""Learning rates, decays and snapshots of every arm, against values worked out by hand and torch's schedulers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR
from torch.optim.swa_utils import SWALR

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.training.program import Program, dense_program, round_program

SPE = 5  # steps per epoch
IMP = {"averaging": {"within": "none"}}
SWA = {"averaging": {"within": "swa"}}


def config(*parts: dict[str, Any]) -> SwampConfig:
    tree: dict[str, Any] = {}
    for part in parts:
        for section, values in part.items():
            tree.setdefault(section, {}).update(values)
    return build_config(tree)


def trace(program: Program) -> list[float]:
    return [program.rate.at(step) for step in range(program.num_steps)]


def first_round(*parts: dict[str, Any], particle: int = 0, index: int = 0) -> Program:
    return round_program(config(*parts), SPE, index, particle)


def snapshots(program: Program) -> list[int]:
    return [done for done in range(1, program.num_steps + 1) if program.snapshot_after(done)]


def scheduled(make: Any, lr: float, num_steps: int) -> list[float]:
    """The rates that an optimiser sees under one of torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def cosine(base: float, final: float, step: int, length: int) -> float:
    return final + (base - final) * (1 + math.cos(math.pi * step / length)) / 2


def test_imp_warms_up_for_one_epoch_and_falls_to_zero() -> None:
    program = first_round(IMP, {"training": {"lr": 0.4}, "round": {"length": 3}})
    expected = [0.08, 0.16, 0.24, 0.32, 0.4]
    expected += [0.4 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert trace(program) == pytest.approx(expected)
    assert program.rate.at(15) == pytest.approx(0.0, abs=1e-15)
    assert (program.averaging, snapshots(program), program.num_epochs) == ("none", [], 3)
    twin = scheduled(lambda o: SequentialLR(o, [
        LinearLR(o, start_factor=1 / 5, total_iters=4), CosineAnnealingLR(o, T_max=10)], milestones=[5]), 0.4, 15)
    assert trace(program) == pytest.approx(twin)


def test_swa_falls_to_half_the_rate_and_stays_there() -> None:
    program = first_round(SWA, {"training": {"lr": 0.1}, "round": {"length": 24}})
    hold = 18 * SPE
    expected = [cosine(0.1, 0.05, step, hold) for step in range(hold)] + [0.05] * (6 * SPE)
    assert trace(program) == pytest.approx(expected)
    twin = scheduled(lambda o: CosineAnnealingLR(o, T_max=hold, eta_min=0.05), 0.1, hold)
    assert trace(program)[:hold] == pytest.approx(twin)


def test_swa_agrees_with_torchs_own_scheduler_where_it_anneals_in_one_step() -> None:
    program = first_round({"averaging": {"within": "swa", "lr": 0.02}}, {
        "training": {"lr": 0.1, "schedule": {"name": "constant"}}, "round": {"length": 4}})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    swa = SWALR(optimizer, swa_lr=0.02, anneal_epochs=1)
    twin = []
    for step in range(program.num_steps):
        if step == 15:
            swa.step()
        twin.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert trace(program) == pytest.approx(twin)


def test_swa_with_its_own_rate_and_warm_up() -> None:
    program = first_round({"averaging": {"within": "swa", "lr": 0.3, "start": 0.5}},
                          {"training": {"lr": 0.2, "schedule": {"warmup": "2 steps"}}, "round": {"length": 2}})
    assert trace(program) == pytest.approx([0.1, 0.2, 0.2, cosine(0.2, 0.3, 1, 3), cosine(0.2, 0.3, 2, 3)] + [0.3] * 5)


def test_ema_has_the_rates_of_imp() -> None:
    ema = first_round({"averaging": {"within": "ema", "ema_decay": 0.9}}, {"round": {"length": 3}})
    assert trace(ema) == trace(first_round(IMP, {"round": {"length": 3}}))
    assert (ema.averaging, ema.ema_decay, snapshots(ema)) == ("ema", 0.9, [])


def test_multistep() -> None:
    schedule = {"name": "multistep", "warmup": 0, "milestones": [0.5, 0.75], "gamma": 0.1}
    program = first_round(IMP, {"training": {"lr": 1.0, "schedule": schedule}, "round": {"length": 4}})
    assert trace(program) == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    assert trace(program) == pytest.approx(scheduled(lambda o: MultiStepLR(o, [10, 15], gamma=0.1), 1.0, 20))


def test_constant_and_linear() -> None:
    constant = first_round(IMP, {"training": {"lr": 0.3, "schedule": {"name": "constant", "warmup": 0}},
                                 "round": {"length": "7 steps"}})
    assert trace(constant) == [0.3] * 7
    linear = first_round(IMP, {"training": {"lr": 0.4, "schedule": {"name": "linear", "warmup": 0, "final_lr": 0.2}},
                               "round": {"length": "4 steps"}})
    assert trace(linear) == pytest.approx([0.4, 0.35, 0.3, 0.25])
    assert trace(linear) == pytest.approx(scheduled(
        lambda o: LinearLR(o, start_factor=1.0, end_factor=0.5, total_iters=4), 0.4, 4))


def test_dense_phase_warms_up_and_stays() -> None:
    program = dense_program(config(SWA, {"training": {"lr": 0.5}, "dense": {"length": 2}}), SPE)
    assert trace(program) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5] + [0.5] * 5)
    assert (program.averaging, program.num_epochs) == ("none", 2)
    short = dense_program(config({"training": {"lr": 0.5}, "dense": {"length": "2 steps"}}), SPE)
    assert trace(short) == pytest.approx([0.25, 0.5])
    assert dense_program(config({"dense": {"length": 0}}), SPE).num_steps == 0


def test_continue_is_one_schedule_in_two_parts() -> None:
    parts = IMP, {"training": {"lr": 0.4}, "dense": {"length": 2}, "round": {"length": 5}}
    going_on = config(*parts, {"rewind": {"schedule": "continue"}})
    dense, later = dense_program(going_on, SPE), round_program(going_on, SPE, 3, 0)
    whole = trace(first_round(*parts))
    assert (dense.num_steps, later.num_steps) == (2 * SPE, 3 * SPE)
    assert trace(dense) == whole[:10]
    assert trace(later) == whole[10:]
    assert trace(round_program(going_on, SPE, 0, 0)) == whole[10:]
    assert first_round(*parts).num_steps == 5 * SPE  # restart is the default


def test_learning_rate_rewinding_repeats_the_whole_schedule() -> None:
    rewinding = config(IMP, {"rewind": {"weights": "none"}, "round": {"length": 3}})
    assert round_program(rewinding, SPE, 7, 0) == round_program(rewinding, SPE, 0, 0)
    assert trace(round_program(rewinding, SPE, 7, 0)) == trace(first_round(IMP, {"round": {"length": 3}}))


def test_sparse_model_soups_retrain_shorter_and_linearly() -> None:
    parts = IMP, {"rewind": {"weights": "none"}, "round": {"length": 4, "schedule": "retrain"}, "training": {"lr": 0.2}}
    first, later = first_round(*parts), first_round(*parts, index=1)
    assert trace(first) == trace(first_round(IMP, {"round": {"length": 4}, "training": {"lr": 0.2}}))
    assert trace(later) == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04])
    assert later.rate.at(5) == pytest.approx(0.0)
    given = first_round(*parts, {"round": {"retrain_length": "2 steps", "retrain_lr": 0.1}}, index=1)
    assert trace(given) == pytest.approx([0.1, 0.05])
    in_steps = first_round(*parts, {"round": {"length": "23 steps"}}, index=1)
    assert in_steps.num_steps == 5
    ema = first_round(*parts, {"averaging": {"within": "ema"}}, index=1)
    assert (ema.averaging, trace(ema)) == ("ema", trace(later))


def test_particles_differ_in_what_varies_and_in_nothing_else() -> None:
    vary = {"lr": [0.1, 0.2], "weight_decay": [0.0, 1e-3, 1e-2], "length": [2, "7 steps"]}
    parts = IMP, {"particles": {"vary": vary}, "training": {"schedule": {"name": "constant", "warmup": 0}}}
    found = [first_round(*parts, particle=particle) for particle in range(4)]
    assert [program.rate.base for program in found] == [0.1, 0.2, 0.1, 0.2]
    assert [program.weight_decay for program in found] == [0.0, 1e-3, 1e-2, 0.0]
    assert [program.num_steps for program in found] == [10, 7, 10, 7]
    plain = [first_round(IMP, particle=particle) for particle in range(3)]
    assert plain[0] == plain[1] == plain[2]


def test_varied_rates_carry_over_to_swa_and_retraining() -> None:
    vary = {"particles": {"vary": {"lr": [0.1, 0.3]}}}
    assert first_round(SWA, vary, particle=1).rate.final == pytest.approx(0.15)
    retrain = IMP, vary, {"training": {"lr": 0.1}, "round": {"schedule": "retrain", "retrain_lr": 0.02}}
    assert [first_round(*retrain, particle=n, index=1).rate.at(0) for n in (0, 1)] == pytest.approx([0.02, 0.06])


def test_a_quarter_of_24_epochs_gives_six_snapshots() -> None:
    program = first_round(SWA, {"round": {"length": 24}})
    assert snapshots(program) == [epoch * SPE for epoch in (19, 20, 21, 22, 23, 24)]


def test_snapshots_fall_on_ends_of_epochs_and_include_the_last_weights() -> None:
    assert snapshots(first_round(SWA, {"round": {"length": 10}})) == [40, 45, 50]  # the constant part starts in epoch 8


@pytest.mark.parametrize(("length", "every", "expected"), [
    ("100 steps", "5 steps", [80, 85, 90, 95, 100]),
    ("100 steps", "25 steps", [100]),
    ("100 steps", "1 epoch", [80, 85, 90, 95, 100]),
    ("20 epochs", "10 steps", [80, 90, 100]),
    ("4 epochs", "0.4 epochs", [16, 18, 20]),
])
def test_snapshots_in_steps(length: str, every: str, expected: list[int]) -> None:
    assert snapshots(first_round({"averaging": {"within": "swa", "every": every}}, {"round": {"length": length}})) \
        == expected


@pytest.mark.parametrize(("parts", "text"), [
    ([IMP, {"round": {"length": "5 steps"}, "training": {"schedule": {"warmup": 1}}}],
     "training.schedule.warmup: the warm-up must be shorter than the training, but got '5 of 5 steps'"),
    ([SWA, {"round": {"length": 4}, "training": {"schedule": {"warmup": "16 steps"}}}],
     "training.schedule.warmup: the warm-up must end before SWA starts, but got '16 > 15 steps'"),
    ([{"averaging": {"within": "swa", "every": "26 steps"}}, {"round": {"length": 5}}],
     "averaging: averaging.start and averaging.every must leave room for a snapshot"),
    ([{"averaging": {"within": "swa", "every": 0.05}}, {"round": {"length": 5}}],
     "a snapshot every 0 steps"),
    ([IMP, {"round": {"length": 0.01}, "training": {"schedule": {"warmup": 0}}}],
     "round.length: a round must train at least one step, but got 0"),
    ([IMP, {"dense": {"length": "15 steps"}, "round": {"length": 3}, "rewind": {"schedule": "continue"}}],
     "dense.length: dense.length must be shorter than round.length under rewind.schedule: continue"),
    ([IMP, {"particles": {"vary": {"length": ["3 steps"]}}, "training": {"schedule": {"warmup": 1}}}],
     "but got '5 of 3 steps'"),
])
def test_refusals(parts: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(UserError) as caught:
        first_round(*parts)
    assert text in str(caught.value)


@pytest.mark.parametrize(("parts", "text"), [
    ([IMP, {"dense": {"length": 4}, "round": {"length": 4}, "rewind": {"schedule": "continue"}}],
     "dense.length (T0) must be shorter than round.length (T)"),
    ([SWA, {"rewind": {"schedule": "continue"}}], "SWA replaces"),
    ([SWA, {"round": {"schedule": "retrain"}}], "SWA has nothing to average"),
    ([SWA, {"round": {"length": 4}, "averaging": {"every": 2}}], "none would be taken"),
    ([IMP, {"round": {"length": 0}}], "round.length must be greater than 0"),
])
def test_contradictions_are_refused_before_the_data_are_known(parts: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*parts)
    assert text in str(caught.value)


def test_as_dict_is_plain_json_and_tells_programs_apart() -> None:
    programs = [first_round(SWA), first_round(IMP), first_round(IMP, {"training": {"schedule": {"name": "multistep"}}}),
                dense_program(config(), SPE)]
    texts = [json.dumps(program.as_dict(), allow_nan=False) for program in programs]
    assert len(set(texts)) == len(texts)
    assert json.loads(texts[2])["rate"]["milestones"] == [60, 90]


def test_constant_twin_of_the_dense_phase() -> None:
    program = dense_program(config({"dense": {"length": 2, "warmup": 0}, "training": {"lr": 0.7}}), SPE)
    assert trace(program) == pytest.approx(scheduled(lambda o: ConstantLR(o, factor=1.0, total_iters=1), 0.7, 10))
