"""What the options of a config must not be together, though each of them is right by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from swamp_ray.config.sections import (
    AveragingConfig,
    BeforeConfig,
    DenseConfig,
    ExecutionConfig,
    ParticleConfig,
    ParticlesConfig,
    PruningConfig,
    RewindConfig,
    RoundConfig,
    StartFrom,
    TrainingConfig,
    UpdatesConfig,
)
from swamp_ray.structure import parse_structure
from swamp_ray.user_code.importing import is_import_path


class Sections(Protocol):
    """The sections of a run's config that the rules read."""

    training: TrainingConfig
    dense: DenseConfig
    round: RoundConfig
    rewind: RewindConfig
    averaging: AveragingConfig
    particle: ParticleConfig
    particles: ParticlesConfig
    pruning: PruningConfig
    start_from: StartFrom | None
    execution: ExecutionConfig


def contradictions(config: Sections) -> Iterator[str]:
    """What only shows when several sections are read together."""
    yield from _wrong_before(config)
    yield from _wrong_updates(config)
    yield from _wrong_schedules(config)
    yield from _wrong_averages(config)
    yield from _wrong_forks(config)
    yield from _wrong_structure(config)
    yield from _wrong_ranks(config)
    yield from _wrong_execution(config)


SEES_NO_DATA = ("random", "magnitude", "synflow")
"""Scores of a network before training that no training batch enters."""


def _wrong_before(config: Sections) -> Iterator[str]:
    """What has no meaning where the one mask is chosen before the one training, and what only has one there."""
    pruning = config.pruning
    if pruning.when != "before":
        if pruning.before != BeforeConfig():
            yield "pruning.before needs pruning.when: before"
        return
    if pruning.target == 0:
        yield "pruning.target must be above 0 with pruning.when: before, which would prune nothing"
    if pruning.before.num_batches is not None and pruning.score in SEES_NO_DATA:
        yield f"pruning.before.num_batches has no meaning with pruning.score: {pruning.score}, which sees no data"
    if pruning.before.steps not in (None, 1) and pruning.score in ("random", "magnitude"):
        yield (
            f"pruning.before.steps must be 1 with pruning.score: {pruning.score}, whose scores are the same in every "
            f"step, but got {pruning.before.steps}"
        )
    if pruning.before.temperature is not None and pruning.score != "grasp":
        yield f"pruning.before.temperature is for pruning.score: grasp, but got {pruning.score}"
    if config.rewind.weights == "none":
        yield (
            "rewind.weights must be init or t0 with pruning.when: before, which trains once: from the initialisation, "
            "or from the end of the dense phase"
        )
    if config.round.schedule == "retrain":
        yield "round.schedule must be full with pruning.when: before, whose only round has nothing to retrain"
    if config.particles.schedule:
        yield (
            "particles.schedule has no meaning with pruning.when: before, which has one round. Use particles.count"
        )


def _wrong_updates(config: Sections) -> Iterator[str]:
    """What has no meaning where the mask changes within the one training, and what only has one there."""
    pruning = config.pruning
    when = config.pruning.when
    if when not in ("gradual", "dynamic"):
        if pruning.updates != UpdatesConfig():
            yield "pruning.updates needs pruning.when: gradual or dynamic"
        return
    if pruning.score != "magnitude":
        yield f"pruning.score must be magnitude with pruning.when: {when}, but got {pruning.score}"
    if pruning.updates.begin > pruning.updates.until:
        yield (
            f"pruning.updates.begin must not lie after pruning.updates.until, but got {pruning.updates.begin:g} and "
            f"{pruning.updates.until:g}"
        )
    if config.rewind.weights == "none":
        yield f"rewind.weights must be init or t0 with pruning.when: {when}, which trains once"
    if config.round.schedule == "retrain":
        yield f"round.schedule must be full with pruning.when: {when}, whose only round has nothing to retrain"
    if config.particles.schedule:
        yield f"particles.schedule has no meaning with pruning.when: {when}, which has one round. Use particles.count"
    if parse_structure(pruning.structure) is not None:
        yield f"pruning.structure must be none with pruning.when: {when}, which chooses weights one by one"
    if config.particles.fork_at > 0:
        yield f"particles.fork_at must be 0 with pruning.when: {when}, whose particles part at each change of the mask"
    yield from _wrong_gradual(config) if when == "gradual" else _wrong_dynamic(config)
    if config.particles.count > 1:
        yield from _wrong_replicas(config)


