"""One particle: one training run from the ticket, on one device, resumable at its checkpoints.

All randomness of an epoch is derived from (particle seed, epoch), so that a checkpoint between epochs needs no
random state. One that is written in the middle of an epoch, when a run has to stop, holds it. Either way a resumed run
continues with the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.config import SwampConfig
from swamp_ray.errors import CorruptArtifactError, DivergedError, RunError, UserError
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.averaging import (
    ExponentialMean,
    SnapshotMean,
    batchnorm_reestimation,
    has_batchnorm,
    reset_batchnorm,
)
from swamp_ray.sparsity.masks import Layout, clean_name, find_prunable, mask_tensors, prunable_tensors
from swamp_ray.sparsity.packing import Packed, load_packed_, pack_model
from swamp_ray.training.arithmetic import Arithmetic, local_device
from swamp_ray.training.data import Data, Feed
from swamp_ray.training.models import build_model
from swamp_ray.training.nests import num_samples, tree_map
from swamp_ray.training.optimizers import MaskedStep, build_optimizer
from swamp_ray.training.program import Program
from swamp_ray.training.ranks import Alone, Ranks
from swamp_ray.training.reproducible import random_state, seeded, take_up_random_state
from swamp_ray.training.tasks import Batch, Task, build_task

Arrays = Mapping[str, np.ndarray]


def never() -> bool:
    """Nobody asks the training to stop."""
    return False


@dataclass(frozen=True)
class ParticleJob:
    """One training run to do.

    Attributes:
        label: For logs and errors, e.g. ``"round 3, particle 1"``.
        seed: Decides batch order, augmentation and dropout.
        program: Length, learning rate, decay, snapshots.
    """

    label: str
    seed: int
    program: Program


@dataclass(frozen=True)
class Order:
    """What the other ranks of a particle need to know to take part in a training run.

    Attributes:
        member: Index of the run, where ranks work for several.
        job, start, mask, buffers, checkpoint: As in :meth:`ParticleTrainer.begin`.
    """

    member: int
    job: ParticleJob
    start: Packed
    mask: np.ndarray
    buffers: Arrays
    checkpoint: bytes | None


@dataclass(frozen=True)
class Progress:
    """Where a particle stands after an epoch.

    Attributes:
        epoch: Finished epochs.
        num_epochs: Epochs in all.
        step: Finished optimiser steps.
        loss: Mean training loss of the epoch.
        lr: Learning rate of its last step.
        samples_per_s: Training throughput of the epoch.
        metrics: Further means over the epoch, e.g. training accuracy.
    """

    epoch: int
    num_epochs: int
    step: int
    loss: float
    lr: float
    samples_per_s: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one network by split (``{"validation": {"accuracy": ...}, ...}``), and its norm statistics."""

    metrics: dict[str, dict[str, float]]
    buffers: dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainedParticle:
    """What is left of a training run.

    Attributes:
        packed: Surviving weights and all other parameters.
        evaluation: The network with re-estimated normalisation statistics.
        as_trained: Metrics with the statistics that training left; None where weights were averaged.
        history: One record an epoch.
    """

    packed: Packed
    evaluation: Evaluation
    as_trained: dict[str, dict[str, float]] | None
    history: list[dict[str, Any]]


