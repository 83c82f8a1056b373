"""How many particles it takes, as ``swamp analyze particles`` has measured it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swamp_ray.report.charts.arms import each_arm, rows_of, runs_of_data
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.learning import MOST_ROUNDS, chosen_rounds
from swamp_ray.report.charts.panels import (
    DASHED,
    kinds_of_lines,
    label_panels,
    legend_below,
    light_axes,
    panels_by_arm,
    sparsity_bar,
    sparsity_colours,
)
from swamp_ray.report.charts.style import axis_label, scale_of
from swamp_ray.report.load.runs import ReportRun


def growth_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """The metric of averages and ensembles against the number of particles, a panel an arm that has several."""
    metric = runs[0].primary if runs else "loss"
    rows = [{"arm": run.arm, "run": run.name, "round": row["round"], "density": 1 - row["sparsity"],
             "particles": row["count"], "network": network, metric: row[network]["test"][metric]}
            for run in runs for row in rows_of(run, "particles") for network in ("average", "ensemble")
            if metric in row[network]["test"]]  # an ensemble has no loss where the task's metrics have none
    every: Any = pd.DataFrame(rows)
    if every.empty or (every := every.groupby("arm").filter(lambda one: one["particles"].max() > 1)).empty:
        return []
    data = pd.concat([one[one["density"].isin(chosen_rounds(sorted(one["density"].unique(), reverse=True)))]
                      for _, one in every.groupby("arm", sort=False)], ignore_index=True)
    counts = runs_of_data(data)
    num = "" if max(counts.values()) == 1 else ", and over the runs of an arm"
    some = f"; at most {MOST_ROUNDS} rounds of an arm" if len(data) < len(every) else ""
    caption = (f"Test {metric} of the average of some of a round's particles (solid) and of their ensemble, the mean "
               "of their predictions (dashed), against how many of them enter: the mean over all choices of so many"
               f"{num}; {each_arm(counts)}{some}.")
    return [Chart("growth_with_particles", "How many particles it takes", caption, _growth(data, metric), data)]


def _growth(data: Any, metric: str) -> Figure:
    figure, panels, of_arms = panels_by_arm(data)
    lowest = float(data["density"].min())
    colours = sparsity_colours(lowest)
    for axes, rows in of_arms:
        for (density, network), one in rows.groupby(["density", "network"]):
            mean = scale_of(metric) * one.groupby("particles")[metric].mean()
            axes.plot(mean.index, mean, color=colours.to_rgba(density), linewidth=1.6, marker="o", markersize=3,
                      linestyle="-" if network == "average" else DASHED)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        light_axes(axes)
    label_panels(figure, panels, "particles", axis_label(metric, "test"))
    legend_below(figure, kinds_of_lines("average of weights", "ensemble"))
    sparsity_bar(figure, list(panels.flat), colours, lowest)
    return figure
