"""Averages of networks, over particles and along one particle, and normalisation statistics for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.errors import RunError
from swamp_ray.sparsity.compact import CompactState, chunks

_BLOCK = 1 << 18
_ROW = 1 << 13
"""So many squares are summed at once; part of what makes two sums the same bits."""


class OrderedMean:
    """The mean over particles: one float64 accumulator, rounded to float32 once.

    Particles are added in index order, whichever finished first, so that the sum has the same bits.

    Attributes:
        count: How many were added.
        squares: Sums of the squares of all surviving weights that were added, one for each chunk of a state.
    """

    def __init__(self) -> None:
        self._room = np.zeros(0)
        self.clear()

    def clear(self) -> None:
        """Begin anew, in the same memory: to touch new pages takes as long as an addition."""
        self.count = 0
        self.squares: list[float] = []
        self._values: np.ndarray | None = None
        self._rest: np.ndarray | None = None

    def borrow(self, size: int) -> np.ndarray:
        """The accumulator's memory for something else, float32 ``[size]``, until the next particle is added."""
        self.clear()
        if self._room.size < size / 2:
            return np.empty(size, dtype=np.float32)
        return self._room.view(np.float32)[:size]

    def add(self, compact: CompactState) -> None:
        """Add the next particle; the given arrays are only read.

        Raises:
            RunError: Its shape is not that of the others, or it is not finite.
        """
        if not (is_finite(compact.values) and is_finite(compact.rest)):
            raise RunError("a particle's weights are not finite and cannot be averaged")
        if self._values is None or self._rest is None:
            self._values = self._empty(compact.values.size)
            self._rest = np.empty(compact.rest.size)
            self.squares = [0.0] * len(chunks(compact.values.size))
        elif compact.values.shape != self._values.shape or compact.rest.shape != self._rest.shape:
            raise RunError(f"particles of a round must share their mask, but one has {compact.values.size} surviving "
                           f"weights and {compact.rest.size} others instead of {self._values.size} and "
                           f"{self._rest.size}")
        # The first is copied, not added to 0, which would turn negative zeros into positive ones.
        first = self.count == 0
        found = [_accumulate(self._values[begin:end], compact.values[begin:end], first)
                 for begin, end in chunks(compact.values.size)]
        _accumulate(self._rest, compact.rest, first)
        self.squares = [old + new for old, new in zip(self.squares, found, strict=True)]
        self.count += 1

    def mean(self, room: np.ndarray | None = None) -> CompactState:
        """The mean of what was added.

        Args:
            room: Memory for its values that is not needed any more, float32; used where it has about the right size.

        Raises:
            RunError: Nothing was added.
        """
        if self._values is None or self._rest is None or self.count == 0:
            raise RunError("there is nothing to average")
        values = np.empty(0, np.float32) if room is None else room
        if not self._values.size <= values.size <= 2 * self._values.size:
            values = np.empty(self._values.size, np.float32)
        return CompactState(_divided(self._values, self.count, values[:self._values.size]),
                      _divided(self._rest, self.count, np.empty(self._rest.size, np.float32)))

    def _empty(self, size: int) -> np.ndarray:
        if not size <= self._room.size <= 2 * size:
            self._room = np.zeros(0)  # the old one first, so that they are not both there
            self._room = np.empty(size)
        return self._room[:size]


