"""An estimate of the memory that a particle takes up on its device, before it is trained.

What stays through a training (weights, the optimiser's state, masks, means, data) is computed from the config. What a
training step needs besides is measured by taking one: each tensor that an operation makes counts while it lives, so
that activations, gradients and temporaries are known together at the moment of their peak. There are two ways: two
small steps, from which every moment is extrapolated to the whole batch, or one step of the whole batch with fake
tensors, which have shapes and no values.
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
"""Weights x elements of a sample from which on fake tensors come first: small steps may take longer than the two
seconds in which torch sets fake tensors up. Not every processor is fast in bfloat16."""
_DRAW_BYTES = 25
"""Bytes of a sample's position in the order of an epoch, its crop and its flip."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors on a device, without what libraries and kernels take for themselves.

    Attributes:
        weights: Parameters, buffers, the optimiser's state, masks, and the mean along the training.
        step: Peak of the tensors that come and go: in a training step a batch, activations, gradients and temporaries.
            In networks with few activations, a snapshot or the copying of the weights at the end may take more.
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
    """The estimated memory of particles that train in one process.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: As resolved for it.
        masked: Whether some weights are pruned.
        num_members: How many particles train side by side; they share the data.

    Raises:
        Exception: Whatever the network or the task raises where a step can be taken in neither way.
    """
    model = initial_model(config, data)
    task = build_task(config.task)
    training = config.training
    rank_batch = training.batch_size // arithmetic.ranks
    forward_size = training.micro_batch or rank_batch
    num_passes = 1 if training.micro_batch is None else 2
    few = _first_batch(data.train, forward_size)
    group_size = rank_batch * _num_together(few, rank_batch, data.train, arithmetic.device)
    batch = _batch_bytes(few, group_size, data.train)
    computing = TracedStep(model, task, arithmetic.precision, num_passes).peak_bytes(few, forward_size)
    step = max(batch + computing, batch + _snapshot_bytes(config, model),
               _next_batch_bytes(few, group_size, data.train), _collected_bytes(model, arithmetic.channels_last))
    weights = _weight_bytes(config, model, masked)
    if arithmetic.ranks > 1:
        weights += _trained_bytes(model)  # the buckets through which gradients are exchanged
    return MemoryEstimate(num_members * weights, num_members * step, _data_bytes(config, data, arithmetic))


def _trained_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def _snapshot_bytes(config: SwampConfig, model: nn.Module) -> int:
    """The float64 copy of the largest parameter, made when it enters the mean along the training."""
    if config.averaging.within == "none":
        return 0
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return 8 * max(trained, default=0)


