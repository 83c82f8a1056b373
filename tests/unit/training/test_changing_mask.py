"""Trainings whose mask changes: RigL, SET and gradual pruning against plain torch step by step, and interrupted."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.trees import leaves
from swamp_ray.errors import CorruptArtifactError, DivergedError, UserError
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import compact_state, full_state
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.training.arithmetic import resolve_arithmetic
from swamp_ray.training.mask_updates import MaskUpdates
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.replicas import AnyRun, ReplicatedRun, begin_run
from swamp_ray.training.results import TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import TrainingRun
from tests.helpers import data_of, with_sections

BASE: dict[str, Any] = {
    "data": {"name": "synthetic", "validation": 0.1,
             "options": {"num_train": 60, "num_test": 10, "num_classes": 3, "shape": [1, 4, 4]}},
    "model": {"name": "mlp", "options": {"hidden": [12, 9]}},
    "training": {"batch_size": 9, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "schedule": {"warmup": 0}},
    "dense": {"length": 0},
    "round": {"length": "27 steps"},  # four epochs of six steps and a half one
    "averaging": {"within": "none"},
    "particles": {"count": 1},
    "pruning": {"when": "dynamic", "target": 0.7, "scope": "erk",
                "updates": {"every": "4 steps", "until": 0.8, "drop_share": 0.5}},
}
RIGL: dict[str, Any] = {}
SET = {"pruning": {"updates": {"grow": "random"}}}
GMP = {"pruning": {"when": "gradual", "scope": "global",
                   "updates": {"begin": 0.1, "drop_share": 0.3}}}
ONE_SHOT = {"pruning": {"when": "gradual", "scope": "uniform",
                        "updates": {"begin": 0.5, "until": 0.5, "drop_share": 0.3}}}
METHODS = {"rigl": RIGL, "set": SET, "gmp": GMP, "one_shot": ONE_SHOT}


def configured(*changes: dict[str, Any]) -> SwampConfig:
    merged: dict[str, Any] = {}
    for change in changes:
        merged = _merge(merged, change)
    return with_sections(BASE, **merged) if not merged.get("pruning") else build_config(_merge(BASE, merged))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in over.items():
        found[key] = _merge(found[key], value) if isinstance(value, dict) and key in found else value
    return found


def trainer_of(config: SwampConfig) -> ParticleTrainer:
    data = data_of(config)
    return ParticleTrainer(config, data, resolve_arithmetic(config.execution, "cpu", initial_model(config, data)))


def first_mask(trainer: ParticleTrainer) -> np.ndarray:
    """Random by layer, as the config's scope says; all ones for gradual pruning."""
    layout = trainer.layout
    mask = np.ones(layout.num_prunable, dtype=bool)
    if trainer.config.pruning.when == "gradual":
        return mask
    sizes = [layer.size for layer in layout.layers]
    budgets = layer_budgets(layout, sizes, round(0.3 * layout.num_prunable), "erk")
    draw = np.random.RandomState(4)
    for layer, budget in zip(layout.layers, budgets, strict=True):
        mask[layer.span] = draw.permutation(layer.size) < budget
    return mask


def begin(trainer: ParticleTrainer, seed: int = 1, checkpoint: bytes | None = None) -> AnyRun:
    program = round_program(trainer.config, trainer.steps_per_epoch, 0, 0)
    mask = first_mask(trainer)
    model = initial_model(trainer.config, trainer.data)
    start = compact_state({clean_name(name): p for name, p in model.named_parameters()}, trainer.layout, mask,
                          drop_outside=True)
    buffers = {clean_name(name): b.numpy().copy() for name, b in model.named_buffers()}
    return begin_run(trainer, TrainingSpec("round 0, particle 0", seed, program), start, mask, buffers, checkpoint)


def complete(run: AnyRun) -> TrainedParticle:
    while not run.done:
        run.epoch()
    return run.finish()


def bits(found: TrainedParticle) -> tuple[Any, ...]:
    assert found.mask is not None
    return (found.compact.values.tobytes(), found.compact.rest.tobytes(), found.mask.tobytes(),
            found.evaluation.metrics, found.history)


