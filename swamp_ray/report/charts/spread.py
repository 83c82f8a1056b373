"""How far the particles of a round lie from their average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swamp_ray.report.charts.arms import line_of, over_seeds, range_in_words
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.style import arm_styles, density_axis, new_figure, plain_axes
from swamp_ray.report.load.runs import ReportRun


def distances_to_average(runs: Sequence[ReportRun]) -> list[Chart]:
    """The distance relative to the length of the average, by arm; of arms with a single particle there is none."""
    norms = {(run.name, record["round"]): norm for run in runs for record in run.records
             if record["spread"] > 0 and (norm := norm_of_average(run, record))}
    frame = over_seeds(runs, lambda run, record: _relative(record, norms.get((run.name, record["round"]))))
    if frame.empty:
        return []
    absolute = over_seeds(runs, lambda run, record: record["spread"] if (run.name, record["round"]) in norms else None)
    data: Any = frame.assign(distance=absolute["mean"])
    caption = ("Root mean squared Euclidean distance of a round's particles to their average, divided by the length of "
               "the average, both over the weights that the mask keeps. Without the division the distance would fall "
               f"only because fewer weights are left. {range_in_words(frame)}")
    return [Chart("distance_to_average", "Distance of the particles to their average", caption,
                  _figure(runs, data), data)]


def norm_of_average(run: ReportRun, record: Mapping[str, Any]) -> float | None:
    """Euclidean length of a round's average over the weights that its mask keeps; None where its ticket is gone."""
    ticket = run.ticket(record)
    if ticket is None:
        return None
    return math.sqrt(sum(float(ticket.state[name].double().square().sum()) for name in ticket.masks))


def _relative(record: Mapping[str, Any], norm: float | None) -> float | None:
    return None if not norm else float(record["spread"]) / norm


def _figure(runs: Sequence[ReportRun], data: Any) -> Any:
    figure, axes = new_figure()
    styles = arm_styles(run.arm for run in runs)
    for arm, one in data.groupby("arm", sort=False):
        style = styles[str(arm)]
        axes.plot(one["density"], one["mean"], markersize=4.5, linewidth=1.8, label=arm, **line_of(style))
        axes.fill_between(one["density"], one["lowest"], one["highest"], color=style.colour, alpha=0.15, linewidth=0)
    density_axis(axes, float(data["density"].min()))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("distance to the average / its length")
    plain_axes(axes)
    axes.legend(frameon=False)
    return figure
