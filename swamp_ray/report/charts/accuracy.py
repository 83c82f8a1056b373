"""The metric that decides, against the weights that are left, and against the epochs that were spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from swamp_ray.report.charts.arms import each_arm, line_of
from swamp_ray.report.charts.cells import capital, metric_title
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.series import (
    AVERAGE,
    ENSEMBLE,
    PARTICLES,
    Mean,
    Point,
    arms_of_runs,
    dense_value,
    means,
    points,
    seeds_of_means,
)
from swamp_ray.report.charts.style import (
    FONT_PT,
    MUTED,
    ArmStyle,
    add_legend,
    arm_styles,
    axis_label,
    density_axis,
    new_figure,
    plain_axes,
    scale_of,
)
from swamp_ray.report.load.runs import ReportRun

DENSE = "dense"
DASHES: Mapping[str, Any] = {PARTICLES: ":", ENSEMBLE: "--", DENSE: "-."}
Where = Callable[[Any], float]
"""The horizontal position of a point or a mean."""


def accuracy_charts(runs: Sequence[ReportRun], split: str = "test") -> list[Chart]:
    """Both charts; the second only where the epochs of every run are known."""
    return [accuracy_against_sparsity(runs, split), *accuracy_against_epochs(runs, split)]


def accuracy_against_sparsity(runs: Sequence[ReportRun], split: str = "test") -> Chart:
    """Average, mean and ensemble of the particles, and the dense network, against the share of weights left."""
    metric = runs[0].primary
    found = points(runs, split)
    dense = dense_value(runs, split)
    figure, axes = new_figure()
    if dense is not None:
        axes.axhline(scale_of(metric) * dense, color=MUTED, linestyle=DASHES[DENSE], linewidth=1, zorder=1)
    _draw(axes, runs, found, lambda one: 1 - one.sparsity)
    density_axis(axes, min(1 - point.sparsity for point in found))
    networks = [network for network in (PARTICLES, ENSEMBLE) if any(point.network == network for point in found)]
    _finish(figure, axes, runs, split, [*networks, *([DENSE] if dense is not None else [])])
    text = _words(metric, split, networks)
    if dense is not None:
        text += f" {_dense_in_words(runs)}"
    return Chart("accuracy_against_sparsity", f"{metric_title(metric)} against sparsity",
                 f"{text} {_spread(runs, found)}",
                 figure, _data(found, metric, dense))


def _words(metric: str, split: str, networks: Sequence[str]) -> str:
    text = (f"{capital(axis_label(metric, split))} of the network that each round gives, against the share of prunable "
            "weights that are left (log axis; dense on the left).")
    if networks:
        text += (" Solid: the average of the round's particles; dotted, in the same colour: the mean of the particles' "
                 "own values" + ("; dashed: their ensemble." if ENSEMBLE in networks else "."))
    return text


def _dense_in_words(runs: Sequence[ReportRun]) -> str:
    """What the line of the dense network is the mean of."""
    first = [run for run in runs if run.arm == runs[0].arm]
    of_arm = f" of {runs[0].arm}" if len(first) < len(runs) else ""
    several = len(first[0].records[0]["particles"]) > 1
    over = [f"the {len(first)} runs{of_arm}"] * (len(first) > 1) + ["the particles"] * several
    what = f"the round without a mask{of_arm if len(first) == 1 else ''}"
    return f"Dense: the mean over {' and '.join(over)} in {what}." if over else f"Dense: {what}."


def accuracy_against_epochs(runs: Sequence[ReportRun], split: str = "test") -> list[Chart]:
    """The round's network against the epochs of dense phase and particles up to the end of its round."""
    metric = runs[0].primary
    found = [point for point in points(runs, split) if point.network == AVERAGE]
    epochs = [point.epochs for point in found if point.epochs is not None]
    if len(epochs) < len(found):
        return []
    figure, axes = new_figure()
    _draw(axes, runs, found, lambda one: one.epochs)
    for arm, style in arm_styles(run.arm for run in runs).items():
        last = [one for one in means(found) if one.arm == arm][-1]
        axes.annotate(f"{100 * (1 - last.sparsity):.2g} % left", (last.epochs, scale_of(metric) * last.value),
                      xytext=(6, -3), textcoords="offset points", fontsize=FONT_PT - 1, color=style.colour)
    _epochs_axis(axes, min(epochs), max(epochs))
    _finish(figure, axes, runs, split, [])
    caption = ("The network of each round against what it took to get there: the epochs of the dense phase and of all "
               "particles of all rounds up to it, whether this run trained them or found them in the storage (log "
               "axis). Each arm's last point says how many weights are left there. ")
    return [Chart("accuracy_against_epochs", f"{metric_title(metric)} against epochs spent",
                  caption + _spread(runs, found),
                  figure, _data(found, metric, None))]


