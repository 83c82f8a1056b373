"""A step of SAM is two plain steps by hand: up the gradient, and down with the gradient of up there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.batches import Batches
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import compact_state, full_state
from swamp_ray.sparsity.masks import split
from swamp_ray.training.arithmetic import applied, resolve_arithmetic
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.results import TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import TrainingRun, begin_training
from tests.helpers import data_of, with_sections

BASE: dict[str, Any] = {
    "data": {"name": "synthetic", "options": {"num_train": 60, "num_test": 11, "num_classes": 3, "shape": [1, 6, 6]}},
    "model": {"name": "digits_cnn"},
    "training": {"batch_size": 9, "lr": 0.05, "schedule": {"warmup": 0}},
    "round": {"length": "5 steps"},
    "averaging": {"within": "none"},
    "execution": {"fused": False, "channels_last": False},
}
SEED = 7
Step = Callable[[nn.Module, Tensor, Tensor], None]


def configured(**training: Any) -> SwampConfig:
    return with_sections(BASE, training={**BASE["training"], **training})


def trainer_of(config: SwampConfig) -> ParticleTrainer:
    data = data_of(config)
    return ParticleTrainer(config, data, resolve_arithmetic(config.execution, "cpu", initial_model(config, data)))


def mask_of(trainer: ParticleTrainer) -> np.ndarray:
    return np.random.RandomState(1).rand(trainer.layout.num_prunable) < 0.5


def begin(trainer: ParticleTrainer) -> TrainingRun:
    model, mask = initial_model(trainer.config, trainer.data), mask_of(trainer)
    start = compact_state(dict(model.named_parameters()), trainer.layout, mask, drop_outside=True)
    buffers = {name: buffer.numpy().copy() for name, buffer in model.named_buffers()}
    program = round_program(trainer.config, trainer.steps_per_epoch, 0, 0)
    return begin_training(trainer, TrainingSpec("a particle", SEED, program), start, mask, buffers)


def ended(run: TrainingRun) -> TrainedParticle:
    while not run.done:
        run.epoch()
    return run.finish()


def weights_of(trainer: ParticleTrainer, result: TrainedParticle) -> dict[str, np.ndarray]:
    return full_state(result.compact, trainer.layout, mask_of(trainer))


def by_hand(config: SwampConfig, rho: float) -> dict[str, np.ndarray]:
    """The same training in plain torch: one loop, masks by multiplication, SAM as in the paper's algorithm."""
    data = data_of(config)
    trainer = trainer_of(config)
    model = initial_model(config, data).train()
    masks = {name: torch.tensor(part) for name, part in split(trainer.layout, mask_of(trainer)).items()}
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.data *= masks[name]
    training = config.training
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=training.momentum,
                                weight_decay=training.weight_decay, nesterov=training.nesterov)
    program = round_program(config, trainer.steps_per_epoch, 0, 0)
    batches = Batches(data.train, device=torch.device("cpu"), channels_last=False, on_device=False)

    def gradients(images: Tensor, labels: Tensor) -> list[Tensor]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        found = []
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found.append(parameter.grad * masks[name] if name in masks else parameter.grad.clone())
        return found

    one_pass = batches.one_pass(training.batch_size, seed=derive_seed(SEED, "shuffle", 0), drop_last=True)
    for step, (images, labels) in zip(range(program.num_steps), one_pass, strict=False):
        here = gradients(images, labels)
        norm = torch.cat([gradient.flatten() for gradient in here]).norm()
        moves = [rho * gradient / norm for gradient in here]
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter += move
        there = gradients(images, labels)
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter -= move
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
        for parameter, gradient in zip(model.parameters(), there, strict=True):
            parameter.grad = gradient
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.param_groups[0]["lr"] = program.rate.at(step)
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("training", [{}, {"nesterov": True, "clip_norm": 0.05}, {"micro_batch": 9}])
def test_its_steps_are_two_plain_steps_by_hand(training: dict[str, Any]) -> None:
    config = configured(sam_rho=0.2, **training)
    trainer = trainer_of(config)
    with applied(trainer.arithmetic):
        run = begin(trainer)
        while not run.done:
            run.epoch()
        statistics = {name: buffer.numpy().copy() for name, buffer in trainer.model.named_buffers()}
        found = weights_of(trainer, run.finish())
        expected = by_hand(config, 0.2)
        plain = weights_of(trainer, ended(begin(trainer_of(configured(**training)))))
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=2e-6)
    for name, value in statistics.items():  # moved once a step, by the pass at the step's own weights
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)
    moved = max(float(np.abs(found[name] - plain[name]).max()) for name in found)
    assert moved > 1e-3, "SAM does something"


