"""The program of a training run: its length, and learning rate, decay and snapshots step by step.

A :class:`Program` is a frozen value made from the config; arms of the method differ only in their programs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from swamp_ray.config.fields import Length
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import AveragingConfig
from swamp_ray.errors import UserError
from swamp_ray.training.mask_updates import MaskUpdates, mask_updates_of


@dataclass(frozen=True)
class Rate:
    """The learning rate at each optimiser step.

    Attributes:
        name: cosine, linear, multistep or constant.
        base: Rate after the warm-up.
        total: Length of the schedule in steps.
        warmup: Steps of linear warm-up: step t trains with ``base * (t + 1) / warmup``.
        final: Rate that cosine and linear end at.
        milestones: multistep: steps at which the rate is multiplied by ``gamma``.
        offset: Position in the schedule at which training starts.
        hold: SWA: from this step on the rate is ``final``, constant.
    """

    name: str
    base: float
    total: int
    warmup: int = 0
    final: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 1.0
    offset: int = 0
    hold: int | None = None

    def at(self, step: int) -> float:
        """The rate of optimiser step ``step``, counted from 0 at the start of this training."""
        position = step + self.offset
        if self.hold is not None and position >= self.hold:
            return self.final
        if position < self.warmup:
            return self.base * (position + 1) / self.warmup
        end = self.total if self.hold is None else self.hold
        progress = (position - self.warmup) / max(1, end - self.warmup)
        if self.name == "cosine":
            return self.final + (self.base - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.name == "linear":
            return self.base + (self.final - self.base) * progress
        if self.name == "multistep":
            return self.base * self.gamma ** sum(position >= milestone for milestone in self.milestones)
        return self.base


@dataclass(frozen=True)
class Program:
    """One training run of one network.

    Attributes:
        num_steps: Optimiser steps.
        steps_per_epoch: Batches of one pass over the training split, the last partial one dropped.
        rate: Learning rate.
        weight_decay: Coefficient, coupled for SGD, decoupled for AdamW.
        averaging: swa, ema or none.
        first_snapshot: swa: number of finished steps at which the first snapshot is taken: the first multiple of
            ``snapshot_every`` after the rate has become constant, so that snapshots fall on the ends of epochs.
        snapshot_every: swa: steps between snapshots.
        ema_decay: ema: decay per step.
        mask_updates: When the mask changes; None: the same mask from start to end.
    """

    num_steps: int
    steps_per_epoch: int
    rate: Rate
    weight_decay: float
    averaging: str = "none"
    first_snapshot: int = 0
    snapshot_every: int = 0
    ema_decay: float = 0.0
    mask_updates: MaskUpdates | None = None

    @property
    def num_epochs(self) -> int:
        """Passes over the training split, the last one possibly cut."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    @property
    def num_replicas(self) -> int:
        """How many replicas a training has that are averaged at each change of the mask; mostly 1."""
        return 1 if self.mask_updates is None else self.mask_updates.replicas

    def snapshot_after(self, done: int) -> bool:
        """Whether a snapshot enters the running mean once ``done`` steps are finished."""
        late = done - self.first_snapshot
        return self.averaging == "swa" and late >= 0 and late % self.snapshot_every == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain nested values, for the recipe."""
        fields = asdict(self)
        fields["rate"]["milestones"] = list(self.rate.milestones)
        # Programs did not have this at first, and the names of those without it must not change.
        del fields["mask_updates"]
        if self.mask_updates is not None:
            fields["mask_updates"] = self.mask_updates.as_dict()
        return fields


def dense_program(config: SwampConfig, steps_per_epoch: int) -> Program:
    """The dense phase: warm-up, then the constant base rate, for T0.

    Under ``rewind.schedule: continue`` it is the first T0 of the rounds' own schedule (Frankle et al., 2020).
    """
    length = config.dense.length.steps(steps_per_epoch)
    decay = config.training.weight_decay
    if config.rewind.schedule == "continue":
        rate = _full_rate(config, steps_per_epoch, config.round.length.steps(steps_per_epoch), config.training.lr)
    else:
        warmup = config.dense.warmup.steps(steps_per_epoch)
        rate = Rate("constant", base=config.training.lr, total=length, warmup=min(warmup, length))
    return Program(length, steps_per_epoch, rate, decay)


def dense_phase(config: SwampConfig, steps_per_epoch: int) -> Program | None:
    """The dense phase of a run; None if it starts from its initialisation, or from a checkpoint."""
    if config.brings_weights or config.rewind.weights == "init":
        return None
    program = dense_program(config, steps_per_epoch)
    return program if program.num_steps > 0 else None


def round_program(
    config: SwampConfig, steps_per_epoch: int, round_index: int, particle: int, sparsity: float = 0.0
) -> Program:
    """The program of a particle in a round, with its own values of ``particles.vary``.

    Where particles part from a trunk (``particles.fork_at``) it is what follows the trunk: its steps are counted from
    the fork, and its learning rate goes on where the trunk's has stopped.

    Args:
        config: The run.
        steps_per_epoch: Batches of one pass over the training split.
        round_index: r.
        particle: Its index.
        sparsity: Of the round, on which the rate of SWA may depend.

    Raises:
        UserError: The lengths leave nothing to train or no snapshot to average.
    """
    program = _whole_program(config, steps_per_epoch, round_index, particle, sparsity)
    fork = _fork_step(config, program)
    if fork == 0:
        return program
    rate = replace(program.rate, offset=program.rate.offset + fork)
    first_snapshot = program.first_snapshot - fork if program.averaging == "swa" else program.first_snapshot
    return replace(program, num_steps=program.num_steps - fork, rate=rate, first_snapshot=first_snapshot)


def trunk_program(
    config: SwampConfig, steps_per_epoch: int, round_index: int, sparsity: float = 0.0
) -> Program | None:
    """The program of a round's trunk, from which its particles part; None where they train apart from the start.

    The trunk takes no snapshots. An exponential mean begins with it, and goes on in each particle.
    """
    program = _whole_program(config, steps_per_epoch, round_index, 0, sparsity)
    fork = _fork_step(config, program)
    if fork == 0:
        return None
    if program.averaging == "swa":
        program = replace(program, averaging="none", first_snapshot=0, snapshot_every=0)
    return replace(program, num_steps=fork)


def _fork_step(config: SwampConfig, program: Program) -> int:
    """How many steps of a round its particles share: ``particles.fork_at`` of them, 0 without a trunk.

    A round of two epochs or more is parted between two epochs, since each epoch is one pass in an order of its own.
    Trunk and particles have at least one epoch then, and at least one step in a shorter round.
    """
    share = config.particles.fork_at
    if share == 0:
        return 0
    if program.num_steps < 2:
        raise UserError("a round must train at least two steps to be parted into a trunk and particles",
                        got=program.num_steps, where="particles.fork_at", do="Set it to 0, or train longer.")
    unit = program.steps_per_epoch if program.num_steps >= 2 * program.steps_per_epoch else 1
    last = (program.num_steps - 1) // unit
    return unit * min(max(1, round(share * program.num_steps / unit)), last)


def _whole_program(
    config: SwampConfig, steps_per_epoch: int, round_index: int, particle: int, sparsity: float
) -> Program:
    """What a particle of a round trains, its share of the trunk included."""
    vary = config.particles.vary
    lr = _cycle(vary.lr, particle, config.training.lr)
    decay = _cycle(vary.weight_decay, particle, config.training.weight_decay)
    if config.round.schedule == "retrain" and config.first_round + round_index > 0:
        program = _retrain_program(config, steps_per_epoch, particle, lr, decay)
    else:
        length = _cycle(vary.length, particle, config.round.length)
        program = _full_program(config, steps_per_epoch, length.steps(steps_per_epoch), lr, decay, sparsity)
    if program.num_steps < 1:
        raise UserError("a round must train at least one step", got=program.num_steps, where="round.length")
    updates = mask_updates_of(config, program.num_steps, steps_per_epoch)
    if updates is not None:
        program = replace(program, mask_updates=updates)
        _refuse_mixed_masks(config, program, updates)
    return program


def _refuse_mixed_masks(config: SwampConfig, program: Program, updates: MaskUpdates) -> None:
    """A mean of snapshots of two masks would be denser than either."""
    if program.averaging == "swa" and program.first_snapshot <= updates.last:
        raise UserError(
            "SWA must take its first snapshot after the last change of the mask, because a mean over two masks is "
            "denser than either",
            got=f"averaging.start: {config.averaging.start:g} with a snapshot after step {program.first_snapshot}, and "
            f"pruning.updates.until: {config.pruning.updates.until:g} with a change after step {updates.last}",
            where="averaging.start", do="Raise averaging.start, or lower pruning.updates.until.")


def _full_program(
    config: SwampConfig, steps_per_epoch: int, total: int, lr: float, decay: float, sparsity: float
) -> Program:
    averaging = config.averaging
    rate = _full_rate(config, steps_per_epoch, total, lr, sparsity)
    if config.rewind.schedule == "continue":
        offset = config.dense.length.steps(steps_per_epoch)
        if offset >= total:
            raise UserError("dense.length must be shorter than round.length under rewind.schedule: continue",
                            got=f"{offset} and {total} steps", where="dense.length")
        program = Program(total - offset, steps_per_epoch, replace(rate, offset=offset), decay)
    else:
        program = Program(total, steps_per_epoch, rate, decay)
    if averaging.within == "swa":
        return _with_snapshots(config, program)
    if averaging.within == "ema":
        return replace(program, averaging="ema", ema_decay=averaging.ema_decay)
    return program


def _with_snapshots(config: SwampConfig, program: Program) -> Program:
    every = config.averaging.every.steps(program.steps_per_epoch)
    start = program.rate.hold or 0
    first = (start // every + 1) * every if every else 0
    if first > program.num_steps >= 1 and has_default_snapshots(config.averaging):
        # The defaults suit long trainings. A short one has one snapshot, of its last weights.
        first = every = program.num_steps
    if not 0 < first <= program.num_steps:
        raise UserError(
            f"{'particles.fork_at' if config.particles.fork_at else 'averaging.start'} and averaging.every must leave "
            "room for a snapshot",
            got=f"a start at step {start} of {program.num_steps} and a snapshot every {every} steps",
            do="Begin earlier, train longer, or take snapshots more often.", where="averaging")
    return replace(program, averaging="swa", first_snapshot=first, snapshot_every=every)


def has_default_snapshots(averaging: AveragingConfig) -> bool:
    """Whether start and distance of the snapshots are the defaults, which need not fit into a short training."""
    default = AveragingConfig()
    return (averaging.start, averaging.every) == (default.start, default.every)


def is_too_short(config: SwampConfig, program: Program) -> bool:
    """Whether a training is too short for the default snapshots, so that its last weights are its only one."""
    held_from = max(0, (program.rate.hold or 0) - program.rate.offset)
    left = program.num_steps - held_from
    every = config.averaging.every.steps(program.steps_per_epoch)
    return program.averaging == "swa" and left < every and has_default_snapshots(config.averaging)


def _full_rate(config: SwampConfig, steps_per_epoch: int, total: int, lr: float, sparsity: float = 0.0) -> Rate:
    schedule = config.training.schedule
    averaging = config.averaging
    swa = averaging.within == "swa"
    warmup = _warmup_steps(schedule.warmup, swa, steps_per_epoch, total)
    if warmup >= total > 0:
        raise UserError("the warm-up must be shorter than the training", got=f"{warmup} of {total} steps",
                        do="Set training.schedule.warmup to less, e.g. 0.", where="training.schedule.warmup")
    hold = _first_held_step(config, steps_per_epoch, total) if swa else None
    if hold is not None and warmup > hold:
        raise UserError("the warm-up must end before SWA starts", got=f"{warmup} > {hold} steps",
                        where="training.schedule.warmup")
    if swa:
        own = averaging.lr_at(sparsity)
        final = lr / 2 if own is None else own
    else:
        final = schedule.final_lr
    milestones: tuple[int, ...] = ()
    if schedule.name == "multistep":
        milestones = tuple(round(share * total) for share in schedule.milestones)
    return Rate(schedule.name, base=lr, total=total, warmup=warmup, final=final, hold=hold, gamma=schedule.gamma,
                milestones=milestones)


def _first_held_step(config: SwampConfig, steps_per_epoch: int, total: int) -> int:
    """The step from which the rate of SWA is constant: where particles part from a trunk, else as the config says."""
    if config.particles.fork_at:
        whole = Program(total, steps_per_epoch, Rate("constant", base=config.training.lr, total=total), 0.0)
        return _fork_step(config, whole)
    return round(config.averaging.start * total)


def _retrain_program(config: SwampConfig, steps_per_epoch: int, particle: int, lr: float, decay: float) -> Program:
    default = config.round.retrain_length or Length(config.round.length.amount / 4, "epochs")
    if config.round.retrain_length is None and config.round.length.unit == "steps":
        default = Length(max(1, int(config.round.length.amount // 4)), "steps")
    total = _cycle(config.particles.vary.length, particle, default).steps(steps_per_epoch)
    base = lr if config.round.retrain_lr is None else config.round.retrain_lr * lr / config.training.lr
    program = Program(total, steps_per_epoch, Rate("linear", base=base, total=total), decay)
    if config.averaging.within == "ema":
        return replace(program, averaging="ema", ema_decay=config.averaging.ema_decay)
    return program


def _warmup_steps(warmup: str | Length, swa: bool, steps_per_epoch: int, total: int) -> int:
    if isinstance(warmup, Length):
        return warmup.steps(steps_per_epoch)
    if swa:
        return 0
    # One epoch is the default of long trainings. A training of an epoch or less warms up over its first half.
    return steps_per_epoch if steps_per_epoch < total else total // 2


def has_short_warmup(config: SwampConfig, program: Program) -> bool:
    """Whether a training is too short for the default warm-up of one epoch, so that half of it is warm-up."""
    is_default = config.training.schedule.warmup == "auto" and config.averaging.within != "swa"
    return is_default and program.rate.warmup > 0 and program.rate.total <= program.steps_per_epoch


def _cycle(values: tuple[Any, ...], particle: int, default: Any) -> Any:
    return values[particle % len(values)] if values else default


@dataclass(frozen=True)
class TrainingSpec:
    """One training run to do.

    Attributes:
        label: For logs and errors, e.g. ``"round 3, particle 1"``.
        seed: Decides batch order, augmentation and dropout.
        program: Length, learning rate, decay, snapshots.
    """

    label: str
    seed: int
    program: Program
