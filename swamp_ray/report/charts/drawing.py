"""Figures as files, and inside a page: real text, names that do not clash, colours that follow the page."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from swamp_ray.report.charts.style import COLOURS, GRID, INK, MUTED, PAPER, themed
from swamp_ray.text.output import visible

DPI = 160
PX_PER_INCH = 120
"""How large an inch of a figure is at most on a page."""
THEME = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper",
         **{colour.lower(): f"arm-{number}" for number, colour in enumerate(COLOURS)}}
"""Names of a page's colours, by the colours that figures are drawn in."""

_COLOUR = re.compile("|".join(map(re.escape, THEME)), re.I)


@contextlib.contextmanager
def names_as_they_are(figure: Figure) -> Iterator[None]:
    """Within it a figure is saved with every name as it is: a dollar sign begins no formula, which may be none."""
    found: list[Any] = figure.findobj(Text)
    for text in found:
        text.set_parse_math(False)
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        # A letter that the font lacks is drawn as a box; the page and the CSV have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def svg_of(figure: Figure, name: str) -> str:
    """A figure as SVG; the same figure gives the same text. Its layout is computed then, for a PNG of it too."""
    buffer = io.StringIO()
    with themed(), names_as_they_are(figure), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    # XML cannot hold control codes.
    return visible(buffer.getvalue())


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, for slides and mail."""
    buffer = io.BytesIO()
    with themed(), names_as_they_are(figure):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def inline(svg: str, name: str, label: str, inches: tuple[float, float]) -> str:
    """An SVG of :func:`svg_of` as a part of a page.

    Args:
        svg: The figure.
        name: Distinguishes its ids from those of other figures on the page.
        label: What is read out instead of it.
        inches: Its width and height.
    """
    body = svg[svg.index("<svg"):]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r' style="[^"]*"', lambda style: _themed_style(style[0]), body)
    size = f"width:{inches[0] * PX_PER_INCH:.0f}px"
    head = (f'<svg role="img" aria-label="{escape(label)}" style="{size}" '
            f'viewBox="0 0 {72 * inches[0]:g} {72 * inches[1]:g}" xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink">')
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1, flags=re.S).strip()


def _themed_style(style: str) -> str:
    style = _COLOUR.sub(lambda found: f"var(--{THEME[found[0].lower()]})", style)
    style = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", style)
    return re.sub(r"(font: [^;\"']*px) [^;\"]*", r"\1 var(--font)", style)
