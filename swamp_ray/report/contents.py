"""What a report's figures are, in which order: sections, each with the functions that draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swamp_ray.report.accuracy import accuracy_charts
from swamp_ray.report.chart import Chart
from swamp_ray.report.comparison import difference_charts
from swamp_ray.report.reading import ReportRun

Draw = Callable[[Sequence[ReportRun]], list[Chart]]
"""Draws what the runs have stored; an empty list where they have nothing of it."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: Its id.
        title: Its heading.
        draw: What is in it, in order. A section in which nothing is drawn is left out.
        about: A sentence on how to read it, plain text.
    """

    anchor: str
    title: str
    draw: tuple[Draw, ...]
    about: str = ""


ACCURACY = Section("accuracy", "Accuracy", (accuracy_charts,))
DIFFERENCES = Section("differences", "Comparison", (difference_charts,))

# After the table of rounds.
SECTIONS: tuple[Section, ...] = ()
