"""The heat map of a sweep: a metric over two entries of its space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swamp_ray.errors import UserError, nearest
from swamp_ray.report.charts.cells import cross_out, draw_cells, ink_on
from swamp_ray.report.charts.space_entries import WORDS, is_numeric, split_and_name, value_text, varies
from swamp_ray.report.charts.style import MUTED, axis_label, scale_of
from swamp_ray.sweep.results import SPACE, by_setting, space_columns
from swamp_ray.text.metric_names import short, style_of
from swamp_ray.text.tables import told_apart

LONGEST_VALUE = 24
"""Letters of a value at an axis, which would leave no room for the axes."""
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
    columns = _axis_values(frame, x_entry)
    rows = _axis_values(frame, y_entry)
    # Numbers grow upwards; names are read from the top.
    rows = rows if is_numeric(frame, SPACE + y_entry) else rows[::-1]
    cells = {(setting[SPACE + x_entry], setting[SPACE + y_entry]): setting for _, setting in table.iterrows()}
    split, name = split_and_name(metric, shown_as)
    means = np.array([[_mean(cells.get((x, y))) for x in columns] for y in rows]) * scale_of(name)
    size = (min(16.0, 2.6 + 1.05 * len(columns)), min(14.0, 1.5 + 0.75 * len(rows)))
    figure = Figure(figsize=(max(size[0], 5.0), max(size[1], 3.2)), layout="constrained")
    axes = figure.add_subplot()
    low, high = _limits(means)
    image = draw_cells(axes, means, origin="lower", aspect="auto", vmin=low, vmax=high)
    for (row, y), (column, x) in product(enumerate(rows), enumerate(columns)):
        _draw_cell(axes, column, row, cells.get((x, y)), name, image, max(len(columns), len(rows)))
    _cell_axes(axes, x_entry, columns, y_entry, rows)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(axis_label(name, split))
    bar.outline.set_visible(False)
    note = _seeds_note(table)
    axes.set_title("\n".join(filter(None, [title, note])), loc="left", fontsize=10)
    return figure


def _check_entries(frame: pd.DataFrame, entries: Sequence[str]) -> None:
    known = [column.removeprefix(SPACE) for column in space_columns(frame)]
    for entry in entries:
        if entry not in known:
            raise UserError("there is no such entry in the space", got=entry, where="heat_map",
                            do=nearest(entry, known) or f"There are: {', '.join(known)}.")
    others = [entry for entry in known if entry not in entries and varies(frame, SPACE + entry)]
    if others:
        raise UserError("a heat map shows two entries, but others vary too", got=", ".join(others), where="heat_map",
                        do=f"Choose one value, e.g. frame[frame[{SPACE + others[0]!r}] == VALUE].")


def _axis_values(frame: pd.DataFrame, entry: str) -> list[Any]:
    """The values of an entry: numbers in their order, anything else as the sweep lists it."""
    values = list(frame[SPACE + entry].dropna().unique())
    return sorted(values) if is_numeric(frame, SPACE + entry) else values


def _mean(setting: Any) -> float:
    return math.nan if setting is None else float(setting["mean"])


def _limits(means: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale; never the same."""
    finite = means[np.isfinite(means)]
    if finite.size == 0:
        return 0.0, 1.0
    low = float(finite.min())
    high = float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _draw_cell(axes: Any, column: int, row: int, setting: Any, metric: str, image: Any, most: int) -> None:
    """The numbers of a cell in black or white, whichever can be read; what is missing is hatched."""
    size = max(5.0, min(11.0, 100 / most))
    mean = _mean(setting) * scale_of(metric)
    if not math.isfinite(mean):
        cross_out(axes, row, column, facecolor=MISSING, edgecolor="#bdbdbd", hatch="///", linewidth=0)
        if setting is not None and setting["status"] != "complete":
            axes.text(column, row, setting["status"], ha="center", va="center", fontsize=size, color=MUTED,
                      bbox={"facecolor": MISSING, "edgecolor": "none", "pad": 1.5})
        return
    colour = ink_on(image, mean)
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
    # White lines between cells.
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def _seeds_note(table: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in table["n"] if count})
    if not counts:
        return "no setting has been finished by all its seeds"
    if counts == [1]:
        return "one seed"
    return f"mean ± standard error over {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seeds"
