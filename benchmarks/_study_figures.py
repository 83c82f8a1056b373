"""The figures of docs/study.md: one a claim, each from the same numbers as the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from _study_claims import comparisons
from _study_frames import (
    LABELS,
    MARGIN,
    MASKS,
    Frame,
    accuracy,
    by_round,
    compared,
    endpoint,
    lines,
    masked,
    sparsities,
    values,
)
from _study_report import NETWORKS
from matplotlib.figure import Figure

from swamp_ray.analysis.statistics import Paired
from swamp_ray.report.charts.style import COLOURS, MARKERS, density_axis, plain_axes

KINDS = ("svg", "png")
DPI = 150
MAIN = ("imp", "imp_swa", "swamp", "swamp_without_swa", "imp_4t", "imp_ensemble")
"""Arms of the figure of accuracies, in the order of their colours."""


def draw(tier: str, frame: Frame, folder: Path) -> list[str]:
    """Write every figure of which something is known, as SVG and PNG; gives their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
        for name, figure_of in FIGURES.items():
            figure = figure_of(frame)
            if figure is None:
                continue
            for kind in KINDS:
                path = folder / f"study_{tier}_{name}.{kind}"
                figure.savefig(path, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
            written.append(name)
    return written


def averaging(frame: Frame) -> Figure | None:
    """C1: what averaging gains or loses, and the barrier between two particles."""
    found = {arm: by_round(frame, arm, minus=(arm, "particles")) for arm in ("swamp", "swamp_without_swa")}
    if not found["swamp"]:
        return None
    figure, (left, right) = _axes(2)
    for arm, one in found.items():
        if one:
            _interval_curve(left, _density(frame, arm), one, MAIN.index(arm), LABELS[arm])
    _zero(left, frame, "swamp")
    left.set_ylabel("average - mean of particles\n(points of test accuracy)")
    left.legend(frameon=False)
    _interval_curve(right, _density(frame, "swamp"), lines(frame, "barrier between particles"), 2, "SWAMP")
    _zero(right, frame, "swamp")
    right.set_ylabel("error barrier between two particles\n(points)")
    return figure


def accuracies(frame: Frame) -> Figure | None:
    """C2: test accuracy against the weights left."""
    arms = [arm for arm in MAIN if arm in set(frame["arm"])]
    if "swamp" not in arms:
        return None
    figure, (axes,) = _axes(1)
    for arm in arms:
        density, found = _density(frame, arm), accuracy(frame, arm)
        mean, error = found.mean(), found.sem()
        number = MAIN.index(arm)
        rounds = [index for index in found.columns if index in density]
        x = [density[index] for index in rounds]
        axes.plot(x, mean[rounds], color=COLOURS[number], marker=MARKERS[number], markersize=4.5,
                  label=f"{LABELS[arm]} (n = {len(found)})")
        axes.fill_between(x, (mean - error)[rounds], (mean + error)[rounds], color=COLOURS[number], alpha=0.15,
                          linewidth=0)
    density_axis(axes, min(_density(frame, "swamp").values()))
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def costs(frame: Frame) -> Figure | None:
    """C2 at equal cost: SWAMP minus IMP of as many epochs a particle, and of as many in all."""
    found = {arm: one for arm in ("imp", "imp_4t") if {arm, "swamp"} <= set(frame["arm"])
             and (one := by_round(frame, "swamp", minus=(arm, "average")))}
    if "imp_4t" not in found:
        return None
    figure, (axes,) = _axes(1)
    labels = {"imp": "SWAMP - IMP, equal epochs a particle", "imp_4t": "SWAMP - IMP with 4 T, equal cost"}
    for arm, one in found.items():
        _interval_curve(axes, _density(frame, "swamp"), one, MAIN.index(arm), labels[arm])
    _zero(axes, frame, "swamp")
    axes.set_ylabel("points of test accuracy")
    axes.legend(frameon=False)
    return figure


def ensembles(frame: Frame) -> Figure | None:
    """C3: SWAMP minus the ensemble of two IMP solutions."""
    found = by_round(frame, "swamp", minus=("imp_ensemble", "ensemble")) if "swamp" in set(frame["arm"]) else {}
    if not found:
        return None
    figure, (axes,) = _axes(1)
    axes.axhspan(-MARGIN, MARGIN, color="#e8e8e8", linewidth=0, label=f"±{MARGIN:g} points")
    _interval_curve(axes, _density(frame, "swamp"), found, 2, "SWAMP - ensemble")
    _zero(axes, frame, "swamp")
    axes.set_ylabel("points of test accuracy")
    axes.legend(frameon=False)
    return figure


def curvature(frame: Frame) -> Figure | None:
    """C4: curvature of each network, a point a seed."""
    metrics = {"trace": "trace of the Hessian", "scaled trace": "sum w² H", "largest": "largest eigenvalue"}
    if not any("curvature" in what for what in set(frame["what"])):
        return None
    figure, panels = _axes(len(metrics))
    for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
        names = []
        for number, (arm, network) in enumerate(NETWORKS):
            found = values(frame, arm, f"curvature of {network}", metric, "train")
            if found.empty:
                continue
            series = found[found.columns[-1]]
            x = len(names)
            axes.scatter([x] * len(series), series, color=COLOURS[number], alpha=0.5, s=18, linewidth=0)
            axes.plot([x - 0.3, x + 0.3], [series.mean()] * 2, color=COLOURS[number], linewidth=2.5)
            names.append(LABELS[arm].replace(" + ", " +\n") + ("\nparticle" if network == "particle" else ""))
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_title(label, loc="left", fontsize=10)
    return figure


def connectivity(frame: Frame) -> Figure | None:
    """C5: barriers and dips between the averages of successive rounds."""
    found = {what: lines(frame, f"{what} between rounds") for what in ("barrier", "dip")}
    if not found["barrier"]:
        return None
    figure, (axes,) = _axes(1)
    labels = {"barrier": "largest excess over the straight line (barrier)", "dip": "deepest point below it (dip)"}
    for number, (what, one) in enumerate(found.items()):
        _interval_curve(axes, _density(frame, "swamp"), one, number, labels[what])
    _zero(axes, frame, "swamp")
    axes.set_xlabel("weights left in the denser of two successive rounds")
    axes.set_ylabel("test error between the averages (points)")
    axes.legend(frameon=False)
    return figure


def differences(frame: Frame) -> Figure | None:
    """C2, C3 and C6 at the primary endpoint: SWAMP minus each other arm."""
    found = {arm: one for arm, (one, _) in comparisons(frame).items()}
    if "swamp" in set(frame["arm"]) and "imp_ensemble" in set(frame["arm"]):
        ensemble = compared(endpoint(frame, "swamp"), endpoint(frame, "imp_ensemble"))
        found |= {"imp_ensemble": ensemble} if ensemble is not None else {}
    if not found:
        return None
    figure, (axes,) = _axes(1, height=0.9 + 0.45 * len(found))
    for row, one in enumerate(reversed(found.values())):
        axes.errorbar(one.mean, row, xerr=[[one.mean - one.low], [one.high - one.mean]], color=COLOURS[0], marker="o",
                      capsize=4)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(found)), [f"SWAMP - {LABELS[arm]}" for arm in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("points of test accuracy at the primary endpoint")
    return figure


def swapped(frame: Frame) -> Figure | None:
    """C7: test accuracy of each mask under each training, a point a seed."""
    found = {arm: [masked(frame, arm, what) for what in MASKS] for arm in ("imp", "swamp")}
    if found["imp"][0].empty:
        return None
    figure, panels = _axes(2)
    panels[1].sharey(panels[0])
    for axes, (arm, cells) in zip(panels, found.items(), strict=True):
        for x, series in enumerate(cells):
            axes.scatter([x] * len(series), series, color=COLOURS[x], alpha=0.5, s=18, linewidth=0)
            axes.plot([x - 0.3, x + 0.3], [series.mean()] * 2, color=COLOURS[x], linewidth=2.5)
        names = [what.replace(" of swamp", "\nof SWAMP").replace(" of imp", "\nof IMP") for what in MASKS]
        axes.set_xticks(range(len(MASKS)), names, fontsize=8)
        axes.set_title(f"training of {LABELS[arm]}", loc="left", fontsize=10)
    panels[0].set_ylabel("test accuracy (%)")
    return figure


FIGURES: Mapping[str, Callable[[Frame], Figure | None]] = {
    "averaging": averaging, "accuracy": accuracies, "cost": costs, "ensemble": ensembles, "curvature": curvature,
    "connectivity": connectivity, "differences": differences, "swap": swapped,
}


def _axes(num: int, height: float = 3.8) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(8.6 if num > 1 else 7.2, height), layout="constrained")
    panels = figure.subplots(1, num, squeeze=False)[0]
    for axes in panels:
        plain_axes(axes)
    return figure, panels


def _density(frame: Frame, arm: str) -> dict[int, float]:
    return {index: 1.0 - sparsity for index, sparsity in sparsities(frame, arm).items()}


def _interval_curve(axes: Any, density: Mapping[int, float], found: Mapping[int, Paired], number: int,
                    label: str) -> None:
    """Means with 95 % intervals; curves of one figure are set apart a little, so that their bars can be told apart."""
    x = [density[index] * (1 + 0.02 * (number % 2)) for index in found]
    means = [one.mean for one in found.values()]
    reach = [[one.mean - one.low for one in found.values()], [one.high - one.mean for one in found.values()]]
    axes.errorbar(x, means, yerr=reach, color=COLOURS[number], marker=MARKERS[number], markersize=4.5, capsize=3,
                  linewidth=1.4, label=f"{label} (n = {max(one.num for one in found.values())})")


def _zero(axes: Any, frame: Frame, arm: str) -> None:
    axes.axhline(0, color="#555555", linewidth=1, zorder=0.5)
    density_axis(axes, min(_density(frame, arm).values()))
