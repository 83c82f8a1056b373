"""Values of runs round by round, and their means over the seeds of an arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swamp_ray.report.charts.arms import rows_of
from swamp_ray.report.load.costs import epochs_so_far
from swamp_ray.report.load.runs import ReportRun

AVERAGE = "average"
PARTICLES = "mean of the particles"
ENSEMBLE = "ensemble of the particles"
"""Networks of a round. The average is that of a single particle too."""
SAME = 9
"""Sparsities that agree to so many decimals are one."""


@dataclass(frozen=True)
class Point:
    """A value of one run.

    Attributes:
        run: Name of the run; ``arm``, ``seed`` and ``round`` say which part of it.
        sparsity: In [0, 1), rounded.
        epochs: Spent on dense phase and particles up to the end of the round; None where they are not known.
        network: Of what the value is.
        value: In the metric's own unit.
    """

    arm: str
    run: str
    seed: int
    round: int
    sparsity: float
    epochs: int | None
    network: str
    value: float


@dataclass(frozen=True)
class Mean:
    """Over the seeds of an arm; ``deviation`` is their sample standard deviation, None for a single one."""

    arm: str
    network: str
    sparsity: float
    epochs: float | None
    value: float
    deviation: float | None
    num: int


def points(runs: Sequence[ReportRun], split: str = "test") -> list[Point]:
    """The primary metric of every round and network of every run, in order."""
    return [point for run in runs for point in _of_run(run, split)]


def _of_run(run: ReportRun, split: str) -> Iterator[Point]:
    epochs = epochs_so_far(run)
    ensembles = ensembles_of(run, split)
    for record in run.records:
        index = record["round"]
        sparsity = round(float(record["sparsity"]), SAME)
        found = {AVERAGE: record["average"][split][run.primary]}
        if len(record["particles"]) > 1:
            found[PARTICLES] = record["mean"][split][run.primary]
            if index in ensembles:
                found[ENSEMBLE] = ensembles[index]
        for network, value in found.items():
            yield Point(run.arm, run.name, run.seed, index, sparsity, epochs.get(index), network, float(value))


def ensembles_of(run: ReportRun, split: str) -> dict[int, float]:
    """By round: the ensemble of all its particles, where an analysis has measured it."""
    try:
        return dict(_measured_ensembles(run, split))
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # a damaged file of an analysis, which its command writes anew, must not hide the rounds


def _measured_ensembles(run: ReportRun, split: str) -> Iterator[tuple[int, float]]:
    sizes = {record["round"]: len(record["combined"]) for record in run.records}
    found = [(row, row["ensemble"]) for row in rows_of(run, "particles")]
    found += [(row, row) for row in rows_of(run, "calibration") if row["network"] == "ensemble"]
    for row, metrics in found:
        if row["count"] == sizes[row["round"]] and run.primary in metrics.get(split, {}):
            yield row["round"], float(metrics[split][run.primary])


def means(found: Sequence[Point]) -> list[Mean]:
    """By arm, network and sparsity, in order, over those runs of the arm that have come furthest.

    A run that is still going on would bend the mean where it ends; its values are seen as points.
    """
    furthest: dict[tuple[str, str], float] = {}
    for point in found:
        furthest[point.arm, point.network] = max(point.sparsity, furthest.get((point.arm, point.network), 0.0))
    wanted = {(point.run, point.network) for point in found if point.sparsity == furthest[point.arm, point.network]}
    groups: dict[tuple[str, str, float], list[Point]] = {}
    for point in found:
        if (point.run, point.network) in wanted:
            groups.setdefault((point.arm, point.network, point.sparsity), []).append(point)
    largest = {key[:2]: max(len(part) for other, part in groups.items() if other[:2] == key[:2]) for key in groups}
    return [_mean(part) for key, part in groups.items() if len(part) == largest[key[:2]]]


def seeds_of_means(found: Sequence[Point]) -> dict[str, int]:
    """Over how many runs of each arm the means of its rounds' networks are."""
    return {one.arm: one.num for one in means(found) if one.network == AVERAGE}


def _mean(part: Sequence[Point]) -> Mean:
    values = [point.value for point in part]
    epochs = [point.epochs for point in part if point.epochs is not None]
    return Mean(part[0].arm, part[0].network, part[0].sparsity,
                statistics.fmean(epochs) if len(epochs) == len(part) else None, statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else None, len(values))


def dense_value(runs: Sequence[ReportRun], split: str = "test") -> float | None:
    """The dense network: mean over runs of the particles that were trained without a mask.

    Of several arms it is that of the first one, which the others are compared with: arms train it in different ways.
    """
    found = [float(run.records[0]["mean"][split][run.primary]) for run in runs
             if run.arm == runs[0].arm and run.records[0]["sparsity"] == 0]
    return statistics.fmean(found) if found else None


def arms_of_runs(runs: Sequence[ReportRun]) -> dict[str, int]:
    """The arms in the order in which they are named, and how many runs each has."""
    arms = [run.arm for run in runs]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}
