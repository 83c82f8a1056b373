"""How much the masks of different runs have in common, read from their tickets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swamp_ray.report.charts.arms import line_of
from swamp_ray.report.charts.cells import draw_cells, write_cells
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.style import GRID, INK, MUTED, arm_styles, new_figure, plain_density_axes
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import told_apart

WIDTH_IN = 5.4
FONT = 8.0
OTHER_SEED = "same arm, other seed"
OTHER_ARM = "other arm, same seed"
OTHER_ARM_LINE: dict[str, Any] = {"color": INK, "marker": "x", "linestyle": (0, (5, 2))}
MOST_WITH_NUMBERS = 14
MOST_WITH_LABELS = 40


@dataclass
class Masks:
    """The masks of a run.

    Attributes:
        bits: By the number of survivors, as packed bits of all layers in the order of their names.
        shapes: Of the layers, by name.
        came_back: By round: weights that its mask keeps although the one of the round before did not.
    """

    bits: dict[int, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    came_back: dict[int, int] = field(default_factory=dict)


def mask_overlaps(runs: Sequence[ReportRun]) -> list[Chart]:
    """The overlap of every two runs' masks: at the sparsest round that all of them have, and against sparsity."""
    if len(runs) < 2:
        return []
    counted = [record["survivors"] for run in runs for record in run.records if record["sparsity"] > 0]
    wanted = {survivors for survivors in counted if counted.count(survivors) > 1}
    masks = {run.name: masks_of(run, wanted) for run in runs}
    table = _pairs(runs, masks)
    if table.empty:
        return []
    about = _nested([one for one in masks.values() if one.shapes])
    return [*_matrix_chart(runs, table, about), *_curve_chart(runs, table, about)]


def masks_of(run: ReportRun, wanted: set[int]) -> Masks:
    """A run's masks with so many survivors; a ticket that is gone is left out."""
    found = Masks()
    before = None
    for record in run.records:
        ticket = run.ticket(record)
        if ticket is None:
            before = None
            continue
        found.shapes = {name: tuple(mask.shape) for name, mask in sorted(ticket.masks.items())}
        bits = np.packbits(np.concatenate([ticket.masks[name].numpy().reshape(-1) for name in found.shapes]))
        if before is not None:
            found.came_back[record["round"]] = _count(bits & ~before)
        before = bits
        if record["survivors"] in wanted:
            found.bits[record["survivors"]] = bits
    return found


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Weights in both masks over weights in either, of packed bits; 1 if both are empty."""
    union = _count(one | other)
    return _count(one & other) / union if union else 1.0


def by_chance(density: Any) -> Any:
    """The overlap of two random masks of a density d, for many weights: d^2 / (2 d - d^2) = d / (2 - d)."""
    return density / (2.0 - density)


def _count(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum())


def _pairs(runs: Sequence[ReportRun], masks: Mapping[str, Masks]) -> Any:
    return pd.DataFrame([row for one, other in combinations(runs, 2) for row in _pair(one, other, masks)])


def _pair(one: ReportRun, other: ReportRun, masks: Mapping[str, Masks]) -> Iterator[dict[str, Any]]:
    mine = masks[one.name]
    theirs = masks[other.name]
    if mine.shapes != theirs.shapes:
        return
    for survivors, bits in mine.bits.items():
        if survivors in theirs.bits:
            density = survivors / sum(int(np.prod(shape)) for shape in mine.shapes.values())
            yield {"first": one.name, "second": other.name, "first_arm": one.arm, "second_arm": other.arm,
                   "pair": _kind(one, other), "survivors": survivors, "density": density,
                   "overlap": jaccard(bits, theirs.bits[survivors]), "by_chance": by_chance(density)}


def _kind(one: ReportRun, other: ReportRun) -> str:
    if one.arm == other.arm:
        return OTHER_SEED
    return OTHER_ARM if one.seed == other.seed else "other arm, other seed"


def _nested(masks: Sequence[Masks]) -> str:
    """A sentence on each run's own masks."""
    back = max((count for one in masks for count in one.came_back.values()), default=0)
    if not back:
        return "Within a run each round's mask lies in the one before, and their overlap is the ratio of densities."
    return f"Within runs masks are not nested: up to {back:,} weights of a round were not in the one before's mask."


