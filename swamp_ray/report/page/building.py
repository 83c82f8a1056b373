"""From runs to a page: what each section holds, and the figures drawn."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from swamp_ray.errors import SwampError
from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.comparison import ALL_PAIRS_OF, comparisons
from swamp_ray.report.charts.drawing import svg_of
from swamp_ray.report.charts.style import themed
from swamp_ray.report.load.missing import has_no_jobs, missing
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.load.salvage import remeasure
from swamp_ray.report.page.card import card, shared_facts
from swamp_ray.report.page.contents import ACCURACY, DIFFERENCES, DRAWN_FROM, SECTIONS, WORKERS, Draw, Section
from swamp_ray.report.page.headline import findings, title, warnings
from swamp_ray.report.page.html import Drawn, Page, Part
from swamp_ray.report.page.tables import (
    MANY_RUNS,
    arms_in_words,
    comparison_table,
    differing_options,
    rounds_table,
    summary_table,
)

KINDS = ("csv", "svg", "png")
LONGEST_STEM = 150
"""Letters of a file's name before its ending; file systems take 255 bytes, and a temporary name is longer."""
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What stored values that are not those that were written lead to."""


def build(runs: Sequence[ReportRun], command: str, folder: str | None, notes: Sequence[str] = ()) -> Page:
    """The page of some runs, with every figure drawn.

    Args:
        runs: In the order in which they are shown; the first is the baseline of comparisons.
        command: Makes the page again.
        folder: Where the files of figures lie, relative to the page; None: they are in the page alone.
        notes: What could not be measured, and why.
    """
    summary = summary_table(runs)
    folded = len(runs) > MANY_RUNS
    parts = [replace(_part(ACCURACY, runs, folder), tables=(summary,) if summary else ()), _differences(runs, folder),
             Part("rounds", "Rounds", tables=tuple(rounds_table(run, folded) for run in runs)),
             *(_with_workers(_part(section, runs, folder), runs) for section in SECTIONS),
             Part("unmeasured", "Not measured", notes=tuple(notes))]
    lacking = {run.name: missing(run) for run in runs}  # figures find out too what cannot be read
    files = [file for part in parts for drawn in part.charts for file in drawn.files.values()]
    arms = arms_in_words(runs)
    cards = [card(run, bool(lacking[run.name])) for run in runs]
    shared = shared_facts(cards)
    said = {label for label, _ in shared} | ({"Method"} if arms else set())
    own = [replace(one, facts=tuple(fact for fact in one.facts if fact[0] not in said)) for one in cards]
    subject = " · ".join(text for label, text in shared or cards[0].facts if label in ("Model", "Data"))
    return Page(title(runs), tuple(findings(runs)), subject, tuple(warnings(runs)), arms, differing_options(runs),
                shared, tuple(own), tuple(parts), command, tuple(files), tuple(_sources(runs)),
                tuple((name, sentences) for name, sentences in lacking.items() if sentences))


def _part(section: Section, runs: Sequence[ReportRun], folder: str | None) -> Part:
    charts: list[Drawn] = []
    notes: list[str] = []
    for draw in section.draw:
        try:
            for chart in _charts(draw, runs, notes):
                charts.append(drawn(chart, folder, [one.chart.name for one in charts]))
        except SwampError as error:
            notes.append(str(error))
        except DAMAGED as error:
            notes.append(f"A figure of this section could not be drawn: what is stored for it is not what was written "
                         f"({type(error).__name__}: {error}).")
    return Part(section.anchor, section.title, section.about if charts else "", tuple(notes), tuple(charts))


def _with_workers(part: Part, runs: Sequence[ReportRun]) -> Part:
    """Of the section of workers: of which runs they are not recorded."""
    if part.anchor != WORKERS.anchor or not (without := [run.name for run in runs if has_no_jobs(run)]):
        return part
    return replace(part, notes=(*part.notes, f"Who trained what is not recorded of {', '.join(without)}: jobs.jsonl "
                                             "is not there."))


def _charts(draw: Draw, runs: Sequence[ReportRun], notes: list[str]) -> list[Chart]:
    """The charts of all runs, or of those whose stored values can be drawn; the others are noted."""
    with themed():
        try:
            return draw(runs)
        except DAMAGED:
            reasons = {run.name: _reason(draw, run) for run in runs}
            drawable = [run for run in runs if not reasons[run.name]]
            if len(drawable) == len(runs):
                raise
            notes += [f"{name}: {reason}" for name, reason in reasons.items() if reason]
            return draw(drawable) if drawable else []


def _reason(draw: Draw, run: ReportRun) -> str:
    """Why a run cannot be drawn; it is noted with the run, too. Empty if it can."""
    try:
        draw([run])
    except DAMAGED as error:
        what = DRAWN_FROM.get(draw)
        of, advice = ("", "") if what is None else (f" in analysis/{what}.json", f" {remeasure(what, run.name)}")
        reason = (f"A figure is drawn without this run, because what is stored for it{of} is not what was written "
                  f"({type(error).__name__}: {error}).{advice}")
        run.losses.note(what or draw.__name__, reason)
        return reason
    return ""


def drawn(chart: Chart, folder: str | None, taken: Sequence[str]) -> Drawn:
    """The chart under a name that can stand in a tag and as a file."""
    chart = replace(chart, name=file_stem(chart.name, taken))
    files = {} if folder is None else {kind.upper(): f"{folder}/{chart.name}.{kind}" for kind in KINDS}
    return Drawn(chart, svg_of(chart.figure, chart.name), files)


def file_stem(name: str, taken: Iterable[str] = ()) -> str:
    """A name as the stem of a file: short enough, and none of those that are taken, in upper or lower case."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if len(stem) <= LONGEST_STEM and stem.lower() not in (other.lower() for other in taken):
        return stem
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{stem[: LONGEST_STEM - len(digest) - 1]}-{digest}"


def _differences(runs: Sequence[ReportRun], folder: str | None) -> Part:
    """Empty for a single arm."""
    found = comparisons(runs)
    part = _part(DIFFERENCES, runs, folder)
    notes = list(part.notes)
    arms = list(dict.fromkeys(run.arm for run in runs))
    if len(arms) > 1 and not found:
        notes.append("The arms have no sparsity or other data in common, so that nothing can be compared.")
    elif len(arms) > 1 and not any(one.is_paired for one in found):
        notes.append("No two arms have a seed in common: nothing is paired, and the arms stand side by side.")
    tables = tuple(comparison_table(one, runs[0].primary, len(found) > ALL_PAIRS_OF) for one in found)
    return Part(part.anchor, part.title, part.about, tuple(notes), part.charts, tables)


def _sources(runs: Sequence[ReportRun]) -> list[str]:
    """The files that were read, relative to the storage root."""
    found = []
    for run in runs:
        spots = [run.rundir.config, run.rundir.run_json, run.rundir.rounds, run.rundir.metrics, run.rundir.results]
        spots += [run.rundir.jobs] if run.jobs or run.progress else []
        spots += [run.rundir.analysis(what) for what in run.analyses]
        found += [spot.key for spot in spots]
    return found
