"""User code of the chaos runs: an ordinary network and score, whose import lets a write fail when the harness asks.

It is imported by the driver, by every particle worker, and (for the score) by the averaging actor.
"""

from __future__ import annotations

import errno
import os

from torch import Tensor, nn

FLAG_VARIABLE = "SWAMP_TEST_FAILING_WRITE"
"""Environment variable with the path of a file: while it exists, the next fsync of any process fails and removes it."""


def network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Two convolutions with BatchNorm, and a linear layer."""
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def magnitude(weights: Tensor, rewind_weights: Tensor) -> Tensor:
    """``|w|``."""
    return weights.abs()


def _let_writes_fail(flag: str) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        try:
            os.unlink(flag)
        except FileNotFoundError:
            fsync(descriptor)
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = failing


if FLAG_VARIABLE in os.environ:
    _let_writes_fail(os.environ[FLAG_VARIABLE])
