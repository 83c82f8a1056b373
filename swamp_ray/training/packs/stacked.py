"""Networks of one architecture as one computation: batched matrix products and grouped convolutions.

All seats' parameters lie side by side in tensors ``[k, ...]``, of which each seat's network holds its slice. The
forward pass is the usual one under ``torch.func.vmap``, so that any network that vmap can transform can be packed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from swamp_ray.data.trees import leaves, split_batch, tree_map
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch, Task


class StackedGradients:
    """The joint computation of several trainers' gradients.

    A pack that is not full computes as much as a full one, because libraries may add up a product's terms in another
    order where there are fewer products.

    Args:
        models: One a seat; from now on their parameters and buffers are slices of shared tensors.
        task: What is learned.
        autocast: The precision of forward passes.
        micro_batch: Gradients are accumulated over parts of this size.
        channels_last: Memory layout of images.
        compiled: Whether the joint forward pass is compiled.
    """

    def __init__(
        self, models: Sequence[nn.Module], task: Task, *, autocast: Callable[[], AbstractContextManager[Any]],
        micro_batch: int | None = None, channels_last: bool = False, compiled: bool = False,
    ) -> None:
        self._num, self._autocast, self._micro_batch = len(models), autocast, micro_batch
        self._channels_last = channels_last
        self._step = _Step(_without_memory(models[0]), task)
        self._own = [dict(model.named_parameters()) for model in models]
        self._tensors = {**_side_by_side(self._own), **_side_by_side([dict(model.named_buffers()) for model in models])}
        self._joint: Any = torch.compile(self._forward) if compiled else self._forward

    def __call__(self, batches: Mapping[int, Batch]) -> dict[int, Gradients]:
        """Leave the gradients of each seat's batch in that seat's parameters."""
        filler = next(iter(batches.values()))
        every = [batches.get(seat, filler) for seat in range(self._num)]
        with warnings.catch_warnings():  # of operations that are done one member after the other
            warnings.filterwarnings("ignore", message="There is a performance drop")
            losses, metrics = self._backward(every)
        self._hand_out(batches)
        return {seat: (losses[seat], {name: values[seat] for name, values in metrics.items()}) for seat in batches}

    def _backward(self, batches: Sequence[Batch]) -> Gradients:
        """Losses ``[k]`` and metrics ``[k]`` each; gradients are left in the shared tensors."""
        self._step.train()
        if self._micro_batch is None:
            losses, metrics = self._joint(*self._side_by_side(batches))
            losses.sum().backward()
            return losses.detach(), metrics
        parts = list(zip(*(split_batch(batch, self._micro_batch) for batch in batches), strict=True))
        total, sums = torch.zeros((), device=leaves(batches[0])[0].device), {}
        for part in parts:
            losses, metrics = self._joint(*self._side_by_side(part))
            (losses / len(parts)).sum().backward()
            total = total + losses.detach() / len(parts)
            for name, values in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(values)) + values / len(parts)
        return total, sums

    def _forward(self, batch: Batch, dims: Any) -> Gradients:
        def one(tensors: dict[str, Tensor], own: Batch) -> Gradients:
            with self._autocast():
                return functional_call(self._step, tensors, (own,))

        return vmap(one, in_dims=(0, dims), randomness="error")(self._tensors, batch)

    def _side_by_side(self, batches: Sequence[Batch]) -> tuple[Batch, Any]:
        """One batch for all seats, and which dimension of each leaf counts the seats.

        Images are laid out as the channels of a grouped convolution, ``[B, k, C, H, W]``, which then copies nothing.
        """
        columns = zip(*(leaves(batch) for batch in batches), strict=True)
        joined = iter([self._join(column) for column in columns])
        batch = tree_map(lambda _: next(joined), batches[0])
        return batch, tree_map(lambda leaf: 1 if _is_images(leaf) else 0, batches[0])

    def _join(self, column: Sequence[Tensor]) -> Tensor:
        if not _is_images(column[0]):
            return torch.stack(list(column))
        size, channels, *extent = column[0].shape
        together = torch.cat(list(column), dim=1)
        if self._channels_last:
            together = together.contiguous(memory_format=torch.channels_last)
        return together.view(size, len(column), channels, *extent)

    def _hand_out(self, seats: Mapping[int, Batch]) -> None:
        """Give each seat its slice of the gradients; those of padding are dropped."""
        for name in self._own[0]:
            shared = self._tensors[f"model.{name}"]
            gradient, shared.grad = shared.grad, None
            for seat in seats:
                self._own[seat][name].grad = None if gradient is None else gradient[seat]


class _Step(nn.Module):
    """A network together with what is computed of a batch, so that a task may use the network as it likes."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Batch) -> Gradients:
        return self._task.training_step(self.model, batch)


def _without_memory(model: nn.Module) -> nn.Module:
    """The network's code with empty tensors; those that several modules share stay shared."""
    shell = copy.deepcopy(model)
    for tensor in [*shell.parameters(), *shell.buffers()]:
        tensor.data = tensor.data.new_empty(0)
    return shell


def _side_by_side(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One tensor ``[k, ...]`` for each of the members' tensors, which become its slices and keep their layout."""
    found = {}
    for name, first in members[0].items():
        shared = first.new_empty(0).set_(  # as many elements as all have, each member's in its own order
            torch.empty(len(members) * first.numel(), dtype=first.dtype, device=first.device).untyped_storage(),
            0, (len(members), *first.shape), (first.numel(), *first.stride()))
        for seat, member in enumerate(members):
            shared[seat].copy_(member[name].detach())
            member[name].data = shared[seat]
        found[f"model.{name}"] = shared.requires_grad_(first.requires_grad)
    return found


def _is_images(leaf: Tensor) -> bool:
    return leaf.ndim == 4 and leaf.is_floating_point()
