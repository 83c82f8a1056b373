"""One particle: one training run from the ticket, on one device, resumable at its checkpoints.

All randomness of an epoch is derived from (particle seed, epoch), so that a checkpoint between epochs needs no
random state. One that is written in the middle of an epoch, when a run has to stop, holds it. Either way a resumed run
continues with the same bits.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.errors import CorruptArtifactError, DivergedError, RunError
from swamp_ray.random_state import random_state, restore_random_state
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.averaging import ExponentialMean, SnapshotMean
from swamp_ray.sparsity.compact import CompactState, compact_model
from swamp_ray.sparsity.dynamic import Exchange
from swamp_ray.sparsity.masks import from_bits, mask_tensors, to_bits
from swamp_ray.training.changing_mask import ChangingMask, NotFiniteError
from swamp_ray.training.epoch_totals import EpochTotals
from swamp_ray.training.fork import ForkPoint, fork_point, part_from_
from swamp_ray.training.normalisation import has_batchnorm, norm_modules
from swamp_ray.training.normalisation_checks import refuse_stateful_buffers
from swamp_ray.training.optimizers import MaskedStep, build_optimizer
from swamp_ray.training.program import TrainingSpec
from swamp_ray.training.ranks import Ranks, TrainInstruction
from swamp_ray.training.results import Arrays, Gradients, Progress, TrainedParticle
from swamp_ray.training.sharpness import Ascent
from swamp_ray.training.state_dict import refuse_moving_extra_state
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.user_code.blaming import blamed


def never() -> bool:
    """The answer of a training that nobody asks to stop."""
    return False


@dataclass(slots=True)
class GradientRequest:
    """Asks for the gradients of a batch, without which a training run cannot go on."""

    batch: Batch


Steps = Generator[GradientRequest, Gradients, Progress | None]
"""A training run up to the end of an epoch: yields requests, is sent gradients, and returns where the run stands."""


@dataclass(frozen=True)
class _Interim:
    """State of one rank in the middle of an epoch: losses ``[steps]`` and sums so far (host), random state."""

    losses: Tensor
    sums: dict[str, Tensor]
    random: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values and tensors, for a checkpoint."""
        return {"losses": self.losses, "sums": self.sums, "random": self.random}