def _matrix_chart(runs: Sequence[ReportRun], table: Any, about: str) -> list[Chart]:
    """At the sparsest round that the most runs have in common."""
    partners = {survivors: set(one["first"]) | set(one["second"]) for survivors, one in table.groupby("survivors")}
    most = max(len(names) for names in partners.values())
    survivors = min(key for key, names in partners.items() if len(names) == most)
    chosen = table[table["survivors"] == survivors].reset_index(drop=True)
    names = [run.name for run in sorted(runs, key=lambda run: (run.arm, run.seed)) if run.name in partners[survivors]]
    sparsity = 100 * (1 - float(chosen["density"].iloc[0]))
    caption = (f"Masks of {len(names)} runs at {sparsity:.4g} % sparsity, the sparsest round that they have in common: "
               "weights that both of two masks keep over weights that either keeps (Jaccard index). Two random masks "
               f"would have {float(chosen['by_chance'].iloc[0]):.3f} in common. {about}")
    return [Chart("mask_overlap_of_runs", "Overlap of masks between runs", caption, _matrix(names, chosen), chosen)]


def _matrix(names: Sequence[str], chosen: Any) -> Figure:
    values = np.full((len(names), len(names)), np.nan)
    place = {name: index for index, name in enumerate(names)}
    for row in chosen.itertuples(index=False):
        first = place[row.first]
        second = place[row.second]
        values[first, second] = row.overlap
        values[second, first] = row.overlap
    size = min(6.4, max(2.9, 1.6 + 0.36 * len(names)))
    figure = Figure(figsize=(min(WIDTH_IN, size + 1.5), size), layout="constrained")
    axes = figure.add_subplot()
    image = draw_cells(axes, values, empty=GRID, vmax=float(chosen["overlap"].max()),
                       vmin=float(chosen[["by_chance", "overlap"]].min(axis=None)))
    if len(names) <= MOST_WITH_NUMBERS:
        texts = [[f"{value:.2f}".removeprefix("0") for value in row] for row in values]
        write_cells(axes, image, values, texts, FONT)
    every = 1 + (len(names) - 1) // MOST_WITH_LABELS
    short = told_apart(names, 22)
    axes.set_xticks(range(0, len(names), every), short[::every], fontsize=FONT, rotation=90)
    axes.set_yticks(range(0, len(names), every), short[::every], fontsize=FONT)
    bar = figure.colorbar(image, ax=axes, pad=0.02, shrink=0.8, aspect=25)
    bar.ax.tick_params(labelsize=FONT)
    bar.set_label("Jaccard index", fontsize=FONT)
    return figure


def _curve_chart(runs: Sequence[ReportRun], table: Any, about: str) -> list[Chart]:
    rows = []
    for arm in dict.fromkeys(run.arm for run in runs):
        rows += _means(table[(table["pair"] == OTHER_SEED) & (table["first_arm"] == arm)], OTHER_SEED, arm)
    rows += _means(table[table["pair"] == OTHER_ARM], OTHER_ARM, "")
    data: Any = pd.DataFrame(rows)
    if data.empty:
        return []
    pairs = int(data["pairs"].max())
    mean, num = ("Mean overlap", f"up to {pairs} pairs") if pairs > 1 else ("Overlap", "one pair")
    ranges = ", with the range over pairs" if pairs > 1 else ""
    whose = {OTHER_SEED: "for runs of one arm that differ in their seed",
             OTHER_ARM: "for runs of different arms with the same seed"}
    kinds = " and ".join(text for kind, text in whose.items() if kind in set(data["pair"]))
    caption = (f"{mean} (Jaccard index) of the masks of two runs at equal sparsity{ranges}, {kinds}; {num} a point, "
               f"{len(runs)} runs. Dotted: two random masks of density d, d / (2 - d). {about}")
    return [Chart("mask_overlap_against_sparsity", "Overlap of masks against the weights left", caption,
                  _curves(runs, data), data)]


def _means(table: Any, kind: str, arm: str) -> list[dict[str, Any]]:
    return [{"pair": kind, "arm": arm, "density": float(one["density"].iloc[0]), "mean": float(one["overlap"].mean()),
             "lowest": float(one["overlap"].min()), "highest": float(one["overlap"].max()), "pairs": len(one),
             "by_chance": float(one["by_chance"].iloc[0])}
            for _, one in sorted(table.groupby("survivors"), reverse=True)]


def _curves(runs: Sequence[ReportRun], data: Any) -> Figure:
    figure, axes = new_figure()
    styles = arm_styles(run.arm for run in runs)
    for (kind, arm), one in data.groupby(["pair", "arm"], sort=False):
        style = line_of(styles[arm]) if kind == OTHER_SEED else OTHER_ARM_LINE
        label = f"{arm}: other seed" if kind == OTHER_SEED else "other arm, same seed"
        line_with_band(axes, one["density"], one["mean"], (one["lowest"], one["highest"]), shade=0.13, label=label,
                       **style)
    lowest = float(data["density"].min())
    chance = np.geomspace(1.0, lowest, 100)
    axes.plot(chance, by_chance(chance), color=MUTED, linestyle=":", linewidth=1.4, label="by chance")
    plain_density_axes(axes, lowest, "overlap of masks (Jaccard index)")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=FONT)
    return figure
