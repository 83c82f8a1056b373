"""What all figures have in common; colours that people with colour blindness can tell apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from swamp_ray.text.metric_names import is_percent
from swamp_ray.text.tables import short_names

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":")
INK, MUTED, GRID, PAPER = "#1b1d21", "#555a61", "#dddfe3", "#fefefd"
"""Of text and axes, of what stands behind, of the grid, and of the ground. A page with figures in it replaces them, and
the colours of arms, by its own, so that figures can be read on a dark ground too."""
FONT_PT = 9.0
FIGURE_INCHES = (4.8, 3.3)
"""So wide that its text can be read on a phone, where it is shrunk to the width of the screen."""
MOST_INSIDE = 5
LONGEST_LABEL = 27
LEGEND_ROW_IN = 0.18
"""Of legends: entries that find room in the axes, letters of one, inches of a row below them."""
COLOUR_MAP = "viridis"
"""Perceptually uniform: equal steps of the value look equally large."""
MAX_TICKS = 10


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn in every figure."""

    colour: str
    marker: str
    line: str


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """A style for each arm, in the order in which they are first named; the same in every figure of the same runs."""
    names = list(dict.fromkeys(arms))
    return {name: ArmStyle(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)],
                           LINES[number // len(COLOURS) % len(LINES)]) for number, name in enumerate(names)}


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Within it figures are made in the colours that a page can replace, and with text that stays text."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    values: dict[Any, Any] = {
        **dict.fromkeys(inked, INK), "grid.color": GRID, "axes.facecolor": PAPER, "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "font.size": FONT_PT, "axes.titlesize": FONT_PT, "legend.fontsize": FONT_PT - 0.5, "legend.frameon": False,
        "axes.linewidth": 0.7, "svg.fonttype": "none"}
    with matplotlib.rc_context(values):
        yield


def new_figure(inches: tuple[float, float] = FIGURE_INCHES) -> tuple[Figure, Any]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.add_subplot()


def add_legend(figure: Figure, axes: Any, handles: Sequence[Any]) -> None:
    """A legend below the axes, for which the figure grows: in them it would cover lines where no corner is free."""
    short = short_names((handle.get_label() for handle in handles), LONGEST_LABEL)
    for handle in handles:
        handle.set_label(short[str(handle.get_label())])
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_IN * math.ceil(len(handles) / 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def scale_of(metric: str) -> float:
    """What a metric is multiplied by before it is drawn: shares are shown in percent."""
    return 100.0 if is_percent(metric) else 1.0


def axis_label(metric: str, split: str = "") -> str:
    """What an axis of a metric is called; without a split where it is of several."""
    return f"{split} {metric}".strip() + (" (%)" if is_percent(metric) else "")


def plain_axes(axes: Any) -> None:
    """A light grid, and no box."""
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain_density_axes(axes: Any, lowest: float, label: str) -> None:
    """Axes of what `label` says against the weights that are left, down to a lowest density."""
    density_axis(axes, lowest)
    axes.set_ylabel(label)
    plain_axes(axes)


def density_axis(axes: Any, lowest: float) -> None:
    """The horizontal axis of weights left, dense on the left, sparse on the right.

    Args:
        axes: Of a figure.
        lowest: The smallest density drawn, in (0, 1].
    """
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(density_ticks(lowest))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlabel("weights left")
    sparse, dense = sorted(axes.get_xlim())
    axes.set_xlim(dense, min(sparse, lowest / 1.1))  # of one round alone, ticks would leave its point at the edge


def density_ticks(lowest: float) -> list[float]:
    """1, 0.5, 0.2, 0.1 and so on down to a density; only powers of ten where that would be too many."""
    decades = [1 / 10**decade for decade in range(max(0, math.ceil(-math.log10(lowest))) + 1)]
    ticks = [digit * decade for decade in decades for digit in (1, 0.5, 0.2)]
    found = [[tick for tick in some if tick >= lowest * 0.99] for some in (ticks, decades)]
    return found[0] if len(found[0]) <= MAX_TICKS else found[1]