class TrainingRun:
    """One training run of one particle, which can be stopped after any step; made by :func:`begin_training`."""

    def __init__(self, trainer: ParticleTrainer, job: TrainingSpec, mask: np.ndarray, buffers: Arrays) -> None:
        config = trainer.config.training
        self.trainer = trainer
        self.job = job
        self.config = config
        self._identity = {"seed": job.seed, "program": job.program.as_dict()}
        self._mask = mask
        self._buffers = buffers
        self.parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(trainer.model, config, job.program.weight_decay, trainer.arithmetic.fused)
        weights = trainer.weights
        masks = None
        updates = job.program.mask_updates
        if updates is not None or not bool(mask.all()):
            masks = mask_tensors(trainer.layout, mask, device=trainer.device, like=weights)
        self.take_step = MaskedStep(self.optimizer, weights, masks, config.clip_norm)
        self._ascent: Ascent | None = None
        if config.sam_rho is not None:
            self._ascent = Ascent(self.take_step, config.sam_rho, norm_modules(trainer.model, trainer.kept))
        self.changing: ChangingMask | None = None
        if updates is not None:
            self.changing = ChangingMask(updates, trainer.layout, weights, mask, job.seed, self.take_step)
        self.mean: SnapshotMean | ExponentialMean | None = None
        if job.program.averaging == "swa":
            self.mean = SnapshotMean(self.parameters)
        elif job.program.averaging == "ema":
            self.mean = ExponentialMean(self.parameters, job.program.ema_decay)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._ranks = trainer.ranks
        self._interim: _Interim | None = None

    @property
    def done(self) -> bool:
        """Whether every step of the program is finished."""
        return self.step >= self.job.program.num_steps

    def finish(self) -> TrainedParticle:
        """The trained, evaluated network of a run that is done.

        Raises:
            DivergedError: The last steps left weights that are not finite.
            RunError: The ranks do not have the same weights.
        """
        trainer = self.trainer
        self.compare()
        as_trained = None
        if self.mean is None and has_batchnorm(trainer.model, trainer.kept):
            as_trained = trainer.metrics(("validation", "test"))
        if self.mean is not None:
            self.mean.mean_into_(self.parameters)
        return self.result(as_trained)

    def result(self, as_trained: dict[str, dict[str, float]] | None = None) -> TrainedParticle:
        """The network in place, evaluated.

        Args:
            as_trained: Its metrics with the statistics that training left.

        Raises:
            DivergedError: Its weights are not finite.
        """
        trainer = self.trainer
        refuse_stateful_buffers(trainer.model, self._buffers, trainer.kept)
        refuse_moving_extra_state(trainer.model, trainer.extra_state)
        self._refuse_infinite()
        mask = self._mask if self.changing is None else self.changing.mask
        compact = compact_model(trainer.model, trainer.layout, mask)
        own_mask = None if self.changing is None else mask
        return TrainedParticle(compact, trainer.evaluate_in_place(), as_trained, self.history, own_mask)

    def fork(self) -> ForkPoint:
        """Where particles part from this run, the trunk of their round, which is done.

        Raises:
            DivergedError: The last steps left weights that are not finite.
            RunError: The ranks do not have the same weights.
        """
        self.compare()
        self._refuse_infinite()
        mean = self.mean if isinstance(self.mean, ExponentialMean) else None
        return fork_point(self.trainer.model, self.trainer.layout, self._mask, self.optimizer, mean)

    def part_from(self, fork: ForkPoint) -> None:
        """Go on where the trunk of the round has stopped, whose weights are in place.

        Raises:
            CorruptArtifactError: The state is of another network, mask or optimiser.
        """
        mean = self.mean if isinstance(self.mean, ExponentialMean) else None
        part_from_(fork, self.trainer.model, self.trainer.layout, self._mask, self.optimizer, mean)

    def _refuse_infinite(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self._diverged(self.step - 1, math.nan)

    def compare(self) -> None:
        """Check that all ranks of a finished run have the same weights; every rank has to call this.

        Raises:
            RunError: They do not (on rank 0).
        """
        if self._ranks.count == 1:
            return
        digest = hashlib.sha256()
        for parameter in self.parameters:
            flat = parameter.detach().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).cpu().numpy().tobytes())
        digests = self._ranks.gather(digest.hexdigest()) or []
        for rank, own in enumerate(digests):
            if own != digests[0]:
                raise RunError(f"{self.job.label}: rank {rank} of {len(digests)} ended with other weights than rank 0. "
                               "The ranks of a particle need devices of one kind")

    def epoch(self, stop: Callable[[], bool] = never) -> Progress | None:
        """Train to the end of the current epoch, or of the program.

        Args:
            stop: Called after every step; once it is true, the epoch ends there. All ranks need the same answers.

        Returns:
            Where the particle stands; None if it was stopped before the end of the epoch. A checkpoint that is taken
            then continues after the last finished step.

        Raises:
            DivergedError: The loss became NaN or infinite.
            UserError: Training changes a buffer that is no normalisation statistic.
        """
        index = self.step // self.job.program.steps_per_epoch
        steps = self.epoch_steps(stop)
        with self.trainer.randomness(self._ranks.epoch_seed(self.job.seed, index)), self._ranks.watched():
            try:
                pending = next(steps)
                while True:
                    with blamed(f"the model or the task failed in training step {self.step}", self.job.label):
                        gradients = self.trainer.backward(pending.batch)
                    pending = steps.send(gradients)
            except StopIteration as end:
                return end.value

    def epoch_steps(self, stop: Callable[[], bool] = never) -> Steps:
        """Like :meth:`epoch`, but the caller computes the gradients, perhaps for several runs together.

        The caller seeds the random generators, too. Closing the generator early leaves the run as if it was stopped.
        """
        program = self.job.program
        began = time.perf_counter()
        index = self.step // program.steps_per_epoch
        first = index * program.steps_per_epoch
        num = min(program.num_steps, first + program.steps_per_epoch) - first
        resumed_at = self.step
        self.trainer.model.train()
        totals = self._resume_epoch()
        try:
            yield from self._steps(index, num, totals, stop)
        finally:
            if self.step < first + num:
                self._interim = _Interim(totals.losses(), totals.sums(), random_state(self.trainer.device))
        if self._interim is not None:
            return None
        values = self._mean_losses(totals.losses(), first)
        speed = (self.step - resumed_at) * self.config.batch_size / max(1e-9, time.perf_counter() - began)
        progress = self._record(index, values, totals.sums(), speed)
        if index == 0:
            refuse_stateful_buffers(self.trainer.model, self._buffers, self.trainer.kept)
        return progress

    def _resume_epoch(self) -> EpochTotals:
        """Totals of the epoch's steps so far; restores the random state in the middle of an epoch."""
        interim = self._interim
        if interim is None:
            return EpochTotals()
        self._interim = None
        restore_random_state(interim.random, self.trainer.device)
        return EpochTotals(interim.losses, interim.sums)

    def _steps(
        self, index: int, num: int, totals: EpochTotals, stop: Callable[[], bool]
    ) -> Generator[GradientRequest, Gradients]:
        """Train through the rest of the ``num`` steps of epoch ``index``, and add their losses to the totals."""
        program = self.job.program
        first = index * program.steps_per_epoch
        batches = self.trainer.batches("train").one_pass(
            self.config.batch_size, seed=derive_seed(self.job.seed, "shuffle", index), drop_last=True,
            first=self.step - first, share=(self._ranks.rank, self._ranks.count))
        for batch in itertools.islice(batches, first + num - self.step):
            changes_by_gradient = self._change_mask()
            if changes_by_gradient:
                loss, metrics = yield GradientRequest(batch)
            else:
                loss, metrics = yield from self._gradients(batch)
            totals.add(loss, metrics)
            if changes_by_gradient:
                # As in Evci et al. (2020) the update takes the place of the optimiser's step.
                self.grow_by_gradient()
                self.take_step.clear_gradients()
            else:
                self.take_step(program.rate.at(self.step))
            self.step += 1
            takes_snapshot = isinstance(self.mean, ExponentialMean) or program.snapshot_after(self.step)
            if self.mean is not None and takes_snapshot:
                self.mean.update(self.parameters)
            if stop():
                break

    def _gradients(self, batch: Batch) -> Generator[GradientRequest, Gradients, Gradients]:
        """Ask for the gradients that the next step takes; under SAM twice. Loss and metrics are of the first time."""
        ascent = self._ascent
        if ascent is None:
            return (yield GradientRequest(batch))
        ascent.begin()
        found = yield GradientRequest(batch)
        ascent.climb()
        try:
            yield GradientRequest(batch)
        except GeneratorExit:
            # Stopped between the two passes: the step is taken anew when the run goes on.
            ascent.abandon()
            raise
        ascent.descend()
        return found

    def _change_mask(self) -> bool:
        """Change the mask if it is due; or say True where that needs the gradient of the next batch."""
        if self.changing is None or not self.changing.is_due(self.step):
            return False
        if self.changing.updates.needs_gradient:
            return True
        self.apply_mask(self.step, self.next_mask(self.step))
        return False

    def grow_by_gradient(self) -> None:
        """Change the mask with the dense gradients that lie in the parameters."""
        assert self.changing is not None
        self.apply_mask(self.step, self.next_mask(self.step, self.changing.gradients()))

    def next_mask(self, done: int, gradients: np.ndarray | None = None) -> Exchange:
        """The mask that follows from the weights in place after ``done`` steps.

        Args:
            done: Finished steps.
            gradients: Dense gradients ``[P]``, where growth needs them.

        Raises:
            DivergedError: Weights or gradients are not finite.
        """
        assert self.changing is not None
        try:
            return self.changing.choose(done, gradients)
        except NotFiniteError as error:
            raise self._diverged(done, math.nan) from error

    def apply_mask(self, done: int, following: Exchange) -> None:
        """Hold another mask from now on, that was chosen after ``done`` steps."""
        assert self.changing is not None
        self.changing.apply(done, following, self.parameters, self.mean)

    def _mean_losses(self, losses: Tensor, first: int) -> np.ndarray:
        """An epoch's losses by step, averaged over all ranks; the first that is not finite ends the run."""
        values = self._ranks.mean(losses.double().numpy())
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise self._diverged(first + int(bad[0]), float(values[bad[0]]))
        return values

    def _record(self, index: int, losses: np.ndarray, sums: dict[str, Tensor], samples_per_s: float) -> Progress:
        own = np.array([float(value) / len(losses) for value in sums.values()])
        means = self._ranks.mean(own)
        progress = Progress(
            epoch=index + 1,
            num_epochs=self.job.program.num_epochs,
            step=self.step,
            loss=float(losses.mean()),
            lr=self.job.program.rate.at(self.step - 1),
            samples_per_s=samples_per_s,
            metrics=dict(zip(sums, means.tolist(), strict=True)),
        )
        self.history.append({"epoch": progress.epoch, "step": progress.step, "loss": progress.loss, "lr": progress.lr,
                             **progress.metrics})
        return progress

    def _diverged(self, step: int, loss: float) -> DivergedError:
        program = self.job.program
        return DivergedError(self.job.label, step // program.steps_per_epoch, step, program.rate.at(step), loss)

    def checkpoint(self) -> bytes:
        """Everything a later attempt needs to go on with the same bits.

        In the middle of an epoch every rank has to call this, because each has a random state of its own; the bytes
        that rank 0 gets hold them all.
        """
        buffer = io.BytesIO()
        interim = None if self._interim is None else self._ranks.gather(self._interim.as_dict())
        state = {
            "job": self._identity,
            "step": self.step,
            "history": self.history,
            "parameters": [p.detach().cpu() for p in self.trainer.model.parameters()],
            "buffers": {name: b.detach().cpu() for name, b in self.trainer.model.named_buffers()},
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean.state_dict() if self.mean is not None else None,
            "interim": interim,
        }
        if self.changing is not None:
            bits = torch.from_numpy(to_bits(self.changing.mask))
            state["mask"] = {"bits": bits, "updated_at": self.changing.updated_at}
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, checkpoint: bytes) -> None:
        """Go on from what :meth:`checkpoint` returned; only tensors and plain values are unpickled.

        Raises:
            CorruptArtifactError: The bytes are damaged or of another job; the run is then of no further use.
        """
        try:
            state = torch.load(io.BytesIO(checkpoint), map_location=self.trainer.device, weights_only=True)
        except Exception as error:  # damaged bytes make the unpickler raise almost anything
            reason = str(error).strip().partition("\n")[0]
            raise CorruptArtifactError(f"a checkpoint of {self.job.label} cannot be read: {reason}") from error
        try:
            if state["job"] != self._identity:
                raise ValueError("it belongs to another job")
            self._load(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CorruptArtifactError(f"a checkpoint of {self.job.label} does not fit: {error}") from error

    def _load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, saved in zip(self.trainer.model.parameters(), state["parameters"], strict=True):
                parameter.copy_(saved)
            for name, buffer in self.trainer.model.named_buffers():
                buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.step = int(state["step"])
        self.history = list(state["history"])
        if self.changing is not None:
            bits = state["mask"]["bits"].cpu().numpy()
            mask = from_bits(bits, self.trainer.layout.num_prunable)
            self.changing.resume(mask, int(state["mask"]["updated_at"]))
        interim = state["interim"]
        self._interim = None if interim is None else _Interim(**interim[self._ranks.rank])


def begin_training(
    trainer: ParticleTrainer, job: TrainingSpec, start: CompactState, mask: np.ndarray, buffers: Arrays,
    checkpoint: bytes | None = None, fork: ForkPoint | None = None,
) -> TrainingRun:
    """A training run from its start, or from a checkpoint of an earlier attempt at the same job.

    A trainer has one live run at a time, because runs share its model. Where several ranks train a particle, a call on
    rank 0 sends the instruction that makes the others call it too (:mod:`swamp_ray.training.rank_following`).

    Args:
        trainer: Its model, data and task are used.
        job: Seed and program.
        start: The ticket: surviving weights ``[k]`` and the other parameters.
        mask: Kept weights, bool ``[P]``.
        buffers: The model's buffers at the start, by name; statistics that training changes are reset.
        checkpoint: What :meth:`TrainingRun.checkpoint` returned.
        fork: Where the round's trunk has stopped; its weights are ``start``.

    Raises:
        CorruptArtifactError: The checkpoint does not fit this job.
    """
    ranks = trainer.ranks
    if isinstance(ranks, Ranks) and ranks.leads:
        ranks.send_instruction(TrainInstruction(trainer.member, job, start, mask, buffers, checkpoint, fork))
    trainer.load(start, mask, buffers)
    # A run that was interrupted within a step leaves gradients behind.
    trainer.model.zero_grad(set_to_none=True)
    run = TrainingRun(trainer, job, mask, buffers)
    if checkpoint is not None:
        run.restore(checkpoint)
    elif fork is not None:
        run.part_from(fork)
    return run