def _collected_bytes(model: nn.Module, channels_last: bool) -> int:
    """The copy of all weights at the end of a training; weights in channels-last order are copied twice."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        if channels_last and parameter.ndim == 4 and parameter.shape[1] > 1 and parameter[0, 0].numel() > 1:
            total += parameter.nbytes
    return total


def _weight_bytes(config: SwampConfig, model: nn.Module, masked: bool) -> int:
    """What stays through a training, gradients aside."""
    training = config.training
    trained = _trained_bytes(model)
    moments = 2 if training.optimizer == "adamw" else int(training.momentum > 0)
    means = 2 if config.averaging.within != "none" else 0  # in float64
    prunable = find_prunable(model, config.pruning.include, config.pruning.exclude).num_prunable
    state = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    returns = 0 if training.sam_rho is None else trained  # what SAM's steps go back to
    each = state + (moments + means) * trained + returns + (4 * prunable if masked else 0)
    # Replicas hold their own while another one is in the network.
    return each if config.num_replicas == 1 else config.num_replicas * each + state


def _data_bytes(config: SwampConfig, data: Data, arithmetic: Arithmetic) -> int:
    resident = arithmetic.device == "cuda" and config.execution.data_on_device is not False
    total = _DRAW_BYTES * len(data.train) if isinstance(data.train, ArraySamples) else 0
    for samples in (data.train, data.validation, data.test):
        if isinstance(samples, ArraySamples):
            total += kept_bytes(samples, arithmetic.device, resident, training=samples is data.train)
    return total


def _first_batch(samples: Samples, size: int) -> Batch:
    """A small batch, as the network reads it."""
    batches = Batches(samples, device=torch.device("cpu"), channels_last=False, on_device=False)
    return next(iter(batches.one_pass(min(max(SMALL), size, len(samples)), seed=None, drop_last=False)))


def _num_together(few: Batch, size: int, samples: Samples, device: str) -> int:
    """How many batches of samples in memory are made at a time, and stay until the last of them is used."""
    if not isinstance(samples, ArraySamples):
        return 1
    return min(made_together(round(size * _sample_bytes(few)), device), max(1, len(samples) // size))


def _sample_bytes(few: Batch) -> float:
    return sum(leaf.nbytes for leaf in leaves(few)) / num_samples(few)


def _batch_bytes(few: Batch, size: int, samples: Samples) -> int:
    """A batch, and the bytes of its images before they are normalised."""
    total = round(size * _sample_bytes(few))
    if isinstance(samples, ArraySamples) and samples.images is not None:
        total += size * leaves(samples.arrays)[0][0].nbytes
    return total


def _next_batch_bytes(few: Batch, size: int, samples: Samples) -> int:
    """The last batch, and the next one while it is made: images exist twice for a moment when they are normalised."""
    copies = 3 if isinstance(samples, ArraySamples) and samples.images is not None else 2
    return copies * _batch_bytes(few, size, samples)


class TracedStep:
    """Counts the bytes of a training step's tensors, without the batch.

    Args:
        model: As it is initialised; it is not changed.
        task: Its loss.
        precision: fp32, or bf16 for a forward pass under autocast.
        num_passes: Backward passes without clearing the gradient: 2 stand for any number of them.
    """

    def __init__(self, model: nn.Module, task: Task, precision: str, num_passes: int = 1) -> None:
        self._model = model
        self._task = task
        self._precision = precision
        self._num_passes = num_passes

    def peak_bytes(self, few: Batch, size: int) -> int:
        """The peak of the step's tensors.

        Args:
            few: Some samples.
            size: Of the batch.
        """
        num_weights = sum(parameter.numel() for parameter in self._model.parameters())
        num_inputs = sum(leaf[0].numel() for leaf in leaves(few))
        ways = [self.from_small_steps, self.without_computing]
        if num_weights * num_inputs > _MUCH_WORK[self._precision]:
            ways.reverse()
        try:
            return ways[0](few, size)
        except Exception:  # a network that looks at values fails with fake tensors, in any way
            return ways[1](few, size)

    def without_computing(self, few: Batch, size: int) -> int:
        """The peak from a step of the whole batch with fake tensors."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        model = _with_tensors(copy.deepcopy(self._model), fake.from_tensor)
        with fake:
            batch = tree_map(lambda leaf: torch.zeros(size, *leaf.shape[1:], dtype=leaf.dtype), few)
            return max(self._bytes_over_time(model, batch))

    def from_small_steps(self, few: Batch, size: int) -> int:
        """The peak from two small steps: the bytes at each moment are a line over the batch size.

        Where the steps consist of different operations, the line is drawn through their peaks.
        """
        large = num_samples(few)
        small = min(SMALL[0], large)
        of_small = self._bytes_over_time(copy.deepcopy(self._model), split_batch(few, small)[0])
        of_large = self._bytes_over_time(copy.deepcopy(self._model), split_batch(few, large)[0])
        if small == large:
            return max(of_small) * size // small
        if len(of_small) != len(of_large):
            of_small = [max(of_small)]
            of_large = [max(of_large)]
        peak = 0
        for first, last in zip(of_small, of_large, strict=True):
            peak = max(peak, last + (last - first) * (size - large) // (large - small))
        return peak

    def _bytes_over_time(self, model: nn.Module, batch: Batch) -> list[int]:
        model.train()
        live = _LiveBytes([*model.parameters(), *model.buffers(), *leaves(batch)])
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
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, tensor.requires_grad)
            made[id(tensor)] = new
        return made[id(tensor)]

    for module in model.modules():
        own: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in own:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = converted(tensor)
    return model


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made in the block, while any reference to them is left.

    Args:
        known: Tensors that were there before.

    Attributes:
        over_time: The bytes after each new tensor.
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
        """Run an operation, and count the tensors that it returns."""
        made = func(*args, **(kwargs or {}))
        for tensor in leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        num_bytes = storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += num_bytes
        self.over_time.append(self._now)
        weakref.finalize(storage, self._freed, key, num_bytes)

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._now -= num_bytes
