"""Replicas of one training whose mask changes: they are averaged at each change, and the average drops and grows.

One process trains them in turn on one network. Between two changes of the mask a replica trains for itself, with its
own order of batches, optimiser and normalisation statistics. When the mask is due, all weights are replaced by their
mean over the replicas. RigL's growth needs a gradient: each replica computes that of its own next batch at the mean,
and the mean of these gradients decides, as the gradient of one large batch would.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.averaging import SnapshotMean
from swamp_ray.sparsity.compact import CompactState
from swamp_ray.training.fork import ForkPoint
from swamp_ray.training.program import TrainingSpec
from swamp_ray.training.results import Arrays, Progress, TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import TrainingRun, begin_training, never


class Replica(TrainingRun):
    """One of several trainings that share a network; it holds its weights and buffers itself while others train."""

    def __init__(self, trainer: ParticleTrainer, job: TrainingSpec, mask: np.ndarray, buffers: Arrays) -> None:
        super().__init__(trainer, job, mask, buffers)
        self.gradient: np.ndarray | None = None
        self._own = [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def enter(self) -> None:
        """Put weights and buffers into the network."""
        for place, own in zip(self._tensors(), self._own, strict=True):
            place.copy_(own)

    @torch.no_grad()
    def leave(self) -> None:
        """Take them out of it."""
        for own, place in zip(self._own, self._tensors(), strict=True):
            own.copy_(place)

    def grow_by_gradient(self) -> None:
        """Keep the dense gradient: all replicas together decide."""
        assert self.changing is not None
        self.gradient = self.changing.gradients()

    def _tensors(self) -> list[Tensor]:
        return [*self.trainer.model.parameters(), *self.trainer.model.buffers()]


class ReplicatedRun:
    """One training of several replicas, which can be stopped after any step; made by :func:`begin_run`.

    Replica 0 has the training's own seed, so that a single one is a :class:`TrainingRun` to the bit.
    """

    def __init__(self, trainer: ParticleTrainer, job: TrainingSpec, mask: np.ndarray, buffers: Arrays) -> None:
        updates = job.program.mask_updates
        assert updates is not None
        self.job = job
        self._updates = updates
        self._replicas: list[Replica] = []
        for number in range(updates.replicas):
            own = job
            if number > 0:
                seed = derive_seed(job.seed, "replica", number)
                own = replace(job, label=f"{job.label}, replica {number}", seed=seed)
            self._replicas.append(Replica(trainer, own, mask, buffers))

    @property
    def step(self) -> int:
        """Steps that every replica has finished."""
        return min(one.step for one in self._replicas)

    @property
    def done(self) -> bool:
        """Whether every step of every replica is finished."""
        return self.step >= self.job.program.num_steps

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record for each epoch that every replica has finished: means over the replicas, and their number."""
        records: list[dict[str, Any]] = []
        for of_epoch in zip(*(one.history for one in self._replicas), strict=False):
            record: dict[str, Any] = {}
            for key in of_epoch[0]:
                record[key] = float(np.mean([one[key] for one in of_epoch]))
            for key in ("epoch", "step"):
                record[key] = of_epoch[0][key]
            records.append({**record, "replicas": len(of_epoch)})
        return records

    def epoch(self, stop: Callable[[], bool] = never) -> Progress | None:
        """Train all replicas to the end of the current epoch, or of the program.

        Args:
            stop: Called after every step of a replica; once it is true, the epoch ends there.

        Returns:
            Where they stand; None if they were stopped before the end of the epoch.

        Raises:
            DivergedError: A replica's loss, its weights or its gradients became NaN or infinite.
        """
        program = self.job.program
        index = self.step // program.steps_per_epoch
        end = min(program.num_steps, (index + 1) * program.steps_per_epoch)
        progress: list[Progress] = []
        while self.step < end:
            if self._is_due():
                progress += self._change_mask()
                continue
            bound = self._bound(end)
            for replica in self._replicas:
                if replica.step < bound:
                    progress += _train(replica, bound, stop)
                if replica.step < bound:
                    return None
        return self._progress(index, progress)

    def finish(self) -> TrainedParticle:
        """The mean of the replicas of a run that is done, evaluated.

        Raises:
            DivergedError: Weights are not finite.
        """
        for replica in self._replicas:
            if replica.mean is not None:
                replica.enter()
                replica.mean.mean_into_(replica.parameters)
                replica.leave()
        self._average()
        first = self._replicas[0]
        first.enter()
        return replace(first.result(), history=self.history)

    def checkpoint(self) -> bytes:
        """Everything a later attempt needs to go on with the same bits."""
        parts: list[Tensor] = []
        for replica in self._replicas:
            replica.enter()
            parts.append(torch.frombuffer(bytearray(replica.checkpoint()), dtype=torch.uint8))
        buffer = io.BytesIO()
        torch.save({"replicas": parts}, buffer)
        return buffer.getvalue()

    def restore(self, checkpoint: bytes) -> None:
        """Go on from what :meth:`checkpoint` returned.

        Raises:
            CorruptArtifactError: The bytes are damaged or of another job; the run is then of no further use.
        """
        try:
            parts = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)["replicas"]
            if len(parts) != len(self._replicas):
                raise ValueError(f"it has {len(parts)} replicas instead of {len(self._replicas)}")
            saved = [part.numpy().tobytes() for part in parts]
        except Exception as error:  # damaged bytes make the unpickler raise almost anything
            reason = str(error).strip().partition("\n")[0]
            raise CorruptArtifactError(f"a checkpoint of {self.job.label} cannot be read: {reason}") from error
        for replica, own in zip(self._replicas, saved, strict=True):
            replica.restore(own)
            replica.leave()

    def _is_due(self) -> bool:
        """Whether every replica has come to a step at which the mask changes, and it has not changed yet."""
        step = self.step
        if any(one.step != step for one in self._replicas):
            return False
        changing = self._replicas[0].changing
        return changing is not None and changing.is_due(step)

    def _bound(self, end: int) -> int:
        """Up to which step replicas train for themselves now: to the next change of the mask, or the epoch's end."""
        # Some may have been stopped on their way to it, while those before them have arrived.
        step = self.step
        for due in self._updates.steps:
            if step < due < end:
                return due
        return end

    def _change_mask(self) -> list[Progress]:
        """Average the replicas, and let the mean drop and grow; what replicas say that ended an epoch with its step."""
        done = self.step
        progress: list[Progress] = []
        self._average()
        gradient = None
        if self._updates.needs_gradient:
            gradients = []
            for replica in self._replicas:
                progress += _train(replica, done + 1, never)
                gradients.append(replica.gradient)
                replica.gradient = None
            gradient = _mean(gradients)
        first = self._replicas[0]
        first.enter()
        following = first.next_mask(done, gradient)
        for replica in self._replicas:
            replica.enter()
            replica.apply_mask(done, following)
            replica.leave()
        return progress

    def _average(self) -> None:
        """Replace the weights of all replicas by their mean: added in order in float64, rounded once."""
        if len(self._replicas) == 1:
            return
        mean = SnapshotMean(self._replicas[0].parameters)
        for replica in self._replicas:
            replica.enter()
            mean.update(replica.parameters)
        for replica in self._replicas:
            replica.enter()
            mean.mean_into_(replica.parameters)
            replica.leave()

    def _progress(self, index: int, progress: list[Progress]) -> Progress:
        """Where the run stands, from what replicas said at the end of the epoch; some may have said it earlier."""
        record = self.history[index]
        named = {"epoch", "step", "loss", "lr", "replicas"}
        metrics = {name: value for name, value in record.items() if name not in named}
        speed = float(np.mean([one.samples_per_s for one in progress])) if progress else 0.0
        return Progress(index + 1, self.job.program.num_epochs, record["step"], record["loss"], record["lr"], speed,
                        metrics)