def _wrong_gradual(config: Sections) -> Iterator[str]:
    if config.pruning.target == 0:
        yield "pruning.target must be above 0 with pruning.when: gradual, which would prune nothing"
    default = UpdatesConfig()
    for option in ("grow", "drop_share"):
        if getattr(config.pruning.updates, option) != getattr(default, option):
            yield f"pruning.updates.{option} needs pruning.when: dynamic: a mask that only loses weights grows none"


def _wrong_dynamic(config: Sections) -> Iterator[str]:
    if config.pruning.scope == "global":
        yield (
            "pruning.scope must be erk or uniform with pruning.when: dynamic, which keeps the number of weights of "
            "each layer. Evci et al. (2020) use erk"
        )
    brings_weights = config.start_from is not None and config.start_from.take == "all"
    if config.rewind.weights == "t0" and not brings_weights and config.dense.length.amount > 0:
        yield (
            "rewind.weights must be init, or dense.length 0, with pruning.when: dynamic, which is sparse from the "
            f"start, but got {config.rewind.weights} and {config.dense.length}"
        )


def _wrong_replicas(config: Sections) -> Iterator[str]:
    """N particles that are averaged at each change of the mask are one job of one worker."""
    why = (f"with pruning.when: {config.pruning.when} and particles.count: {config.particles.count}, whose particles "
           "are averaged at each change of the mask")
    particles = config.particles
    execution = config.execution
    if particles.combine != "average":
        yield f"particles.combine must be average {why}"
    if particles.vary.lr or particles.vary.length or particles.vary.weight_decay:
        yield f"particles.vary must be empty {why}"
    if particles.on_failure == "drop" or particles.quorum is not None:
        option = "quorum" if particles.quorum is not None else "on_failure: drop"
        yield f"particles.{option} has no meaning {why}: none of them can be left out. Use on_failure: stop or retry"
    if execution.particles_per_worker != 1:
        yield (
            f"execution.particles_per_worker must be 1 {why}: one worker trains them in turn. Use particles.count: 1 "
            "to pack the runs of a sweep"
        )
    if config.particle.num_workers > 1:
        yield f"particle.num_workers must be 1 {why}: one worker trains them in turn"


def _wrong_schedules(config: Sections) -> Iterator[str]:
    dense = config.dense.length
    length = config.round.length
    if length.amount <= 0:
        yield "round.length must be greater than 0"
    if config.rewind.schedule == "continue":
        if dense.unit == length.unit and dense.amount >= length.amount:
            yield (
                f"dense.length (T0) must be shorter than round.length (T) under rewind.schedule: continue, but got "
                f"{dense} and {length}. Shorten dense.length or use rewind.schedule: restart"
            )
        if config.averaging.within == "swa":
            yield (
                "rewind.schedule: continue takes up a schedule that SWA replaces. Use averaging.within: none or ema, "
                "or rewind.schedule: restart"
            )
    if config.round.schedule == "retrain" and config.averaging.within == "swa":
        yield (
            "round.schedule: retrain ends at rate 0, where SWA has nothing to average. "
            "Use averaging.within: none or ema"
        )
    if config.round.schedule == "retrain" and config.rewind.schedule == "continue":
        yield "round.schedule: retrain has a schedule of its own. Use rewind.schedule: restart"


def _wrong_averages(config: Sections) -> Iterator[str]:
    every = config.averaging.every
    length = config.round.length
    if config.averaging.within == "swa":
        if every.amount <= 0:
            yield "averaging.every must be greater than 0"
        # By default a training that is too short has one snapshot, of its last weights.
        by_default = config.averaging.start == 0.75 and str(every) == "1 epoch"
        left = (1 - config.averaging.start) * length.amount
        # A fork falls between two epochs, which only the data tell; the program of a round refuses it then.
        is_known = not by_default and config.particles.fork_at == 0
        if is_known and every.unit == length.unit and left < every.amount - 1e-9:
            yield (
                f"averaging.start ({config.averaging.start:g}) leaves {left:g} "
                f"{length.unit} of round.length for snapshots every {every}: none would be taken. "
                "Start earlier, train longer or take snapshots more often"
            )
    sees_layers = config.pruning.when == "rounds" and is_import_path(config.pruning.score)
    if sees_layers and config.averaging.num_shards not in ("auto", 1):
        yield (
            "averaging.num_shards must be auto or 1 with a pruning.score of your own, which sees whole layers, but got "
            f"{config.averaging.num_shards}"
        )


