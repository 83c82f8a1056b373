"""Whether probabilities can be believed, as pictures of what ``swamp analyze calibration`` has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from swamp_ray.analysis.calibration import AVERAGE, ENSEMBLE, NUM_BINS, PARTICLES, Bins, pooled
from swamp_ray.report.arms import by_arm, line_of, over_seeds, runs_in_words
from swamp_ray.report.cells import shortened
from swamp_ray.report.chart import Chart
from swamp_ray.report.panels import FONT, legend_below, legend_line
from swamp_ray.report.reading import ReportRun
from swamp_ray.report.style import GRID, INK, MUTED, arm_styles, density_axis, new_figure, plain_axes

NETWORKS: dict[str, Any] = {AVERAGE: "-", PARTICLES: (0, (1, 1.2)), ENSEMBLE: (0, (5, 1.5))}
"""Of a round, and how each is drawn in the colour of its arm."""
METRICS = {"ece": ("expected calibration error", 100.0, " (%)"), "loss": ("negative log-likelihood", 1.0, "")}
FEWEST = 10
"""A share of right predictions among fewer samples says nothing."""
MOST_ARMS = 12
"""So many reliability diagrams are drawn; a page with more is not read."""


def calibration_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """Calibration error and likelihood against the weights left, and reliability diagrams of three rounds an arm."""
    if not any(_rows(run) for run in runs):
        return []
    return [*(_curve_chart(runs, metric) for metric in METRICS), _reliability_chart(runs)]


def _rows(run: ReportRun) -> list[Mapping[str, Any]]:
    return run.analyses.get("calibration", {}).get("rows", [])


def _row(run: ReportRun, index: int, network: str) -> Mapping[str, Any] | None:
    return next((row for row in _rows(run) if row["round"] == index and row["network"] == network), None)


def _curve_chart(runs: Sequence[ReportRun], metric: str) -> Chart:
    label, _, unit = METRICS[metric]
    frames = [over_seeds(runs, lambda run, record, name=name: _value(run, record, name, metric)).assign(network=name)
              for name in NETWORKS]
    data: Any = pd.concat([frame for frame in frames if not frame.empty], ignore_index=True)
    how = ("The distance between the share of right predictions and their mean probability, over 15 bins of equal "
           "width of the largest probability, weighted with the counts (Guo et al., 2017)"
           if metric == "ece" else "Mean negative log-probability of the right class")
    caption = (f"{how}, on the test split: of the average (solid), of its particles (dotted, mean over them) and of "
               f"their ensemble, the mean of their probabilities (dashed). Mean and range over {runs_in_words(data)}.")
    return Chart(f"calibration_{metric}", f"{label.capitalize()} against the weights left", caption,
                 _curves(runs, data, metric, f"test {label}{unit}"), data)


def _value(run: ReportRun, record: Mapping[str, Any], network: str, metric: str) -> float | None:
    row = _row(run, record["round"], network)
    return None if row is None else float(row["test"][metric])


def _curves(runs: Sequence[ReportRun], data: Any, metric: str, label: str) -> Figure:
    figure, axes = new_figure()
    styles, scale = arm_styles(run.arm for run in runs), METRICS[metric][1]
    for (arm, network), one in data.groupby(["arm", "network"], sort=False):
        style = line_of(styles[arm]) | {"linestyle": NETWORKS[network]}
        size = 4 if network == AVERAGE else 0
        axes.plot(one["density"], scale * one["mean"], linewidth=1.8, markersize=size, **style)
        if network == AVERAGE:
            axes.fill_between(one["density"], scale * one["lowest"], scale * one["highest"], color=styles[arm].colour,
                              alpha=0.13, linewidth=0)
    density_axis(axes, float(data["density"].min()))
    if metric == "ece":
        axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    plain_axes(axes)
    arms = [legend_line(shortened(arm, 30), line_of(styles[arm]) | {"linestyle": "-"})
            for arm in dict.fromkeys(data["arm"])]
    kinds = [legend_line(name, {"linestyle": NETWORKS[name]}) for name in NETWORKS if name in set(data["network"])]
    legend_below(figure, [*arms, *(kinds if len(kinds) > 1 else ())])
    return figure


def _reliability_chart(runs: Sequence[ReportRun]) -> Chart:
    measured = [run for run in runs if _rows(run)]
    arms = dict(list(by_arm(measured).items())[:MOST_ARMS])
    rows = [row for arm, members in arms.items() for record in _three(members)
            for row in _bins(arm, members, record)]
    data: Any = pd.DataFrame(rows)
    left_out, num = len(by_arm(measured)) - len(arms), sum(map(len, arms.values()))
    caption = ("Share of right predictions among test samples by the probability of the predicted class, in 15 bins "
               "of equal width, at the densest, a middle and the sparsest round. On the diagonal probabilities mean "
               "what they say; below it the network is too sure. Solid the average, dashed the ensemble of its "
               f"particles; bins of fewer than {FEWEST} samples are not drawn. Grey: how the average's samples spread "
               f"over the bins. {num} run{'s' * (num > 1)}, seeds of an arm together"
               f"{f'; {left_out} arms are left out' if left_out else ''}.")
    return Chart("reliability", "Reliability of predicted probabilities", caption, _diagrams(runs, data), data)


def _three(members: Sequence[ReportRun]) -> list[Mapping[str, Any]]:
    """Records of the densest, the middle and the sparsest of the rounds that all runs of an arm have measured."""
    shared = [record for record in members[0].records
              if all(_row(run, record["round"], AVERAGE) is not None for run in members)]
    places = sorted({0, len(shared) // 2, len(shared) - 1}) if shared else []
    return [shared[place] for place in places]


def _bins(arm: str, members: Sequence[ReportRun], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for network in (AVERAGE, ENSEMBLE):
        several = [Bins(**row["bins"]) for run in members if (row := _row(run, record["round"], network)) is not None]
        if not several:
            continue
        bins = pooled(several)
        found += [{"arm": arm, "network": network, "round": record["round"], "sparsity": record["sparsity"],
                   "from": place / NUM_BINS, "to": (place + 1) / NUM_BINS, "count": count, "confidence": confidence,
                   "accuracy": accuracy, "runs": len(several)}
                  for place, (count, confidence, accuracy) in enumerate(
                      zip(bins.count, bins.confidence, bins.accuracy, strict=True))]
    return found


def _diagrams(runs: Sequence[ReportRun], data: Any) -> Figure:
    arms = list(dict.fromkeys(data["arm"]))
    most = max(one["round"].nunique() for _, one in data.groupby("arm"))
    figure = Figure(figsize=(0.5 + 1.7 * max(most, 2), 0.6 + 1.8 * len(arms)), layout="compressed")
    figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    panels: Any = figure.subplots(len(arms), most, squeeze=False, sharex=True, sharey=True)
    styles = arm_styles(run.arm for run in runs)
    for row, arm in zip(panels, arms, strict=True):
        rounds = list(data[data["arm"] == arm].groupby("round"))
        for axes, (_, one) in zip(row, rounds, strict=False):
            _diagram(axes, one, styles[arm].colour)
            axes.set_title(f"{100 * one['sparsity'].iloc[0]:.3g} % sparse", fontsize=FONT, loc="left")
        for axes in row[len(rounds):]:
            axes.set_visible(False)
        if len(arms) > 1:
            row[0].set_ylabel(shortened(arm, 24), fontsize=FONT)
    figure.supxlabel("probability of the predicted class", fontsize=FONT)
    figure.supylabel("share of right predictions", fontsize=FONT)
    return figure


def _diagram(axes: Any, one: Any, colour: str) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=":")
    for network, line in ((AVERAGE, "-"), (ENSEMBLE, NETWORKS[ENSEMBLE])):
        bins = one[one["network"] == network]
        if network == AVERAGE:
            middles = (bins["from"] + bins["to"]) / 2
            axes.bar(middles, bins["count"] / bins["count"].sum(), width=1 / NUM_BINS, color=GRID, zorder=0)
        bins = bins[bins["count"] >= FEWEST]
        axes.plot(bins["confidence"], bins["accuracy"], color=colour if network == AVERAGE else INK, linestyle=line,
                  linewidth=1.6 if network == AVERAGE else 1.1, marker="o", markersize=3 if network == AVERAGE else 0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 3), ["0", "0.5", "1"])
    axes.set_yticks(np.linspace(0, 1, 3), ["0", "0.5", "1"])
    axes.tick_params(labelsize=FONT)
    axes.set_aspect("equal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
