"""What a report measures itself where it is missing: how far probabilities can be believed, of each run's networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from swamp_ray.analysis.measuring import measure_calibration
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.errors import first_line
from swamp_ray.report.charts.arms import rows_of
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.liveness import life_of

CALIBRATION = "calibration"
NAMED_RUNS = 4
Say = Callable[[str], None]


def measured(runs: Sequence[ReportRun], say: Say) -> tuple[list[ReportRun], list[str]]:
    """Measure and keep what is missing; whatever stands in the way becomes a note, and no failure.

    Args:
        runs: Of a report.
        say: Told before something takes time.

    Returns:
        The runs with what was measured, and what could not be, and why.
    """
    found = []
    notes = []
    data: dict[str, Data] = {}
    for run in runs:
        found.append(run)
        if not lacks_calibration(run):
            continue
        if life_of(run.rundir, dict(run.about)).running:
            notes.append(f"{run.name}: its calibration is measured once nobody works on the run any more.")
            continue
        try:
            found[-1] = _with_calibration(run, data, say)
        # A model or data of the user's own can fail in any way, and a report must not.
        except Exception as error:
            notes.append(f"{run.name}: its calibration could not be measured. {first_line(error)}")
    return found, notes


def lacks_calibration(run: ReportRun) -> bool:
    """Whether a run's networks predict classes, and a finished round of them is not measured."""
    if "accuracy" not in run.records[0]["average"]["test"]:
        return False
    try:
        known = {row["round"] for row in rows_of(run, CALIBRATION)}
    except (KeyError, TypeError, AttributeError):
        return True  # not what was written
    return known != {record["round"] for record in run.records}


def without_calibration(runs: Sequence[ReportRun]) -> list[str]:
    """What is not measured, where nothing was to be."""
    names = [run.name for run in runs if lacks_calibration(run)]
    if not names:
        return []
    of_runs = f"{len(names)} of the runs" if len(names) > NAMED_RUNS else ", ".join(names)
    return [f"The calibration of {of_runs} is not measured, because --no-measure was given."]


def _with_calibration(run: ReportRun, data: dict[str, Data], say: Say) -> ReportRun:
    digest = str(run.about.get("data", {}).get("digest"))
    if digest not in data:
        data[digest] = load_data(run.config.data, run.config.task)
    say(f"{run.name}: measuring the calibration of {len(run.records)} rounds, once for all (not with --no-measure) ...")
    row = measure_calibration(run.rundir, data[digest])
    # As it will be read the next time, so that both pages are the same.
    run.losses.forget(CALIBRATION)
    return replace(run, analyses={**run.analyses, CALIBRATION: json.loads(json.dumps(row))})
