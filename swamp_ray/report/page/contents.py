"""What a report's figures are, in which order: sections, each with the functions that draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swamp_ray.report.charts.accuracy import accuracy_charts
from swamp_ray.report.charts.calibration import calibration_charts
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.comparison import difference_charts
from swamp_ray.report.charts.curvature import curvature_charts
from swamp_ray.report.charts.growth import growth_charts
from swamp_ray.report.charts.layers import layer_densities
from swamp_ray.report.charts.learning import learning_curves
from swamp_ray.report.charts.masks import mask_overlaps
from swamp_ray.report.charts.paths import connectivity_charts, landscape_charts
from swamp_ray.report.charts.reliability import reliability_charts
from swamp_ray.report.charts.spread import distances_to_average
from swamp_ray.report.charts.timeline import timelines
from swamp_ray.report.load.runs import ReportRun

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


DRAWN_FROM: dict[Draw, str] = {
    calibration_charts: "calibration", growth_charts: "particles", connectivity_charts: "connectivity",
    landscape_charts: "landscape", curvature_charts: "curvature"}
"""The analysis whose file a figure shows, where it is one."""

ACCURACY = Section("accuracy", "Accuracy", (accuracy_charts,))
DIFFERENCES = Section("differences", "Comparison", (difference_charts,))
WORKERS = Section("workers", "Workers", (timelines,))

# After the table of rounds.
SECTIONS: tuple[Section, ...] = (
    Section("weights", "Weights", (layer_densities, mask_overlaps, distances_to_average)),
    Section("training", "Training", (learning_curves,)),
    Section("calibration", "Calibration", (calibration_charts, reliability_charts)),
    Section("loss", "Between and around the networks",
            (growth_charts, connectivity_charts, landscape_charts, curvature_charts)),
    WORKERS,
)
