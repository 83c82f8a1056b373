"""A task whose training step sleeps for a known time: particles that need workers, and hardly any processor."""

from __future__ import annotations

import time

from torch import Tensor, nn

from swamp_ray.training.tasks import Batch, Classification


class SleepingClassification(Classification):
    """Classification; every step with a whole batch sleeps first.

    Args:
        sleep_s: Seconds a step.
        batch_size: A smaller batch, such as that of the check before a run, does not sleep.
    """

    def __init__(self, sleep_s: float, batch_size: int) -> None:
        super().__init__()
        self._sleep_s, self._batch_size = sleep_s, batch_size

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sleep, then one real step."""
        if len(batch[1]) == self._batch_size:
            time.sleep(self._sleep_s)
        return super().training_step(model, batch)


def network(num_classes: int, input_shape: tuple[int, ...], width: int = 8) -> nn.Module:
    """Two linear layers; width x (inputs + classes) prunable weights."""
    inputs = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, num_classes))