def test_with_a_tiny_radius_it_is_nearly_the_plain_optimiser() -> None:
    with applied(trainer_of(configured()).arithmetic):
        plain = trainer_of(configured())
        weights = weights_of(plain, ended(begin(plain)))
        for rho, far in ((1e-4, 2e-4), (1e-2, 2e-2)):
            trainer = trainer_of(configured(sam_rho=rho))
            found = weights_of(trainer, ended(begin(trainer)))
            distance = max(float(np.abs(found[name] - weights[name]).max()) for name in found)
            assert 0 < distance < far


def test_pruned_weights_neither_move_nor_count() -> None:
    trainer = trainer_of(configured(sam_rho=0.3))
    with applied(trainer.arithmetic):
        run = begin(trainer)
        steps = run.epoch_steps()
        first = next(steps)
        before = [parameter.detach().clone() for parameter in run.parameters]
        steps.send(trainer.backward(first.batch))  # up there now
        moves = [parameter.detach() - own for parameter, own in zip(run.parameters, before, strict=True)]
        kept = split(trainer.layout, mask_of(trainer))
        for (name, _), move in zip(trainer.model.named_parameters(), moves, strict=True):
            if name in kept:
                assert float(move[~torch.tensor(kept[name])].abs().sum()) == 0
        assert float(torch.cat([move.flatten() for move in moves]).norm()) == pytest.approx(0.3, rel=1e-4)
        steps.close()
        for parameter, own in zip(run.parameters, before, strict=True):
            assert torch.equal(parameter, own), "stopped up there, it is back at its step's weights"
        assert all(parameter.grad is None for parameter in run.parameters)


def test_stopped_between_the_two_passes_it_goes_on_with_the_same_bits() -> None:
    config = configured(sam_rho=0.1)
    with applied(trainer_of(config).arithmetic):
        whole = ended(begin(trainer_of(config)))
        trainer = trainer_of(config)
        run = begin(trainer)
        steps = run.epoch_steps()
        pending = next(steps)
        for _ in range(3):  # step 0 whole, step 1 half
            pending = steps.send(trainer.backward(pending.batch))
        steps.close()
        assert run.step == 1
        checkpoint = run.checkpoint()
        again = trainer_of(config)
        model, mask = initial_model(config, again.data), mask_of(again)
        start = compact_state(dict(model.named_parameters()), again.layout, mask, drop_outside=True)
        buffers = {name: buffer.numpy().copy() for name, buffer in model.named_buffers()}
        resumed = ended(begin_training(again, run.job, start, mask, buffers, checkpoint))
    assert resumed.compact.values.tobytes() == whole.compact.values.tobytes()
    assert resumed.as_trained == whole.as_trained
    assert resumed.history == whole.history


def test_a_batch_without_a_gradient_moves_nothing() -> None:
    trainer = trainer_of(configured(sam_rho=0.1))
    with applied(trainer.arithmetic):
        run = begin(trainer)
        steps = run.epoch_steps()
        next(steps)
        for parameter in run.parameters:
            parameter.grad = torch.zeros_like(parameter)
        before = [parameter.detach().clone() for parameter in run.parameters]
        steps.send((torch.zeros(()), {}))
        assert all(torch.equal(one, two) for one, two in zip(run.parameters, before, strict=True))
        steps.close()


def test_it_is_in_the_recipe_only_where_it_is_used() -> None:
    assert "sam_rho" not in configured().recipe()["training"]
    assert configured(sam_rho=0.1).recipe()["training"]["sam_rho"] == 0.1
    assert configured().training.gradients_per_step == 1
    assert configured(sam_rho=0.1).training.gradients_per_step == 2