class ParticleTrainer:
    """Trains and evaluates networks of one run on one device; the model, data and task stay warm.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: As resolved when the run started; the caller applies it (``arithmetic.applied``).
        feeds: The batches of another trainer of the same data and arithmetic, to be shared.
        ranks: The processes that train each particle together; by default this one does alone.
        member: Index of the run, where ranks work for several.
    """

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic, feeds: dict[str, Feed] | None = None,
                 ranks: Alone | None = None, member: int = 0) -> None:
        self.config, self.data, self.arithmetic = config, data, arithmetic
        self.ranks, self.member = ranks or Alone(), member
        self.device = local_device(arithmetic.device)
        self.task: Task = build_task(config.task)
        model = initial_model(config, data)
        self.layout: Layout = find_prunable(model, config.pruning.include, config.pruning.exclude)
        self.model: nn.Module = model.to(self.device)
        if arithmetic.channels_last:
            _to_channels_last_(self.model)
        self._compiled: Any = torch.compile(self.model) if arithmetic.compile else self.model
        self._replica: Any = None
        self._weights = prunable_tensors(self.model, self.layout)
        self.feeds: dict[str, Feed] = {} if feeds is None else feeds

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training split, the last partial one dropped."""
        return steps_per_epoch(self.config, self.data)

    def feed(self, split: str) -> Feed:
        """The batches of ``train``, ``validation`` or ``test``; kept on the device where that is configured."""
        if split not in self.feeds:
            execution = self.config.execution
            on_device = self.device.type == "cuda" if execution.data_on_device == "auto" else execution.data_on_device
            self.feeds[split] = Feed(
                getattr(self.data, split),
                device=self.device,
                channels_last=self.arithmetic.channels_last,
                on_device=on_device,
                loader_workers=self.config.data.loader_workers,
            )
        return self.feeds[split]

    @property
    def network(self) -> Any:
        """The network as it is called in training; its first use takes all ranks."""
        if self._replica is None:
            self._replica = self.ranks.replicate(self._compiled, self._leaves_some_untrained)
        return self._replica

    def _leaves_some_untrained(self) -> bool:
        """Whether some parameters get no gradient from a training batch."""
        model = copy.deepcopy(self.model).train()
        size = min(2, self.ranks.share(self.config.training.batch_size))
        batch = next(iter(self.feed("train").batches(size, seed=None, drop_last=False)))
        with self.randomness(self._evaluation_seed), self.autocast():
            self.task.training_step(model, batch)[0].backward()
        return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)

    def load(self, packed: Packed, mask: np.ndarray, buffers: Arrays) -> None:
        """Put a network's weights in place, with fresh normalisation statistics."""
        with torch.no_grad():
            for name, buffer in named_buffers(self.model):
                if name in buffers:
                    buffer.copy_(_writable(buffers[name]))
        reset_batchnorm(self.model)
        load_packed_(self.model, self.layout, mask, packed)

    def begin(
        self, job: ParticleJob, start: Packed, mask: np.ndarray, buffers: Arrays, checkpoint: bytes | None = None
    ) -> TrainingRun:
        """A training run from its start, or from a checkpoint of an earlier attempt at the same job.

        Only one run of a trainer is alive at a time: they share the model. On the first of several ranks this tells
        the others, which have to follow (:mod:`swamp_ray.training.following`).

        Args:
            job: What to do.
            start: The ticket: surviving weights ``[k]`` and the other parameters.
            mask: Kept weights, bool ``[P]``.
            buffers: The model's buffers at the start, by name; normalisation statistics are reset anyway.
            checkpoint: What :meth:`TrainingRun.checkpoint` gave.

        Raises:
            CorruptArtifactError: The checkpoint does not fit this job.
        """
        if isinstance(self.ranks, Ranks) and self.ranks.leads:
            self.ranks.tell(Order(self.member, job, start, mask, buffers, checkpoint))
        self.load(start, mask, buffers)
        self.model.zero_grad(set_to_none=True)  # a run that was interrupted within a step leaves some behind
        run = TrainingRun(self, job, mask, buffers)
        if checkpoint is not None:
            run.restore(checkpoint)
        return run

    def evaluate(self, packed: Packed, mask: np.ndarray, buffers: Arrays) -> Evaluation:
        """Metrics of a network on validation and test, with its normalisation statistics re-estimated."""
        self.load(packed, mask, buffers)
        return self.evaluate_in_place()

    def evaluate_in_place(self) -> Evaluation:
        """Like :meth:`evaluate`, for the weights that are in the model now."""
        self.reestimate()
        metrics = self.metrics(("validation", "test"))
        return Evaluation(metrics, {name: b.detach().cpu().numpy().copy() for name, b in named_buffers(self.model)})

    def reestimate(self) -> None:
        """Normalisation statistics of the weights in place.

        One pass over the training split, unaugmented, in fixed order, with the training batch size, the last
        partial batch dropped, as a cumulative mean. Where several ranks train, the batches are of a rank's size.
        """
        if not has_batchnorm(self.model):
            return
        with batchnorm_reestimation(self.model), self.autocast(), self.randomness(self._evaluation_seed):
            for batch in self.feed("train").batches(self.config.training.batch_size, seed=None, drop_last=True):
                for part in split_batch(batch, self._forward_batch):
                    self.task.predict(self.model, part)

    @torch.no_grad()
    def metrics(self, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Means of the task's metrics over whole splits, for the weights and statistics in place."""
        self.model.eval()
        with self.randomness(self._evaluation_seed):
            return {split: evaluate(self.model, self.task, self.feed(split), self._forward_batch, self.autocast)
                    for split in splits}

    @contextlib.contextmanager
    def randomness(self, seed: int) -> Iterator[None]:
        """Seed the global generators for a block, and restore them (on CUDA, :func:`applied` does) afterwards."""
        with seeded(seed):
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.arithmetic.precision == "bf16")

    @property
    def _evaluation_seed(self) -> int:
        """The same for all runs: an evaluation is named by its network, not by a run's seed."""
        return derive_seed(0, "evaluation")

    @property
    def _forward_batch(self) -> int:
        return self.config.training.micro_batch or self.config.training.batch_size // self.arithmetic.ranks


