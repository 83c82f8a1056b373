"""Trainings that ended before they were finished: with a worker, with an attempt, or because they were not wanted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from swamp_ray.method.events import DENSE, Job
from swamp_ray.report.load.missing import TRAINED
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.append import read_growing
from swamp_ray.storage.liveness import life_of
from swamp_ray.storage.places import Spot

ENDINGS = ("machine", "diverged", "error", "stopped")
"""Of a job in ``jobs.jsonl`` that was at work, and has left no result."""

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
_BEGINS = re.compile(r".*: attempt \d+,.* from (the start|step \d+), .*")
_JOB = re.compile(r"dense-phase|round-(\d+)-particle-(\d+)")


@dataclass
class BrokenOff:
    """What a run spent on trainings that left no result in the attempt, or on the worker, that they were begun in.

    Attributes:
        seconds: Of a worker, by kind of training.
        epochs: That were trained.
        num_killed: Attempts that were ended from outside. What they had in training is counted from the log of each
            training, up to its last line, and so are epochs.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    epochs: int = 0
    num_killed: int = 0


def broken_off(run: ReportRun) -> BrokenOff:
    """The trainings of a run that were broken off, in all its attempts; of a running one those that it has noted."""
    killed = _killed_attempts(run)
    spent: dict[tuple[int, Job], float] = defaultdict(float)
    for job in run.jobs:
        if job["kind"] in TRAINED and job["how"] in ENDINGS:
            spent[job["attempt"], work_of(job)] += max(0.0, job["ended"] - job["began"])
    found = BrokenOff(num_killed=len(killed))
    for attempt in sorted({*killed, *(attempt for attempt, _ in spent)}):
        for work, spot in _logs(run, attempt):
            if attempt in killed or (attempt, work) in spent:
                seconds, epochs = _unfinished(read_growing(spot).decode(errors="replace"))
                found.epochs += epochs
                if seconds or (attempt, work) in spent:
                    spent[attempt, work] = max(spent[attempt, work], seconds)
    for (_, work), seconds in spent.items():
        found.seconds[work.kind] += seconds
    return found


def _killed_attempts(run: ReportRun) -> set[int]:
    attempts = run.about.get("attempts", [])
    found = {number for number, attempt in enumerate(attempts, start=1) if "ended" not in attempt}
    if len(attempts) in found and life_of(run.rundir, dict(run.about)).running:
        found.remove(len(attempts))
    return found


def work_of(line: Mapping[str, Any]) -> Job:
    """The training that a line of ``jobs.jsonl`` or ``results.jsonl`` is about."""
    return DENSE if line["kind"] == "dense" else Job("particle", line["round"], line["particle"])


def _logs(run: ReportRun, attempt: int) -> Iterator[tuple[Job, Spot]]:
    for name, spot in run.rundir.logs(attempt).items():
        if (named := _JOB.fullmatch(name)) is not None:
            yield DENSE if named[1] is None else Job("particle", int(named[1]), int(named[2])), spot


def _unfinished(log: str) -> tuple[float, int]:
    """Seconds and epochs of the trainings in a job's log that did not get to their end."""
    seconds, epochs = 0.0, 0
    began: datetime | None = None
    last, counted = datetime.min, 0
    for stamp, text in [*_LINE.findall(log), ("", "")]:
        ends = not stamp or _BEGINS.fullmatch(text) is not None
        if ends and began is not None:
            seconds, epochs = seconds + max(0.0, (last - began).total_seconds()), epochs + counted
        if not stamp:
            break
        last = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S")
        if ends:
            began, counted = last, 0
        elif re.match(r"epoch \d+/\d+:", text):
            counted += 1
        elif ": finished, " in text:
            began, counted = None, 0
    return seconds, epochs
