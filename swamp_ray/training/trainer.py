"""Trains and evaluates networks of one run on one device, or on one rank of several; model, data and task stay warm."""

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
from swamp_ray.sparsity.compact import Packed, load_packed_
from swamp_ray.sparsity.masks import Layout, find_prunable, prunable_tensors
from swamp_ray.training.arithmetic import Arithmetic, local_device
from swamp_ray.training.evaluation_loss import LOSS, evaluation_loss, origin_of_loss
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.models import build_model
from swamp_ray.training.normalisation import (
    StatisticsSource,
    batchnorm_reestimation,
    forward_batch,
    has_batchnorm,
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
    """Trains and evaluates networks of one run on one device; the model, data and task stay warm.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: As resolved when the run started; the caller applies it (``arithmetic.applied``).
        batches: The batches of another trainer of the same data and arithmetic, to be shared.
        ranks: The processes that train each particle together; by default this one does alone.
        member: Index of the run, where ranks work for several.

    Attributes:
        kept: Names of normalisation modules that keep the statistics that they are built with.
        uses_batch_statistics: Whether a prediction depends on the samples that it is made together with.
        extra_state: What the network keeps besides parameters and buffers; training must not change it.
    """

    def __init__(
        self, config: SwampConfig, data: Data, arithmetic: Arithmetic, batches: dict[str, Batches] | None = None,
        ranks: SingleRank | None = None, member: int = 0,
    ) -> None:
        self.config, self.data, self.arithmetic = config, data, arithmetic
        self.ranks, self.member = ranks or SingleRank(), member
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
        self._weights = prunable_tensors(self.model, self.layout)
        self.batches_by_split: dict[str, Batches] = {} if batches is None else batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training split, the last partial one dropped."""
        return steps_per_epoch(self.config, self.data)

    def batches(self, split: str) -> Batches:
        """The batches of ``train``, ``validation`` or ``test``; kept on the device where that is configured."""
        if split not in self.batches_by_split:
            execution = self.config.execution
            on_device = self.device.type == "cuda" if execution.data_on_device == "auto" else execution.data_on_device
            self.batches_by_split[split] = Batches(
                getattr(self.data, split),
                device=self.device,
                channels_last=self.arithmetic.channels_last,
                on_device=on_device,
                loader=loader_of(self.data, self.config.data.loader_workers, pinned=self.device.type == "cuda"),
            )
        return self.batches_by_split[split]

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
        batch = next(iter(self.batches("train").one_pass(size, seed=None, drop_last=False)))
        with self.randomness(self._evaluation_seed), self.autocast():
            self.task.training_step(model, batch)[0].backward()
        return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)

    def load(self, packed: Packed, mask: np.ndarray, buffers: Arrays) -> None:
        """Put a network's weights in place, with fresh normalisation statistics; what is kept is as in the buffers."""
        with torch.no_grad():
            for name, buffer in named_buffers(self.model):
                if name in buffers:
                    buffer.copy_(_writable(buffers[name]))
        reset_batchnorm(self.model, self.kept)
        load_packed_(self.model, self.layout, mask, packed)

    def backward(self, batch: Batch) -> Gradients:
        """Leave the gradients of a batch in the parameters; without a word to the device's host."""
        micro = self.config.training.micro_batch
        if micro is None:
            with self.autocast():
                loss, metrics = self.task.training_step(self.network, batch)
            loss.backward()
            return loss.detach(), metrics
        parts = split_batch(batch, micro)
        total = torch.zeros((), device=self.device)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self.ranks.accumulating(self.network) if number < len(parts) else contextlib.nullcontext():
                with self.autocast():
                    loss, metrics = self.task.training_step(self.network, part)
                (loss / len(parts)).backward()
            total += loss.detach() / len(parts)
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(parts)
        return total, sums

    def evaluate(self, packed: Packed, mask: np.ndarray, buffers: Arrays) -> Evaluation:
        """Metrics of a network on validation and test, with its normalisation statistics re-estimated."""
        self.load(packed, mask, buffers)
        return self.evaluate_in_place()

    def evaluate_in_place(self) -> Evaluation:
        """Like :meth:`evaluate`, for the weights that are in the model now."""
        self.reestimate()
        # Before the metrics: a network that normalises by batches in evaluation too moves its statistics then.
        buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in named_buffers(self.model)}
        return Evaluation(self.metrics(("validation", "test")), buffers)

    def reestimate(self, statistics: StatisticsSource | None = None) -> None:
        """Normalisation statistics of the weights in place.

        One pass over the training split, with order and augmentation that are the same for every network, with the
        training batch size, the last partial batch dropped, as a cumulative mean. Where several ranks train, the
        batches are of a rank's size.

        Args:
            statistics: Of which training images; default: as ``averaging.statistics`` says.
        """
        if not has_batchnorm(self.model, self.kept):
            return
        seed = statistics_seed(statistics or statistics_source(self.config, self.data, self.model, self.kept))
        with batchnorm_reestimation(self.model, self.kept), self.autocast(), self.randomness(self._evaluation_seed):
            for batch in self.batches("train").one_pass(self.config.training.batch_size, seed=seed, drop_last=True):
                for part in split_batch(batch, self.forward_batch):
                    with blamed(_FAILED):
                        self.task.predict(self.model, part)

    @torch.no_grad()
    def metrics(self, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Means of the task's metrics over whole splits, for the weights and statistics in place."""
        self.model.eval()
        with self.randomness(self._evaluation_seed):
            return {split: evaluate(self.model, self.task, self.evaluation_batches(split), self.autocast,
                                    with_loss=self.measures_loss) for split in splits}

    @property
    def measures_loss(self) -> bool:
        """Whether the task's loss is measured besides its metrics, which have none."""
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
            given = tree_map(torch.clone, batch) if with_loss else None
            with autocast():
                prediction = task.predict(model, batch)
            with blamed(_METRICS_FAILED, "task.name"):
                found, size = task.metrics(prediction, batch), 0
            for name, values in found.items():
                total = values.double().sum()
                sums[name] = sums[name] + total if name in sums else total
                size = len(values)
            if with_loss:
                with autocast():
                    total = evaluation_loss(task, model, given, number) * size
                sums[LOSS] = sums[LOSS] + total if LOSS in sums else total
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


def _to_channels_last_(model: nn.Module) -> None:
    """Only tensors with four dimensions; ``Module.to`` fails where a network has some with five too."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _writable(array: np.ndarray) -> Tensor:
    """A tensor with the array's values; shared arrays are read-only, and torch must not be able to write to them."""
    return torch.from_numpy(np.array(array))
