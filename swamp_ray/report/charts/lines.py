"""Lines with bands around them, as figures of several arms draw them."""

from __future__ import annotations

from typing import Any


def line_with_band(axes: Any, x: Any, middle: Any, band: tuple[Any, Any] | None = None, *, shade: float = 0.16,
                   **line: Any) -> None:
    """Draw a line through means, and shade the range around it.

    Args:
        axes: Of a figure.
        x: Horizontal positions.
        middle: The means.
        band: The lower and the upper ends of the range; None: there is only the line.
        shade: Opacity of the band.
        line: How the line is drawn, in matplotlib's words; `color` is needed, and the band takes it over.
    """
    axes.plot(x, middle, **{"markersize": 4.5, "linewidth": 1.8, **line})
    if band is not None:
        low, high = band
        # Lines have zorder 2 by default, and bands lie just below their lines.
        axes.fill_between(x, low, high, color=line["color"], alpha=shade, linewidth=0, zorder=line.get("zorder", 2) - 1)


def curves_with_mean(axes: Any, curves: Any, colour: Any, *, singly: bool = True, **mean: Any) -> None:
    """Draw several curves and, thick, their mean.

    Args:
        axes: Of a figure.
        curves: A DataFrame with one curve a column; its index holds the horizontal positions.
        colour: Of all of them.
        singly: Whether each curve is a thin line; else the range between the lowest and the highest is shaded.
        mean: How the line of the mean is drawn, in matplotlib's words.
    """
    if curves.shape[1] > 1 and singly:
        axes.plot(curves.index, curves, color=colour, linewidth=0.5, alpha=0.45)
    elif curves.shape[1] > 1:
        axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.18, linewidth=0)
    axes.plot(curves.index, curves.mean(axis=1), color=colour, **mean)
