"""The page: what is on it, as plain values, and the HTML that shows them."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.drawing import inline
from swamp_ray.report.page.card import Card
from swamp_ray.text.csv_text import csv_bytes
from swamp_ray.text.output import visible

TEMPLATES = Path(__file__).parents[1] / "templates"
WIDE_INCHES = 6.0
SHOWN_ROWS = 200
"""Of a figure's data; the file that the page carries along has all."""


@dataclass(frozen=True)
class Cell:
    """What is read in a table, the number behind it, smaller lines below it, and how it stands out: best or tied."""

    text: str
    value: float | int | None = None
    notes: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table; the first cell of a row names it.

    Attributes:
        title: Above it.
        headings: Of the columns.
        rows: As many cells as headings.
        caption: How to read it, plain text.
        words: Its cells are texts rather than numbers.
        folded: Only its title is seen at first.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    words: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Drawn:
    """A chart that has been drawn: its SVG, and the files beside the page, relative to it, by kind."""

    chart: Chart
    svg: str
    files: dict[str, str] = field(default_factory=dict)

    @property
    def inline(self) -> Markup:
        """The figure as a part of the page."""
        width, height = self.chart.figure.get_size_inches()
        return Markup(inline(self.svg, self.chart.name, f"{self.chart.title}. {self.chart.caption}", (width, height)))

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width of a printed page."""
        return bool(self.chart.figure.get_size_inches()[0] > WIDE_INCHES)

    @property
    def csv_uri(self) -> str:
        """All of its data, inside the page."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv_of(self.chart)).decode()

    @property
    def shown(self) -> pd.DataFrame:
        """The data that is shown as a table."""
        return self.chart.data.head(SHOWN_ROWS)

    @property
    def num_left_out(self) -> int:
        """How many rows are not shown."""
        return len(self.chart.data) - len(self.shown)


@dataclass(frozen=True)
class Part:
    """A section of the page: in this order notes, figures, tables."""

    anchor: str
    title: str
    about: str = ""
    notes: tuple[str, ...] = ()
    charts: tuple[Drawn, ...] = ()
    tables: tuple[PageTable, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.notes or self.charts or self.tables)


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        title: Of the page.
        findings: What was found, the first in large letters.
        subject: Network and data, where all runs share them.
        warnings: What a reader has to know before comparing anything.
        arms: Where there are several: name and method of each.
        differing: The options in which they differ, if any.
        shared: What all of several runs have in common: label and text.
        cards: One a run, with what is its own.
        parts: Sections in order; empty ones are left out.
        command: Makes the page again.
        files: The figures and data beside it, relative to it.
        sources: The files of runs that it was made from.
        missing: By run what of it could not be read, or is not there.
    """

    title: str
    findings: tuple[str, ...]
    subject: str
    warnings: tuple[str, ...]
    arms: tuple[tuple[str, str], ...]
    differing: PageTable | None
    shared: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    parts: tuple[Part, ...]
    command: str
    files: tuple[str, ...]
    sources: tuple[str, ...]
    missing: tuple[tuple[str, tuple[str, ...]], ...] = ()


def csv_of(chart: Chart) -> bytes:
    """A chart's data as CSV, numbers in full."""
    return csv_bytes(chart.data)


def render(page: Page) -> bytes:
    """The page as one HTML file."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": data_cell, "tight": tight}
    parts = [part for part in page.parts if not part.is_empty]
    # Codes in names and messages would turn the direction of the text around them, or end up in a terminal.
    return visible(environment.get_template("report.html").render(page=page, parts=parts)).encode()


def tight(text: str) -> str:
    """No line ends between a number and its unit or its spread, nor between a name and its number with a spread."""
    text = text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
    return re.sub("(?<=\\S) (?=[0-9.]+\u00a0±)", "\u00a0", text)


def data_cell(value: Any) -> str:
    """A value of a figure's data as it is shown: empty where there is none, six digits, lists as they are."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


