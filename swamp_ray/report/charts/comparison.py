"""Arms against each other: differences paired by seed, at the sparsities that both have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from swamp_ray.analysis.statistics import Paired, paired
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.series import SAME
from swamp_ray.report.charts.style import (
    MOST_INSIDE,
    MUTED,
    add_legend,
    arm_styles,
    new_figure,
    plain_density_axes,
    scale_of,
)
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.text.metric_names import is_percent
from swamp_ray.text.tables import shortened

BySparsity = Mapping[float, Mapping[int, float]]
"""Values by sparsity and seed."""
ALL_PAIRS_OF = 3
"""With more arms than that, each is compared with the first one only."""


@dataclass(frozen=True)
class Level:
    """Two arms at one sparsity.

    Attributes:
        sparsity: In [0, 1).
        first, second: Values by seed.
        seeds: That both arms have, in order.
        difference: Mean over these of second minus first; None without such a seed.
        paired: With its interval; None with fewer than two, or where all pairs differ equally.
    """

    sparsity: float
    first: Mapping[int, float]
    second: Mapping[int, float]
    seeds: tuple[int, ...]
    difference: float | None
    paired: Paired | None


@dataclass(frozen=True)
class Comparison:
    """Two arms; ``second`` was named later, and differences are second minus first."""

    first: str
    second: str
    levels: tuple[Level, ...]

    @property
    def is_paired(self) -> bool:
        """Whether the arms have any seed in common."""
        return any(level.seeds for level in self.levels)


def comparisons(runs: Sequence[ReportRun], split: str = "test") -> list[Comparison]:
    """Every two arms, or with many arms each against the first; arms without a common sparsity are left out.

    Of runs that were trained on different data nothing is compared.
    """
    if len({run.about.get("data", {}).get("digest") for run in runs}) > 1:
        return []
    arms = list(dict.fromkeys(run.arm for run in runs))
    pairs = list(combinations(arms, 2)) if len(arms) <= ALL_PAIRS_OF else [(arms[0], other) for other in arms[1:]]
    values = {arm: _by_sparsity([run for run in runs if run.arm == arm], split) for arm in arms}
    found = [Comparison(first, second, _levels(values[first], values[second])) for first, second in pairs]
    return [one for one in found if one.levels]


def _by_sparsity(runs: Sequence[ReportRun], split: str) -> dict[float, dict[int, float]]:
    """By sparsity and seed; of two runs with one seed, which are the same, the one that is named first."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        for record in run.records:
            values = found.setdefault(round(record["sparsity"], SAME), {})
            values.setdefault(run.seed, float(record["average"][split][run.primary]))
    return found


def _levels(first: BySparsity, second: BySparsity) -> tuple[Level, ...]:
    """One entry for each sparsity that both have."""
    levels = []
    for sparsity in sorted(first.keys() & second.keys()):
        one = first[sparsity]
        other = second[sparsity]
        seeds = tuple(sorted(one.keys() & other.keys()))
        a = [other[seed] for seed in seeds]
        b = [one[seed] for seed in seeds]
        difference = statistics.fmean(x - y for x, y in zip(a, b, strict=True)) if seeds else None
        levels.append(Level(sparsity, one, other, seeds, difference, paired(a, b) if _scatter(a, b) else None))
    return tuple(levels)


def _scatter(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether pairs differ from each other; an interval of a single one, or of pairs that do not, has no width."""
    return len({x - y for x, y in zip(first, second, strict=True)}) > 1


def difference_charts(runs: Sequence[ReportRun], split: str = "test") -> list[Chart]:
    """Differences against the weights left, with their intervals; none where nothing is paired."""
    found = [one for one in comparisons(runs, split) if one.is_paired]
    if not found:
        return []
    metric = runs[0].primary
    styles = arm_styles(run.arm for run in runs)
    scale = scale_of(metric)
    unit = " (points)" if is_percent(metric) else ""
    figure, axes = new_figure()
    axes.axhline(0, color=MUTED, linewidth=1)
    baseline = found[0].first if len({one.first for one in found}) == 1 else ""
    lowest = 1.0
    handles = []
    for number, one in enumerate(found):
        levels = [level for level in one.levels if level.difference is not None]
        shift = 1.0 + min(0.035, 0.12 / len(found)) * (number - (len(found) - 1) / 2)
        density = [(1 - level.sparsity) * shift for level in levels]
        lowest = min(lowest, *density)
        style = styles[one.second]
        label = one.second if baseline else f"{one.second} − {one.first}"  # noqa: RUF001 - a minus sign
        filled = {} if number < len(styles) - 1 else {"markerfacecolor": "none"}
        handles += axes.plot(density, [scale * (level.difference or 0.0) for level in levels], color=style.colour,
                             linewidth=1.1, marker=style.marker, markersize=4.5, label=label,
                             linestyle=style.line if not filled else "--", **filled)
        for x, level in zip(density, levels, strict=True):
            if level.paired is not None:
                axes.vlines(x, scale * level.paired.low, scale * level.paired.high, color=style.colour, linewidth=1.1)
    what = f"to {shortened(baseline, 14)}" if baseline else f"of {metric}"
    plain_density_axes(axes, lowest, f"difference {what}{unit}")
    if len(handles) > MOST_INSIDE:
        add_legend(figure, axes, handles)
    else:  # above, since bars can be anywhere
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)
    caption = _caption(found, metric, split)
    return [Chart("differences", "Differences, paired by seed", caption, figure, table_of(found))]


def _caption(found: Sequence[Comparison], metric: str, split: str) -> str:
    pairs = sorted({len(level.seeds) for one in found for level in one.levels if level.seeds})
    n = "one pair" if pairs == [1] else f"{pairs[-1]} pairs" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]} pairs"
    of_arms = " of each two arms" if len(found) > 1 else ""
    intervals = any(level.paired for one in found for level in one.levels)
    mean = "The difference" if pairs == [1] else "Mean over seeds of the difference"
    text = f"{mean} of two runs with the same seed, on {split}, at equal sparsity; {n}{of_arms}."
    if is_percent(metric):
        text += " In percentage points."
    if not intervals:
        why = "With one pair" if pairs == [1] else "Where all pairs differ equally"
        return f"{text} {why} there is no interval."
    return text + (" Bars: 95 % intervals of the t distribution, each for itself, not adjusted for the number of "
                   "sparsities." + (" Points are moved sideways a little so that bars do not cover each other."
                                    if len(found) > 1 else ""))


def table_of(found: Sequence[Comparison]) -> pd.DataFrame:
    """One row a pair of arms and sparsity; values in the metric's own unit."""
    rows = []
    for one in found:
        for level in one.levels:
            result = level.paired
            rows.append({
                "first": one.first, "second": one.second, "sparsity": level.sparsity,
                "weights_left": 1 - level.sparsity,
                "mean_first": statistics.fmean(level.first.values()), "num_first": len(level.first),
                "mean_second": statistics.fmean(level.second.values()), "num_second": len(level.second),
                "num_pairs": len(level.seeds), "difference": level.difference,
                "low": result and result.low, "high": result and result.high,
                "p_value": result and result.p_value, "detectable": result and result.detectable})
    return pd.DataFrame(rows)