class Twin:
    """One replica in plain torch: SGD with momentum by hand, masks as tensors, nothing of the package's training."""

    def __init__(self, trainer: ParticleTrainer, seed: int, rates: list[float]) -> None:
        self.model = initial_model(trainer.config, trainer.data)
        self.seed = seed
        self.rates = rates
        self.weights = [p for p in self.model.parameters() if p.ndim > 1]
        self.masks: list[Tensor] = []
        flat = torch.from_numpy(first_mask(trainer))
        for weight in self.weights:
            self.masks.append(flat[:weight.numel()].reshape(weight.shape).float())
            flat = flat[weight.numel():]
            weight.data *= self.masks[-1]
        self.momentum = [torch.zeros_like(p) for p in self.model.parameters()]
        self.batches = _batches(trainer, seed, len(rates))

    def backward(self, step: int) -> None:
        """The dense gradients of a step's batch."""
        self.model.zero_grad()
        images, labels = self.batches[step]
        nn.functional.cross_entropy(self.model(images), labels).backward()

    def step(self, step: int) -> None:
        """One masked step of SGD with coupled decay."""
        self.backward(step)
        masks = {id(weight): mask for weight, mask in zip(self.weights, self.masks, strict=True)}
        with torch.no_grad():
            for parameter, buffer in zip(self.model.parameters(), self.momentum, strict=True):
                assert parameter.grad is not None
                gradient = parameter.grad * masks.get(id(parameter), 1.0) + 1e-3 * parameter
                buffer.mul_(0.9).add_(gradient)
                parameter -= self.rates[step] * buffer

    def change(self, masks: list[Tensor], continuing: list[Tensor]) -> None:
        """Take new masks; what does not continue is 0, in weights and momentum."""
        by_weight = {id(weight): part for weight, part in zip(self.weights, continuing, strict=True)}
        self.masks = masks
        for parameter, buffer in zip(self.model.parameters(), self.momentum, strict=True):
            part = by_weight.get(id(parameter))
            if part is not None:
                parameter.data *= part
                buffer *= part

    @property
    def mask(self) -> np.ndarray:
        return torch.cat([mask.reshape(-1) for mask in self.masks]).numpy() > 0


def _batches(trainer: ParticleTrainer, seed: int, num_steps: int) -> list[tuple[Tensor, Tensor]]:
    """The order of batches is the package's, and has tests of its own."""
    found: list[tuple[Tensor, Tensor]] = []
    epoch = 0
    while len(found) < num_steps:
        order = derive_seed(seed, "shuffle", epoch)
        for batch in trainer.batches("train").one_pass(9, seed=order, drop_last=True):
            images, labels = leaves(batch)
            found.append((images.clone(), labels.clone()))
        epoch += 1
    return found


