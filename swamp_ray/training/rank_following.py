"""The ranks of a particle other than rank 0: they receive instructions and take part in the trainings of rank 0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from swamp_ray.errors import CorruptArtifactError, DivergedError
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.ranks import Ranks, TrainInstruction
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import begin_training, never


def follow(ranks: Ranks, trainer: Callable[[int], ParticleTrainer]) -> None:
    """Take part in one training after the other, until rank 0 sends None instead of an instruction.

    Args:
        ranks: All ranks.
        trainer: The trainer of a run, by its index.

    Raises:
        LostRankError: Another rank is gone.
    """
    while True:
        instruction = ranks.receive_instruction()
        if instruction is None:
            return
        own = trainer(instruction.member)
        # All ranks raise these two errors at the same moment, and rank 0 handles them.
        with applied(own.arithmetic), contextlib.suppress(DivergedError, CorruptArtifactError):
            take_part(own, instruction)


def take_part(trainer: ParticleTrainer, instruction: TrainInstruction) -> None:
    """Take part in a training run as a rank other than the first, to its end or until all ranks stop.

    Raises:
        DivergedError: As on rank 0.
        CorruptArtifactError: The checkpoint is damaged; rank 0 begins again.
        LostRankError: Another rank is gone.
    """
    assert isinstance(trainer.ranks, Ranks)
    stop = trainer.ranks.shared_stop(never)
    run = begin_training(trainer, instruction.job, instruction.start, instruction.mask, instruction.buffers,
                         instruction.checkpoint, instruction.fork)
    while not run.done:
        progress = run.epoch(stop)
        if not run.done and (progress is None or stop()):
            run.checkpoint()  # rank 0 stores it, and needs every rank's part
            return
    run.compare()