@dataclass(frozen=True)
class _Interim:
    """What a rank goes on from in the middle of an epoch: losses ``[steps]`` and sums so far, random state."""

    losses: Tensor
    sums: dict[str, Tensor]
    random: dict[str, Any]

    def on_host(self) -> dict[str, Any]:
        """Plain values and tensors on the processor, as in a checkpoint."""
        return {"losses": self.losses.cpu(), "sums": {name: value.cpu() for name, value in self.sums.items()},
                "random": self.random}


class TrainingRun:
    """One training run between two steps; made by :meth:`ParticleTrainer.begin`."""

    def __init__(self, trainer: ParticleTrainer, job: ParticleJob, mask: np.ndarray, buffers: Arrays) -> None:
        config = trainer.config.training
        self.trainer, self.job, self.config = trainer, job, config
        self._identity = {"seed": job.seed, "program": job.program.as_dict()}
        self._mask, self._buffers = mask, buffers
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(trainer.model, config, job.program.weight_decay, trainer.arithmetic.fused)
        weights = trainer._weights
        masks = None
        if not bool(mask.all()):
            masks = mask_tensors(trainer.layout, mask, device=trainer.device, like=weights)
        self.take_step = MaskedStep(self.optimizer, weights, masks, config.clip_norm)
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
        if self.mean is None and has_batchnorm(trainer.model):
            as_trained = trainer.metrics(("validation", "test"))
        if self.mean is not None:
            self.mean.mean_into_(self.parameters)
        refuse_stateful_buffers(trainer.model, self._buffers)
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self._diverged(self.step - 1, math.nan)
        packed = pack_model(trainer.model, trainer.layout, self._mask)
        return TrainedParticle(packed, trainer.evaluate_in_place(), as_trained, self.history)

    def compare(self) -> None:
        """Make sure that all ranks of a run that is done have the same weights; each of them asks.

        Raises:
            RunError: They do not (on rank 0).
        """
        if self._ranks.count == 1:
            return
        digest = hashlib.sha256()
        for parameter in self.parameters:
            digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
        found = self._ranks.gather(digest.hexdigest()) or []
        odd = [rank for rank, one in enumerate(found) if one != found[0]]
        if odd:
            raise RunError(f"{self.job.label}: rank {odd[0]} of {len(found)} ended with other weights than rank 0. The "
                           "ranks of a particle need devices of one kind")

    def epoch(self, stop: Callable[[], bool] = never) -> Progress | None:
        """Train to the end of the current epoch, or of the program.

        Args:
            stop: Asked after every step; once it says yes, the epoch ends there. Ranks need an answer that they share.

        Returns:
            Where the particle stands; None if it was stopped before the end of the epoch. A checkpoint that is taken
            then continues after the last finished step.

        Raises:
            DivergedError: The loss became NaN or infinite.
            UserError: Training changes a buffer that is no normalisation statistic.
        """
        program, began = self.job.program, time.perf_counter()
        index = self.step // program.steps_per_epoch
        first = index * program.steps_per_epoch
        num = min(program.num_steps, first + program.steps_per_epoch) - first
        resumed_at = self.step
        self.trainer.model.train()
        with self.trainer.randomness(self._ranks.epoch_seed(self.job.seed, index)), self._ranks.watched():
            losses, sums = self._take_up_interim(num)
            self._steps(index, losses, sums, stop)
            if self.step < first + num:
                self._interim = _Interim(losses[: self.step - first], sums, random_state(self.trainer.device))
                return None
        values = self._finite(losses, first)
        speed = (self.step - resumed_at) * self.config.batch_size / max(1e-9, time.perf_counter() - began)
        progress = self._record(index, values, sums, speed)
        if index == 0:
            refuse_stateful_buffers(self.trainer.model, self._buffers)
        return progress

    def _take_up_interim(self, num: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses ``[num]`` and sums of the epoch so far, and its random numbers; zeros at the start of one."""
        losses = torch.zeros(num, device=self.trainer.device)
        if self._interim is None:
            return losses, {}
        interim, self._interim = self._interim, None
        losses[: len(interim.losses)] = interim.losses
        take_up_random_state(interim.random, self.trainer.device)
        return losses, dict(interim.sums)

    def _steps(self, index: int, losses: Tensor, sums: dict[str, Tensor], stop: Callable[[], bool]) -> None:
        """Train through the rest of epoch ``index``; losses by step and sums of metrics are filled in."""
        first, rate = index * self.job.program.steps_per_epoch, self.job.program.rate
        batches = self.trainer.feed("train").batches(
            self.config.batch_size, seed=derive_seed(self.job.seed, "shuffle", index), drop_last=True,
            first=self.step - first, share=(self._ranks.rank, self._ranks.count))
        for batch in itertools.islice(batches, first + len(losses) - self.step):
            loss, metrics = self._backward(batch)
            losses[self.step - first] = loss
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
            self.take_step(rate.at(self.step))
            self.step += 1
            self._snapshot()
            if stop():
                break

    def _backward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        trainer, micro = self.trainer, self.config.micro_batch
        if micro is None:
            with trainer.autocast():
                loss, metrics = trainer.task.training_step(trainer.network, batch)
            loss.backward()
            return loss.detach(), metrics
        parts = split_batch(batch, micro)
        total = torch.zeros((), device=trainer.device)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self._ranks.accumulating(trainer.network) if number < len(parts) else contextlib.nullcontext():
                with trainer.autocast():
                    loss, metrics = trainer.task.training_step(trainer.network, part)
                (loss / len(parts)).backward()
            total += loss.detach() / len(parts)
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(parts)
        return total, sums

    def _snapshot(self) -> None:
        if isinstance(self.mean, ExponentialMean) or (self.mean and self.job.program.snapshot_after(self.step)):
            self.mean.update(self.parameters)

    def _finite(self, losses: Tensor, first: int) -> np.ndarray:
        """An epoch's losses on the host (its only synchronisation), over all ranks; refuses what is not finite."""
        values = self._ranks.mean(losses.double().cpu().numpy())
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise self._diverged(first + int(bad[0]), float(values[bad[0]]))
        return values

    def _record(self, index: int, losses: np.ndarray, sums: dict[str, Tensor], samples_per_s: float) -> Progress:
        means = self._ranks.mean(np.array([float(value) / len(losses) for value in sums.values()]))
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

        In the middle of an epoch every rank has to ask, for what it alone knows; what rank 0 is given counts.
        """
        buffer = io.BytesIO()
        interim = None if self._interim is None else self._ranks.gather(self._interim.on_host())
        torch.save({
            "job": self._identity,
            "step": self.step,
            "history": self.history,
            "parameters": [p.detach().cpu() for p in self.trainer.model.parameters()],
            "buffers": {name: b.detach().cpu() for name, b in self.trainer.model.named_buffers()},
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean.state_dict() if self.mean is not None else None,
            "interim": interim,
        }, buffer)
        return buffer.getvalue()

    def restore(self, checkpoint: bytes) -> None:
        """Take up what :meth:`checkpoint` gave; only tensors and plain values are unpickled.

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
            self._take_up(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CorruptArtifactError(f"a checkpoint of {self.job.label} does not fit: {error}") from error

    def _take_up(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, saved in zip(self.trainer.model.parameters(), state["parameters"], strict=True):
                parameter.copy_(saved)
            for name, buffer in self.trainer.model.named_buffers():
                buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.step, self.history = int(state["step"]), list(state["history"])
        interim = state["interim"]
        self._interim = None if interim is None else _Interim(**interim[self._ranks.rank])


def evaluate(
    model: nn.Module, task: Task, feed: Feed, batch_size: int, autocast: Callable[[], torch.autocast]
) -> dict[str, float]:
    """Means of the task's metrics over a whole split, every sample weighing the same."""
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for batch in feed.batches(batch_size, seed=None, drop_last=False):
            with autocast():
                prediction = task.predict(model, batch)
            size = 0
            for name, values in task.metrics(prediction, batch).items():
                total = values.double().sum()
                sums[name] = sums[name] + total if name in sums else total
                size = len(values)
            count += size
    return {name: float(total) / max(1, count) for name, total in sums.items()}


def initial_model(config: SwampConfig, data: Data) -> nn.Module:
    """The network at its initialisation, float32 on the CPU."""
    return build_model(
        config.model,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        seed=derive_seed(config.seed, "initialisation"),
    )


def steps_per_epoch(config: SwampConfig, data: Data) -> int:
    """Batches of one pass over the training split, the last partial one dropped.

    Raises:
        UserError: The batch is larger than the training split.
    """
    steps = len(data.train) // config.training.batch_size
    if steps < 1:
        raise UserError(f"the batch must not be larger than the training split ({len(data.train)} samples)",
                        got=config.training.batch_size, where="training.batch_size")
    return steps


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Parts of at most ``size`` samples of a nest of tensors."""
    starts = range(0, num_samples(batch), size)
    return [tree_map(lambda tensor, first=start: tensor[first:first + size], batch) for start in starts]


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers under their clean names, as in a network's state."""
    for name, buffer in model.named_buffers():
        yield clean_name(name), buffer


def refuse_stateful_buffers(model: nn.Module, before: Arrays) -> None:
    """Raise UserError if training has changed a buffer that is no normalisation statistic.

    Args:
        model: After training.
        before: Its buffers before, by clean name; others are not looked at.
    """
    statistics = {
        clean_name(f"{name}.{buffer}" if name else buffer)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    for name, buffer in named_buffers(model):
        if name not in before or name in statistics:
            continue
        if not np.array_equal(buffer.detach().cpu().numpy(), before[name], equal_nan=buffer.is_floating_point()):
            raise UserError(
                f"training changes the buffer {name!r}, which is no normalisation statistic",
                do="Particles cannot be averaged over such state; make it a parameter or keep it constant.",
                where="model.name",
            )


def _to_channels_last_(model: nn.Module) -> None:
    """Only tensors with four dimensions; ``Module.to`` fails where a network has some with five too."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _writable(array: np.ndarray) -> Tensor:
    """A tensor with the array's values; shared arrays are read-only, and torch must not be able to write to them."""
    return torch.from_numpy(np.array(array))
