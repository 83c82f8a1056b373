"""The tables of a report: one row a round, and differences between arms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swamp_ray.report.charts.cells import metric_title
from swamp_ray.report.charts.comparison import Comparison, Level
from swamp_ray.report.charts.series import AVERAGE, Mean, arms_of_runs, means, points, seeds_of_means
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.html import Cell, PageTable
from swamp_ray.report.page.method import method_words
from swamp_ray.text.costs import epochs_text, short_flops
from swamp_ray.text.metric_names import is_percent, short, style_of, unit_words
from swamp_ray.text.tables import percent

LOSS = "loss"
MANY_RUNS = 2
"""With more, the tables of single runs are folded."""


def summary_table(runs: Sequence[ReportRun], split: str = "test") -> PageTable | None:
    """The network of each round, an arm a column, mean and standard deviation over its seeds; None for a single run."""
    if len(runs) < 2:
        return None
    metric = runs[0].primary
    arms = arms_of_runs(runs)
    found = {(one.sparsity, one.arm): one for one in means(points(runs, split)) if one.network == AVERAGE}
    sparsities = sorted({sparsity for sparsity, _ in found})
    rows = tuple((Cell(percent(sparsity), sparsity), *(_arm_cell(found.get((sparsity, arm)), metric) for arm in arms))
                 for sparsity in sparsities)
    counts = seeds_of_means(points(runs, split))
    headings = [f"{arm} (n = {counts[arm]})" for arm in arms]
    furthest = "" if counts == arms else " that have come furthest"
    spread = f", mean ± standard deviation over the n seeds{furthest}" if max(counts.values()) > 1 else ""
    return PageTable("By sparsity", ("sparsity", *headings), rows,
                     f"{split.capitalize()} {unit_words(metric)} of the network of each round{spread}.")


def _arm_cell(one: Mean | None, metric: str) -> Cell:
    if one is None:
        return Cell("")
    spread = f" ± {short(one.deviation, metric)}" if one.deviation is not None else ""
    return Cell(short(one.value, metric) + spread, one.value)


def rounds_table(run: ReportRun, folded: bool = False) -> PageTable:
    """One row a finished round of a run."""
    metric = run.primary
    several = any(len(record["particles"]) > 1 for record in run.records)
    network = "average" if several else "network"
    losses = metric != LOSS and LOSS in run.records[0]["average"]["test"]
    headings = ["round", "sparsity", "weights left", f"{network}, test", f"{network}, validation"]
    headings += [f"{network}, test loss"] if losses else []
    headings += ["particles, test", "best particle, test", "worst particle, test", "spread"] if several else []
    has_costs = all(record.get("cost_so_far") for record in run.records)
    headings += ["epochs so far", "one after the other", "training FLOPs", "with the masks"] if has_costs else []
    rows = []
    for record in run.records:
        rows.append((*_round_cells(run, record, several, losses), *(_cost_cells(record) if has_costs else ())))
    return PageTable(run.name, tuple(headings), tuple(rows), _caption(run, several, losses), folded=folded)


def _round_cells(run: ReportRun, record: Mapping[str, Any], several: bool, losses: bool) -> tuple[Cell, ...]:
    metric = run.primary
    average = record["average"]
    cells = [Cell(str(record["round"]), record["round"]), Cell(percent(record["sparsity"]), record["sparsity"]),
             Cell(f"{record['survivors']:,}", record["survivors"]),
             _metric(average["test"][metric], metric), _metric(average["validation"][metric], metric)]
    if losses:
        cells.append(_metric(average["test"][LOSS], run.metric(LOSS)))
    return (*cells, *(_particles(run, record) if several else []))


def _cost_cells(record: Mapping[str, Any]) -> Iterator[Cell]:
    """What the run has cost up to the end of a round."""
    for face, value in record["cost_so_far"].items():
        yield Cell(short_flops(value) if face.endswith("flops") else epochs_text(value), value)


def _particles(run: ReportRun, record: Mapping[str, Any]) -> list[Cell]:
    metric = run.primary
    values = [float(one["test"][metric]) for one in record["particles"]]
    best, worst = (max, min) if run.about.get("higher_is_better", metric != LOSS) else (min, max)
    mean = record["mean"]["test"][metric]
    std = record["std"]["test"][metric]
    text = short(mean, metric) + (f" ± {short(std, metric)}" if len(values) > 1 else "")
    return [Cell(text, mean), _metric(best(values), metric), _metric(worst(values), metric),
            Cell(f"{record['spread']:.4g}", record["spread"])]


def _metric(value: float, metric: str) -> Cell:
    return Cell(short(value, metric), value)


def _caption(run: ReportRun, several: bool, losses: bool) -> str:
    text = f"{metric_title(run.primary)}{' in percent' if is_percent(run.primary) else ''}."
    if losses:
        text += " Loss: the task's mean loss (for classification the negative log-likelihood)."
    if several:
        text += (" Particles: mean ± standard deviation over the particles of the round. Spread: root mean square "
                 "distance of the particles' weights to their average.")
    dropped = [f"{record['round']} ({len(record['particles'])} of {record['num_particles']})" for record in run.records
               if record.get("dropped")]
    return text + (f" Particles were left out in round{'s' if len(dropped) > 1 else ''} {', '.join(dropped)}."
                   if dropped else "")


def arms_in_words(runs: Sequence[ReportRun]) -> tuple[tuple[str, str], ...]:
    """Name and method of each of several arms; nothing for a single one."""
    first = _first_of_arms(runs)
    if len(first) < 2:
        return ()
    seeds = {arm: [str(run.seed) for run in runs if run.arm == arm] for arm in first}
    return tuple((arm, f"{method_words(run.config)} Seed{'s' if len(seeds[arm]) > 1 else ''} {', '.join(seeds[arm])}.")
                 for arm, run in first.items())


def differing_options(runs: Sequence[ReportRun]) -> PageTable | None:
    """The options in which several arms differ; None if there are none."""
    options = {arm: dict(_leaves(run.config.recipe() | {"seed": None})) for arm, run in _first_of_arms(runs).items()}
    keys = [key for key in dict.fromkeys(key for own in options.values() for key in own)
            if len({own.get(key, "") for own in options.values()}) > 1]
    rows = tuple((Cell(key), *(Cell(own.get(key, "")) for own in options.values())) for key in keys)
    return PageTable("Options in which the arms differ", ("option", *options), rows, words=True) if rows else None


def _first_of_arms(runs: Sequence[ReportRun]) -> dict[str, ReportRun]:
    first: dict[str, ReportRun] = {}
    for run in runs:
        first.setdefault(run.arm, run)
    return first


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The options of nested sections by their dotted names, as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def comparison_table(one: Comparison, metric: str, folded: bool = False) -> PageTable:
    """Both arms and their difference at each sparsity that both have."""
    unit = " (points)" if is_percent(metric) else ""
    headings = ["sparsity", f"{one.first}, test", f"{one.second}, test"]
    if one.is_paired:
        headings += ["pairs", f"difference{unit}", "95 % interval", "detectable"]
    rows = tuple(_level_cells(level, metric, one.is_paired) for level in one.levels)
    return PageTable(f"{one.second} compared with {one.first}", tuple(headings), rows, _comparison_caption(one),
                     folded=folded)


def _level_cells(level: Level, metric: str, is_paired: bool) -> tuple[Cell, ...]:
    cells = [Cell(percent(level.sparsity), level.sparsity), _mean_cell(level.first, metric),
             _mean_cell(level.second, metric)]
    if not is_paired:
        return tuple(cells)
    cells.append(Cell(str(len(level.seeds)), len(level.seeds)))
    shown = "" if level.difference is None else signed(level.difference, metric)
    cells.append(Cell(shown, level.difference))
    if level.paired is None:
        return (*cells, Cell("–"), Cell("–"))  # noqa: RUF001 - a dash
    interval = f"{signed(level.paired.low, metric)} to {signed(level.paired.high, metric)}"
    return (*cells, Cell(interval), Cell(signed(level.paired.detectable, metric).lstrip("+"), level.paired.detectable))


def _mean_cell(values: Mapping[int, float], metric: str) -> Cell:
    mean = statistics.fmean(values.values())
    spread = f" ± {short(statistics.stdev(values.values()), metric)}" if len(values) > 1 else ""
    return Cell(f"{short(mean, metric)}{spread} (n = {len(values)})", mean)


def signed(difference: float, metric: str) -> str:
    """A difference with its sign: shares in percentage points with two decimals."""
    sign = "-" if difference < 0 else "+"
    text = f"{difference:+.3g}" if style_of(metric) is None else f"{sign}{short(abs(difference), metric)}"
    # Below half of the last digit there is no sign to speak of.
    return text.lstrip("+-") if math.isclose(float(text), 0.0) else text.replace("-", "−")  # noqa: RUF001


def _comparison_caption(one: Comparison) -> str:
    text = "± standard deviation over seeds; n: seeds."
    if not one.is_paired:
        return text + " These arms have no seed in common, so that nothing is paired: they stand side by side."
    text += f" Difference: {one.second} minus {one.first}, mean over the seeds that both have."
    if any(level.paired for level in one.levels):
        return text + (" Interval: of the t distribution over these pairs, each sparsity for itself. Detectable: the "
                       "smallest true difference that a two-sided 5 % test of so many pairs, as scattered as these, "
                       "finds in 80 % of studies.")
    if max(len(level.seeds) for level in one.levels) > 1:
        return text + " Where all pairs differ equally there is no interval."
    return text + " With one pair there is no interval: how far seeds differ is not known."
