"""Runs as a report reads them, made by hand, and what a figure must not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swamp_ray.report.chart import Chart
from swamp_ray.report.reading import ReportRun
from swamp_ray.storage.jsonlines import dump_json
from swamp_ray.storage.rundir import RunDir
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
             analyses: Mapping[str, Any] | None = None, primary: str = "accuracy") -> ReportRun:
    """A run that nobody trained."""
    rundir = RunDir(folder, name)
    if jobs:
        rundir.jobs.write(b"".join(dump_json(dict(job)) + b"\n" for job in jobs))
    about = {"primary": primary, "higher_is_better": primary == "accuracy"}
    return ReportRun(rundir, arm or name, tiny(folder, name=name, seed=seed), about, list(records),
                     pd.DataFrame(list(metrics)), dict(analyses or {}))


def drawn(chart: Chart) -> Any:
    """A chart's data, for pandas' many types of an index."""
    return chart.data


def flaws(figure: Figure) -> list[str]:
    """What cannot be read in a figure: labels of an axis or texts that overlap, text that is too small or cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += _flaws_of(figure, [label for tick in ticks for label in (tick.label1, tick.label2)], renderer)
        found += _flaws_of(figure, list(axes.texts), renderer)
        found += _flaws_of(figure, [axes.title, axes.xaxis.label, axes.yaxis.label], renderer)
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]:
        found += _flaws_of(figure, legend.get_texts(), renderer)
    return found


def _flaws_of(figure: Figure, texts: Sequence[Any], renderer: Any) -> list[str]:
    shown = [text for text in texts if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in shown]
    found = [f"too small: {text.get_text()!r}" for text in shown if text.get_fontsize() < SMALLEST_FONT]
    found += [f"cut off: {text.get_text()!r}" for text, box in zip(shown, boxes, strict=True)
              if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.width + 1 or box.y1 > figure.bbox.height + 1]
    for (one, first), (two, second) in combinations(zip(shown, boxes, strict=True), 2):
        if first.shrunk(0.98, 0.8).overlaps(second.shrunk(0.98, 0.8)):
            found.append(f"overlap: {one.get_text()!r} and {two.get_text()!r}")
    return found
