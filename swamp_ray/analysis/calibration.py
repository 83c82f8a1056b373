"""Whether a classifier's probabilities can be believed: of its average, its particles, and their ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.analysis.bench import Bench, Point
from swamp_ray.data.pairs import built_in_pair
from swamp_ray.errors import UserError
from swamp_ray.training.tasks import Classification

NUM_BINS = 15
SPLITS = ("validation", "test")
AVERAGE = "average"
PARTICLES = "particles"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Bins:
    """Samples by the probability of the class that was predicted, in 15 bins of equal width over (0, 1].

    Attributes:
        count: How many fell into each.
        confidence: Their mean probability; 0 in an empty bin.
        accuracy: Share of them whose class was right; 0 in an empty bin.
    """

    count: list[int]
    confidence: list[float]
    accuracy: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., 2017): |accuracy - confidence|, weighted with the counts."""
        gaps = np.abs(np.array(self.accuracy) - np.array(self.confidence))
        return float(np.average(gaps, weights=self.count)) if sum(self.count) else 0.0


@dataclass(frozen=True)
class Calibration:
    """Of one network's predictions on a split.

    Attributes:
        loss: Mean negative log-likelihood.
        accuracy: Share of samples whose most probable class is the right one.
        ece: Expected calibration error.
        bins: What it is made of.
    """

    loss: float
    accuracy: float
    ece: float
    bins: Bins


def calibration_of(log_probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """How well predictions are calibrated.

    Args:
        log_probabilities: ``[samples, classes]``.
        labels: Right classes, int ``[samples]``.
    """
    values = log_probabilities.astype(np.float64)
    right = values.argmax(axis=1) == labels
    bins = binned(np.exp(values.max(axis=1)), right)
    loss = -float(np.mean(values[np.arange(len(labels)), labels]))
    return Calibration(loss, float(right.mean()), bins.error, bins)


def binned(confidence: np.ndarray, right: np.ndarray) -> Bins:
    """Put samples into bins; a probability on a bound belongs to the bin below it.

    Args:
        confidence: Probability of the predicted class, float ``[samples]``.
        right: Whether that class was right, bool ``[samples]``.
    """
    places = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    count = np.bincount(places, minlength=NUM_BINS)
    sums = [np.bincount(places, weights=one, minlength=NUM_BINS) for one in (confidence, right.astype(np.float64))]
    means = [np.divide(one, count, out=np.zeros(NUM_BINS), where=count > 0) for one in sums]
    return Bins(count.tolist(), means[0].tolist(), means[1].tolist())


def pooled(several: Sequence[Bins]) -> Bins:
    """The bins of several networks' predictions together."""
    counts = np.array([one.count for one in several])
    total = counts.sum(axis=0)
    means = [np.divide((counts * np.array(values)).sum(axis=0), total, out=np.zeros(NUM_BINS), where=total > 0)
             for values in ([one.confidence for one in several], [one.accuracy for one in several])]
    return Bins(total.tolist(), means[0].tolist(), means[1].tolist())


def calibration_rows(bench: Bench, index: int) -> list[dict[str, Any]]:
    """A round's rows: its average, and of several particles whose states are stored their mean and their ensemble.

    Each has ``loss``, ``accuracy`` and ``ece`` by split, and the bins of the test split.

    Raises:
        UserError: The run's task is no classification, or the average is gone.
    """
    check_classification(bench)
    labels = {split: _labels(bench, split) for split in SPLITS}
    average = bench.average(index)
    found = {AVERAGE: {split: _measured(bench, average, split, labels[split]) for split in SPLITS}}
    rows = [_row(bench, index, AVERAGE, 1, found[AVERAGE])]
    points = _stored_particles(bench, index)
    if len(points) > 1:
        together = {split: _of_particles(bench, points, split, labels[split]) for split in SPLITS}
        rows += [_row(bench, index, name, len(points), {split: both[number] for split, both in together.items()})
                 for number, name in enumerate((PARTICLES, ENSEMBLE))]
    return rows


def _labels(bench: Bench, split: str) -> np.ndarray:
    """The labels of a split, int64 ``[N]``."""
    return np.concatenate([built_in_pair(batch, "data.name")[1].cpu().numpy() for batch in bench.batches(split)])


def check_classification(bench: Bench) -> None:
    """Refuse a run without classes.

    Raises:
        UserError: It is one.
    """
    if not isinstance(bench.task, Classification):
        raise UserError("calibration is of predicted probabilities, and this run's task is no classification",
                        got=bench.config.task.name, where="RUN",
                        do="Analyse a run with task.name: classification, or a subclass of swamp_ray's Classification.")


def _stored_particles(bench: Bench, index: int) -> list[Point]:
    try:
        return bench.particles(index)
    except UserError:  # their states were not kept
        return []


def _measured(bench: Bench, point: Point, split: str, labels: np.ndarray) -> Calibration:
    return calibration_of(_joined(bench.predict(point, split)), labels)


def _of_particles(bench: Bench, points: Sequence[Point], split: str, labels: np.ndarray
                  ) -> tuple[Calibration, Calibration]:
    """The mean over particles, with the bins of all of them together, and their ensemble; one is held at a time."""
    single: list[Calibration] = []
    total = np.zeros(0)
    for point in points:
        values = _joined(bench.predict(point, split)).astype(np.float64)
        single.append(calibration_of(values, labels))
        total = values if len(single) == 1 else np.logaddexp(total, values)
    loss, accuracy, ece = np.mean([(one.loss, one.accuracy, one.ece) for one in single], axis=0).tolist()
    mean = Calibration(loss, accuracy, ece, pooled([one.bins for one in single]))
    return mean, calibration_of(total - math.log(len(points)), labels)


def _joined(predictions: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(predictions)).cpu().numpy()


def _row(bench: Bench, index: int, network: str, count: int, found: dict[str, Calibration]) -> dict[str, Any]:
    values = {split: {"loss": one.loss, "accuracy": one.accuracy, "ece": one.ece} for split, one in found.items()}
    return {"round": index, "sparsity": bench.sparsity(index), "network": network, "count": count, **values,
            "bins": asdict(found["test"].bins)}
