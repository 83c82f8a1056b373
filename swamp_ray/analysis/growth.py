"""How many particles it takes: the average's accuracy, and the ensemble's, against how many of them enter."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from swamp_ray.analysis.bench import Bench, Metrics, mean_point
from swamp_ray.user_code.blaming import blamed

MAX_SUBSETS = 16
"""Of one size; beyond that, neighbours in the order of the particles are taken instead of all subsets."""


@dataclass(frozen=True)
class Growth:
    """What some of a round's particles give together.

    Attributes:
        count: How many entered.
        num_subsets: Over how many choices of them the means are.
        average: Metrics of the average of their weights, mean over the choices.
        ensemble: Metrics of their predictions together, likewise.
        spread: Standard deviation of the average's metrics over the choices; 0 for a single one.
    """

    count: int
    num_subsets: int
    average: Metrics
    ensemble: Metrics
    spread: Metrics


def growth(bench: Bench, index: int, splits: Sequence[str] = ("validation", "test")) -> list[Growth]:
    """Measure averages and ensembles of 1, 2, ..., N particles of a round."""
    points = bench.particles(index)
    predictions = {split: [bench.predict(point, split) for point in points] for split in splits}
    found = []
    for count in range(1, len(points) + 1):
        chosen = list(subsets(len(points), count))
        averages = [bench.measure(mean_point([points[n] for n in members]), splits) for members in chosen]
        ensembles = [{split: _together(bench, split, [predictions[split][n] for n in members]) for split in splits}
                     for members in chosen]
        found.append(Growth(count, len(chosen), _over(averages, statistics.fmean), _over(ensembles, statistics.fmean),
                            _over(averages, lambda values: statistics.stdev(values) if len(values) > 1 else 0.0)))
    return found


def subsets(num: int, count: int) -> Iterator[tuple[int, ...]]:
    """All choices of so many particles, or, where there are too many, each particle with those that follow it."""
    every = list(itertools.islice(itertools.combinations(range(num), count), MAX_SUBSETS + 1))
    if len(every) <= MAX_SUBSETS:
        yield from every
    else:
        yield from (tuple(sorted((first + step) % num for step in range(count))) for first in range(num))


def _together(bench: Bench, split: str, predictions: Sequence[list[Tensor]]) -> dict[str, float]:
    """Metrics of an ensemble's prediction."""
    task = bench.trainer.task
    sums = {}
    count = 0
    for batch, *members in zip(bench.batches(split), *predictions, strict=True):
        with blamed("the task failed in evaluation", "task.name"):
            values = task.metrics(task.combine(members), batch)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.double().sum())
        count += len(next(iter(values.values())))
    return {name: total / count for name, total in sums.items()}


def _over(metrics: Sequence[Metrics], statistic: Callable[[list[float]], float]) -> Metrics:
    return {split: {name: statistic([one[split][name] for one in metrics]) for name in values}
            for split, values in metrics[0].items()}
