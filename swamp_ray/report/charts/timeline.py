"""Which worker did what, and when: a bar for each job that ``jobs.jsonl`` has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from swamp_ray.report.charts.cells import ink
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.panels import VISIBLE
from swamp_ray.report.charts.style import COLOUR_MAP, INK, PAPER
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import shortened

WIDTH_IN = 7.2
TALLEST_IN = 7.0
GAP = 0.012
"""Width of the cut between two attempts, as a share of all that is shown."""
DENSE_COLOUR = "#9e9e9e"
TRAINED = ("dense", "trunk", "particle")
FAILED = ("machine", "diverged", "error")
AVERAGING = "averaging"
FIXED_IN = 1.45
"""Of its height what is not rows: colours, axis, legend."""
FONT = 8.0


def timelines(runs: Sequence[ReportRun]) -> list[Chart]:
    """What the workers of each run did; nothing of runs that have not recorded it."""
    return [_chart(run, jobs) for run in runs if not (jobs := jobs_of(run)).empty]


def jobs_of(run: ReportRun) -> pd.DataFrame:
    """The jobs of a run, one row each, in the order in which they began.

    Columns: run, row (whose bar it is), lane (where a worker does several at a time, from 0), lanes (how many it has),
    attempt, kind, round (-1 before the rounds), particle, how, retry, reseed, began_s and ended_s: seconds since the
    first job began, without the time between attempts.
    """
    if not run.jobs:
        return pd.DataFrame()
    lines: Any = pd.DataFrame([line.line() for line in run.jobs])
    frame = lines.sort_values(["attempt", "began", "ended"], kind="stable").reset_index(drop=True)
    frame["run"] = run.name
    frame["round"] = frame["round"].fillna(-1).astype(int)
    frame["particle"] = frame["particle"].fillna(-1).astype(int)
    frame["row"] = _rows(frame)
    start = _starts(frame)
    frame["began_s"], frame["ended_s"] = frame["began"] - start, frame["ended"] - start
    frame["lane"], frame["lanes"] = _lanes(frame)
    return frame[["run", "row", "lane", "lanes", "attempt", "kind", "round", "particle", "how", "retry", "reseed",
                  "began_s", "ended_s"]]


def utilisation(jobs: Any) -> float:
    """Share of the time of all workers in which they had a job, over the attempts in which each of them worked."""
    busy = available = 0.0
    for _, attempt in jobs.groupby("attempt"):
        workers = attempt[attempt["row"] != AVERAGING]
        length = attempt["ended_s"].max() - attempt["began_s"].min()
        available += length * workers["row"].nunique()
        busy += sum(_covered(row) for _, row in workers.groupby("row"))
    return busy / available if available else 0.0


def _covered(jobs: Any) -> float:
    """How long at least one job was at work."""
    total = 0.0
    until = -np.inf
    for began, ended in sorted(zip(jobs["began_s"], jobs["ended_s"], strict=True)):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def _rows(frame: Any) -> list[str]:
    several = frame["host"].nunique() > 1
    return [AVERAGING if pd.isna(worker) else f"{host} · {int(worker)}" if several else f"worker {int(worker)}"
            for host, worker in zip(frame["host"], frame["worker"], strict=True)]


def _starts(frame: Any) -> pd.Series:
    """For each job what has to be taken off its time, so that attempts follow each other without what lies between."""
    bounds = frame.groupby("attempt").agg(first=("began", "min"), last=("ended", "max"))
    lengths = bounds["last"] - bounds["first"]
    before = lengths.cumsum() - lengths
    return frame["attempt"].map(bounds["first"] - before)


def _lanes(frame: Any) -> tuple[list[int], list[int]]:
    """Jobs of one row that overlap lie beside each other: the lane of each, and how many its row has."""
    ends: dict[str, list[float]] = {}
    lanes = []
    for row, began, ended in zip(frame["row"], frame["began_s"], frame["ended_s"], strict=True):
        own = ends.setdefault(row, [])
        free = next((lane for lane, until in enumerate(own) if until <= began + 1e-3), len(own))
        own[free:free + 1] = [ended]
        lanes.append(free)
    return lanes, [len(ends[row]) for row in frame["row"]]


def _chart(run: ReportRun, jobs: Any) -> Chart:
    return Chart(f"timeline_{run.name}", f"Workers of {run.name}", _caption(jobs), _figure(jobs), jobs)


def _caption(jobs: Any) -> str:
    workers = jobs.loc[jobs["row"] != AVERAGING, "row"].nunique()
    busy = "Workers were" if workers != 1 else "The worker was"
    attempts = jobs["attempt"].nunique()
    failed = int(jobs["how"].isin(FAILED).sum())
    parts = [f"Each bar is a job that a worker was given, from then until it had ended; {len(jobs):,} "
             f"job{'s' * (len(jobs) != 1)} of {workers} worker{'s' * (workers != 1)} in one run. {busy} busy for "
             f"{100 * utilisation(jobs):.0f} % of the time between the first and the last job."]
    if attempts > 1:
        parts.append(f"The run took {attempts} attempts, one behind the other; the time between them is left out, and "
                     "so is what a killed attempt had not finished.")
    if failed:
        parts.append(f"{failed} job{'s' * (failed != 1)} failed and {'were' if failed != 1 else 'was'} given out again "
                     "or left out.")
    if (jobs["lanes"] > 1).any():
        parts.append("Bars above each other in one row were trained by one worker at the same time.")
    return " ".join(parts)


def _figure(jobs: Any) -> Figure:
    rows = sorted(jobs["row"].unique(), key=_order)
    height = min(TALLEST_IN, FIXED_IN + 0.32 * len(rows))
    figure, bar, axes = _areas(height, max(len(_label(row)) for row in rows))
    scale, unit = _unit(float(jobs["ended_s"].max()))
    gaps = _gaps(jobs)
    shift = jobs["attempt"].map(gaps)
    drawn = jobs.assign(left=(jobs["began_s"] + shift) / scale, right=(jobs["ended_s"] + shift) / scale)
    colours, norm = _colours(jobs)
    places = {row: index for index, row in enumerate(rows)}
    for job in drawn.itertuples(index=False):
        _draw_job(axes, job, places, colours, norm)
    _row_axis(axes, rows, height)
    _attempt_lines(axes, drawn)
    axes.set_xlim(0, float(drawn["right"].max()))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel(unit + (" at work, attempts one behind the other" if len(gaps) > 1 else ""))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _mark(axes, drawn, places)
    _number(axes, drawn, places, (height - FIXED_IN) / len(rows), colours, norm)
    _round_bar(bar, colours)
    _legend(figure, jobs, colours)
    return figure


def _areas(height: float, longest: int) -> tuple[Figure, Any, Any]:
    """The figure, the strip of colours and the area of bars; their places are known, whatever the number of rows."""
    figure = Figure(figsize=(WIDTH_IN, height))
    left = (0.2 + 0.078 * longest) / WIDTH_IN
    width = (WIDTH_IN - 0.32 - 0.078 * longest) / WIDTH_IN
    bar = figure.add_axes((left, 1 - 0.32 / height, width, 0.1 / height))
    axes = figure.add_axes((left, 0.82 / height, width, (height - FIXED_IN) / height))
    return figure, bar, axes


def _label(row: str) -> str:
    return shortened(row, 24)


def _order(row: str) -> tuple[bool, str, int]:
    """Hosts by name, their workers by number, averaging last."""
    host, _, number = row.rpartition(" ")
    return row == AVERAGING, host, int(number) if number.isdigit() else 0


def _unit(length_s: float) -> tuple[float, str]:
    for scale, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if length_s > 3 * scale:
            return scale, unit
    return 1.0, "seconds"


def _gaps(jobs: Any) -> dict[Any, float]:
    """By attempt: how far its bars are moved to the right, so that a line fits in before it."""
    width = GAP * float(jobs["ended_s"].max())
    return {attempt: number * width for number, attempt in enumerate(sorted(jobs["attempt"].unique()))}


def _colours(jobs: Any) -> tuple[ListedColormap, BoundaryNorm]:
    """A colour a round."""
    last = max(0, int(jobs["round"].max()))
    shades = matplotlib.colormaps[COLOUR_MAP](np.linspace(*VISIBLE, last + 1))
    return ListedColormap(shades), BoundaryNorm(np.arange(-0.5, last + 1.0), last + 1)


def _box(job: Any, places: dict[str, int]) -> tuple[float, float]:
    """Lower edge and height of a job's bar; averages and evaluations are half as high."""
    height = 0.84 / job.lanes
    bottom = places[job.row] - 0.42 + height * job.lane
    if job.kind in TRAINED:
        return bottom + 0.02, height - 0.04
    return bottom + 0.25 * height, 0.5 * height


