"""Runs as a report reads them, made by hand, and what a figure must not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.records import JobEnded
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import tiny

TOTAL = 10_000
SMALLEST_FONT = 8.0


def record(index: int, density: float, *, accuracy: Sequence[float] = (0.5,), average: float = 0.5,
           layers: Mapping[str, float] | None = None, spread: float = 1.0, **values: Any) -> dict[str, Any]:
    """A round's record, with as much in it as figures look at."""
    particles = [{split: {"loss": 1 - one, "accuracy": one} for split in ("validation", "test")} for one in accuracy]
    return {
        "round": index, "sparsity": 1 - density, "survivors": round(density * TOTAL), "num_particles": len(accuracy),
        "average": {split: {"loss": 1 - average, "accuracy": average} for split in ("validation", "test")},
        "particles": particles, "combined": list(range(len(accuracy))), "spread": spread,
        "layer_densities": dict(layers or {"first.weight": density, "second.weight": density}),
        "emptied_layers": [], "dropped": [], **values,
    }


def made_run(folder: Path, name: str, records: Sequence[Mapping[str, Any]] = (), *, arm: str | None = None,
             seed: int = 0, metrics: Sequence[Mapping[str, Any]] = (), jobs: Sequence[Mapping[str, Any]] = (),
             analyses: Mapping[str, Any] | None = None, primary: str = "accuracy",
             shown_as: Mapping[str, Any] | None = None) -> ReportRun:
    """A run that nobody trained."""
    rundir = RunDir(folder, name)
    about = {"primary": primary, "higher_is_better": primary == "accuracy", "shown_as": dict(shown_as or {})}
    return ReportRun(rundir, arm or name, tiny(folder, name=name, seed=seed), about, list(records),
                     pd.DataFrame(list(metrics)), dict(analyses or {}),
                     [JobEnded.model_validate(line) for line in jobs])


def drawn(chart: Chart) -> Any:
    """A chart's data, for pandas' many types of an index."""
    return chart.data


def points(line: Any) -> list[list[float]]:
    """A line's points."""
    return line.get_xydata().tolist()


def flaws(figure: Figure) -> list[str]:
    """What cannot be read in a figure: labels of an axis or texts that overlap, text that is too small or cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts: list[Any] = [*figure.texts]
    for axes in [axes for axes in figure.axes if axes.get_visible()]:
        every: Any = axes
        texts += [*axes.texts, axes.title, every._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [label for tick in ticks for label in (tick.label1, tick.label2)]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        texts += [] if legend is None else legend.get_texts()
    return _flaws_of(figure, texts, renderer)


def _flaws_of(figure: Figure, texts: Sequence[Any], renderer: Any) -> list[str]:
    shown = [text for text in texts if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in shown]
    found = [f"too small: {text.get_text()!r}" for text in shown if text.get_fontsize() < SMALLEST_FONT]
    found += [f"cut off: {text.get_text()!r}" for text, box in zip(shown, boxes, strict=True)
              if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.width + 1 or box.y1 > figure.bbox.height + 1]
    return found + [f"overlap: {shown[one].get_text()!r} and {shown[two].get_text()!r}"
                    for one, two in _overlapping(np.array([box.shrunk(0.98, 0.8).extents for box in boxes]))]


def _overlapping(boxes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of boxes that have an area in common, ``[boxes, 4]`` of left, lower, right, upper."""
    if not len(boxes):
        return []
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    meets = np.minimum(high, boxes[None, :, 2:]) - np.maximum(low, boxes[None, :, :2]) > 0
    return [(one, two) for one, two in np.argwhere(meets.all(axis=2)).tolist() if one < two]
