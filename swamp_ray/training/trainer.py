"""The trainer of one particle: its network, data and task on one device, or on one rank of several.

A trainer stays alive for many particles of a run, so that data lie on the device and kernels are compiled.
A training of one particle is a :class:`swamp_ray.training.training_run.TrainingRun`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.loader import loader_of
from swamp_ray.data.samples import Data
from swamp_ray.data.trees import split_batch, tree_map
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import CompactState, load_compact_
from swamp_ray.sparsity.masks import Layout, find_prunable, prunable_tensors
from swamp_ray.training.arithmetic import Arithmetic, local_device
from swamp_ray.training.evaluation_loss import LOSS, evaluation_loss, origin_of_loss
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.models import build_model
from swamp_ray.training.normalisation import (
    StatisticsSource,
    forward_batch,
    has_batchnorm,
    reestimate_statistics,
    reset_batchnorm,
    statistics_seed,
    statistics_source,
    uses_batch_statistics,
    without_single,
)
from swamp_ray.training.normalisation_checks import kept_statistics
from swamp_ray.training.ranks import SingleRank
from swamp_ray.training.results import Arrays, Evaluation, Gradients
from swamp_ray.training.state_dict import extra_state
from swamp_ray.training.tasks import Batch, Task, build_task
from swamp_ray.user_code.blaming import blamed

_FAILED = "the model or the task failed in evaluation"
_METRICS_FAILED = "metrics() of the task failed in evaluation"


class ParticleTrainer:
    """Gradients, evaluations and normalisation statistics for the networks of one run, one particle at a time.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: As resolved when the run started; the caller applies it (``arithmetic.applied``).
        batches: The batches of another trainer of the same data and arithmetic, to be shared.
        ranks: The processes that train each particle together; by default this one does alone.
        member: Index of the run, where ranks work for several.

    Attributes:
        kept: Names of normalisation modules that keep the statistics that they are built with.
        uses_batch_statistics: Whether a prediction depends on the other samples of its batch.
        extra_state: What the network keeps besides parameters and buffers; training must not change it.
        weights: The prunable tensors of the network.
    """

    def __init__(
        self, config: SwampConfig, data: Data, arithmetic: Arithmetic, batches: dict[str, Batches] | None = None,
        ranks: SingleRank | None = None, member: int = 0,
    ) -> None:
        self.config = config
        self.data = data
        self.arithmetic = arithmetic
        self.ranks = ranks or SingleRank()
        self.member = member
        self.device = local_device(arithmetic.device)
        self.task: Task = build_task(config.task)
        model = initial_model(config, data)
        self.layout: Layout = find_prunable(model, config.pruning.include, config.pruning.exclude)
        self.kept = kept_statistics(model, config, data, self.task)
        self.uses_batch_statistics = uses_batch_statistics(model)
        self.extra_state = extra_state(model)
        self.model: nn.Module = model.to(self.device)
        if arithmetic.channels_last:
            _to_channels_last_(self.model)
        self._compiled: Any = torch.compile(self.model) if arithmetic.compile else self.model
        self._replica: Any = None
        self.weights = prunable_tensors(self.model, self.layout)
        self.batches_by_split: dict[str, Batches] = {} if batches is None else batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training split, the last partial one dropped."""
        return steps_per_epoch(self.config, self.data)

    def batches(self, split: str) -> Batches:
        """The batches of ``train``, ``validation`` or ``test``; kept on the device where that is configured."""
        if split not in self.batches_by_split:
            on_cuda = self.device.type == "cuda"
            on_device = self.config.execution.data_on_device
            self.batches_by_split[split] = Batches(
                getattr(self.data, split),
                device=self.device,
                channels_last=self.arithmetic.channels_last,
                on_device=on_cuda if on_device == "auto" else on_device,
                loader=loader_of(self.data, self.config.data.loader_workers, pinned=on_cuda),
            )
        return self.batches_by_split[split]

    @property
    def network(self) -> Any:
        """The network as it is called in training; all ranks have to ask for it together the first time."""
        if self._replica is None:
            self._replica = self.ranks.replicate(self._compiled, self._leaves_some_untrained)
        return self._replica

    def _leaves_some_untrained(self) -> bool:
        """Whether some parameters get no gradient from a training batch."""
        model = copy.deepcopy(self.model).train()
        size = min(2, self.ranks.share(self.config.training.batch_size))
        batch = next(iter(self.batches("train").one_pass(size, seed=None, drop_last=False)))
        with self.randomness(self._evaluation_seed), self.autocast():
            self.task.training_step(model, batch)[0].backward()
        return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)

    def load(self, compact: CompactState, mask: np.ndarray, buffers: Arrays) -> None:
        """Put a network's weights and buffers in place, with fresh normalisation statistics where none are kept."""
        with torch.no_grad():
            for name, buffer in named_buffers(self.model):
                if name in buffers:
                    buffer.copy_(_writable(buffers[name]))
        reset_batchnorm(self.model, self.kept)
        load_compact_(self.model, self.layout, mask, compact)

    def backward(self, batch: Batch) -> Gradients:
        """Leave the gradients of a batch in the parameters, without synchronising with the device."""
        micro = self.config.training.micro_batch
        if micro is not None:
            return self._accumulate(split_batch(batch, micro))
        with self.autocast():
            loss, metrics = self.task.training_step(self.network, batch)
        loss.backward()
        return loss.detach(), metrics

    def _accumulate(self, parts: list[Batch]) -> Gradients:
        """Leave the mean gradients of the parts of a batch in the parameters."""
        total = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with contextlib.nullcontext() if is_last else self.ranks.accumulating(self.network):
                with self.autocast():
                    loss, metrics = self.task.training_step(self.network, part)
                (loss / len(parts)).backward()
            total += loss.detach() / len(parts)
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(parts)
        return total, sums

    def evaluate(self, compact: CompactState, mask: np.ndarray, buffers: Arrays) -> Evaluation:
        """Metrics of a network on validation and test, with its normalisation statistics re-estimated."""
        self.load(compact, mask, buffers)
        return self.evaluate_in_place()

    def evaluate_in_place(self) -> Evaluation:
        """Like :meth:`evaluate`, for the weights that are in the model now."""
        self.reestimate()
        # Before the metrics: a network that normalises by batches in evaluation too moves its statistics then.
        buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in named_buffers(self.model)}
        return Evaluation(self.metrics(("validation", "test")), buffers)

    def reestimate(self, source: StatisticsSource | None = None) -> None:
        """Re-estimate the normalisation statistics of the weights in place.

        One pass over the training split, with order and augmentation that are the same for every network, with the
        training batch size, the last partial batch dropped, as a cumulative mean. Where several ranks train, the
        batches are of a rank's size.

        Args:
            source: Which training images; default: as ``averaging.statistics`` says.
        """
        if not has_batchnorm(self.model, self.kept):
            return
        if source is None:
            source = statistics_source(self.config, self.data, self.model, self.kept)
        batches = self._statistics_batches(statistics_seed(source))
        with self.autocast(), self.randomness(self._evaluation_seed):
            reestimate_statistics(self.model, batches, self._predict, self.kept)

    def _statistics_batches(self, seed: int | None) -> Iterator[Batch]:
        """The training split in parts of a forward pass's size."""
        for batch in self.batches("train").one_pass(self.config.training.batch_size, seed=seed, drop_last=True):
            yield from split_batch(batch, self.forward_batch)

    def _predict(self, batch: Batch) -> Tensor:
        with blamed(_FAILED):
            return self.task.predict(self.model, batch)

    @torch.no_grad()
    def metrics(self, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Means of the task's metrics over whole splits, for the weights and statistics in place."""
        self.model.eval()
        found = {}
        with self.randomness(self._evaluation_seed):
            for split in splits:
                batches = self.evaluation_batches(split)
                found[split] = evaluate(self.model, self.task, batches, self.autocast, with_loss=self.measures_loss)
        return found

    @property
    def measures_loss(self) -> bool:
        """Whether evaluations measure the task's loss, because its metrics have none."""
        return self._loss == "measured"

    @property
    def gives_loss(self) -> bool:
        """Whether evaluations have a loss."""
        return self._loss != "none"

    @functools.cached_property
    def _loss(self) -> str:
        batch = next(iter(self.evaluation_batches("validation", 2)))
        with self.autocast(), self.randomness(self._evaluation_seed):
            return origin_of_loss(self.task, self.model, batch)

    def evaluation_batches(self, split: str, size: int | None = None) -> Iterator[Batch]:
        """One pass over a split in fixed order, on the device.

        Args:
            split: ``train``, ``validation`` or ``test``.
            size: Samples a batch, where predictions do not depend on it; default: as in the run's own evaluations.
                Where they do, these are the only ones: batches as in training, a last one of a single sample joined to
                the one before it.
        """
        if size is None or self.uses_batch_statistics:
            size = self.forward_batch
        batches = self.batches(split).one_pass(size, seed=None, drop_last=False)
        return without_single(batches) if self.uses_batch_statistics else batches

    @contextlib.contextmanager
    def randomness(self, seed: int) -> Iterator[None]:
        """Seed the global generators for a block, and restore them (on CUDA, :func:`applied` does) afterwards."""
        with seeded(seed):
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes."""
        if self.arithmetic.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def _evaluation_seed(self) -> int:
        """The same for all runs: an evaluation is named by its network, not by a run's seed."""
        return derive_seed(0, "evaluation")

    @property
    def forward_batch(self) -> int:
        """Samples of a forward pass, in training and in the run's own evaluations."""
        return forward_batch(self.config)


def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    with_loss: bool = False,
) -> dict[str, float]:
    """Means of the task's metrics over a whole split, every sample weighing the same.

    Args:
        model: In evaluation mode.
        task: Names the metrics.
        batches: The split.
        autocast: The precision of forward passes.
        with_loss: Measure the task's own loss, too, as ``loss``: the mean over the batches, weighted with their sizes.

    Raises:
        UserError: The task or the model fails.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad(), blamed(_FAILED):
        for number, batch in enumerate(batches):
            # The network may overwrite the batch before its loss is measured.
            untouched = tree_map(torch.clone, batch) if with_loss else None
            with autocast():
                prediction = task.predict(model, batch)
            with blamed(_METRICS_FAILED, "task.name"):
                metrics = task.metrics(prediction, batch)
            size = 0
            for name, values in metrics.items():
                _add(sums, name, values.double().sum())
                size = len(values)
            if with_loss:
                with autocast():
                    _add(sums, LOSS, evaluation_loss(task, model, untouched, number) * size)
            count += size
    return {name: float(total) / max(1, count) for name, total in sums.items()}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


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


def _to_channels_last_(model: nn.Module) -> None:
    """Convert tensors with four dimensions alone: ``Module.to`` fails where a network has some with five too."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _writable(array: np.ndarray) -> Tensor:
    """A tensor with a copy of the values: arrays of an object store are read-only, which torch does not respect."""
    return torch.from_numpy(np.array(array))