def exchanged(weight: Tensor, mask: Tensor, growth: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Evci et al. (2020), algorithm 1, by sorting one layer."""
    kept = [int(i) for i in mask.reshape(-1).nonzero().reshape(-1)]
    num = min(int(share * len(kept)), mask.numel() - len(kept))
    sizes, growths = weight.detach().abs().reshape(-1).tolist(), growth.abs().reshape(-1).tolist()
    kept.sort(key=lambda i: (-sizes[i], i))
    continuing = set(kept[:len(kept) - num])
    candidates = [i for i in range(mask.numel()) if i not in continuing]
    candidates.sort(key=lambda i: (-growths[i], i))
    new, old = torch.zeros(mask.numel()), torch.zeros(mask.numel())
    new[[*continuing, *candidates[:num]]] = 1
    old[list(continuing)] = 1
    return new.reshape(mask.shape), old.reshape(mask.shape)


def twin_of(config: SwampConfig, seed: int = 1, num_replicas: int = 1) -> tuple[list[Twin], dict[int, np.ndarray]]:
    """Train SET or RigL in plain torch; the replicas, and the masks after each update by step."""
    trainer = trainer_of(config)
    program = round_program(config, trainer.steps_per_epoch, 0, 0)
    rates = [program.rate.at(step) for step in range(27)]
    seeds = [seed, *(derive_seed(seed, "replica", n) for n in range(1, num_replicas))]
    twins = [Twin(trainer, own, rates) for own in seeds]
    end = round(0.8 * 27)
    masks: dict[int, np.ndarray] = {}
    by_gradient = config.pruning.updates.grow == "gradient"
    for step in range(27):
        due = step > 0 and step % 4 == 0 and step < end
        if due:
            _average(twins)
            share = 0.5 / 2 * (1 + math.cos(math.pi * step / end))
            growth = _dense_gradients(twins, step) if by_gradient else _draws(twins[0], seed, step)
            parts = [exchanged(weight, mask, grow, share) for weight, mask, grow in
                     zip(twins[0].weights, twins[0].masks, growth, strict=True)]
            for twin in twins:
                twin.change([new for new, _ in parts], [old for _, old in parts])
            masks[step] = twins[0].mask
        if not (due and by_gradient):
            for twin in twins:
                twin.step(step)
    _average(twins)
    return twins, masks


def _average(twins: list[Twin]) -> None:
    for same in zip(*(twin.model.parameters() for twin in twins), strict=True):
        mean = torch.stack([one.detach().double() for one in same]).mean(0).float()
        for one in same:
            one.data.copy_(mean)


def _dense_gradients(twins: list[Twin], step: int) -> list[Tensor]:
    for twin in twins:
        twin.backward(step)
    found = []
    for same in zip(*(twin.weights for twin in twins), strict=True):
        gradients = [one.grad.double() for one in same if one.grad is not None]
        found.append(torch.stack(gradients).mean(0).float())
    return found


def _draws(twin: Twin, seed: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "grow", step))
    return [torch.rand(weight.numel(), generator=generator).reshape(weight.shape) for weight in twin.weights]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_dynamic_training_equals_plain_torch_step_by_step(method: str, count: int) -> None:
    config = configured(METHODS[method], {"particles": {"count": count}})
    twins, expected = twin_of(config, num_replicas=count)
    run = begin(trainer_of(config))
    masks: dict[int, np.ndarray] = {}
    first = run if isinstance(run, TrainingRun) else run._replicas[-1]
    while not run.done:
        run.epoch(lambda: True)
        assert first.changing is not None
        masks[first.changing.updated_at] = first.changing.mask
    found = run.finish()
    del masks[-1]
    assert list(masks) == list(expected) == [4, 8, 12, 16, 20]
    for step, mask in expected.items():
        assert np.array_equal(masks[step], mask), f"after step {step}"
    assert found.mask is not None
    state = full_state(found.compact, trainer_of(config).layout, found.mask)
    for name, parameter in twins[0].model.named_parameters():
        np.testing.assert_allclose(state[name], parameter.detach().numpy(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_each_layer_keeps_as_many_weights_and_they_move(method: str) -> None:
    trainer = trainer_of(configured(METHODS[method]))
    run = begin(trainer)
    assert isinstance(run, TrainingRun)
    assert run.changing is not None
    before = run.changing.mask
    counts = [int(before[layer.span].sum()) for layer in trainer.layout.layers]
    moved = 0
    while not run.done:
        run.epoch(lambda: True)
        now = run.changing.mask
        assert [int(now[layer.span].sum()) for layer in trainer.layout.layers] == counts
        moved += int((now & ~before).sum())
        before = now
        for weight, mask in zip(trainer.weights, _tensors(trainer, now), strict=True):
            assert not bool((weight != 0)[mask == 0].any()), "a pruned weight is 0"
            momentum = run.optimizer.state[weight].get("momentum_buffer")
            assert momentum is None or not bool((momentum != 0)[mask == 0].any())
    assert moved > 10


def _tensors(trainer: ParticleTrainer, mask: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(mask[layer.span].reshape(layer.shape)).float() for layer in trainer.layout.layers]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_grown_weight_starts_from_nothing_in_weight_and_optimiser(optimizer: str) -> None:
    config = configured(RIGL, {"training": {"optimizer": optimizer, "lr": 0.01}})
    trainer = trainer_of(config)
    run = begin(trainer)
    assert isinstance(run, TrainingRun)
    assert run.changing is not None
    run.epoch(lambda: run.step == 4)
    before = run.changing.mask
    run.epoch(lambda: run.step == 5)
    assert run.changing.updated_at == 4
    grown = _tensors(trainer, run.changing.mask & ~before)
    assert sum(int(part.sum()) for part in grown) > 0
    for weight, part in zip(trainer.weights, grown, strict=True):
        for value in (weight, *run.optimizer.state[weight].values()):
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert not bool((value != 0)[part == 1].any())


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
def test_gradual_pruning_has_the_density_of_the_formula_at_each_step(scope: str) -> None:
    config = configured(GMP, {"pruning": {"scope": scope}})
    trainer = trainer_of(config)
    run = begin(trainer)
    assert isinstance(run, TrainingRun)
    assert run.changing is not None
    num = trainer.layout.num_prunable
    first, end = 3, 22  # a tenth and eight tenths of 27 steps, to the nearest
    final = 1 - math.floor(0.3 * num + 0.5) / num
    kept = num
    previous = run.changing.mask
    weights = np.zeros(0)
    for done in range(1, 28):
        if done - 1 >= first:
            weights = np.concatenate([weight.detach().numpy().reshape(-1) for weight in trainer.weights])
        run.epoch(lambda: True)
        # The change that is due after a step comes with the next one.
        at = done - 1
        if first < at <= end and ((at - first) % 4 == 0 or at == end):
            sparsity = final + (0 - final) * (1 - (at - first) / (end - first)) ** 3
            kept = round(num * (1 - sparsity))
            mask = run.changing.mask
            assert not bool((mask & ~previous).any()), "what is pruned stays so"
            if scope == "global":
                order = np.argsort(-np.abs(np.where(previous, weights, 0)), kind="stable")
                assert set(np.flatnonzero(mask)) == set(order[:kept])
            previous = mask
        assert int(run.changing.mask.sum()) == kept, f"after {done} steps"
    assert kept == math.floor(0.3 * num + 0.5)
    found = run.finish()
    assert found.compact.values.size == kept


def test_one_shot_prunes_at_one_step_and_trains_on() -> None:
    trainer = trainer_of(configured(ONE_SHOT))
    run = begin(trainer)
    assert isinstance(run, TrainingRun)
    assert run.changing is not None
    sizes = []
    while not run.done:
        run.epoch(lambda: True)
        sizes.append(int(run.changing.mask.sum()))
    num = trainer.layout.num_prunable
    assert sizes == [num] * 14 + [math.floor(0.3 * num + 0.5)] * 13


def test_the_number_of_weights_is_exact_at_every_step_of_large_networks() -> None:
    updates = MaskUpdates("prune", 1000, 0, 30_000, target=0.98)
    num = 25_000_000_007
    for step in updates.steps:
        sparsity = Fraction(98, 100) * (1 - (1 - Fraction(step, 30_000)) ** 3)
        assert abs(updates.survivors_at(step, num, num) - num * (1 - sparsity)) <= 1
    assert updates.survivors_at(updates.last, num, num) == 500_000_000
    assert updates.steps[:2] == (1000, 2000)
    assert updates.last == 30_000


@pytest.mark.parametrize(("begin_at", "end", "expected"), [
    (0, 12, [4, 8]), (0, 13, [4, 8, 12]), (8, 13, [8, 12]), (9, 13, [12]), (12, 12, [])])
def test_updates_of_dynamic_training_come_at_multiples_and_end_in_time(
    begin_at: int, end: int, expected: list[int]
) -> None:
    updates = MaskUpdates("gradient", 4, begin_at, end, share=0.3)
    assert list(updates.steps) == expected
    assert [step for step in range(40) if updates.is_due(step)] == expected


@pytest.mark.parametrize(("begin_at", "end", "expected"), [
    (0, 12, [4, 8, 12]), (2, 13, [6, 10, 13]), (7, 7, [7]), (0, 3, [3])])
def test_updates_of_gradual_pruning_end_at_its_end(begin_at: int, end: int, expected: list[int]) -> None:
    updates = MaskUpdates("prune", 4, begin_at, end, target=0.5)
    assert list(updates.steps) == expected
    assert [step for step in range(40) if updates.is_due(step)] == expected


CASES = [
    *({"method": method} for method in METHODS),
    {"method": "rigl", "particles": {"count": 3}},
    {"method": "set", "particles": {"count": 2}, "averaging": {"within": "swa", "start": 0.85, "every": "1 steps"}},
    {"method": "gmp", "particles": {"count": 2}, "averaging": {"within": "ema", "ema_decay": 0.8}},
    {"method": "rigl", "averaging": {"within": "ema", "ema_decay": 0.8}},
    {"method": "rigl", "training": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5}},
    {"method": "rigl", "model": {"name": "digits_cnn", "options": {}},
     "data": {"options": {"num_train": 60, "num_test": 10, "num_classes": 3, "shape": [1, 8, 8]}}},
]


def of_case(case: dict[str, Any]) -> SwampConfig:
    changes = {key: value for key, value in case.items() if key != "method"}
    return configured(METHODS[case["method"]], changes)


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_any_step_it_ends_with_the_same_bits(case: dict[str, Any]) -> None:
    config = of_case(case)
    undisturbed = bits(complete(begin(trainer_of(config))))
    trainer = trainer_of(config)
    run = begin(trainer)
    stops = 0
    while not run.done:
        run.epoch(lambda: True)
        checkpoint = run.checkpoint()
        torch.manual_seed(stops)
        run = begin(trainer, checkpoint=checkpoint)
        stops += 1
    assert stops >= 20
    assert bits(run.finish()) == undisturbed


@pytest.mark.parametrize("method", METHODS)
def test_one_replica_is_a_training_alone_to_the_bit(method: str) -> None:
    config = configured(METHODS[method])
    alone = begin(trainer_of(config))
    assert isinstance(alone, TrainingRun)
    expected = complete(alone)
    trainer = trainer_of(config)
    other = begin(trainer)
    assert isinstance(other, TrainingRun)
    run = ReplicatedRun(trainer, other.job, first_mask(trainer), {})
    found = complete(run)
    assert found.mask is not None
    assert bits(found)[:4] == bits(expected)[:4]
    for one, record in zip(found.history, expected.history, strict=True):
        assert one == {**record, "replicas": 1}


def test_replicas_share_mask_and_weights_after_each_change_and_differ_between() -> None:
    run = begin(trainer_of(configured(SET, {"particles": {"count": 3}})))
    assert isinstance(run, ReplicatedRun)
    seen = 0
    while not run.done:
        run.epoch(lambda: True)
        masks = [one.changing.mask for one in run._replicas if one.changing is not None]
        assert all(np.array_equal(masks[0], mask) for mask in masks)
        if 0 < run.step < 27 and len({one.step for one in run._replicas}) == 1:
            weights = [one._own[0] for one in run._replicas]
            assert not torch.equal(weights[0], weights[1])
            seen += 1
    assert seen >= 3
    assert run.history[-1]["replicas"] == 3
    assert run.history[-1]["step"] == 27


def test_a_checkpoint_of_other_replicas_or_of_a_fixed_mask_does_not_fit() -> None:
    three = begin(trainer_of(configured(SET, {"particles": {"count": 3}}))).checkpoint()
    alone = begin(trainer_of(configured(SET))).checkpoint()
    for count, foreign in ((2, three), (3, three[:-200]), (3, alone), (1, three)):
        with pytest.raises(CorruptArtifactError):
            begin(trainer_of(configured(SET, {"particles": {"count": count}})), checkpoint=foreign)


@pytest.mark.parametrize("count", [1, 2])
def test_weights_that_explode_are_told_before_a_mask_is_chosen_from_them(count: int) -> None:
    config = configured(RIGL, {"particles": {"count": count}})
    trainer = trainer_of(config)
    run = begin(trainer)
    run.epoch(lambda: run.step >= 4)
    tensors = [trainer.weights[0]] if isinstance(run, TrainingRun) else [one._own[0] for one in run._replicas]
    with torch.no_grad():
        for tensor in tensors:
            tensor[0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"nan at step (4|8)"):
        run.epoch()


@pytest.mark.parametrize(("change", "words"), [
    ({"averaging": {"within": "swa", "start": 0.4}}, "pruning.updates.until: 0.8"),
    ({"round": {"length": "4 steps"}}, "long enough for one change"),
    ({"round": {"length": "1 steps"}}, "go on after the last change"),
    ({"pruning": {"updates": {"every": 0}}}, "at most once a step"),
    ({"pruning": {"updates": {"every": "1 steps"}}}, "steps in between"),
])
def test_trainings_that_leave_no_room_are_refused(change: dict[str, Any], words: str) -> None:
    config = configured(RIGL, change)
    with pytest.raises(UserError) as caught:
        round_program(config, 6, 0, 0)
    assert words in str(caught.value)
    assert caught.value.where in ("averaging.start", "pruning.updates.every", "pruning.updates.until")


def test_a_program_without_changes_is_named_as_ever() -> None:
    config = build_config({"round": {"length": 2}, "averaging": {"within": "none"}})
    assert "mask_updates" not in round_program(config, 10, 0, 0).as_dict()
    named = round_program(configured(RIGL), 6, 0, 0).as_dict()["mask_updates"]
    assert named == {"method": "gradient", "every": 4, "begin": 0, "end": 22, "share": 0.5, "target": 0.0,
                     "scope": "global"}
