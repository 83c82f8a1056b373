"""Figures of a sweep: a heat map over two entries of its space, and curves against the weights that are left."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.report.charts.drawing import names_as_they_are
from swamp_ray.report.charts.heat_map import heat_map
from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.space_entries import TARGET, WORDS, is_numeric, split_and_name, value_text, varies
from swamp_ray.report.charts.style import (
    COLOUR_MAP,
    COLOURS,
    MARKERS,
    MUTED,
    axis_label,
    plain_density_axes,
    scale_of,
)
from swamp_ray.storage.places import Spot
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import Settings, read_record, read_sweep
from swamp_ray.sweep.results import CONFIG, SPACE, by_round, space_columns
from swamp_ray.text.output import visible
from swamp_ray.text.tables import told_apart

SHARED = ("name", "seed", "storage", "particles.", "pruning.", "execution.", "keep.", "identity.")
"""Options in which settings may differ and still start from the same kind of dense network."""
KINDS = ("svg", "png")
DPI = 160
MAX_CURVES = 12
"""So many can be told apart by colour, marker and line where they have no order."""
LONGEST_LABEL = 42
"""Letters of a curve in the legend, which would leave no room for the axes."""


def curves(frame: pd.DataFrame, metric: str = "average/test/accuracy", *, higher_is_better: bool = True,
           title: str = "", notes: Sequence[str] = (), shown_as: Mapping[str, str | int] | None = None) -> Figure:
    """A metric against the weights that are left (log axis): the mean over seeds, with one standard error around it.

    Settings that differ in nothing but pruning.target are one curve, which the longest chain of rounds stands for.

    Args:
        frame: What :func:`swamp_ray.sweep.results.collect` gave.
        metric: NETWORK/SPLIT/METRIC.
        higher_is_better: Which curves get a colour of their own where there are too many: those that are best at their
            ends on validation. Where the frame has no values of it, the first ones do: test chooses nothing.
        title: Above the figure.
        notes: Lines below the title.
        shown_as: How metrics are written, as :class:`swamp_ray.Task` says.

    Raises:
        UserError: There is no such metric.
    """
    found = _curves(frame, metric)
    split, name = split_and_name(metric, shown_as)
    scale = scale_of(name)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    judged = _judged(frame, metric)
    named, rest = _worth_a_colour(found, judged, higher_is_better)
    few = len(found) <= len(COLOURS)
    for number, curve in enumerate(rest):
        label = f"{len(rest)} others (grey)" if number == 0 else None
        marker = "." if len(curve.density) == 1 else ""
        axes.plot(curve.density, scale * curve.mean, color="#c8c8c8", linewidth=0.9, marker=marker, zorder=1,
                  label=label)
    for curve, style in zip(named, _styles(named), strict=True):
        band = (scale * (curve.mean - curve.error), scale * (curve.mean + curve.error))
        line_with_band(axes, curve.density, scale * curve.mean, band if curve.has_band else None, label=curve.label,
                       shade=0.15 if few else 0.08, markersize=4.5 if few else 3.5, linewidth=1.8 if few else 1.3,
                       **style)
    dense = _dense_mean(frame, split, name)
    if dense is not None:
        axes.axhline(scale * dense, color=MUTED, linestyle="--", linewidth=1, zorder=0.5, label="dense")
    lowest = min((float(curve.density.min()) for curve in found), default=1.0)
    plain_density_axes(axes, lowest, axis_label(name, split))
    if found:
        _legend(figure, axes, frame)
    bands = "mean over seeds" + (", ± one standard error" if any(curve.has_band for curve in found) else "")
    chosen = _choice_in_words(judged is not None) if rest else ""
    axes.set_title("\n".join(filter(None, [title, bands, chosen, *notes])), loc="left", fontsize=10)
    return figure


def _choice_in_words(by_validation: bool) -> str:
    """Which of too many curves have colours."""
    if by_validation:
        return f"in colour: the {MAX_CURVES} that end best on validation"
    return f"in colour: the first {MAX_CURVES} of the sweep"


def write_figures(sweepdir: SweepDir, frame: pd.DataFrame) -> list[Spot]:
    """Write the curves, and where two listed entries vary the heat map, as SVG and PNG; nothing without results.

    Args:
        sweepdir: The sweep's folder.
        frame: What :func:`swamp_ray.sweep.results.collect` gave.

    Returns:
        What was written.
    """
    if frame.empty:
        return []
    config = read_sweep(sweepdir).config
    shown_as = _shown_as(sweepdir)
    metric = config.metric.replace("/validation/", "/test/")
    figures = {"curves": curves(frame, metric, higher_is_better=config.mode == "max", title=sweepdir.name,
                                notes=_left_out(sweepdir, frame), shown_as=shown_as)}
    varied = [entry for entry in config.space if varies(frame, SPACE + entry)]
    if len(varied) == 2 and all(config.space[entry].values is not None for entry in varied):
        # Sparsity goes to the right, as in the curves.
        x, y = sorted(varied, key=lambda entry: entry != TARGET)
        figures["heat_map"] = heat_map(frame, x, y, metric, title=sweepdir.name, shown_as=shown_as)
    return [_write(sweepdir, figure, name, kind) for name, figure in figures.items() for kind in KINDS]


def _shown_as(sweepdir: SweepDir) -> Mapping[str, str | int] | None:
    """How the sweep's metrics are written; a record that cannot be read only describes the sweep."""
    try:
        return read_record(sweepdir).get("shown_as")
    except CorruptArtifactError:
        return None