def _wrong_forks(config: Sections) -> Iterator[str]:
    share = config.particles.fork_at
    averaging = config.averaging
    if share == 0:
        return
    vary = config.particles.vary
    varied = [name for name in ("weight_decay", "lr", "length") if getattr(vary, name)]
    if varied:
        values = ", ".join(str(value) for value in getattr(vary, varied[0]))
        yield (
            f"particles.vary.{varied[0]} must be empty with particles.fork_at: particles that part from one trunk "
            f"have trained alike until then, but got {values}. Set particles.fork_at: 0"
        )
    if averaging.within == "swa" and averaging.start not in (share, AveragingConfig().start):
        yield (
            f"averaging.start must be left out, or equal particles.fork_at, where the rate of SWA begins: particles "
            f"stay at it from the fork on. Got {averaging.start:g} and {share:g}"
        )


def _wrong_structure(config: Sections) -> Iterator[str]:
    pruning = config.pruning
    structure = parse_structure(pruning.structure)
    if structure is None:
        return
    if pruning.when == "before":
        yield (
            f"pruning.structure must be none with pruning.when: before, which chooses weights one by one, but got "
            f"{structure.text}"
        )
    if config.averaging.num_shards not in ("auto", 1):
        yield (
            f"averaging.num_shards must be auto or 1 with pruning.structure: {structure.text}, whose units would lie "
            f"in several shards, but got {config.averaging.num_shards}"
        )
    if not structure.keeps_pattern:
        return
    if pruning.scope == "erk":
        yield (
            f"pruning.scope: erk has no meaning with pruning.structure: {structure.text}, which gives every layer the "
            "same density. Use global"
        )
    if not structure.has_target(pruning.target):
        yield (
            f"pruning.target must be {structure.target:.4g} with pruning.structure: {structure.text}, which keeps "
            f"{structure.first} of every {structure.second} weights, but got {pruning.target:g}"
        )


def _wrong_ranks(config: Sections) -> Iterator[str]:
    ranks = config.particle.num_workers
    execution = config.execution
    if config.training.batch_size % ranks:
        yield (
            f"particle.num_workers must divide training.batch_size, but {config.training.batch_size} % {ranks} != 0"
        )
    micro = config.training.micro_batch
    if micro is not None and config.training.batch_size // ranks % micro:
        yield (
            f"training.micro_batch must divide a rank's share of the batch, but {config.training.batch_size} / "
            f"{ranks} = {config.training.batch_size // ranks} is no multiple of {micro}"
        )
    if ranks > 1 and (execution.particles_per_worker != 1 or execution.packing != "auto"):
        yield (
            f"execution.particles_per_worker must be 1 with particle.num_workers: {ranks}: a worker trains several "
            "particles on its device, or one on several devices"
        )
    if ranks > 1 and execution.executor == "inline":
        yield "particle.num_workers must be 1 with executor: inline, which trains in one process"
    if ranks > 1 and execution.device != "cpu" and execution.num_gpus is not None and execution.num_gpus < 1:
        yield (
            f"execution.num_gpus must be at least 1 with particle.num_workers: {ranks}, but got "
            f"{execution.num_gpus:g}: two ranks cannot share a GPU"
        )


def _wrong_execution(config: Sections) -> Iterator[str]:
    execution = config.execution
    if execution.packing == "stacked" and execution.particles_per_worker == 1:
        yield "execution.packing: stacked needs execution.particles_per_worker: auto, or more than 1"
    if execution.autoscaling and execution.device == "auto":
        yield (
            "execution.device must be cpu or cuda with execution.autoscaling: before there are nodes it cannot be seen "
            "whether they have GPUs"
        )
    if execution.checkpoint_every.unit != "epochs" or execution.checkpoint_every.amount % 1:
        yield "execution.checkpoint_every must be a whole number of epochs (0: never)"
