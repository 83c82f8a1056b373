"""What the ranks of a particle do that do not lead: they wait for orders, and take part in what rank 0 begins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from swamp_ray.errors import CorruptArtifactError, DivergedError
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.ranks import Ranks, TrainInstruction
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import begin_training, never


def follow(ranks: Ranks, trainer: Callable[[int], ParticleTrainer]) -> None:
    """Take part in one training after the other, until rank 0 sends everybody home.

    Args:
        ranks: All ranks.
        trainer: The trainer of a run, by its index.

    Raises:
        LostRankError: Another rank is gone.
    """
    while (order := ranks.hear()) is not None:
        own = trainer(order.member)
        # Both errors are seen by all ranks at the same moment, and rank 0 deals with them.
        with applied(own.arithmetic), contextlib.suppress(DivergedError, CorruptArtifactError):
            take_part(own, order)


def take_part(trainer: ParticleTrainer, order: TrainInstruction) -> None:
    """Take part in a training run as a rank other than the first, to its end or until all are asked to stop.

    Raises:
        DivergedError: As on rank 0.
        CorruptArtifactError: The checkpoint is damaged; rank 0 begins again.
        LostRankError: Another rank is gone.
    """
    assert isinstance(trainer.ranks, Ranks)
    stop = trainer.ranks.agreement(never)
    run = begin_training(trainer, order.job, order.start, order.mask, order.buffers, order.checkpoint)
    while not run.done:
        progress = run.epoch(stop)
        if not run.done and (progress is None or stop()):
            run.checkpoint()
            return
    run.compare()