def _left_out(sweepdir: SweepDir, frame: pd.DataFrame) -> list[str]:
    """What the curves do not show: settings that a longer chain stands for, and settings without results."""
    lines = []
    if SPACE + TARGET in frame and varies(frame, SPACE + TARGET):
        lines.append("of settings that differ only in their target, the one with the most rounds is drawn")
    failed = sum(trial.status == "failed" for trial in Settings(sweepdir).read())
    if failed:
        lines.append(f"{failed} setting{'s' * (failed > 1)} failed")
    return lines


def _write(sweepdir: SweepDir, figure: Figure, name: str, kind: str) -> Spot:
    buffer = io.BytesIO()
    # The same results give the same bytes: SVG would hold the time and random names.
    with names_as_they_are(figure), matplotlib.rc_context({"svg.hashsalt": sweepdir.name}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    spot = sweepdir.figure(name, kind)
    data = buffer.getvalue()
    # XML cannot hold control codes.
    spot.write(visible(data.decode()).encode() if kind == "svg" else data)
    return spot


@dataclass(frozen=True)
class _Line:
    """A curve: densities in falling order, and the metric's mean and standard error at each."""

    label: str
    values: tuple[Any, ...]
    density: np.ndarray = field(compare=False)
    mean: np.ndarray = field(compare=False)
    error: np.ndarray = field(compare=False)

    @property
    def has_band(self) -> bool:
        return bool(np.isfinite(self.error).any())


def _curves(frame: pd.DataFrame, metric: str) -> list[_Line]:
    """One for each group of settings that do not differ in pruning.target only, in the order of the sweep."""
    entries = [column for column in space_columns(frame) if column != SPACE + TARGET]
    varied = [column for column in entries if varies(frame, column)]
    chains: dict[tuple[Any, ...], pd.DataFrame] = {}
    for _, group in frame.groupby("setting", sort=False):
        rounds = by_round(group, metric)
        key = tuple(group[column].iloc[0] for column in entries)
        if len(rounds) > len(chains.get(key, ())):
            chains[key] = rounds
    lines = []
    for key, rounds in chains.items():
        values = tuple(value for column, value in zip(entries, key, strict=True) if column in varied)
        names = [column.removeprefix(SPACE) for column in varied]
        lines.append(_Line(_label(frame, names, values), values, 1.0 - rounds["sparsity"].to_numpy(),
                           rounds["mean"].to_numpy(), rounds["standard_error"].to_numpy()))
    # A number in its order, whatever the order of the file.
    numeric = len(varied) == 1 and is_numeric(frame, varied[0])
    return sorted(lines, key=lambda line: line.values) if numeric else lines


def _label(frame: pd.DataFrame, names: Sequence[str], values: Sequence[Any]) -> str:
    """What tells a curve from the others: the values that vary; the name alone where it is a group's."""
    parts = []
    for name, value in zip(names, values, strict=True):
        text = value_text(name, value)
        is_group = f"{CONFIG}{name}" not in _option_names(frame)
        word = WORDS.get(name, name.rpartition(".")[2]).replace("number of ", "")
        parts.append(text if is_group or len(names) == 1 else f"{word} {text}")
    return ", ".join(parts) or "all settings"


def _option_names(frame: pd.DataFrame) -> set[str]:
    """The columns of options, lengths without their unit."""
    names = {column for column in frame.columns if column.startswith(CONFIG)}
    return names | {name.removesuffix("_epochs").removesuffix("_steps") for name in names}


def _judged(frame: pd.DataFrame, metric: str) -> list[float] | None:
    """What curves with a colour are chosen by: their ends on validation; None without it, as test chooses nothing."""
    held_out = metric.replace("/test/", "/validation/")
    return [float(line.mean[-1]) for line in _curves(frame, held_out)] if held_out in frame else None


def _worth_a_colour(
    lines: Sequence[_Line], ends: Sequence[float] | None, higher_is_better: bool
) -> tuple[list[_Line], list[_Line]]:
    """Curves that are named, and the rest: all are named where they can be told apart, else the best at their ends.

    Args:
        lines: All curves.
        ends: What they are chosen by, in the same order; None: the first of them are named.
        higher_is_better: Which ends are best. One that is NaN never is.
    """
    if len(lines) <= MAX_CURVES:
        return list(lines), []
    places = list(range(len(lines)))
    if ends is not None:
        sign = -1 if higher_is_better else 1
        places.sort(key=lambda index: (math.isnan(ends[index]), sign * ends[index]))
    best = places[:MAX_CURVES]
    return ([line for index, line in enumerate(lines) if index in best],
            [line for index, line in enumerate(lines) if index not in best])


def _styles(lines: Sequence[_Line]) -> list[dict[str, Any]]:
    """Colour, marker and line of each curve: by its order along one number where there are many, else all different."""
    ordered = all(len(line.values) == 1 and isinstance(line.values[0], int | float | np.number) for line in lines)
    if len(lines) > len(COLOURS) and ordered:
        # The palest yellow cannot be seen on white.
        shades = matplotlib.colormaps[COLOUR_MAP](np.linspace(0.0, 0.92, len(lines)))
        return [{"color": tuple(shade), "marker": MARKERS[number % len(MARKERS)]}
                for number, shade in enumerate(shades)]
    strokes = ("-", "--", ":")
    return [{"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
             "linestyle": strokes[number // len(COLOURS) % len(strokes)]} for number in range(len(lines))]


def _dense_mean(frame: pd.DataFrame, split: str, metric: str) -> float | None:
    """Mean of the particles that were trained without a mask; None where settings differ in how they train them."""
    column = f"particles_mean/{split}/{metric}"
    dense = frame.loc[frame["sparsity"] == 0]
    ways = [name for name in frame.columns if name.startswith(CONFIG)
            and not name.removeprefix(CONFIG).startswith(SHARED) and varies(frame, name)]
    return None if ways or dense.empty or column not in frame else float(np.mean(dense[column].to_numpy()))


def _legend(figure: Figure, axes: Any, frame: pd.DataFrame) -> None:
    """Beside the axes, where it covers nothing; its title names the entry that varies."""
    handles, labels = axes.get_legend_handles_labels()
    # What is grey, and the dense network, come last.
    order = sorted(range(len(labels)), key=lambda index: (labels[index] == "dense", labels[index].endswith("(grey)")))
    entries = [column.removeprefix(SPACE) for column in space_columns(frame)
               if column != SPACE + TARGET and varies(frame, column)]
    title = WORDS.get(entries[0], entries[0]) if len(entries) == 1 else None
    short = told_apart([labels[index] for index in order], LONGEST_LABEL)
    figure.legend([handles[index] for index in order], short, loc="outside right upper",
                  frameon=False, fontsize=8 if len(labels) > 8 else 9, title=title, title_fontsize=9,
                  alignment="left")
