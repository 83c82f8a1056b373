"""How far the particles of a round lie from their average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swamp_ray.report.charts.arms import line_of, over_seeds, range_in_words
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.style import arm_styles, new_figure, plain_density_axes
from swamp_ray.report.load.runs import ReportRun


def distances_to_average(runs: Sequence[ReportRun]) -> list[Chart]:
    """The distance relative to the length of the average, by arm; of arms with a single particle there is none."""
    norms = {run.name: _norms(run) for run in runs}

    def relative(run: ReportRun, record: Mapping[str, Any]) -> float | None:
        norm = norms[run.name].get(record["round"])
        return None if norm is None else float(record["spread"]) / norm

    def absolute(run: ReportRun, record: Mapping[str, Any]) -> float | None:
        return record["spread"] if record["round"] in norms[run.name] else None

    frame = over_seeds(runs, relative)
    if frame.empty:
        return []
    data: Any = frame.assign(distance=over_seeds(runs, absolute)["mean"])
    caption = ("Root mean squared Euclidean distance of a round's particles to their average, divided by the length of "
               "the average, both over the weights that the mask keeps. Without the division the distance would fall "
               f"only because fewer weights are left. {range_in_words(frame)}")
    return [Chart("distance_to_average", "Distance of the particles to their average", caption,
                  _figure(runs, data), data)]


def _norms(run: ReportRun) -> dict[int, float]:
    """By round: the length of the average of several particles; without those that are 0 or whose ticket is gone."""
    norms = {}
    for record in run.records:
        norm = norm_of_average(run, record) if record["spread"] > 0 else None
        if norm:
            norms[record["round"]] = norm
    return norms


def norm_of_average(run: ReportRun, record: Mapping[str, Any]) -> float | None:
    """Euclidean length of a round's average over the weights that its mask keeps; None where its ticket is gone."""
    ticket = run.ticket(record)
    if ticket is None:
        return None
    return math.sqrt(sum(float(ticket.state[name].double().square().sum()) for name in ticket.masks))


def _figure(runs: Sequence[ReportRun], data: Any) -> Any:
    figure, axes = new_figure()
    styles = arm_styles(run.arm for run in runs)
    for arm, one in data.groupby("arm", sort=False):
        line_with_band(axes, one["density"], one["mean"], (one["lowest"], one["highest"]), label=arm,
                       **line_of(styles[str(arm)]))
    plain_density_axes(axes, float(data["density"].min()), "distance to the average / its length")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
