"""The page of a sweep: arms beside each other at each sparsity, with what they cost."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from swamp_ray.analysis.best_arms import ALPHA, BEST, TIED, UNTESTED
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_settings import describe
from swamp_ray.errors import UserError
from swamp_ray.report.charts.cells import metric_title
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.cost_front import cost_charts
from swamp_ray.report.charts.style import themed
from swamp_ray.report.charts.sweeps import curves
from swamp_ray.report.load.sweep_arms import ArmLevel, arm_levels, arm_names, compared_sparsities, table_of
from swamp_ray.report.page.building import drawn
from swamp_ray.report.page.html import Cell, Page, PageTable, Part
from swamp_ray.report.page.method import method_words
from swamp_ray.storage.find import config_of
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import Settings, read_record, read_sweep
from swamp_ray.sweep.results import collect
from swamp_ray.text.costs import epochs_text, short_flops
from swamp_ray.text.csv_text import csv_bytes
from swamp_ray.text.metric_names import Metric, number, short, unit_words
from swamp_ray.text.tables import counted, percent

MOST_COLUMNS = 5
MOST_PANELS = 4
TABLE = "comparison"
"""Stem of the files beside the page that hold all arms at all sparsities."""


@dataclass(frozen=True)
class SweepPage:
    """A page, and the table of all arms and sparsities as files beside it, by their names relative to the page."""

    page: Page
    files: dict[str, bytes]


def build_sweep(sweepdir: SweepDir, command: str, folder: str | None) -> SweepPage:
    """The page of a sweep, with every figure drawn.

    Args:
        sweepdir: The sweep.
        command: Makes the page again.
        folder: Where the files lie, relative to the page; None: there are none.

    Raises:
        UserError: It has not been started, or no round is finished.
        CorruptArtifactError: A file is not what was written.
    """
    record = read_record(sweepdir)
    metric = Metric(str(record.get("primary", "accuracy")), record.get("shown_as"))
    higher = bool(record.get("higher_is_better", metric != "loss"))
    frame = collect(sweepdir)
    if frame.empty:
        raise UserError(f"the sweep {sweepdir.name!r} has no finished round yet", where="RUN",
                        do=f"See how far it is with: swamp status {sweepdir.name}")
    levels = arm_levels(frame, f"average/test/{metric}", higher)
    sparsities = compared_sparsities(levels, MOST_COLUMNS)
    with themed():
        charts = [_curves(frame, levels, metric, higher, record),
                  *cost_charts(levels, sparsities[-MOST_PANELS:], metric, higher)]
        ready = tuple(drawn(chart, folder, ()) for chart in charts)
    first = Part("arms-by-sparsity", "Arms by sparsity", tables=(_table(levels, sparsities, metric),))
    parts = (first, Part("accuracy", metric_title(metric), charts=ready[:1]),
             Part("cost", "What it costs", _about_costs(), charts=ready[1:]),
             Part("methods", "Methods", tables=(_methods(sweepdir, frame),)))
    files = {} if folder is None else _files(table_of(levels), folder)
    beside = tuple(file for one in ready for file in one.files.values())
    page = Page(sweepdir.name, _findings(levels, sparsities, metric), _subject(frame), _warnings(sweepdir),
                (), None, (), (), parts, command, (*files, *beside), _sources(sweepdir))
    return SweepPage(page, files)


def _curves(frame: pd.DataFrame, levels: Sequence[ArmLevel], metric: Metric, higher: bool,
            record: Mapping[str, Any]) -> Chart:
    figure = curves(frame, f"average/test/{metric}", higher_is_better=higher, shown_as=record.get("shown_as"))
    caption = (f"Test {unit_words(metric)} of the network of each round, against the share of prunable weights that "
               "are left (log axis; dense on the left). Mean over the seeds, one standard error to both sides.")
    return Chart("arms_against_sparsity", f"{metric_title(metric)} against sparsity", caption, figure, table_of(levels))


def _about_costs() -> str:
    return ("Costs are of a run of its own up to this sparsity, the dense phase included, whatever it found in the "
            "storage. An epoch is one gradient of every batch; a step of SAM takes two. FLOPs: three forward passes a "
            "training step, a multiply-add as two. Not counted: scores before training, evaluation, averaging.")


def _table(levels: Sequence[ArmLevel], sparsities: Sequence[float], metric: Metric) -> PageTable:
    """A row an arm, the best at the sparsest column first; a column a sparsity."""
    by_place = {(one.arm, one.sparsity): one for one in levels}
    last = [one for one in levels if one.sparsity == sparsities[-1]]
    ranked = sorted(last, key=lambda one: (one.verdict.found != BEST, -_advantage(one, last)))
    rows = []
    for arm in dict.fromkeys(one.arm for one in [*ranked, *levels]):
        cells = [_cell(by_place.get((arm, sparsity)), metric) for sparsity in sparsities]
        rows.append((Cell(arm), *cells))
    headings = ("", *(percent(sparsity) for sparsity in sparsities))
    return PageTable("", headings, tuple(rows), _caption(levels, sparsities, metric))


def _advantage(one: ArmLevel, levels: Sequence[ArmLevel]) -> float:
    """How close an arm's mean is to the best one's; the higher the closer."""
    best = next((other.mean for other in levels if other.verdict.found == BEST), one.mean)
    distance = -abs(one.mean - best)
    return distance if math.isfinite(distance) else -math.inf


def _cell(one: ArmLevel | None, metric: Metric) -> Cell:
    if one is None:
        return Cell("–")  # noqa: RUF001 - a dash
    spread = "" if one.deviation is None else f" ± {short(one.deviation, metric)}"
    epochs = f"{epochs_text(one.cost['total_epochs'])} / {epochs_text(one.cost['critical_epochs'])} epochs"
    flops = f"{short_flops(one.cost['dense_flops'])} / {short_flops(one.cost['sparse_flops'])}"
    mark = {BEST: "best", TIED: "tied"}.get(one.verdict.found, "")
    return Cell(short(one.mean, metric) + spread, one.mean, (f"n = {len(one.values)}", epochs, flops), mark)


def _caption(levels: Sequence[ArmLevel], sparsities: Sequence[float], metric: Metric) -> str:
    text = (f"Test {unit_words(metric)}: mean ± sample standard deviation over n seeds. Below: epochs of all particles "
            "/ epochs one after the other, and training FLOPs with every weight / at the masks' densities, up to this "
            "sparsity. ★ the best mean; ☆ not distinguishable from it: paired by seed, two-sided t test, Holm over the "
            f"arms at this sparsity, {ALPHA:g}. The best is picked by the same values, so that a mark is an "
            "orientation.")
    untested = [one for one in levels if one.sparsity in sparsities and one.verdict.found == UNTESTED]
    if untested:
        text += " Where two arms have fewer than two seeds in common nothing is tested, and nothing is marked."
    others = {one.sparsity for one in levels} - set(sparsities)
    if others:
        text += f" {counted(len(others), 'further sparsity').replace('sparsitys', 'sparsities')} in the files."
    return text


def _findings(levels: Sequence[ArmLevel], sparsities: Sequence[float], metric: Metric) -> tuple[str, ...]:
    """At each sparsity from the sparsest on: which arm is best, and which cannot be told from it."""
    found = []
    for sparsity in reversed(sparsities):
        own = [one for one in levels if one.sparsity == sparsity]
        best = next((one for one in own if one.verdict.found == BEST), None)
        if best is None or len(own) < 2:
            continue
        tied = [one.arm for one in own if one.verdict.found == TIED]
        worse = [one.arm for one in own if one.verdict.found not in (BEST, TIED, UNTESTED)]
        spread = "" if best.deviation is None else f" ± {number(best.deviation, metric)}"
        value = number(best.mean, metric) if not spread else short(best.mean, metric)
        text = f"{percent(sparsity)} sparsity: {best.arm} {value}{spread}"
        if tied:
            text += f"; not distinguishable: {', '.join(tied)}" if worse else "; no arm is distinguishable from it"
        elif worse:
            text += "; every arm that could be tested is distinguishable from it"
        else:
            text += "; with these seeds nothing can be tested"
        found.append(f"{text}.")
    return tuple(found[:3])


def _subject(frame: Any) -> str:
    """Network and data, where all settings share them."""
    parts = []
    for option in ("config/model.name", "config/data.name"):
        if option in frame and frame[option].nunique() == 1:
            parts.append(str(frame[option].iloc[0]))
    return " on ".join(parts)


def _warnings(sweepdir: SweepDir) -> tuple[str, ...]:
    """Settings that are not finished: the page shows as far as they are."""
    states: dict[str, list[str]] = {}
    for trial in Settings(sweepdir).read():
        if trial.status != "complete":
            states.setdefault(trial.status, []).append(describe(trial.setting))
    return tuple(f"{counted(len(names), 'setting')} {state}: {'; '.join(names[:8])}"
                 f"{' ...' if len(names) > 8 else ''}." for state, names in states.items())


def _methods(sweepdir: SweepDir, frame: pd.DataFrame) -> PageTable:
    """What each arm does, in words."""
    found = {}
    for arm, run in zip(arm_names(frame), frame["run"], strict=True):
        if arm not in found:
            found[arm] = method_words(_config(sweepdir, run))
    return PageTable("", ("arm", "what it does"), tuple((Cell(arm), Cell(text)) for arm, text in found.items()),
                     words=True)


def _config(sweepdir: SweepDir, run: str) -> SwampConfig:
    return config_of(RunDir(sweepdir.place, run))


def _files(table: pd.DataFrame, folder: str) -> dict[str, bytes]:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return {f"{folder}/{TABLE}.parquet": buffer.getvalue(), f"{folder}/{TABLE}.csv": csv_bytes(table)}


def _sources(sweepdir: SweepDir) -> tuple[str, ...]:
    """The files that were read, relative to the storage root."""
    files = [sweepdir.config.key, sweepdir.record.key, sweepdir.trials.key]
    for trial in Settings(sweepdir, read_sweep(sweepdir)).read(with_waiting=False):
        for member in trial.members:
            files += [member.rundir.config.key, member.rundir.run_json.key, member.rundir.rounds.key]
    return tuple(files)
