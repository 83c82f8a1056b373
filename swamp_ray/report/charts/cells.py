"""Matrices of coloured cells with text in them, and words beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle

from swamp_ray.report.charts.style import COLOUR_MAP

OWN_METRICS = ("accuracy", "loss", "mse", "mae")
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""What red, green and blue contribute to the luminance of a colour (WCAG 2)."""


def draw_cells(axes: Any, values: np.ndarray, *, empty: Any = "none", **scale: Any) -> Any:
    """A matrix as coloured cells, without ticks or a box.

    Args:
        axes: Of a figure.
        values: ``[rows, columns]``; NaN where a cell is empty.
        empty: Colour of empty cells; by default the ground shows through.
        scale: Norm or ends of the colour scale, origin and aspect, in the words of matplotlib's ``imshow``.

    Returns:
        The image, for a bar of its colours.
    """
    colours = matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=empty)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, **scale)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return image


def write_cells(axes: Any, image: Any, values: np.ndarray, texts: Sequence[Sequence[str]], size: float) -> None:
    """Write a text into each cell of :func:`draw_cells` that is not empty."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, texts[row][column], ha="center", va="center_baseline", fontsize=size,
                      color=ink_on(image, value))


def cross_out(axes: Any, row: int, column: int, **patch: Any) -> None:
    """Cover a cell with a hatched square."""
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **patch))


def ink_on(image: Any, value: float) -> str:
    """The colour of text that can be read in a cell with this value."""
    return ink(image.cmap(image.norm(value)))


def ink(background: Any) -> str:
    """Black or white, whichever has the larger contrast by the definition of WCAG 2.

    Args:
        background: Red, green, blue in [0, 1]; further channels are ignored.
    """
    luminance = 0.0
    for weight, part in zip(LUMINANCE, background, strict=False):
        linear = part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        luminance += weight * linear
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def capital(text: str) -> str:
    """With a large first letter."""
    return text[:1].upper() + text[1:]


def metric_title(metric: str) -> str:
    """A metric at the beginning of a title: the tool's own with a large letter, others as their authors spell them."""
    return capital(metric) if metric in OWN_METRICS else metric
