"""What training costs, with three faces that are always shown together.

They are the epochs of all particles, the epochs that come one after the other (the critical path, with as many workers
as particles), and floating-point operations (FLOPs): with every weight, and at the density of the mask.

A method states what it trains as *phases*, one after the other. The trainings of a phase run side by side. A training
is a sequence of *stretches*, in which every step costs the same. The account follows from these alone:

- an epoch is one gradient of every batch of the training split. A step that takes two gradients (SAM) counts twice;
- a training step takes three times the FLOPs of a forward pass: the pass itself, the gradient with respect to the
  inputs and the one with respect to the weights (as Evci et al., 2020, count). A multiply-add is two FLOPs;
- at the mask's density, the FLOPs of a prunable layer are multiplied by the share of its weights that are left. Layers
  that are not pruned count in full. Where a step computes the gradient of pruned weights too, as growth by gradients
  needs it, its third part counts in full;
- scores before training, evaluation, re-estimation of statistics and averaging are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swamp_ray.config.schema import SwampConfig
from swamp_ray.training.mask_updates import MaskUpdates
from swamp_ray.training.program import Program, dense_phase, round_program, trunk_program

PASSES = 3
"""FLOPs of a training step, in forward passes."""


@dataclass(frozen=True)
class NetworkFlops:
    """FLOPs of a forward pass of one sample with every weight.

    Attributes:
        layers: By the name of each prunable tensor: of the multiplications with it.
        rest: Of everything else that is counted.
    """

    layers: Mapping[str, float]
    rest: float

    @property
    def dense(self) -> float:
        """FLOPs of all."""
        return sum(self.layers.values()) + self.rest

    def at(self, densities: Mapping[str, float]) -> float:
        """FLOPs with these shares of the weights of each prunable layer."""
        pruned = 0.0
        for name, flops in self.layers.items():
            pruned += flops * densities[name]
        return pruned + self.rest


@dataclass(frozen=True)
class Stretch:
    """Steps of a training that all cost the same.

    Attributes:
        steps: How many optimiser steps.
        gradients: Gradients of its batch that a step takes.
        density: Of every prunable layer, where it is not the mask's of the round.
        dense_gradients: In how many of the steps the gradient of pruned weights is computed too.
    """

    steps: int
    gradients: int = 1
    density: float | None = None
    dense_gradients: int = 0


Training = tuple[Stretch, ...]
"""What one particle trains, stretch after stretch."""
Phase = tuple[Training, ...]
"""Trainings side by side."""


@dataclass(frozen=True)
class Cost:
    """What trainings cost.

    Attributes:
        total_epochs: Epochs of all of them.
        critical_epochs: Epochs one after the other, with as many workers as particles.
        dense_flops: Training FLOPs with every weight; None where they cannot be counted.
        sparse_flops: Training FLOPs at the masks' densities; None where they cannot be counted.
    """

    total_epochs: float = 0.0
    critical_epochs: float = 0.0
    dense_flops: float | None = 0.0
    sparse_flops: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(self.total_epochs + other.total_epochs, self.critical_epochs + other.critical_epochs,
                    _sum(self.dense_flops, other.dense_flops), _sum(self.sparse_flops, other.sparse_flops))

    def as_dict(self) -> dict[str, float | None]:
        """Plain values, for records and columns."""
        return {"total_epochs": self.total_epochs, "critical_epochs": self.critical_epochs,
                "dense_flops": self.dense_flops, "sparse_flops": self.sparse_flops}


FACES = tuple(Cost().as_dict())
"""The names of the values of a cost."""


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def cost_of(phases: Sequence[Phase], steps_per_epoch: int, batch_size: int, flops: NetworkFlops | None,
            densities: Mapping[str, float] | None) -> Cost:
    """The account of some phases, one after the other.

    Args:
        phases: What is trained.
        steps_per_epoch: Batches of one pass over the training split.
        batch_size: Samples of a batch.
        flops: Of the network; None where they cannot be counted.
        densities: Share of the weights that the mask keeps, by prunable layer; None: it is not known.
    """
    total = critical = 0
    dense = 0.0
    sparse = 0.0
    for phase in phases:
        lengths = []
        for training in phase:
            lengths.append(sum(one.steps * one.gradients for one in training))
            if flops is not None:
                dense += sum(_flops_of(one, batch_size, flops, None) for one in training)
            if flops is not None and densities is not None:
                sparse += sum(_flops_of(one, batch_size, flops, densities) for one in training)
        total += sum(lengths)
        critical += max(lengths, default=0)
    return Cost(total / steps_per_epoch, critical / steps_per_epoch, None if flops is None else dense,
                None if flops is None or densities is None else sparse)


def _flops_of(one: Stretch, batch_size: int, flops: NetworkFlops, densities: Mapping[str, float] | None) -> float:
    """FLOPs of a stretch; with every weight where no densities are given."""
    samples = batch_size * one.gradients * one.steps
    if densities is None:
        return PASSES * flops.dense * samples
    if one.density is not None:
        densities = dict.fromkeys(flops.layers, one.density)
    forward = flops.at(densities)
    return PASSES * forward * samples + (flops.dense - forward) * batch_size * one.dense_gradients


def dense_phases(config: SwampConfig, steps_per_epoch: int) -> tuple[Phase, ...]:
    """What a run trains before its first round."""
    program = dense_phase(config, steps_per_epoch)
    return () if program is None else ((training_of(config, program, density=1.0),),)


def round_phases(config: SwampConfig, steps_per_epoch: int, round_index: int, particles: Sequence[int],
                 sparsity: float) -> tuple[Phase, ...]:
    """What a round trains.

    Args:
        config: The run.
        steps_per_epoch: Batches of one pass over the training split.
        round_index: r.
        particles: Those that enter the round.
        sparsity: Of the round, in [0, 1).
    """
    phases: list[Phase] = []
    trunk = trunk_program(config, steps_per_epoch, round_index, sparsity)
    if trunk is not None:
        phases.append((training_of(config, trunk),))
    trainings = []
    for particle in particles:
        program = round_program(config, steps_per_epoch, round_index, particle, sparsity)
        trainings.append(training_of(config, program))
    return (*phases, tuple(trainings))


def training_of(config: SwampConfig, program: Program, density: float | None = None) -> Training:
    """What a program trains: all of its steps cost the same, unless its mask changes.

    Args:
        config: The run.
        program: Of one training.
        density: Of every prunable layer, where it is not the mask's of the round.
    """
    gradients = config.training.gradients_per_step
    updates = program.mask_updates
    if updates is None:
        return (Stretch(program.num_steps, gradients, density),)
    if updates.method == "prune":
        stretches = _falling(program.num_steps, gradients, updates)
    else:
        # A change by the gradient takes a step's place, and one gradient whatever the optimiser takes.
        num = len(updates.steps) if updates.needs_gradient else 0
        stretches: Training = (Stretch(program.num_steps - num, gradients, density),)
        if num:
            stretches += (Stretch(num, 1, density, num),)
    # One worker trains the replicas in turn.
    return stretches * program.num_replicas


def _falling(num_steps: int, gradients: int, updates: MaskUpdates) -> Training:
    """A training that is pruned on its way; on the way every layer is taken to have the density of the whole."""
    stretches = []
    begin = 0
    density: float | None = 1.0
    for step in updates.steps:
        stretches.append(Stretch(step - begin, gradients, density))
        begin = step
        density = None if step == updates.last else updates.density_at(step)
    return (*stretches, Stretch(num_steps - begin, gradients, density))