def _train(replica: Replica, bound: int, stop: Callable[[], bool]) -> list[Progress]:
    """Train one replica up to a step of its present epoch; where it stands if the epoch ends there."""
    replica.enter()
    found = replica.epoch(lambda: replica.step >= bound or stop())
    replica.leave()
    return [] if found is None else [found]


def _mean(gradients: list[np.ndarray | None]) -> np.ndarray:
    """The mean gradient: added in order in float64, rounded once."""
    total: np.ndarray | None = None
    for gradient in gradients:
        assert gradient is not None
        total = gradient.astype(np.float64) if total is None else total + gradient
    assert total is not None
    return (total / len(gradients)).astype(np.float32)


AnyRun = TrainingRun | ReplicatedRun


def begin_run(
    trainer: ParticleTrainer, job: TrainingSpec, start: CompactState, mask: np.ndarray, buffers: Arrays,
    checkpoint: bytes | None = None, fork: ForkPoint | None = None,
) -> AnyRun:
    """A training run of one or several replicas; arguments and errors as of :func:`begin_training`."""
    if job.program.num_replicas == 1:
        return begin_training(trainer, job, start, mask, buffers, checkpoint, fork)
    assert fork is None, "a config does not let replicas part from a trunk"
    trainer.load(start, mask, buffers)
    trainer.model.zero_grad(set_to_none=True)
    run = ReplicatedRun(trainer, job, mask, buffers)
    if checkpoint is not None:
        run.restore(checkpoint)
    return run
