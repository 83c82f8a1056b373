"""The memory that a particle will take up on its device, before it is trained.

What stays through a training (weights, the optimiser's state, masks, means, data) is counted. What a training step
needs besides is found by taking one: each tensor that an operation makes is counted as long as it lives. So
activations, gradients and temporaries are known together, at the moment at which they are the most. Either two small
steps are taken, and every moment is extrapolated to the whole batch, or one of the whole batch in which nothing is
computed and tensors are shapes only.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.batches import Batches, kept_bytes, made_together
from swamp_ray.data.samples import ArraySamples, Data, Samples
from swamp_ray.data.trees import leaves, num_samples, split_batch, tree_map
from swamp_ray.random_state import seeded
from swamp_ray.sparsity.masks import find_prunable
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.tasks import Batch, Task, build_task
from swamp_ray.training.trainer import initial_model

SMALL = (2, 3)
"""Batch sizes of the small steps."""
_MUCH_WORK = {"fp32": 2e11, "bf16": 2e10}
"""Weights x elements of a sample beyond which small steps may take longer than the two seconds in which torch makes
itself ready to compute nothing. Not every processor is fast in bfloat16."""
_DRAW_BYTES = 25
"""A sample's place in the order of an epoch, its crop and its flip."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on a device, of tensors; what libraries and kernels take for themselves is not in it.

    Attributes:
        weights: Parameters, buffers, the optimiser's state, masks, and the mean along the training.
        step: What comes and goes, at its peak: in a training step a batch, activations, gradients and temporaries. In
            networks with few activations, a snapshot or the copying of the weights at the end may take more.
        data: Samples that stay on the device, and the order of an epoch.
    """

    weights: int
    step: int
    data: int

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.weights + self.step + self.data


def estimate_memory(
    config: SwampConfig, data: Data, arithmetic: Arithmetic, *, masked: bool = True, num_members: int = 1
) -> MemoryEstimate:
    """The memory of particles that train in one process.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: As resolved for it.
        masked: Whether some weights are pruned.
        num_members: How many particles train side by side; they share the data.

    Raises:
        Exception: Whatever the network or the task raises where a step can be taken in neither way.
    """
    model, task = initial_model(config, data), build_task(config.task)
    size = config.training.micro_batch or config.training.batch_size // arithmetic.ranks
    num_passes = 1 if config.training.micro_batch is None else 2
    samples = _first_batch(data.train, size)
    own = config.training.batch_size // arithmetic.ranks
    own *= _together(samples, own, data.train, arithmetic.device)
    batch = _batch_bytes(samples, own, data.train)
    step = TracedStep(model, task, arithmetic.precision, num_passes).peak_bytes(samples, size)
    step = max(batch + step, batch + _snapshot_bytes(config, model), _feeding_bytes(samples, own, data.train),
               _packing_bytes(model, arithmetic.channels_last))
    weights = _weight_bytes(config, model, masked)
    if arithmetic.ranks > 1:
        weights += _trained_bytes(model)  # the buckets through which gradients are exchanged
    return MemoryEstimate(num_members * weights, num_members * step, _data_bytes(config, data, arithmetic))


def _trained_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def _snapshot_bytes(config: SwampConfig, model: nn.Module) -> int:
    """One parameter after the other is widened to float64 when it enters the mean."""
    widest = max((parameter.numel() for parameter in model.parameters() if parameter.requires_grad), default=0)
    return 8 * widest if config.averaging.within != "none" else 0


def _packing_bytes(model: nn.Module, channels_last: bool) -> int:
    """In the end all weights are put together, and those in another order than their elements' are copied before."""
    parameters = list(model.parameters())
    strided = [p for p in parameters if channels_last and p.ndim == 4 and p.shape[1] > 1 and p[0, 0].numel() > 1]
    return sum(parameter.nbytes for parameter in [*parameters, *strided])


def _weight_bytes(config: SwampConfig, model: nn.Module, masked: bool) -> int:
    """What stays through a training, gradients aside."""
    trained, training = _trained_bytes(model), config.training
    moments = 2 if training.optimizer == "adamw" else int(training.momentum > 0)
    means = 2 if config.averaging.within != "none" else 0  # in float64
    prunable = find_prunable(model, config.pruning.include, config.pruning.exclude).num_prunable
    state = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return state + (moments + means) * trained + (4 * prunable if masked else 0)


def _data_bytes(config: SwampConfig, data: Data, arithmetic: Arithmetic) -> int:
    order = _DRAW_BYTES * len(data.train) if isinstance(data.train, ArraySamples) else 0
    resident = arithmetic.device == "cuda" and config.execution.data_on_device is not False
    return order + sum(kept_bytes(part, arithmetic.device, resident, training=part is data.train)
                       for part in (data.train, data.validation, data.test) if isinstance(part, ArraySamples))


