"""Reliability diagrams: how often a network is right, by the probability that it gives to what it predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from swamp_ray.analysis.calibration import AVERAGE, ENSEMBLE, NUM_BINS, Bins, pooled
from swamp_ray.report.charts.arms import by_arm, each_arm
from swamp_ray.report.charts.calibration import NETWORKS, row_of, rows_of_calibration
from swamp_ray.report.charts.cells import capital
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.panels import FONT, legend_line
from swamp_ray.report.charts.style import GRID, INK, MUTED, arm_styles
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import short_names

FEWEST = 10
"""A share of right predictions among fewer samples says nothing: neighbouring bins are drawn as one."""
Z = 1.959964
"""Standard deviations of the 95 % interval."""
SIDE_IN = 1.42
BELOW_IN = 0.7
"""Of a panel; of what lies below the lowest row: ticks, the axis's name, the legend."""
MOST_ARMS = 12
"""So many arms are drawn; a page with more is not read."""
POINT = "point"
BIN = "bin"


def reliability_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """Diagrams of the densest, a middle and the sparsest round of each arm."""
    measured = [run for run in runs if rows_of_calibration(run)]
    every = by_arm(measured)
    arms = dict(list(every.items())[:MOST_ARMS])
    data: Any = pd.DataFrame([row for arm, members in arms.items() for record in _three(members)
                              for row in _rows(arm, members, record)])
    if data.empty:
        return []
    caption = _caption({arm: len(members) for arm, members in arms.items()}, ENSEMBLE in set(data["network"]))
    if len(arms) < len(every):
        caption += f" {len(every) - len(arms)} arms are left out."
    return [Chart("reliability", "Reliability of predicted probabilities", caption, _figure(runs, data), data)]


def _caption(counts: Mapping[str, int], ensembles: bool) -> str:
    together = ", the samples of an arm's seeds together" if max(counts.values()) > 1 else ""
    return ("Share of right predictions among test samples by the probability of the predicted class, at the densest, "
            "a middle and the sparsest round. On the diagonal probabilities mean what they say; below it the network "
            f"is too sure. Solid: the average{'; dashed: the ensemble of its particles' if ensembles else ''}. A point "
            f"is one of {NUM_BINS} bins of equal width, or several neighbouring ones where one alone has fewer than "
            f"{FEWEST} samples; bars: 95 % interval of the average's share (Wilson), as if all samples were "
            "independent. Grey: which share of the average's samples lies in each bin; above a panel: how much lies in "
            "the last one. "
            f"{capital(each_arm(counts))}{together}.")


