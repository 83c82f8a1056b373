"""Figures of a sweep: a heat map over two entries of its space, and curves against the weights that are left."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from swamp_ray.errors import CorruptArtifactError, UserError, nearest
from swamp_ray.report.charts.cells import ink
from swamp_ray.report.charts.drawing import names_as_they_are
from swamp_ray.report.charts.style import (
    COLOUR_MAP,
    COLOURS,
    MARKERS,
    MUTED,
    axis_label,
    density_axis,
    plain_axes,
    scale_of,
)
from swamp_ray.storage.places import Spot
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import Settings, read_record, read_sweep
from swamp_ray.sweep.results import CONFIG, SPACE, by_round, by_setting, space_columns
from swamp_ray.text.metric_names import Metric, short, style_of
from swamp_ray.text.output import visible
from swamp_ray.text.tables import told_apart

TARGET = "pruning.target"
WORDS = {TARGET: "sparsity", "particles.count": "number of particles", "seed": "seed"}
"""Entries of the space in plain words."""
SHARED = ("name", "seed", "storage", "particles.", "pruning.", "execution.", "keep.", "identity.")
"""Options in which settings may differ and still start from the same kind of dense network."""
KINDS = ("svg", "png")
DPI = 160
MAX_CURVES = 12
"""So many can be told apart by colour, marker and line where they have no order."""
LONGEST_VALUE, LONGEST_LABEL = 24, 42
"""Letters of a value at an axis, and of a curve in the legend, which would leave no room for the axes."""
MISSING = "#f2f2f2"


def heat_map(frame: pd.DataFrame, x_entry: str, y_entry: str, metric: str = "average/test/accuracy",
             at_sparsity: float | None = None, title: str = "",
             shown_as: Mapping[str, str | int] | None = None) -> Figure:
    """A metric over two entries of the space: in each cell the mean over seeds, and below it the standard error.

    Args:
        frame: What :func:`swamp_ray.sweep.results.collect` gave; of its entries no others may vary.
        x_entry: The entry that varies to the right.
        y_entry: The entry that varies upwards.
        metric: NETWORK/SPLIT/METRIC.
        at_sparsity: Compare all settings at the first round that is at least so sparse; by default each at its last.
        title: Above the figure.
        shown_as: How metrics are written, as :class:`swamp_ray.Task` says.

    Raises:
        UserError: There is no such entry or metric, or a further entry varies.
    """
    _check_entries(frame, (x_entry, y_entry))
    table = by_setting(frame, metric, at_sparsity)
    columns, rows = _axis_values(frame, x_entry), _axis_values(frame, y_entry)
    # Numbers grow upwards; names are read from the top.
    rows = rows if _is_numeric(frame, SPACE + y_entry) else rows[::-1]
    cells = {(setting[SPACE + x_entry], setting[SPACE + y_entry]): setting for _, setting in table.iterrows()}
    split, name = _split_and_name(metric, shown_as)
    means = np.array([[_mean(cells.get((x, y))) for x in columns] for y in rows]) * scale_of(name)
    size = (min(16.0, 2.6 + 1.05 * len(columns)), min(14.0, 1.5 + 0.75 * len(rows)))
    figure = Figure(figsize=(max(size[0], 5.0), max(size[1], 3.2)), layout="constrained")
    axes = figure.add_subplot()
    low, high = _limits(means)
    image = axes.imshow(np.ma.masked_invalid(means), origin="lower", aspect="auto", cmap=COLOUR_MAP, vmin=low,
                        vmax=high)
    for (row, y), (column, x) in product(enumerate(rows), enumerate(columns)):
        _draw_cell(axes, column, row, cells.get((x, y)), name, image, max(len(columns), len(rows)))
    _cell_axes(axes, x_entry, columns, y_entry, rows)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(axis_label(name, split))
    bar.outline.set_visible(False)
    note = _seeds_note(table)
    axes.set_title("\n".join(filter(None, [title, note])), loc="left", fontsize=10)
    return figure


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
    split, name = _split_and_name(metric, shown_as)
    scale = scale_of(name)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    judged = _judged(frame, metric)
    named, rest = _worth_a_colour(found, judged, higher_is_better)
    few = len(found) <= len(COLOURS)
    for number, curve in enumerate(rest):
        label = f"{len(rest)} others (grey)" if number == 0 else None
        axes.plot(curve.density, scale * curve.mean, color="#c8c8c8", linewidth=0.9, zorder=1, label=label)
    for curve, style in zip(named, _styles(named), strict=True):
        axes.plot(curve.density, scale * curve.mean, markersize=4.5 if few else 3.5, linewidth=1.8 if few else 1.3,
                  label=curve.label, **style)
        if curve.has_band:
            axes.fill_between(curve.density, scale * (curve.mean - curve.error), scale * (curve.mean + curve.error),
                              color=style["color"], alpha=0.15 if few else 0.08, linewidth=0)
    if (dense := _dense_mean(frame, split, name)) is not None:
        axes.axhline(scale * dense, color=MUTED, linestyle="--", linewidth=1, zorder=0.5, label="dense")
    density_axis(axes, min((float(curve.density.min()) for curve in found), default=1.0))
    axes.set_ylabel(axis_label(name, split))
    plain_axes(axes)
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
    config, shown_as = read_sweep(sweepdir).config, _shown_as(sweepdir)
    metric = config.metric.replace("/validation/", "/test/")
    figures = {"curves": curves(frame, metric, higher_is_better=config.mode == "max", title=sweepdir.name,
                                notes=_left_out(sweepdir, frame), shown_as=shown_as)}
    varied = [entry for entry in config.space if _varies(frame, SPACE + entry)]
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


def _split_and_name(metric: str, shown_as: Mapping[str, str | int] | None) -> tuple[str, Metric]:
    """Of NETWORK/SPLIT/METRIC."""
    _, split, name = metric.split("/", 2)
    return split, Metric(name, shown_as)


def _left_out(sweepdir: SweepDir, frame: pd.DataFrame) -> list[str]:
    """What the curves do not show: settings that a longer chain stands for, and settings without results."""
    lines = []
    if SPACE + TARGET in frame and _varies(frame, SPACE + TARGET):
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


def _check_entries(frame: pd.DataFrame, entries: Sequence[str]) -> None:
    known = [column.removeprefix(SPACE) for column in space_columns(frame)]
    for entry in entries:
        if entry not in known:
            raise UserError("there is no such entry in the space", got=entry, where="heat_map",
                            do=nearest(entry, known) or f"There are: {', '.join(known)}.")
    others = [entry for entry in known if entry not in entries and _varies(frame, SPACE + entry)]
    if others:
        raise UserError("a heat map shows two entries, but others vary too", got=", ".join(others), where="heat_map",
                        do=f"Choose one value, e.g. frame[frame[{SPACE + others[0]!r}] == VALUE].")


def _axis_values(frame: pd.DataFrame, entry: str) -> list[Any]:
    """The values of an entry: numbers in their order, anything else as the sweep lists it."""
    values = list(frame[SPACE + entry].dropna().unique())
    return sorted(values) if _is_numeric(frame, SPACE + entry) else values


def _is_numeric(frame: pd.DataFrame, column: str) -> bool:
    kind = frame.dtypes[column]
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _varies(frame: pd.DataFrame, column: str) -> bool:
    return len(frame[column].drop_duplicates()) > 1


def _mean(setting: Any) -> float:
    return math.nan if setting is None else float(setting["mean"])


def _limits(means: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale; never the same."""
    finite = means[np.isfinite(means)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _draw_cell(axes: Any, column: int, row: int, setting: Any, metric: str, image: Any, most: int) -> None:
    """The numbers of a cell in black or white, whichever can be read; what is missing is hatched."""
    size = max(5.0, min(11.0, 100 / most))
    mean = _mean(setting) * scale_of(metric)
    if not math.isfinite(mean):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=MISSING, edgecolor="#bdbdbd", hatch="///",
                                 linewidth=0))
        if setting is not None and setting["status"] != "complete":
            axes.text(column, row, setting["status"], ha="center", va="center", fontsize=size, color=MUTED,
                      bbox={"facecolor": MISSING, "edgecolor": "none", "pad": 1.5})
        return
    colour = ink(image.cmap(image.norm(mean)))
    error = float(setting["standard_error"])
    text = short(_mean(setting), metric)
    spread = "" if math.isnan(error) else f"± {error:.2g}" if style_of(metric) is None else f"± {short(error, metric)}"
    axes.text(column, row + (0.12 if spread else 0), text, ha="center", va="center", fontsize=size, color=colour)
    if spread:
        axes.text(column, row - 0.2, spread, ha="center", va="center", fontsize=0.8 * size, color=colour)


