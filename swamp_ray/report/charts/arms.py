"""Runs by arm, and means over the runs of an arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from swamp_ray.report.charts.cells import capital
from swamp_ray.report.charts.style import ArmStyle
from swamp_ray.report.load.runs import ReportRun

NAMED_ARMS = 4
"""Of so many the number of runs is given one by one."""
Value = Callable[[ReportRun, Mapping[str, Any]], float | None]
"""A number of a run's round, or None where it has none."""


def by_arm(runs: Sequence[ReportRun]) -> dict[str, list[ReportRun]]:
    """The runs of each arm, in their order."""
    found: dict[str, list[ReportRun]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(run)
    return found


def over_seeds(runs: Sequence[ReportRun], value: Value) -> pd.DataFrame:
    """A number against the weights that are left, mean and range over the runs of each arm.

    A round counts where all runs of its arm that have such numbers have it, so that a run that is not complete yet
    bends no mean.

    Args:
        runs: Of any arms.
        value: The number.

    Returns:
        One row an arm and round, dense first: arm, density, mean, lowest, highest, runs (how many).
    """
    rows = []
    for arm, members in by_arm(runs).items():
        rows += [{"arm": arm, "density": density, "mean": float(np.mean(values)), "lowest": min(values),
                  "highest": max(values), "runs": len(values)}
                 for density, values in _shared(members, value)]
    return pd.DataFrame(rows)


def _shared(members: Sequence[ReportRun], value: Value) -> list[tuple[float, list[float]]]:
    found: dict[int, list[float]] = {}
    densities: dict[int, float] = {}
    having = 0
    for run in members:
        numbers = [(record, number) for record in run.records if (number := value(run, record)) is not None]
        having += bool(numbers)
        for record, number in numbers:
            found.setdefault(record["survivors"], []).append(number)
            densities[record["survivors"]] = 1.0 - record["sparsity"]
    return [(densities[key], found[key]) for key in sorted(found, reverse=True) if len(found[key]) == having]


def rows_of(run: ReportRun, analysis: str) -> list[Mapping[str, Any]]:
    """What an analysis of a run has stored, without rounds that the run does not have any more."""
    rounds = {record["round"] for record in run.records}
    return [row for row in run.analyses.get(analysis, {}).get("rows", []) if row.get("round") in rounds]


def line_of(style: ArmStyle) -> dict[str, Any]:
    """An arm's colour, marker and line as matplotlib calls them."""
    return {"color": style.colour, "marker": style.marker, "linestyle": style.line}


def range_in_words(frame: Any) -> str:
    """A sentence on the means and ranges of :func:`over_seeds`: over how many runs of which arm, or that it is one."""
    counts = {str(arm): int(num) for arm, num in frame.groupby("arm", sort=False)["runs"].max().items()}
    words = each_arm(counts)
    return f"Mean and range over {words}." if max(counts.values()) > 1 else f"{capital(words)}."


def runs_of_data(data: Any) -> dict[str, int]:
    """How many runs of each arm a chart's data are of; they have columns ``arm`` and ``run``."""
    return {str(arm): int(num) for arm, num in data.groupby("arm", sort=False)["run"].nunique().items()}


def each_arm(counts: Mapping[str, int], noun: str = "run") -> str:
    """``one run``, ``2 runs of each arm``, ``runs (a 5, b 4)``, or of many arms ``1 to 4 runs of each arm``."""
    low = min(counts.values())
    high = max(counts.values())
    each = " of each arm" if len(counts) > 1 else ""
    if high == 1:
        return f"one {noun}{each}"
    if low == high:
        return f"{high} {noun}s{each}"
    if len(counts) > NAMED_ARMS:
        return f"{low} to {high} {noun}s{each}"
    return f"{noun}s ({', '.join(f'{arm} {num}' for arm, num in counts.items())})"
