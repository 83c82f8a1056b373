"""What training and evaluating a particle give: gradients of a batch, progress, evaluations, the trained particle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from swamp_ray.sparsity.compact import CompactState

Arrays = Mapping[str, np.ndarray]
Gradients = tuple[Tensor, dict[str, Tensor]]
"""Mean loss and means of metrics of a batch whose gradients lie in the parameters."""


@dataclass(frozen=True)
class Progress:
    """Where a particle stands after an epoch.

    Attributes:
        epoch: Finished epochs.
        num_epochs: Epochs in all.
        step: Finished optimiser steps.
        loss: Mean training loss of the epoch.
        lr: Learning rate of its last step.
        samples_per_s: Training throughput of the epoch.
        metrics: Further means over the epoch, e.g. training accuracy.
    """

    epoch: int
    num_epochs: int
    step: int
    loss: float
    lr: float
    samples_per_s: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one network by split (``{"validation": {"accuracy": ...}, ...}``), and its buffers."""

    metrics: dict[str, dict[str, float]]
    buffers: dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainedParticle:
    """The result of a finished training run.

    Attributes:
        packed: Surviving weights and all other parameters.
        evaluation: The network with re-estimated normalisation statistics.
        as_trained: Metrics with the statistics that training left; None where weights were averaged.
        history: One record an epoch.
        mask: The mask that training ended with, bool ``[P]``; None: the one that it began with.
    """

    compact: CompactState
    evaluation: Evaluation
    as_trained: dict[str, dict[str, float]] | None
    history: list[dict[str, Any]]
    mask: np.ndarray | None = None