def _three(members: Sequence[ReportRun]) -> list[Mapping[str, Any]]:
    """Records of the densest, the middle and the sparsest of the rounds that all runs of an arm have measured."""
    shared = [record for record in members[0].records
              if all(row_of(run, record["round"], AVERAGE) is not None for run in members)]
    places = sorted({0, len(shared) // 2, len(shared) - 1}) if shared else []
    return [shared[place] for place in places]


def _rows(arm: str, members: Sequence[ReportRun], record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The points of each network, and the bins of the average."""
    for network in (AVERAGE, ENSEMBLE):
        several = [Bins(**row["bins"]) for run in members if (row := row_of(run, record["round"], network)) is not None]
        if not several:
            continue
        bins = pooled(several)
        about = {"arm": arm, "network": network, "round": record["round"], "sparsity": record["sparsity"],
                 "runs": len(several)}
        yield from ({**about, "what": POINT, **group} for group in merged(bins))
        if network == AVERAGE:
            yield from ({**about, "what": BIN, "from": place / NUM_BINS, "to": (place + 1) / NUM_BINS, "count": count}
                        for place, count in enumerate(bins.count))


def merged(bins: Bins, fewest: int = FEWEST) -> list[dict[str, Any]]:
    """Bins from the lowest probability on, neighbours together until they have so many samples.

    What is left over at the top belongs to the last group, so that every sample is in one.

    Returns:
        One entry a group: from, to, count, confidence and accuracy (means over its samples), low and high (of the
        accuracy). None where there is no sample.
    """
    ends: list[int] = []
    gathered = 0
    for place, count in enumerate(bins.count):
        gathered += count
        if gathered >= fewest:
            ends.append(place + 1)
            gathered = 0
    if gathered or not ends:
        ends = [*ends[:-1], NUM_BINS]
    bounds = zip([0, *ends], ends, strict=False)
    return [_group(bins, start, end) for start, end in bounds if sum(bins.count[start:end])]


def _group(bins: Bins, start: int, end: int) -> dict[str, Any]:
    counts = np.array(bins.count[start:end])
    confidence, accuracy = (float(np.average(values[start:end], weights=counts))
                            for values in (bins.confidence, bins.accuracy))
    low, high = wilson(accuracy, int(counts.sum()))
    filled = np.flatnonzero(counts)
    return {"from": (start + int(filled[0])) / NUM_BINS, "to": end / NUM_BINS, "count": int(counts.sum()),
            "confidence": confidence, "accuracy": accuracy, "low": low, "high": high}


def wilson(share: float, num: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``num`` independent samples (Wilson, 1927); inside [0, 1], also at its ends."""
    middle = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    reach = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _figure(runs: Sequence[ReportRun], data: Any) -> Figure:
    arms = list(dict.fromkeys(data["arm"]))
    most = max(one["round"].nunique() for _, one in data.groupby("arm"))
    figure, panels = _panels(len(arms), max(most, 2))
    styles = arm_styles(run.arm for run in runs)
    short = short_names(arms, 20)
    for row, arm in zip(panels, arms, strict=True):
        rounds = list(data[data["arm"] == arm].groupby("round"))
        for axes, (_, one) in zip(row, rounds, strict=False):
            _diagram(axes, one, styles[arm].colour)
        for axes in row[len(rounds):]:
            axes.set_visible(False)
        if len(arms) > 1:
            row[0].set_ylabel(short[arm], fontsize=FONT)
    lines = [legend_line(name, _line(name, styles[arms[0]].colour if len(arms) == 1 else MUTED))
             for name in (AVERAGE, ENSEMBLE) if name in set(data["network"])]
    figure.legend(handles=[*lines, Patch(facecolor=GRID, label="share of samples")], loc="lower center", ncols=3,
                  frameon=False, fontsize=FONT, columnspacing=1.2, borderaxespad=0.2)
    return figure


def _panels(num_rows: int, num_columns: int) -> tuple[Figure, Any]:
    """Square panels of a known size: layouts that matplotlib computes leave gaps around squares."""
    left = 0.6 if num_rows == 1 else 0.8
    width = left + num_columns * SIDE_IN + (num_columns - 1) * 0.17 + 0.12
    height = 0.42 + num_rows * SIDE_IN + (num_rows - 1) * 0.5 + BELOW_IN
    figure = Figure(figsize=(width, height))
    panels: Any = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True, gridspec_kw={
        "left": left / width, "right": 1 - 0.12 / width, "bottom": BELOW_IN / height, "top": 1 - 0.42 / height,
        "wspace": 0.17 / SIDE_IN, "hspace": 0.5 / SIDE_IN})
    middle = (left + width - 0.12) / 2 / width
    figure.supxlabel("probability of the predicted class", fontsize=FONT, x=middle, y=0.28 / height, va="bottom")
    figure.supylabel("share of right predictions", fontsize=FONT, x=0.06 / width, ha="left",
                     y=(BELOW_IN + height - 0.42) / 2 / height)
    return figure, panels


def _line(network: str, colour: str) -> dict[str, Any]:
    if network == AVERAGE:
        return {"color": colour, "linestyle": "-", "linewidth": 1.6, "marker": "o", "markersize": 3.5}
    return {"color": INK, "linestyle": NETWORKS[ENSEMBLE], "linewidth": 1.1, "marker": "s", "markersize": 3.5,
            "markerfacecolor": "none"}


def _diagram(axes: Any, one: Any, colour: str) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=":")
    bins = one[one["what"] == BIN]
    axes.bar((bins["from"] + bins["to"]) / 2, bins["count"] / bins["count"].sum(), width=1 / NUM_BINS, color=GRID,
             zorder=0)
    top = 100 * bins["count"].iloc[-1] / bins["count"].sum()
    axes.set_title(f"{100 * one['sparsity'].iloc[0]:.3g} % sparse\n{top:.0f} % above {bins['from'].iloc[-1]:.2f}",
                   fontsize=FONT, loc="left")
    for network in (ENSEMBLE, AVERAGE):
        points = one[(one["what"] == POINT) & (one["network"] == network)]
        if network == AVERAGE:
            axes.vlines(points["confidence"], points["low"], points["high"], color=colour, linewidth=1.1)
        axes.plot(points["confidence"], points["accuracy"], **_line(network, colour), clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 3), ["0", "0.5", "1"])
    axes.set_yticks(np.linspace(0, 1, 3), ["0", "0.5", "1"])
    axes.tick_params(labelsize=FONT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