def _draw_job(axes: Any, job: Any, places: dict[str, int], colours: ListedColormap, norm: BoundaryNorm) -> None:
    bottom, height = _box(job, places)
    face = DENSE_COLOUR if job.kind in ("dense", "mask") else colours(norm(job.round))
    bad = job.how != "done"
    edge = face if bad or job.kind not in TRAINED else PAPER  # what is short would vanish behind a light one
    axes.add_patch(Rectangle((job.left, bottom), job.right - job.left, height, facecolor=PAPER if bad else face,
                             edgecolor=edge, hatch="////" if bad else None, linewidth=0.8 if bad else 0.3))


def _row_axis(axes: Any, rows: Sequence[str], height_in: float) -> None:
    """A label a worker, or every second, fifth or tenth of many."""
    room = max(1, int((height_in - FIXED_IN) / 0.17))
    every = next((step for step in (1, 2, 5, 10, 20, 50) if len(rows) / step <= room), 100)
    shown = [index for index, row in enumerate(rows) if index % every == 0 or row == AVERAGING]
    axes.set_yticks(shown, [_label(rows[index]) for index in shown],
                    fontsize=FONT)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=FONT)
    axes.xaxis.label.set_size(FONT + 1)


def _attempt_lines(axes: Any, drawn: Any) -> None:
    bounds = drawn.groupby("attempt").agg(left=("left", "min"), right=("right", "max"))
    before = None
    whole = float(bounds["right"].max())
    for attempt, left, right in zip(bounds.index, bounds["left"], bounds["right"], strict=True):
        if before is not None:
            axes.axvline((before + left) / 2, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        if len(bounds) > 1 and (right - left) / whole > 0.13:
            axes.annotate(f"attempt {attempt}", ((left + right) / 2, 1.0), xycoords=("data", "axes fraction"),
                          xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=FONT)
        before = right


def _mark(axes: Any, drawn: Any, places: dict[str, int]) -> None:
    """A cross where a job failed, a triangle where one is begun that has failed before."""
    failed = drawn[drawn["how"].isin(FAILED)]
    again = drawn[(drawn["retry"] > 0) | (drawn["reseed"] > 0)]
    for jobs, x, marker, colour in ((failed, "right", "X", "#D55E00"), (again, "left", ">", PAPER)):
        heights = [sum(_box(job, places)) - _box(job, places)[1] / 2 for job in jobs.itertuples(index=False)]
        axes.plot(jobs[x], heights, linestyle="none", marker=marker, markersize=6, markerfacecolor=colour,
                  markeredgecolor=INK, markeredgewidth=0.7, zorder=5, clip_on=False)


def _number(axes: Any, drawn: Any, places: dict[str, int], row_in: float, colours: ListedColormap,
            norm: BoundaryNorm) -> None:
    """The particle's index in its bar, T in a trunk's, where it fits."""
    whole = float(drawn["right"].max())
    numbered = drawn["kind"].isin(["trunk", "particle"])
    for job in drawn[numbered & (drawn["how"] == "done")].itertuples(index=False):
        bottom, height = _box(job, places)
        width_in = (job.right - job.left) / whole * (WIDTH_IN - 1.6)
        if width_in < 0.07 + 0.07 * len(str(job.particle)) or height * row_in < 0.14:
            continue
        text = "T" if job.kind == "trunk" else str(job.particle)
        axes.text((job.left + job.right) / 2, bottom + height / 2, text, ha="center", va="center_baseline",
                  fontsize=FONT, color=ink(colours(norm(job.round))))


def _legend(figure: Figure, jobs: Any, colours: ListedColormap) -> None:
    handles: list[Any] = []
    if (jobs["kind"] == "dense").any():
        handles.append(Patch(facecolor=DENSE_COLOUR, label="dense phase"))
    if (jobs["kind"] == "mask").any():
        handles.append(Line2D([], [], color=DENSE_COLOUR, linewidth=3, label="mask before training"))
    trunk = ", trunk (T)" if (jobs["kind"] == "trunk").any() else ""
    handles.append(Patch(facecolor=colours(0.0), label=f"particle (its index){trunk}"))
    handles.append(Line2D([], [], color=colours(0.0), linewidth=3, label="average, evaluation"))
    if (jobs["how"] != "done").any():
        handles.append(Patch(facecolor=PAPER, edgecolor=INK, hatch="////", label="not finished"))
    if jobs["how"].isin(FAILED).any():
        handles.append(Line2D([], [], linestyle="none", marker="X", markersize=6, markerfacecolor="#D55E00",
                              markeredgecolor=INK, label="failed"))
    if ((jobs["retry"] > 0) | (jobs["reseed"] > 0)).any():
        handles.append(Line2D([], [], linestyle="none", marker=">", markersize=6, markerfacecolor=PAPER,
                              markeredgecolor=INK, label="tried again"))
    figure.legend(handles=handles, loc="lower left", ncols=min(len(handles), 6), frameon=False, fontsize=FONT,
                  handlelength=1.4, columnspacing=1.2)


def _round_bar(axes: Any, colours: ListedColormap) -> None:
    """The colour of each round."""
    axes.imshow(np.arange(colours.N)[None, :], cmap=colours, aspect="auto", vmin=-0.5, vmax=colours.N - 0.5)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if colours.N / step <= 21)
    axes.set_xticks(range(0, colours.N, step))
    axes.set_yticks([0], ["round"])
    axes.tick_params(labelsize=FONT, length=0, pad=2, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.set_frame_on(False)
