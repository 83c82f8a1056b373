"""What all figures have in common; colours that people with colour blindness can tell apart."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
COLOUR_MAP = "viridis"
"""Perceptually uniform: equal steps of the value look equally large."""
MAX_TICKS = 10


def scale_of(metric: str) -> float:
    """What a metric is multiplied by before it is drawn: accuracies are shown in percent."""
    return 100.0 if metric == "accuracy" else 1.0


def axis_label(metric: str, split: str) -> str:
    """What an axis of a metric is called."""
    return f"{split} {metric}" + (" (%)" if metric == "accuracy" else "")


def plain_axes(axes: Any) -> None:
    """A light grid, and no box."""
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


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


def density_ticks(lowest: float) -> list[float]:
    """1, 0.5, 0.2, 0.1 and so on down to a density; only powers of ten where that would be too many."""
    decades = [1 / 10**decade for decade in range(max(0, math.ceil(-math.log10(lowest))) + 1)]
    ticks = [digit * decade for decade in decades for digit in (1, 0.5, 0.2)]
    found = [[tick for tick in some if tick >= lowest * 0.99] for some in (ticks, decades)]
    return found[0] if len(found[0]) <= MAX_TICKS else found[1]
