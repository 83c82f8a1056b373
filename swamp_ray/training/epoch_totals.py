"""Losses and metrics of the steps of an epoch, collected without synchronising with the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_JOINED_AT = 256
"""So many scalars are joined into one tensor: each scalar takes up a whole block of a GPU's memory until then."""


class EpochTotals:
    """Losses by step, and sums of metrics.

    A step's values are only stored, which launches no kernel. They are read at the end of the epoch, and metrics are
    summed there, in the order of the steps and in their own precision.

    Args:
        losses: Of the epoch's earlier steps, float32 ``[steps]``.
        sums: Of the metrics of these steps.
    """

    def __init__(self, losses: Tensor | None = None, sums: Mapping[str, Tensor] | None = None) -> None:
        self._losses = _Scalars()
        self._metrics: dict[str, _Scalars] = {}
        self._earlier_losses = torch.zeros(0) if losses is None else losses.cpu()
        self._earlier_sums = {name: value.cpu() for name, value in (sums or {}).items()}

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Store the scalars of one step; nobody may write to them afterwards."""
        self._losses.add(loss)
        for name, value in metrics.items():
            if name not in self._metrics:
                self._metrics[name] = _Scalars()
            self._metrics[name].add(value)

    def losses(self) -> Tensor:
        """The losses of all steps so far, float32 ``[steps]`` on the host."""
        return torch.cat([self._earlier_losses, self._losses.read().float()])

    def sums(self) -> dict[str, Tensor]:
        """The sum of each metric over all steps so far, on the host."""
        found = dict(self._earlier_sums)
        for name, values in self._metrics.items():
            found[name] = _sum_in_order(values.read(), found.get(name))
        return found


def _sum_in_order(values: Tensor, start: Tensor | None) -> Tensor:
    """The sum with one addition and one rounding a value, as if each step had added its own."""
    if start is not None:
        values = torch.cat([start.to(values.dtype)[None], values])
    if values.dtype == torch.bfloat16:  # NumPy has no such type
        return functools.reduce(torch.add, values.unbind())
    return torch.from_numpy(np.add.accumulate(values.numpy(), axis=0))[-1]


class _Scalars:
    """Scalar tensors in order."""

    def __init__(self) -> None:
        self._single: list[Tensor] = []
        self._joined: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        # A user's task may report plain numbers.
        self._single.append(value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))
        if len(self._single) == _JOINED_AT:
            self._join()

    def read(self) -> Tensor:
        """All of them in one tensor on the host."""
        if self._single:
            self._join()
        return torch.cat(self._joined).cpu() if self._joined else torch.zeros(0)

    def _join(self) -> None:
        self._joined.append(torch.stack(self._single))
        self._single = []
