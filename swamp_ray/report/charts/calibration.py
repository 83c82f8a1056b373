"""Whether probabilities can be believed, as pictures of what ``swamp analyze calibration`` has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from swamp_ray.analysis.calibration import AVERAGE, ENSEMBLE, PARTICLES
from swamp_ray.report.charts.arms import line_of, over_seeds, range_in_words
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.lines import line_with_band
from swamp_ray.report.charts.panels import legend_below, legend_line
from swamp_ray.report.charts.style import ArmStyle, arm_styles, new_figure, plain_density_axes
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.tables import short_names

NETWORKS: dict[str, Any] = {AVERAGE: "-", PARTICLES: (0, (1, 1.2)), ENSEMBLE: (0, (5, 1.5))}
"""Of a round, and how each is drawn in the colour of its arm."""
FEW = 2000
"""Of fewer samples a caption says that chance alone lifts the error."""
METRICS = {"ece": ("expected calibration error", 100.0, " (%)"), "loss": ("negative log-likelihood", 1.0, "")}


def calibration_charts(runs: Sequence[ReportRun]) -> list[Chart]:
    """Calibration error and likelihood against the weights left."""
    if not any(rows_of_calibration(run) for run in runs):
        return []
    return [_curve_chart(runs, metric) for metric in METRICS]


def rows_of_calibration(run: ReportRun) -> list[Mapping[str, Any]]:
    """What is stored of a run, a row a round and network."""
    return run.analyses.get("calibration", {}).get("rows", [])


def row_of(run: ReportRun, index: int, network: str) -> Mapping[str, Any] | None:
    """That of a network of a round, if it is measured."""
    return next((row for row in rows_of_calibration(run) if row["round"] == index and row["network"] == network), None)


def _curve_chart(runs: Sequence[ReportRun], metric: str) -> Chart:
    label, _, unit = METRICS[metric]
    frames = [over_seeds(runs, lambda run, record, name=name: _value(run, record, name, metric)).assign(network=name)
              for name in NETWORKS]
    data: Any = pd.concat([frame for frame in frames if not frame.empty], ignore_index=True)
    how = ("The distance between the share of right predictions and their mean probability, over 15 bins of equal "
           "width of the largest probability, weighted with the counts (Guo et al., 2017)"
           if metric == "ece" else "Mean negative log-probability of the right class")
    several = set(data["network"]) > {AVERAGE}
    whose = ("of the average (solid), of its particles (dotted, mean over them) and of their ensemble, the mean of "
             "their probabilities (dashed)" if several else "of each round's network")
    caption = f"{how}, on the test split{_samples(runs, metric)}: {whose}. {range_in_words(data)}"
    return Chart(f"calibration_{metric}", f"{label.capitalize()} against the weights left", caption,
                 _curves(runs, data, metric, f"test {label}{unit}"), data)


def _samples(runs: Sequence[ReportRun], metric: str) -> str:
    """How many there are, for the error, which of few samples is large by chance alone."""
    sizes = sorted({sum(row["bins"]["count"]) for run in runs for row in rows_of_calibration(run)
                    if row["network"] == AVERAGE})
    if metric != "ece" or not sizes:
        return ""
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    chance = "; with so few, chance alone lifts it above 0" if sizes[0] < FEW else ""
    return f" ({size} samples{chance})"


def _value(run: ReportRun, record: Mapping[str, Any], network: str, metric: str) -> float | None:
    row = row_of(run, record["round"], network)
    return None if row is None else float(row["test"][metric])


def _curves(runs: Sequence[ReportRun], data: Any, metric: str, label: str) -> Figure:
    figure, axes = new_figure()
    styles = arm_styles(run.arm for run in runs)
    scale = METRICS[metric][1]
    for (arm, network), one in data.groupby(["arm", "network"], sort=False):
        is_average = network == AVERAGE
        line_with_band(axes, one["density"], scale * one["mean"],
                       (scale * one["lowest"], scale * one["highest"]) if is_average else None, shade=0.13,
                       markersize=4 if is_average else 0, **line_of(styles[arm]) | {"linestyle": NETWORKS[network]})
    plain_density_axes(axes, float(data["density"].min()), label)
    if metric == "ece":
        axes.set_ylim(bottom=0)
    legend_below(figure, _legend(data, styles))
    return figure


def _legend(data: Any, styles: Mapping[str, ArmStyle]) -> list[Any]:
    """The arms, and what kinds of lines there are; of one arm with several kinds these alone, in its colour."""
    arms = list(dict.fromkeys(data["arm"]))
    networks = [name for name in NETWORKS if name in set(data["network"])]
    short = short_names(arms, 30)
    of_arms = [legend_line(short[arm], line_of(styles[arm]) | {"linestyle": "-"}) for arm in arms]
    if len(networks) == 1:
        return of_arms
    kinds: list[dict[str, Any]] = [{"linestyle": NETWORKS[name]} for name in networks]
    if len(arms) == 1:
        style = line_of(styles[arms[0]])
        kinds = [style | kind | ({} if name == AVERAGE else {"marker": ""})
                 for name, kind in zip(networks, kinds, strict=True)]
        of_arms = []
    return of_arms + [legend_line(name, kind) for name, kind in zip(networks, kinds, strict=True)]

