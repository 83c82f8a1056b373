"""Loss and accuracy epoch by epoch, as the particles of a round trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from swamp_ray.report.charts.arms import each_arm, runs_of_data
from swamp_ray.report.charts.cells import metric_title
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.lines import curves_with_mean
from swamp_ray.report.charts.panels import (
    label_panels,
    legend_below,
    legend_line,
    light_axes,
    panels_by_arm,
    sparsity_bar,
    sparsity_colours,
)
from swamp_ray.report.charts.style import MUTED, axis_label, scale_of
from swamp_ray.report.load.runs import ReportRun

TRAINING = "training"
TEST = "test, at the end"
MOST_ROUNDS = 6
MOST_THIN_LINES = 80
"""So many particles are drawn one by one in a panel; of more the range between the lowest and the highest is shown."""
DIAMOND: Any = {"color": MUTED, "marker": "D", "markersize": 4.5, "markeredgecolor": MUTED, "markeredgewidth": 0.5,
                "linestyle": "none"}
BEHIND = 0.06
"""How far behind the last epoch test is drawn, as a share of the epochs; a line lies between them."""
WIDE = 1.5
"""A loss that falls by more powers of ten is drawn on a logarithmic axis."""


def learning_curves(runs: Sequence[ReportRun]) -> list[Chart]:
    """One figure a metric, with a panel for each arm."""
    found = [one for run in runs if not (one := _epochs(run)).empty]
    if not found:
        return []
    every: Any = pd.concat(found, ignore_index=True)
    epochs = pd.concat([one[one["survivors"].isin(chosen_rounds(sorted(one["survivors"].unique(), reverse=True)))]
                        for _, one in every.groupby("arm", sort=False)], ignore_index=True)
    left_out = every["survivors"].nunique() - epochs["survivors"].nunique()
    names = [name for name in ("loss", runs[0].primary) if name in epochs.columns[epochs.notna().any()]]
    smoothed = any(run.config.task.label_smoothing for run in runs)
    charts = [_chart(epochs, name, left_out > 0, smoothed and name == "loss") for name in dict.fromkeys(names)]
    if any(run.config.particles.fork_at > 0 for run in runs):
        said = "Particles that part from a trunk count their epochs from there; the trunk is not in this figure."
        charts = [replace(chart, caption=f"{chart.caption} {said}") for chart in charts]
    return charts


def chosen_rounds(survivors: Sequence[Any]) -> list[Any]:
    """At most six of a list, evenly spaced, its ends among them."""
    places = np.unique(np.linspace(0, len(survivors) - 1, min(len(survivors), MOST_ROUNDS)).round().astype(int))
    return [survivors[place] for place in places]


def _epochs(run: ReportRun) -> Any:
    """Epochs of the particles of finished rounds, and as ``epoch`` NaN what they measure at their end on test."""
    metrics: Any = run.metrics
    if metrics.empty or "particle" not in metrics:
        return pd.DataFrame()
    rounds = {record["round"]: record for record in run.records}
    lines = metrics[metrics["kind"].isin(["particle_epoch", "particle_end"]) & metrics["round"].isin(rounds)].copy()
    at_end = lines["kind"] == "particle_end"
    for name in {"loss", run.primary} & {column.partition("/")[2] for column in lines.columns}:
        lines.loc[at_end, name] = lines.loc[at_end, f"test/{name}"]
    lines.loc[at_end, "epoch"] = np.nan
    lines["run"], lines["arm"] = run.name, run.arm
    lines["survivors"] = lines["round"].map({index: record["survivors"] for index, record in rounds.items()})
    lines["density"] = lines["round"].map({index: 1 - record["sparsity"] for index, record in rounds.items()})
    columns = ["run", "arm", "round", "survivors", "density", "particle", "epoch", "loss", run.primary]
    return lines[[name for name in dict.fromkeys(columns) if name in lines]]


def _chart(epochs: Any, metric: str, some: bool, smoothed: bool) -> Chart:
    keys = ["run", "arm", "round", "survivors", "density", "particle", "epoch"]
    data = epochs[[*keys, metric]].dropna(subset=[metric]).reset_index(drop=True)
    data["split"] = np.where(data["epoch"].isna(), TEST, TRAINING)
    if smoothed:  # of two quantities one axis would make one
        data = data[data["split"] == TRAINING].reset_index(drop=True)
    which = f"{MOST_ROUNDS} rounds of {_each(data)}, evenly spaced" if some else "every round"
    text = f"{metric_title(metric)} epoch by epoch in {which}; {each_arm(runs_of_data(data))}. {_lines_in_words(data)} "
    if smoothed:
        text += "The loss has label smoothing in training and not on test, so that test is not in this figure."
    elif TEST in set(data["split"]):
        text += ("Diamonds behind the last epoch: the trained particles on the test split, mean over them; their "
                 "colour is that of the round's line.")
    title = f"{'Training loss' if smoothed else metric_title(metric)} by epoch"
    return Chart(f"learning_{metric}", title, text.strip(), _figure(data, metric), data)


def _each(data: Any) -> str:
    return "each arm" if data["arm"].nunique() > 1 else "the run" if data["run"].nunique() == 1 else "the arm"


def _lines_in_words(data: Any) -> str:
    """What lines are of: what a training run itself measures, on its batches."""
    batches = "on the training batches, averaged over an epoch while the network changes"
    curves = data.groupby(["arm", "survivors"]).apply(lambda one: len(one[["run", "particle"]].drop_duplicates()))
    if int(curves.max()) == 1:
        return f"Lines: {batches}."
    means = "runs and particles" if max(runs_of_data(data).values()) > 1 else "particles"
    each = "thin each of them" if _is_drawn_singly(data) else "shaded their range"
    return f"Lines: {batches}; thick the mean over a round's {means}, {each}."


def _is_drawn_singly(data: Any) -> bool:
    curves = data.groupby("arm").apply(lambda one: len(one[["run", "round", "particle"]].drop_duplicates()))
    return int(curves.max()) <= MOST_THIN_LINES


def _figure(data: Any, metric: str) -> Figure:
    figure, panels, of_arms = panels_by_arm(data)
    lowest = float(data["density"].min())
    shade = sparsity_colours(lowest)
    for axes, rows in of_arms:
        _panel(axes, rows, metric, shade, _is_drawn_singly(data))
    if metric == "loss" and _orders(data[metric]) > WIDE:
        _log_axis(panels.flat[0])
    tested = TEST in set(data["split"])
    label_panels(figure, panels, "epoch of the particle", axis_label(metric, "" if tested else TRAINING))
    sparsity_bar(figure, list(panels.flat), shade, lowest)
    if tested:
        legend_below(figure, [legend_line("training, epoch by epoch"),
                              legend_line("test, at the round's end", DIAMOND)])
    return figure


def _log_axis(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _orders(values: Any) -> float:
    positive = values[values > 0]
    return float(np.log10(positive.max() / positive.min())) if len(positive) else 0.0


def _panel(axes: Any, data: Any, metric: str, shade: ScalarMappable, single: bool) -> None:
    scale = scale_of(metric)
    behind = 0.0
    for density, one in sorted(data.groupby("density"), reverse=True):
        epochs = one[one["epoch"].notna()]
        curves = epochs.pivot_table(index="epoch", columns=["run", "particle"], values=metric) * scale
        if curves.empty:
            continue
        colour = shade.to_rgba(density)
        curves_with_mean(axes, curves, colour, singly=single, linewidth=1.9, marker="." if len(curves) == 1 else None)
        ends = one.loc[one["epoch"].isna(), metric]
        if len(ends):
            last = curves.index.max()
            axes.plot([(1 + BEHIND) * last], [scale * ends.mean()], **{**DIAMOND, "color": colour})
            behind = (1 + BEHIND / 2) * last
    if behind:
        axes.axvline(behind, color=MUTED, linewidth=1, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    light_axes(axes)
