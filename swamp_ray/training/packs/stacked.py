"""Gradients of several networks of one architecture as one computation: batched products and grouped convolutions.

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

from swamp_ray.data.trees import leaves, split_batch, tree_map, with_leaves
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
        self._num = len(models)
        self._autocast = autocast
        self._micro_batch = micro_batch
        self._channels_last = channels_last
        self._step = _Step(_without_memory(models[0]), task)
        self._parameters = [dict(model.named_parameters()) for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        self._tensors = _side_by_side(self._parameters) | _side_by_side(buffers)
        self._joint: Any = torch.compile(self._forward) if compiled else self._forward

    def __call__(self, batches: Mapping[int, Batch]) -> dict[int, Gradients]:
        """Leave the gradients of each seat's batch in that seat's parameters."""
        padding = next(iter(batches.values()))
        padded = [batches.get(seat, padding) for seat in range(self._num)]
        with warnings.catch_warnings():
            # vmap warns of operations that it can only do for one seat after the other.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            losses, metrics = self._backward(padded)
        self._distribute_gradients(batches)
        found = {}
        for seat in batches:
            own = {name: values[seat] for name, values in metrics.items()}
            found[seat] = (losses[seat], own)
        return found

    def _backward(self, batches: Sequence[Batch]) -> Gradients:
        """Losses ``[k]`` and metrics ``[k]`` each; gradients are left in the shared tensors."""
        self._step.train()
        if self._micro_batch is None:
            losses, metrics = self._joint(*self._side_by_side(batches))
            losses.sum().backward()
            return losses.detach(), metrics
        divided = [split_batch(batch, self._micro_batch) for batch in batches]
        num_parts = len(divided[0])
        total = torch.zeros((), device=leaves(batches[0])[0].device)
        sums: dict[str, Tensor] = {}
        for parts in zip(*divided, strict=True):
            losses, metrics = self._joint(*self._side_by_side(parts))
            (losses / num_parts).sum().backward()
            total = total + losses.detach() / num_parts
            for name, values in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(values)) + values / num_parts
        return total, sums

    def _forward(self, batch: Batch, dims: Any) -> Gradients:
        def step_of_seat(tensors: dict[str, Tensor], own: Batch) -> Gradients:
            with self._autocast():
                return functional_call(self._step, tensors, (own,))

        return vmap(step_of_seat, in_dims=(0, dims), randomness="error")(self._tensors, batch)

    def _side_by_side(self, batches: Sequence[Batch]) -> tuple[Batch, Any]:
        """One batch for all seats, and which dimension of each leaf counts the seats.

        Images are laid out as the channels of a grouped convolution, ``[B, k, C, H, W]``, which then copies nothing.
        """
        joined = []
        for same_leaf in zip(*map(leaves, batches), strict=True):
            joined.append(self._join(same_leaf))
        dims = tree_map(lambda leaf: 1 if _is_images(leaf) else 0, batches[0])
        return with_leaves(batches[0], joined), dims

    def _join(self, same_leaf: Sequence[Tensor]) -> Tensor:
        """One leaf of all seats' batches as one tensor."""
        if not _is_images(same_leaf[0]):
            return torch.stack(list(same_leaf))
        size, channels, *extent = same_leaf[0].shape
        together = torch.cat(list(same_leaf), dim=1)
        if self._channels_last:
            together = together.contiguous(memory_format=torch.channels_last)
        return together.view(size, len(same_leaf), channels, *extent)

    def _distribute_gradients(self, seats: Mapping[int, Batch]) -> None:
        """Give each seat its slice of the gradients; padding gets none."""
        for name in self._parameters[0]:
            shared = self._tensors[f"model.{name}"]
            gradient = shared.grad
            shared.grad = None
            for seat in seats:
                self._parameters[seat][name].grad = None if gradient is None else gradient[seat]


class _Step(nn.Module):
    """A training step as a module, so that ``functional_call`` replaces the network's tensors inside the task."""

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
        # As many elements as all members have, each member's in its own order of dimensions.
        storage = torch.empty(len(members) * first.numel(), dtype=first.dtype, device=first.device).untyped_storage()
        shared = first.new_empty(0).set_(storage, 0, (len(members), *first.shape), (first.numel(), *first.stride()))
        for seat, member in enumerate(members):
            shared[seat].copy_(member[name].detach())
            member[name].data = shared[seat]
        found[f"model.{name}"] = shared.requires_grad_(first.requires_grad)
    return found


def _is_images(leaf: Tensor) -> bool:
    return leaf.ndim == 4 and leaf.is_floating_point()
