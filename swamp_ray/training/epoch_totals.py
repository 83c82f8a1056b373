"""What the steps of an epoch report, collected without a word to the host."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_AT_A_TIME = 256
"""Scalars that wait before they are put into one tensor; each takes up a block of a GPU's memory until then."""


class EpochTotals:
    """Losses by step, and sums of metrics.

    A step's values are only kept, which launches nothing. They are read at the end of the epoch, and metrics summed
    there, in the order of the steps and in their own precision.

    Args:
        losses: Of the epoch's steps before, float32 ``[steps]``.
        sums: Of their metrics.
    """

    def __init__(self, losses: Tensor | None = None, sums: Mapping[str, Tensor] | None = None) -> None:
        self._losses = _Scalars()
        self._metrics: dict[str, _Scalars] = {}
        self._before = torch.zeros(0) if losses is None else losses.cpu()
        self._sums = {name: value.cpu() for name, value in (sums or {}).items()}

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Keep what a step reports, scalars that nobody writes to any more."""
        self._losses.add(loss)
        for name, value in metrics.items():
            if name not in self._metrics:
                self._metrics[name] = _Scalars()
            self._metrics[name].add(value)

    def losses(self) -> Tensor:
        """Of all steps so far, float32 ``[steps]`` on the host."""
        return torch.cat([self._before, self._losses.read().float()])

    def sums(self) -> dict[str, Tensor]:
        """Of each metric over all steps so far, on the host."""
        found = dict(self._sums)
        for name, values in self._metrics.items():
            found[name] = _sum_in_order(values.read(), found.get(name))
        return found


def _sum_in_order(values: Tensor, start: Tensor | None) -> Tensor:
    """One value after the other is added, rounding each time, as if each step had done it."""
    if start is not None:
        values = torch.cat([start.to(values.dtype)[None], values])
    if values.dtype != torch.bfloat16:
        return torch.from_numpy(np.add.accumulate(values.numpy(), axis=0))[-1]
    return functools.reduce(torch.add, values.unbind())


class _Scalars:
    """Scalar tensors in order."""

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._joined: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        # A task of somebody's own may report plain numbers.
        self._waiting.append(value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))
        if len(self._waiting) == _AT_A_TIME:
            self._join()

    def read(self) -> Tensor:
        """All of them in one tensor on the host."""
        if self._waiting:
            self._join()
        return torch.cat(self._joined).cpu() if self._joined else torch.zeros(0)

    def _join(self) -> None:
        self._joined.append(torch.stack(self._waiting))
        self._waiting = []
