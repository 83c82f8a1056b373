"""What a report says first: which runs, what was found in one sentence, and what keeps them from being compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swamp_ray.report.charts.arms import each_arm
from swamp_ray.report.charts.comparison import Comparison, comparisons
from swamp_ray.report.charts.series import AVERAGE, Mean, arms_of_runs, dense_value, means, points
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.card import status
from swamp_ray.report.page.method import method_name
from swamp_ray.report.page.tables import signed
from swamp_ray.text.metric_names import is_percent, number, short
from swamp_ray.text.tables import percent

NAMED_ARMS = 4


def title(runs: Sequence[ReportRun]) -> str:
    """The runs by their arms: ``imp (5 seeds), swamp (5 seeds)``."""
    found = [f"{arm} ({num} seeds)" if num > 1 else arm for arm, num in arms_of_runs(runs).items()]
    rest = len(found) - NAMED_ARMS
    return ", ".join(found[:NAMED_ARMS]) + (f" and {rest} further arm{'s' if rest > 1 else ''}" if rest > 0 else "")


def findings(runs: Sequence[ReportRun]) -> Iterator[str]:
    """All arms at the sparsest round that they have in common; what each has beyond it; differences of a few arms."""
    found = [one for one in means(points(runs)) if one.network == AVERAGE]
    arms = arms_of_runs(runs)
    levels = {arm: {one.sparsity: one for one in found if one.arm == arm} for arm in arms}
    common = set.intersection(*(set(level) for level in levels.values()))
    if common:
        shown = [level[max(common)] for level in levels.values()]
        yield _together(runs, shown)
        if any(one.num > 1 for one in shown):
            yield f"Mean ± standard deviation over {each_arm({one.arm: one.num for one in shown}, 'seed')}."
    for arm, level in levels.items():
        if level and (not common or max(level) > max(common)):
            yield _alone([run for run in runs if run.arm == arm], level[max(level)])
    if len(arms) <= NAMED_ARMS:
        yield from (text for one in comparisons(runs) if (text := _difference(one, runs[0].primary)))


def _together(runs: Sequence[ReportRun], found: Sequence[Mean]) -> str:
    """``"Test accuracy at 98.0 % sparsity: SWAMP (a) 97.91 %, b 97.20 ± 0.30 %; dense 99.16 %."``."""
    metric = runs[0].primary
    if len(found) == 1:
        return _alone(runs, found[0])
    text = f"Test {metric} at {percent(found[0].sparsity)} sparsity: "
    if len(found) <= NAMED_ARMS:
        text += ", ".join(f"{_label(runs, one.arm)} {_value(one, metric)}" for one in found)
    else:
        low, high = (pick(found, key=lambda one: one.value) for pick in (min, max))
        text += f"{len(found)} arms from {_value(low, metric)} ({low.arm}) to {_value(high, metric)} ({high.arm})"
    dense = dense_value(runs)
    of_arm = f" ({found[0].arm})" if len(found) > 1 else ""
    return f"{text}{f'; dense{of_arm} {number(dense, metric)}' if dense is not None else ''}."


def _alone(runs: Sequence[ReportRun], one: Mean) -> str:
    metric = runs[0].primary
    dense = dense_value(runs)
    text = f"{_label(runs, one.arm)}: test {metric} {_value(one, metric)} at {percent(one.sparsity)} sparsity"
    if dense is not None and one.sparsity > 0:
        text += f", dense {number(dense, metric)}"
    return f"{text}."


def _label(runs: Sequence[ReportRun], arm: str) -> str:
    """The method's name with the arm's, where the one does not say the other."""
    method = method_name(next(run.config for run in runs if run.arm == arm))
    plain = arm.lower().replace("_", " ")
    return f"{method} ({arm})" if method and method.lower().replace(" + ", " ") not in plain else arm


def _value(one: Mean, metric: str) -> str:
    if one.deviation is None:
        return number(one.value, metric)
    return f"{short(one.value, metric)} ± {number(one.deviation, metric)}"


def _difference(one: Comparison, metric: str) -> str:
    """At the sparsest round of a pair of arms; empty without a pair of runs."""
    levels = [level for level in one.levels if level.difference is not None]
    if not levels:
        return ""
    level = levels[-1]
    points_ = " points" if is_percent(metric) else ""
    text = (f"{one.second} − {one.first} at {percent(level.sparsity)} sparsity: "  # noqa: RUF001 - a minus sign
            f"{signed(level.difference or 0.0, metric)}{points_}")
    if level.paired is None:
        pairs = "one pair of runs" if len(level.seeds) == 1 else f"{len(level.seeds)} pairs of runs that differ equally"
        return f"{text} ({pairs}, so that its spread is not known)."
    interval = f"{signed(level.paired.low, metric)} to {signed(level.paired.high, metric)}"
    sees = "" if level.paired.low > 0 or level.paired.high < 0 else "; it does not exclude zero"
    return f"{text} (95 % interval {interval}, {level.paired.num} pairs{sees})."


def warnings(runs: Sequence[ReportRun]) -> Iterator[str]:
    """Runs that are not finished, and what runs that are shown together do not share."""
    for run in runs:
        text = status(run)
        if text:
            yield f"{run.name}: {text}" if len(runs) > 1 else text
    if len({run.about.get("data", {}).get("digest") for run in runs}) > 1:
        yield "These runs were not all trained on the same data and split: their values cannot be compared."
    if len({(run.config.model.name, str(run.config.model.options)) for run in runs}) > 1:
        yield "These runs have different networks: equal sparsity does not mean equally many weights."
    if len({str(run.about.get("arithmetic", {}).get("device")) for run in runs}) > 1:
        yield "These runs were trained on different kinds of devices."