def _cell_axes(axes: Any, x_entry: str, columns: Sequence[Any], y_entry: str, rows: Sequence[Any]) -> None:
    texts = told_apart([value_text(x_entry, value) for value in columns], LONGEST_VALUE)
    crowded = len(texts) > 12 or max(map(len, texts), default=0) > 12
    axes.set_xticks(range(len(columns)), texts, rotation=45 if crowded else 0, ha="right" if crowded else "center",
                    rotation_mode="anchor" if crowded else "default")
    axes.set_yticks(range(len(rows)), told_apart([value_text(y_entry, value) for value in rows], LONGEST_VALUE))
    axes.set_xlabel(WORDS.get(x_entry, x_entry))
    axes.set_ylabel(WORDS.get(y_entry, y_entry))
    axes.tick_params(length=0)
    # White lines between cells.
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def value_text(entry: str, value: Any) -> str:
    """A value of the space for people: sparsities in percent, numbers with four digits."""
    if entry == TARGET:
        return f"{100 * value:.6g} %"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seeds_note(table: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in table["n"] if count})
    if not counts:
        return "no setting has been finished by all its seeds"
    if counts == [1]:
        return "one seed"
    return f"mean ± standard error over {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seeds"


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
    varied = [column for column in entries if _varies(frame, column)]
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
    numeric = len(varied) == 1 and _is_numeric(frame, varied[0])
    return sorted(lines, key=lambda line: line.values) if numeric else lines


