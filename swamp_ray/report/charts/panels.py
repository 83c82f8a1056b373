"""Several panels in a figure, and colours of sparsity that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from swamp_ray.report.charts.style import COLOUR_MAP, GRID, MUTED, density_ticks
from swamp_ray.text.tables import short_names

FONT = 8.5
COLUMNS = 2
WIDTH_IN = 5.4
LEGEND_ROW_IN = 0.18
LONGEST_ARM = 26
"""Letters of an arm's name above its panel."""
VISIBLE = (0.2, 0.9)
"""The part of the colour map that can be seen on any ground."""
DASHED: Any = (0, (4, 1.5))


def panels_for(num: int, columns: int = COLUMNS, share_y: bool = True) -> tuple[Figure, Any]:
    """A figure with so many panels, two in a row, so that a phone shows it whole."""
    columns = min(columns, num)
    rows = -(-num // columns)
    size = (WIDTH_IN, 3.9 if num == 1 else 1.2 + 2.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    for axes in panels.flat[num:]:
        axes.set_visible(False)
    return figure, panels


def panels_by_arm(data: Any) -> tuple[Figure, Any, list[tuple[Any, Any]]]:
    """A figure with a panel for each arm of some rows, whose names stand above where there are several.

    Args:
        data: A DataFrame with a column ``arm``.

    Returns:
        The figure, all of its panels, and for each arm its panel and its rows.
    """
    arms = list(dict.fromkeys(data["arm"]))
    figure, panels = panels_for(len(arms))
    short = short_names(arms, LONGEST_ARM)
    of_arms = []
    for axes, arm in zip(panels.flat, arms, strict=False):
        if len(arms) > 1:
            axes.set_title(short[arm], fontsize=FONT, loc="left")
        of_arms.append((axes, data[data["arm"] == arm]))
    return figure, panels, of_arms


def sparsity_colours(lowest: float) -> ScalarMappable:
    """A colour for each density down to a lowest one: dense is dark.

    The palest yellow cannot be seen on a light page, the darkest purple not on a dark one.
    """
    colours = ListedColormap(matplotlib.colormaps[COLOUR_MAP](np.linspace(VISIBLE[1], VISIBLE[0], 256)))
    return ScalarMappable(LogNorm(min(lowest, 0.5), 1.0), colours)


def sparsity_bar(figure: Figure, panels: Any, colours: ScalarMappable, lowest: float) -> None:
    """The legend of `sparsity_colours`, above the panels."""
    bar = figure.colorbar(colours, ax=panels, location="top", shrink=0.6, aspect=40, pad=0.02)
    bar.set_ticks(density_ticks(lowest))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    bar.ax.tick_params(labelsize=FONT)
    bar.ax.invert_xaxis()
    bar.set_label("weights left", fontsize=FONT)


def light_axes(axes: Any) -> None:
    """Axes of one of several panels."""
    axes.tick_params(labelsize=FONT)
    axes.grid(visible=True, color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def label_panels(figure: Figure, panels: Any, x: str, y: str) -> None:
    """Name the horizontal axis below the lowest panel of each column, and the vertical one once."""
    for column in panels.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.set_xlabel(x, fontsize=FONT)
    figure.supylabel(y, fontsize=FONT)


def legend_line(label: str, style: Mapping[str, Any] | None = None) -> Line2D:
    """An entry of a legend; without a style of its own a plain line."""
    options: dict[str, Any] = {"color": MUTED, "linewidth": 1.6, "markersize": 4, **(style or {})}
    return Line2D([], [], label=label, **options)


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend under the panels, in as many columns as its labels leave room for; the figure grows with its rows."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(int(figure.get_figwidth() / (0.075 * longest + 0.5)), len(handles), 4))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_IN * (-(-len(handles) // columns) - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=FONT)


def kinds_of_lines(solid: str, dashed: str) -> Sequence[Line2D]:
    """Entries that say what solid and dashed lines are, whatever their colour."""
    return [legend_line(solid), legend_line(dashed, {"linestyle": DASHED})]