def _epochs_axis(axes: Any, low: float, high: float) -> None:
    axes.set_xscale("log")
    ticks = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= 1.5 * high] or [low]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("epochs spent, all particles")
    axes.set_xlim(right=1.7 * high)  # room for what is written at the last points


def _draw(axes: Any, runs: Sequence[ReportRun], found: Sequence[Point], where: Where) -> None:
    """Every arm and network: lines through the means, bands around them, and single seeds."""
    scale = scale_of(runs[0].primary)
    counts = arms_of_runs(runs)
    for arm, style in arm_styles(run.arm for run in runs).items():
        own = [one for one in means(found) if one.arm == arm]
        for network in (PARTICLES, ENSEMBLE):
            part = [one for one in own if one.network == network]
            axes.plot([where(one) for one in part], [scale * one.value for one in part], color=style.colour,
                      linestyle=DASHES[network], linewidth=1.2, zorder=3)
        _draw_main(axes, [one for one in own if one.network == AVERAGE], style, where, scale)
        single = [point for point in found if point.arm == arm and point.network == AVERAGE]
        if counts[arm] > 1:
            axes.plot([where(one) for one in single], [scale * one.value for one in single], linestyle="", marker=".",
                      markersize=3, alpha=0.55, color=style.colour, zorder=4)


def _draw_main(axes: Any, main: Sequence[Mean], style: ArmStyle, where: Where, scale: float) -> None:
    """A line through the means of the rounds' networks, and one standard deviation around it if seeds are several."""
    low = []
    high = []
    for one in main:
        if one.deviation is not None:  # all means of an arm are over equally many seeds
            low.append(scale * (one.value - one.deviation))
            high.append(scale * (one.value + one.deviation))
    line_with_band(axes, [where(one) for one in main], [scale * one.value for one in main],
                   (low, high) if low else None, zorder=3, **line_of(style))


def _finish(figure: Figure, axes: Any, runs: Sequence[ReportRun], split: str, networks: Sequence[str]) -> None:
    """Label, grid, and a legend of the arms and of the lines that are not a round's network."""
    styles = arm_styles(run.arm for run in runs)
    handles = [Line2D([], [], color=style.colour, linestyle=_literal(style.line), marker=style.marker, markersize=4.5,
                      linewidth=1.8, label=arm) for arm, style in styles.items()]
    colour = next(iter(styles.values())).colour if len(styles) == 1 else MUTED
    handles += [Line2D([], [], color=MUTED if network == DENSE else colour, linestyle=DASHES[network], linewidth=1.2,
                       label=network) for network in networks]
    axes.set_ylabel(axis_label(runs[0].primary, split))
    plain_axes(axes)
    add_legend(figure, axes, handles)


def _literal(line: str) -> Any:
    """A style of line; matplotlib's annotations know only literals."""
    return line


def _spread(runs: Sequence[ReportRun], found: Sequence[Point]) -> str:
    counts = seeds_of_means(found)
    if max(counts.values()) < 2:
        return f"{capital(each_arm(counts, 'seed'))}, so that there is no spread to show."
    furthest = "" if counts == arms_of_runs(runs) else ", those that have come furthest"
    return (f"Lines and bands: mean ± one standard deviation over {each_arm(counts, 'seed')}{furthest}; points: "
            "single seeds.")


def _data(found: Sequence[Point], metric: str, dense: float | None) -> pd.DataFrame:
    """Single seeds, then the means over them, then the dense network, in one table."""
    rows = [*_single(found, metric), *_over_seeds(found, metric)]
    if dense is not None:
        rows.append({"what": "dense", metric: dense})
    table = pd.DataFrame(rows)
    whole = {"seed": "Int64", "round": "Int64", "num_seeds": "Int64"}
    return table.astype({name: kind for name, kind in whole.items() if name in table})


def _single(found: Sequence[Point], metric: str) -> Iterator[dict[str, Any]]:
    for one in found:
        yield {"what": "seed", "arm": one.arm, "network": one.network, "run": one.run, "seed": one.seed,
               "round": one.round, "sparsity": one.sparsity, "weights_left": 1 - one.sparsity,
               "epochs": one.epochs, metric: one.value}


def _over_seeds(found: Sequence[Point], metric: str) -> Iterator[dict[str, Any]]:
    for one in means(found):
        yield {"what": "mean over seeds", "arm": one.arm, "network": one.network, "sparsity": one.sparsity,
               "weights_left": 1 - one.sparsity, "epochs": one.epochs, metric: one.value,
               "standard_deviation": one.deviation, "num_seeds": one.num}