def _label(frame: pd.DataFrame, names: Sequence[str], values: Sequence[Any]) -> str:
    """What tells a curve from the others: the values that vary; the name alone where it is a group's."""
    parts = []
    for name, value in zip(names, values, strict=True):
        text, is_group = value_text(name, value), f"{CONFIG}{name}" not in _option_names(frame)
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
            and not name.removeprefix(CONFIG).startswith(SHARED) and _varies(frame, name)]
    return None if ways or dense.empty or column not in frame else float(np.mean(dense[column].to_numpy()))


def _legend(figure: Figure, axes: Any, frame: pd.DataFrame) -> None:
    """Beside the axes, where it covers nothing; its title names the entry that varies."""
    handles, labels = axes.get_legend_handles_labels()
    # What is grey, and the dense network, come last.
    order = sorted(range(len(labels)), key=lambda index: (labels[index] == "dense", labels[index].endswith("(grey)")))
    entries = [column.removeprefix(SPACE) for column in space_columns(frame)
               if column != SPACE + TARGET and _varies(frame, column)]
    title = WORDS.get(entries[0], entries[0]) if len(entries) == 1 else None
    short = told_apart([labels[index] for index in order], LONGEST_LABEL)
    figure.legend([handles[index] for index in order], short, loc="outside right upper",
                  frameon=False, fontsize=8 if len(labels) > 8 else 9, title=title, title_fontsize=9,
                  alignment="left")
