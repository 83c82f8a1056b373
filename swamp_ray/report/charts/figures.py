"""Figures of runs as matplotlib objects."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.style import COLOURS, MARKERS, MUTED, axis_label, plain_density_axes, scale_of


@dataclass(frozen=True)
class Curve:
    """One arm: its runs, each a list of round records (as in ``rounds.jsonl``)."""

    label: str
    runs: Sequence[Sequence[Mapping[str, Any]]]


def accuracy_against_sparsity(
    curves: Sequence[Curve], *, primary: str = "accuracy", split: str = "test", title: str = "",
    lowest: float | None = None
) -> Figure:
    """Metric of the averaged network against the share of weights left (log axis), mean and range over runs.

    Args:
        curves: One an arm.
        primary: The metric; accuracies are shown in percent.
        split: validation or test.
        title: Above the figure.
        lowest: Lower end of the vertical axis, in the metric's own unit.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    scale = scale_of(primary)
    for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
        density, values = _table(curve, primary, split)
        middle = [scale * statistics.fmean(row) for row in values]
        band = ([scale * min(row) for row in values], [scale * max(row) for row in values])
        line_with_band(axes, density, middle, band if len(curve.runs) > 1 else None, color=colour, marker=marker,
                       label=curve.label)
    _dense_line(axes, curves, primary, scale)
    sparsest = max(record["sparsity"] for curve in curves for run in curve.runs for record in run)
    plain_density_axes(axes, 1.0 - sparsest, axis_label(primary, split))
    if lowest is not None:
        axes.set_ylim(bottom=scale * lowest)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def _table(curve: Curve, primary: str, split: str) -> tuple[list[float], list[list[float]]]:
    """Densities that all runs of an arm have, and the metric of each run at each of them."""
    found: dict[int, list[float]] = {}
    densities: dict[int, float] = {}
    for run in curve.runs:
        for record in run:
            found.setdefault(record["survivors"], []).append(float(record["average"][split][primary]))
            densities[record["survivors"]] = 1.0 - record["sparsity"]
    shared = [survivors for survivors in sorted(found, reverse=True) if len(found[survivors]) == len(curve.runs)]
    return [densities[survivors] for survivors in shared], [found[survivors] for survivors in shared]


def _dense_line(axes: Any, curves: Sequence[Curve], primary: str, scale: float) -> None:
    """The dense network: mean over all runs of the particles that were trained without a mask, on test."""
    dense = [float(run[0]["mean"]["test"][primary]) for curve in curves for run in curve.runs
             if run and run[0]["sparsity"] == 0]
    if dense:
        axes.axhline(scale * statistics.fmean(dense), color=MUTED, linestyle="--", linewidth=1, label="dense")
