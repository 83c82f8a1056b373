"""Lines and planes between a run's networks, as ``swamp analyze`` has measured them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from swamp_ray.analysis.paths import instability
from swamp_ray.report.charts.arms import each_arm, line_of, rows_of, runs_of_data
from swamp_ray.report.charts.cells import capital, ink
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.learning import chosen_rounds
from swamp_ray.report.charts.lines import curves_with_mean, line_with_band
from swamp_ray.report.charts.panels import (
    DASHED,
    FONT,
    label_panels,
    legend_below,
    light_axes,
    panels_for,
    sparsity_bar,
    sparsity_colours,
)
from swamp_ray.report.charts.style import (
    COLOUR_MAP,
    INK,
    MUTED,
    PAPER,
    arm_styles,
    new_figure,
    plain_density_axes,
)
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import short_names

KINDS = {"particles": "particles of a round", "rounds": "successive averages"}
MOST_PLANES = 6
LEVELS = 10


def connectivity_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """What is measured along lines, for each run, and the barriers of all runs against the weights left."""
    lines = [chart for run in runs if rows_of(run, "connectivity") for chart in _line_charts(run)]
    return [*lines, *_barrier_chart(runs)]


def _names(row: Any) -> tuple[str, float, str]:
    """The metric that lines are drawn of, what it is multiplied by, and its label."""
    return ("error", 100.0, "test error (%)") if "error" in row["values"]["test"] else ("loss", 1.0, "test loss")


def _line_charts(run: ReportRun) -> list[Chart]:
    every = rows_of(run, "connectivity")
    kept = set(chosen_rounds(sorted({row["round"] for row in every})))
    rows = [row for row in every if row["round"] in kept]
    name, _, label = _names(rows[0])
    data = pd.DataFrame([
        {"run": run.name, "kind": row["kind"], "round": row["round"], "density": 1 - row["sparsity"],
         "first": row["first"], "second": row["second"], "position": position, name: value}
        for row in rows for position, value in zip(row["positions"], row["values"]["test"][name], strict=True)])
    pairs = len(rows)
    places = [(row["round"], row["kind"]) for row in rows]
    several = len(set(places)) < pairs
    caption = (f"Test {name} at equally spaced points of the straight line between two networks, {pairs} pair"
               f"{'s' * (pairs > 1)} of {len(kept)} round{'s' * (len(kept) > 1)} of one run; normalisation statistics "
               "are estimated anew at each point." + (" Thick the mean over the pairs of a round." if several else ""))
    return [Chart(f"lines_{run.name}", f"Between the networks of {run.name}", caption, _lines(data, name, label),
                  data)]


def _lines(data: Any, name: str, label: str) -> Figure:
    kinds = [kind for kind in KINDS if kind in set(data["kind"])]
    figure, panels = panels_for(len(kinds), columns=2)
    lowest = float(data["density"].min())
    colours = sparsity_colours(lowest)
    scale = 100.0 if name == "error" else 1.0
    for axes, kind in zip(panels.flat, kinds, strict=True):
        for density, one in data[data["kind"] == kind].groupby("density"):
            curves = scale * one.pivot_table(index="position", columns=["first", "second"], values=name)
            curves_with_mean(axes, curves, colours.to_rgba(density), linewidth=1.8)
        light_axes(axes)
        axes.set_xticks([0, 0.5, 1], ["one", "middle", "other"])
        axes.set_title(KINDS[kind], fontsize=FONT, loc="left")
    label_panels(figure, panels, "", label)
    sparsity_bar(figure, list(panels.flat), colours, lowest)
    return figure


def _barrier_chart(runs: Sequence[ReportRun]) -> list[Chart]:
    rows = [{"arm": run.arm, "run": run.name, "kind": row["kind"], "round": row["round"],
             "density": 1 - row["sparsity"], "metric": _names(row)[0],
             "barrier": row["barrier"]["test"][_names(row)[0]],
             "over_mean_of_ends": instability(row["values"]["test"][_names(row)[0]])}
            for run in runs for row in rows_of(run, "connectivity")]
    if not rows:
        return []
    data: Any = pd.DataFrame(rows)
    data = data[data["metric"] == data["metric"].iloc[0]].reset_index(drop=True)
    name = str(data["metric"].iloc[0])
    counts = runs_of_data(data)
    over = "pairs and runs of an arm" if max(counts.values()) > 1 else "pairs"
    caption = (f"Barrier: the largest excess of the test {name} over the straight line between its values at both "
               f"ends, at least 0 (Entezari et al., 2022); mean and range over the {over}, between "
               "particles of a round (solid) and between a round's average and the next one's (dashed). At 0 averaging "
               f"loses nothing against the ends. The data have the excess over the mean of the ends, too "
               f"(Frankle et al., 2020). {capital(each_arm(counts))}.")
    return [Chart("barriers", "Barriers between networks", caption, _barriers(runs, data, name), data)]


def _barriers(runs: Sequence[ReportRun], data: Any, name: str) -> Figure:
    figure, axes = new_figure()
    styles = arm_styles(run.arm for run in runs)
    scale = 100.0 if name == "error" else 1.0
    short = short_names(data["arm"], 24)
    for (arm, kind), one in data.groupby(["arm", "kind"], sort=False):
        found = scale * one.groupby("density")["barrier"].agg(["mean", "min", "max"]).sort_index(ascending=False)
        line = {"linestyle": "-"} if kind == "particles" else {"linestyle": DASHED, "markerfacecolor": "none"}
        line_with_band(axes, found.index, found["mean"], (found["min"], found["max"]), shade=0.1, markersize=4,
                       label=f"{short[arm]}: {kind}", **line_of(styles[arm]) | line)
    axes.axhline(0, color=MUTED, linewidth=1)
    unit = " (%)" if name == "error" else ""
    plain_density_axes(axes, float(data["density"].min()), f"barrier of the test {name}{unit}")
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure


def landscape_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """Contours of the test loss in the plane through three particles, a panel a round, for each run."""
    return [_landscape_chart(run) for run in runs if rows_of(run, "landscape")]


def _landscape_chart(run: ReportRun) -> Chart:
    rows = rows_of(run, "landscape")
    kept = set(chosen_rounds([row["round"] for row in rows]))
    shown = [row for row in rows if row["round"] in kept][:MOST_PLANES]
    data = pd.DataFrame([
        {"run": run.name, "round": row["round"], "sparsity": row["sparsity"], "first": first, "second": second,
         "loss": row["loss"]["test"][j][i]}
        for row in shown for j, second in enumerate(row["second"]) for i, first in enumerate(row["first"])])
    caption = ("Contours of the test loss in the plane through three particles of a round (circles) and their average "
               "(star); coordinates are Euclidean distances of weights. Contours are equally spaced in the logarithm, "
               f"and each panel has its own. {len(shown)} of {len(rows)} round{'s' * (len(rows) > 1)} of one run.")
    return Chart(f"landscape_{run.name}", f"The loss around the particles of {run.name}", caption,
                 _landscape(shown), data)


def _landscape(rows: Sequence[Any]) -> Figure:
    figure, panels = panels_for(len(rows), share_y=False)
    for axes, row in zip(panels.flat, rows, strict=False):
        values, levels, norm = _heights(row["loss"]["test"])
        filled = axes.contourf(row["first"], row["second"], values, levels=levels, cmap=COLOUR_MAP, extend="both",
                               norm=norm)
        chosen = levels[1:-1:3]
        lines = axes.contour(row["first"], row["second"], values, levels=chosen, linewidths=0.5,
                             colors=[ink(filled.cmap(norm(level))) for level in chosen])
        _label_contours(axes, lines)
        corners = np.array(row["corners"])
        middle = corners.mean(axis=0)
        axes.plot(*corners.T, linestyle="none", marker="o", markersize=7, color=PAPER, markeredgecolor=INK)
        axes.plot(*middle, linestyle="none", marker="*", markersize=12, color=PAPER, markeredgecolor=INK)
        axes.set_title(f"{100 * row['sparsity']:.3g} % sparse", fontsize=FONT, loc="left")
        axes.set_aspect("equal")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(labelsize=FONT)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return figure


def _label_contours(axes: Any, lines: Any) -> None:
    """Values on contours; not at the edge, where they would reach into the ticks' labels."""
    for text in axes.clabel(lines, fontsize=8, fmt=lambda value: f"{value:.2g}"):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(text.get_position()))
        if not (0.12 < x < 0.88 and 0.08 < y < 0.92):
            text.remove()


def _heights(loss: Any) -> tuple[np.ndarray, np.ndarray, Normalize]:
    """Values of a grid, the largest where one is not finite; levels between them; and the scale of colours."""
    values = np.array(loss, dtype=float)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.where(np.isfinite(values), values, high)
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-3
    if low > 0:
        return values, np.geomspace(low, high, LEVELS + 1), LogNorm(low, high)
    return values, np.linspace(low, high, LEVELS + 1), Normalize(low, high)