def _first_batch(samples: Samples, size: int) -> Batch:
    """A small batch, as the network reads it."""
    source = Batches(samples, device=torch.device("cpu"), channels_last=False, on_device=False)
    return next(iter(source.one_pass(min(max(SMALL), size, len(samples)), seed=None, drop_last=False)))


def _together(few: Batch, size: int, samples: Samples, device: str) -> int:
    """How many batches of samples in memory are made at a time, and stay until the last of them is used."""
    if not isinstance(samples, ArraySamples):
        return 1
    each = sum(leaf.nbytes for leaf in leaves(few)) / num_samples(few)
    return min(made_together(round(size * each), device), max(1, len(samples) // size))


def _batch_bytes(few: Batch, size: int, samples: Samples) -> int:
    """A batch; of images as they were gathered, too."""
    each = sum(leaf.nbytes for leaf in leaves(few)) / num_samples(few)
    return round(size * each) + _raw_bytes(size, samples)


def _raw_bytes(size: int, samples: Samples) -> int:
    if not isinstance(samples, ArraySamples) or samples.images is None:
        return 0
    return size * leaves(samples.arrays)[0][0].nbytes


def _feeding_bytes(few: Batch, size: int, samples: Samples) -> int:
    """The next batch is made while the last one is still there; normalised images for a moment lie there twice."""
    copies = 3 if isinstance(samples, ArraySamples) and samples.images is not None else 2
    return copies * _batch_bytes(few, size, samples)


class TracedStep:
    """A training step whose tensors are counted; the batch is not among them.

    Args:
        model: As it is initialised; it is not changed.
        task: Its loss.
        precision: fp32, or bf16 for a forward pass under autocast.
        num_passes: Backward passes without clearing the gradient: 2 stand for any number of them.
    """

    def __init__(self, model: nn.Module, task: Task, precision: str, num_passes: int = 1) -> None:
        self._model, self._task, self._precision, self._num_passes = model, task, precision, num_passes

    def peak_bytes(self, few: Batch, size: int) -> int:
        """The most that its tensors take up at one moment.

        Args:
            few: Some samples.
            size: Of the batch.
        """
        ways = [self.from_small_steps, self.without_computing]
        work = sum(p.numel() for p in self._model.parameters()) * sum(leaf[0].numel() for leaf in leaves(few))
        if work > _MUCH_WORK[self._precision]:
            ways.reverse()
        try:
            return ways[0](few, size)
        except Exception:  # a network may look at values that are not there, and raises whatever it likes then
            return ways[1](few, size)

    def without_computing(self, few: Batch, size: int) -> int:
        """The same from a step of the whole batch whose tensors have no values."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        model = _with_tensors(copy.deepcopy(self._model), fake.from_tensor)
        with fake:
            batch = tree_map(lambda leaf: torch.zeros(size, *leaf.shape[1:], dtype=leaf.dtype), few)
            return max(self._bytes_over_time(model, batch))

    def from_small_steps(self, few: Batch, size: int) -> int:
        """The same from two small steps: the bytes at each moment are a line over the batch size.

        Where the steps consist of different operations, the line is drawn through their peaks.
        """
        there = num_samples(few)
        small, large = min(SMALL[0], there), there
        found = [self._bytes_over_time(copy.deepcopy(self._model), split_batch(few, num)[0]) for num in (small, large)]
        if small == large:
            return max(found[0]) * size // small
        if len(found[0]) != len(found[1]):
            found = [[max(one)] for one in found]
        return max(last + (last - first) * (size - large) // (large - small)
                   for first, last in zip(*found, strict=True))

    def _bytes_over_time(self, model: nn.Module, batch: Batch) -> list[int]:
        model.train()
        live = _Live([*model.parameters(), *model.buffers(), *leaves(batch)])
        with seeded(0), live:
            for _ in range(self._num_passes):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._precision == "bf16"):
                    loss = self._task.training_step(model, batch)[0]
                loss.backward()
        return live.over_time


def _with_tensors(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Replace all parameters and buffers in place; what is shared stays shared."""
    made: dict[int, Tensor] = {}

    def converted(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = convert(tensor.detach())
            made[id(tensor)] = (nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new)
        return made[id(tensor)]

    for module in model.modules():
        held: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = converted(tensor)
    return model


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made within, as long as somebody holds them.

    Args:
        known: Tensors that were there before.

    Attributes:
        over_time: The bytes after each new one.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._now = 0
        self.over_time = [0]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler, which takes seconds, to keep it away from what is never compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and look at what came out."""
        made = func(*args, **(kwargs or {}))
        for tensor in leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += num_bytes
        self.over_time.append(self._now)
        weakref.finalize(storage, self._freed, key, num_bytes)

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._now -= num_bytes
