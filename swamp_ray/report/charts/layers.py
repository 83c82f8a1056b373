"""The weights that are left, layer by layer and round by round."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from swamp_ray.errors import SwampError
from swamp_ray.report.charts.arms import by_arm, each_arm
from swamp_ray.report.charts.cells import cross_out, draw_cells, write_cells
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.style import PAPER, density_ticks
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import told_apart
from swamp_ray.user_code.importing import is_import_path

WIDTH_IN = 5.4
TALLEST_IN = 9.0
LONGEST_NAME = 28
BESIDE_IN = 1.2
"""Of its width what is neither cells nor names of layers: the bar of colours, and margins."""
FONT = 8.5
EMPTY_EDGE = "#D55E00"


def layer_densities(runs: Sequence[ReportRun]) -> list[Chart]:
    """A heat map of densities for each arm, the mean over its runs."""
    return [_chart(arm, members) for arm, members in by_arm(runs).items()]


def layers_of(run: ReportRun) -> list[str]:
    """A run's prunable tensors in the order of its network.

    Runs that have not recorded that order get it from the network's name, and where that is the user's own code, by
    their names.
    """
    names = list(run.records[0]["layer_densities"])
    recorded = [name for name, _ in run.about.get("layers", [])]
    order = recorded if set(recorded) == set(names) else _built_order(run)
    return order if set(order) == set(names) else sorted(names, key=_natural)


def _built_order(run: ReportRun) -> list[str]:
    from swamp_ray.sparsity.masks import find_prunable
    from swamp_ray.training.models import build_model

    shape = _input_shape(str(run.about.get("data", {}).get("sample", "")))
    if is_import_path(run.config.model.name) or shape is None:
        return []
    try:  # names do not depend on the number of classes
        model = build_model(run.config.model, num_classes=2, input_shape=shape, seed=0)
        return [layer.name for layer in find_prunable(model).layers]
    except (SwampError, ValueError, RuntimeError):
        return []


def _input_shape(sample: str) -> tuple[int, ...] | None:
    """``uint8 [16, 16, 3]`` is an image of three channels; anything else is as it says."""
    sizes = tuple(int(size) for size in re.findall(r"\d+", sample.partition("[")[2]))
    if not sizes:
        return None
    return (sizes[2], *sizes[:2]) if sample.startswith("uint8") and len(sizes) == 3 else sizes


def _natural(name: str) -> list[tuple[int, str]]:
    """``conv10`` after ``conv9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _table(members: Sequence[ReportRun]) -> tuple[np.ndarray, list[str], list[Mapping[str, Any]]]:
    """Mean densities ``[layers, rounds]``, the layers, and a record of each round that all runs have."""
    layers = layers_of(members[0])
    found = [{record["survivors"]: record for record in run.records} for run in members]
    shared = [record for record in members[0].records if all(record["survivors"] in one for one in found)]
    values = [[np.mean([one[record["survivors"]]["layer_densities"].get(layer, np.nan) for one in found])
               for record in shared] for layer in layers]
    return np.array(values, dtype=float), layers, shared


def _chart(arm: str, members: Sequence[ReportRun]) -> Chart:
    values, layers, shared = _table(members)
    rows = [{"arm": arm, "layer": layer, "round": record["round"], "sparsity": record["sparsity"],
             "density": float(values[row, column]), "runs": len(members)}
            for row, layer in enumerate(layers) for column, record in enumerate(shared)]
    emptied = int((values == 0).any(axis=1).sum())
    caption = (f"Share of each layer's weights that the mask keeps (rows in the order of the network, colours on a "
               f"logarithmic scale); {'mean over ' if len(members) > 1 else ''}{each_arm({arm: len(members)})}. "
               "Numbers are percent of the layer.")
    if emptied:
        caption += f" {emptied} layer{'s are' if emptied > 1 else ' is'} left without a weight: crossed out."
    return Chart(f"density_by_layer_{arm}", f"Weights left in each layer: {arm}", caption,
                 _figure(values, layers, shared), pd.DataFrame(rows))


def _figure(values: np.ndarray, layers: Sequence[str], shared: Sequence[Mapping[str, Any]]) -> Figure:
    num_rows, num_columns = values.shape
    height = min(TALLEST_IN, max(2.2, 1.3 + 0.26 * num_rows))
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    positive = values[values > 0]
    lowest = float(positive.min()) if positive.size else 1.0
    norm = LogNorm(min(lowest, 0.5), 1.0)
    kept = np.where(values > 0, values, np.nan)  # 0 has no place on a logarithmic scale
    image = draw_cells(axes, kept, empty=PAPER, norm=norm, aspect="auto")
    longest = max(len(label) for label in _labels(layers))
    cell_in = ((WIDTH_IN - BESIDE_IN - 0.08 * longest) / num_columns, (height - 1.2) / num_rows)
    texts = [[_percent(value) for value in row] for row in values]
    if cell_in[0] > 0.084 * max(len(text) for row in texts for text in row) and cell_in[1] > 0.15:
        write_cells(axes, image, kept, texts, FONT)
    for row, column in np.argwhere(values == 0):
        cross_out(axes, row, column, facecolor=PAPER, edgecolor=EMPTY_EDGE, hatch="xxxx", linewidth=0.8)
    _axes(axes, layers, shared, cell_in)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=30, fraction=0.04)
    bar.set_ticks(density_ticks(norm.vmin or lowest))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    bar.ax.tick_params(labelsize=FONT)
    bar.set_label("weights left", fontsize=FONT)
    return figure


def _labels(layers: Sequence[str]) -> list[str]:
    return told_apart([layer.removesuffix(".weight") for layer in layers], LONGEST_NAME)


def _percent(value: float) -> str:
    """``100``, ``54``, ``9.3``, ``0.42``, ``.02``."""
    percent = 100 * value
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}" if percent >= 0.995 else f"{percent:.2g}"[:5]


def _axes(axes: Any, layers: Sequence[str], shared: Sequence[Mapping[str, Any]], cell_in: tuple[float, float]) -> None:
    short = _labels(layers)
    every = max(1, int(np.ceil(0.16 / cell_in[1])))
    axes.set_yticks(range(0, len(layers), every), short[::every], fontsize=FONT)
    texts = [f"{100 * record['sparsity']:.3g} %" for record in shared]
    upright = cell_in[0] < 0.073 * max(map(len, texts))
    step = max(1, int(np.ceil(0.165 / cell_in[0])))
    axes.set_xticks(range(0, len(shared), step), texts[::step], fontsize=FONT, rotation=90 if upright else 0)
    axes.set_xlabel("sparsity of the network, round by round", fontsize=FONT + 1)

