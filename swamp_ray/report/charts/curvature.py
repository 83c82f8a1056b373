"""How sharply the loss bends at a run's networks, as ``swamp analyze curvature`` has measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from swamp_ray.report.charts.arms import by_arm, each_arm, line_of, rows_of, runs_of_data
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.panels import (
    DASHED,
    FONT,
    kinds_of_lines,
    label_panels,
    legend_below,
    legend_line,
    light_axes,
    panels_for,
)
from swamp_ray.report.charts.style import arm_styles, density_axis
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import short_names

ASIDE = 1.03
"""Both networks of a round are moved apart by this factor, so that their bars do not cover each other."""
CURVATURES = {"trace": "trace", "scaled": "sum w² H", "largest": "largest eigenvalue"}


def curvature_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """Trace, its scale-invariant twin and largest eigenvalue against the weights left, by arm."""
    rows = [{"arm": run.arm, "run": run.name, "density": 1 - row["sparsity"], "round": row["round"],
             "network": row["network"], "measure": measure, **_with_error(row[measure])}
            for run in runs for row in rows_of(run, "curvature") for measure in CURVATURES]
    if not rows:
        return []
    data = pd.DataFrame(rows)
    counts = runs_of_data(data)
    lines = "the lines are means over the runs of an arm" if max(counts.values()) > 1 else each_arm(counts)
    caption = ("Curvature of the mean loss of a sample of the training split: the Hessian's trace (Hutchinson), "
               "the sum of w² H over the weights, which does not change when a layer is scaled up and the next one "
               "down, and the largest eigenvalue (Lanczos). Solid at a round's average, dashed at its particle 0; bars "
               "are the standard error of the estimate, for the eigenvalue the bound on its distance from a true one. "
               "Both are moved sideways a little; "
               f"{lines}.")
    return [Chart("curvature", "Curvature against the weights left", caption, _curvature(runs, data), data)]


def _with_error(found: Mapping[str, Any]) -> dict[str, float]:
    if "mean" in found:
        return {"value": float(found["mean"]), "error": float(found["standard_error"])}
    return {"value": float(found["value"]), "error": float(found["residual"])}


def _curvature(runs: Sequence[ReportRun], data: Any) -> Figure:
    figure, panels = panels_for(len(CURVATURES), share_y=False)
    styles = arm_styles(run.arm for run in runs)
    for axes, (measure, label) in zip(panels.flat, CURVATURES.items(), strict=False):
        shown = data[data["measure"] == measure]
        for (arm, network), one in shown.groupby(["arm", "network"], sort=False):
            # Of a single round no line is seen: the marker tells them apart as well.
            line = {"linestyle": "-"} if network == "average" else {"linestyle": DASHED, "markerfacecolor": "none"}
            mean = one.groupby("density")["value"].mean().sort_index(ascending=False)
            shift = ASIDE if network == "average" else 1 / ASIDE
            axes.plot(shift * mean.index, mean, linewidth=1.6, markersize=3.5, **line_of(styles[arm]) | line)
            axes.errorbar(shift * one["density"], one["value"], one["error"], linestyle="none",
                          ecolor=styles[arm].colour, elinewidth=0.9, capsize=2)
        density_axis(axes, float(shown["density"].min()))
        axes.set_xticks([tick for tick in (1.0, 0.1, 0.01, 0.001) if tick >= float(shown["density"].min())])
        if (shown["value"] > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        light_axes(axes)
        axes.set_title(label, fontsize=FONT, loc="left")
    label_panels(figure, panels, "weights left", "")
    short = short_names((arm for arm in by_arm(runs) if arm in set(data["arm"])), 26)
    arms = [legend_line(label, line_of(styles[arm]) | {"linestyle": "-"}) for arm, label in short.items()]
    legend_below(figure, [*arms, *kinds_of_lines("average", "particle 0")])
    return figure