def is_finite(array: np.ndarray) -> bool:
    """Whether no float32 element is NaN or infinite; memory is read once, and nothing as long as the array is made."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return all(_is_finite(array[begin:begin + _BLOCK]) for begin in range(0, array.size, _BLOCK))


def _is_finite(block: np.ndarray) -> bool:
    # Squares cannot cancel: only where their sum is not finite, which finite ones may reach too, is each looked at.
    rows, tail = _rows(block)
    sums = np.vecdot(rows, rows)
    return bool((np.isfinite(sums).all() and np.isfinite(np.vecdot(tail, tail))) or np.isfinite(block).all())


def _rows(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = block.size // _ROW * _ROW
    return block[:whole].reshape(-1, _ROW), block[whole:]


def _square_sum(before: float, block: np.ndarray) -> float:
    """A sum and the squares of a float64 block, row after row."""
    rows, tail = _rows(block)
    for square in np.vecdot(rows, rows).tolist():
        before += square
    return before + float(np.vecdot(tail, tail)) if tail.size else before


def _accumulate(total: np.ndarray, array: np.ndarray, first: bool) -> float:
    """Add (or, as the first, write) float32 to float64, a block at a time; returns the sum of squares."""
    wide = np.empty(min(_BLOCK, array.size))
    squares = 0.0
    for begin in range(0, array.size, _BLOCK):
        block = array[begin:begin + _BLOCK]
        target = total[begin:begin + _BLOCK]
        part = target if first else wide[:block.size]
        np.copyto(part, block)
        if not first:
            np.add(target, part, out=target)
        squares = _square_sum(squares, part)
    return squares


def _divided(total: np.ndarray, count: int, mean: np.ndarray) -> np.ndarray:
    """``total / count`` in float64, rounded to float32 once, without a float64 copy of the whole."""
    wide = np.empty(min(_BLOCK, total.size))
    for begin in range(0, total.size, _BLOCK):
        part = wide[:min(_BLOCK, total.size - begin)]
        np.divide(total[begin:begin + _BLOCK], count, out=part)
        np.copyto(mean[begin:begin + _BLOCK], part, casting="same_kind")
    return mean


def square_sums(values: np.ndarray) -> list[float]:
    """Sums of squares of float32 values in float64, one for each chunk of a state."""
    wide = np.empty(min(_BLOCK, values.size))
    sums = []
    for first, last in chunks(values.size):
        squares = 0.0
        for begin in range(first, last, _BLOCK):
            part = wide[:min(_BLOCK, last - begin)]
            np.copyto(part, values[begin:min(last, begin + _BLOCK)])
            squares = _square_sum(squares, part)
        sums.append(squares)
    return sums


class SnapshotMean:
    """The mean of weight snapshots along one training run (SWA; Izmailov et al., 2018).

    The sum is kept in float64 on the particle's device (float32 where the device has no float64).

    Args:
        params: The trained tensors; snapshots have their shapes and order.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.count = 0
        self._sums = [torch.zeros_like(p, dtype=_wide(p), requires_grad=False) for p in params]

    @torch.no_grad()
    def update(self, params: Sequence[Tensor]) -> None:
        """Add a snapshot."""
        for total, parameter in zip(self._sums, params, strict=True):
            total += parameter
        self.count += 1

    @torch.no_grad()
    def mean_into_(self, params: Sequence[Tensor]) -> None:
        """Write the mean into tensors.

        Raises:
            RunError: No snapshot was taken.
        """
        if self.count == 0:
            raise RunError("no snapshot was taken, so there is no mean")
        for parameter, total in zip(params, self._sums, strict=True):
            parameter.copy_(total / self.count)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number, for a checkpoint."""
        return {"count": self.count, "sums": [total.to("cpu", copy=True) for total in self._sums]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        for total, saved in zip(self._sums, state["sums"], strict=True):
            total.copy_(saved)
        self.count = int(state["count"])


class ExponentialMean:
    """The exponential mean ``e = decay * e + (1 - decay) * w`` along one training run, from the first ``w`` on.

    Args:
        params: The trained tensors.
        decay: In (0, 1).
    """

    def __init__(self, params: Sequence[Tensor], decay: float) -> None:
        self.count = 0
        self._decay = decay
        self._means = [torch.zeros_like(p, dtype=_wide(p), requires_grad=False) for p in params]

    @torch.no_grad()
    def update(self, params: Sequence[Tensor]) -> None:
        """Move the mean towards the weights."""
        for mean, parameter in zip(self._means, params, strict=True):
            if self.count == 0:
                mean.copy_(parameter)
            else:
                mean.lerp_(parameter.to(mean.dtype), 1.0 - self._decay)
        self.count += 1

    @torch.no_grad()
    def restrict_(self, params: Sequence[Tensor], some: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Forget what was averaged of weights that do not continue when a mask changes.

        Args:
            params: The trained tensors, as they were given first.
            some: Those of them that have a mask.
            masks: Of each a 0/1 tensor.
        """
        places = {id(parameter): place for place, parameter in enumerate(params)}
        for parameter, mask in zip(some, masks, strict=True):
            self._means[places[id(parameter)]] *= mask

    @torch.no_grad()
    def mean_into_(self, params: Sequence[Tensor]) -> None:
        """Write the mean into tensors.

        Raises:
            RunError: Nothing was added yet.
        """
        if self.count == 0:
            raise RunError("no weights were averaged, so there is no mean")
        for parameter, mean in zip(params, self._means, strict=True):
            parameter.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number, for a checkpoint."""
        return {"count": self.count, "means": [mean.to("cpu", copy=True) for mean in self._means]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        for mean, saved in zip(self._means, state["means"], strict=True):
            mean.copy_(saved)
        self.count = int(state["count"])


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64










