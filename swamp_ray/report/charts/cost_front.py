"""A metric against what it costs, at some sparsities, with the front that no arm lies beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from swamp_ray.report.charts.cells import metric_title
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.panels import FONT, label_panels, legend_below, legend_line, light_axes, panels_for
from swamp_ray.report.charts.style import COLOURS, INK, MARKERS, MUTED, axis_label, scale_of
from swamp_ray.report.load.sweep_arms import ArmLevel, table_of
from swamp_ray.text.tables import percent, shortened

LONGEST_ARM = 16


@dataclass(frozen=True)
class Face:
    """One way to count costs.

    Attributes:
        key: As in :class:`swamp_ray.training.cost.Cost`.
        title: After "... against".
        axis: Under the horizontal axis.
        words: What it is, for the caption.
        unit: What an axis counts in.
    """

    key: str
    title: str
    axis: str
    words: str
    unit: float = 1.0


FACES = (
    Face("total_epochs", "epochs in all", "epochs of all particles", "epochs of the dense phase and of all particles "
         "of all rounds up to this sparsity"),
    Face("critical_epochs", "epochs one after the other", "epochs one after the other", "epochs on the critical path: "
         "what has to be waited for with as many workers as particles"),
    Face("sparse_flops", "training FLOPs", "training TFLOPs at the masks' density", "FLOPs of training up to this "
         "sparsity, at the masks' densities", 1e12),
)


def front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Indices of the points for which no other is as cheap and as good, and in one of both better; cheapest first.

    Args:
        points: Cost and value of each.
        higher_is_better: Whether a larger value is the better one.
    """
    sign = -1.0 if higher_is_better else 1.0
    order = sorted(range(len(points)), key=lambda index: (points[index][0], sign * points[index][1]))
    found: list[int] = []
    for index in order:
        if not found or sign * points[index][1] < sign * points[found[-1]][1]:
            found.append(index)
    return found


def cost_charts(levels: Sequence[ArmLevel], sparsities: Sequence[float], metric: str, higher_is_better: bool
                ) -> list[Chart]:
    """A chart for each way to count costs that is known of every arm.

    Args:
        levels: Arms and sparsities.
        sparsities: One panel each.
        metric: The metric, accuracies as shares.
        higher_is_better: Whether a larger value is the better one.
    """
    shown = [one for one in levels if one.sparsity in sparsities and math.isfinite(one.mean)]
    charts = []
    for face in FACES:
        known = [one for one in shown if math.isfinite(one.cost[face.key])]
        if known:
            charts.append(_chart(face, known, sparsities, metric, higher_is_better))
    return charts


def _chart(face: Face, levels: Sequence[ArmLevel], sparsities: Sequence[float], metric: str, higher_is_better: bool
           ) -> Chart:
    figure, panels = panels_for(len(sparsities), share_y=False)
    styles = _styles(list(dict.fromkeys(one.arm for one in levels)))
    on_front = []
    for axes, sparsity in zip(panels.flat, sparsities, strict=False):
        own = [one for one in levels if one.sparsity == sparsity]
        on_front += _panel(axes, own, face, metric, higher_is_better, styles)
        axes.set_title(f"{percent(sparsity)} sparsity", fontsize=FONT, loc="left")
    label_panels(figure, panels, face.axis, axis_label(metric, "test"))
    handles = [legend_line(shortened(arm, 28), {**style, "linestyle": ""}) for arm, style in styles.items()]
    legend_below(figure, [*handles, legend_line("front", {"color": MUTED, "linestyle": "--"})])
    data = table_of(levels)
    data["on_front"] = [(one.arm, one.sparsity) in on_front for one in levels]
    lacking = "" if len({one.arm for one in levels}) == len(styles) else " Arms whose costs are not known are left out."
    several = max(len(one.values) for one in levels) > 1
    caption = (f"Test {metric} at equal sparsity against the {face.words}. Mean over the seeds"
               f"{', bars: one sample standard deviation to both sides' if several else ''}. Dashed: the front. For an "
               f"arm on it, named in the figure, no other has a better mean at the same cost or less.{lacking}")
    return Chart(f"{face.key}_front", f"{metric_title(metric)} against {face.title}", caption, figure, data)


def _panel(axes: Any, levels: Sequence[ArmLevel], face: Face, metric: str, higher_is_better: bool,
           styles: dict[str, dict[str, Any]]) -> list[tuple[str, float]]:
    """Draw one sparsity; gives the arms on its front."""
    scale = scale_of(metric)
    places = [(one.cost[face.key] / face.unit, scale * one.mean) for one in levels]
    for one, (x, y) in zip(levels, places, strict=True):
        error = None if one.deviation is None else scale * one.deviation
        axes.errorbar([x], [y], yerr=error, elinewidth=1.0, linestyle="", markersize=5, **styles[one.arm])
    best = front(places, higher_is_better)
    xs = [places[index][0] for index in best]
    ys = [places[index][1] for index in best]
    # Up to the next arm of the front nothing better can be had.
    right = max(x for x, _ in places)
    axes.plot([*xs, right], [*ys, ys[-1]], color=MUTED, linestyle="--", linewidth=1, drawstyle="steps-post", zorder=1)
    for number, index in enumerate(best):
        # Names of neighbours above and below their points do not run into each other.
        axes.annotate(shortened(levels[index].arm, LONGEST_ARM), places[index], xytext=(5, -12 if number % 2 else 5),
                      textcoords="offset points", fontsize=FONT, color=INK)
    axes.margins(x=0.18, y=0.16)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    light_axes(axes)
    return [(levels[index].arm, levels[index].sparsity) for index in best]


def _styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each arm: 36 that differ."""
    found = {}
    for number, arm in enumerate(arms):
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        found[arm] = {"color": COLOURS[number % len(COLOURS)], "marker": marker}
    return found
