"""Trainings that ended before they were finished: with a worker, with an attempt, or because they were not wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from swamp_ray.method.events import Job
from swamp_ray.report.load.missing import TRAINED
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.liveness import life_of
from swamp_ray.storage.older_job_logs import training_of, unfinished
from swamp_ray.storage.records import JobEpoch, JobStarted

ENDINGS = ("machine", "diverged", "error", "stopped")
"""Of a job in ``jobs.jsonl`` that was at work, and has left no result."""


@dataclass
class BrokenOff:
    """What a run spent on trainings that left no result in the attempt, or on the worker, that they were begun in.

    Attributes:
        seconds: Of a worker, by kind of training.
        epochs: That were trained.
        num_killed: Attempts that were ended from outside. What they had in training is counted up to its last epoch
            (of an earlier version's attempt: up to the last line of its log), and so are epochs.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    epochs: int = 0
    num_killed: int = 0

    def add(self, job: Job, seconds: float, epochs: int) -> None:
        """Count a training, or a part of one."""
        self.seconds[job.kind] += max(0.0, seconds)
        self.epochs += epochs


@dataclass
class _Try:
    """A training that a worker was given once: when, and how far it got."""

    attempt: int
    job: Job
    began: float
    last: float
    epochs: int = 0
    has_all_epochs: bool = False


def broken_off(run: ReportRun) -> BrokenOff:
    """The trainings of a run that were broken off, in all its attempts; of a running one those that it has noted."""
    killed = _killed_attempts(run)
    found = BrokenOff(num_killed=len(killed))
    tries = _tries(run)
    told = {one.attempt for one in tries}
    _count_ended(run, tries, told, found)
    _count_killed(run, tries, killed, found)
    _count_older(run, told, killed - told, found)
    return found


def _killed_attempts(run: ReportRun) -> set[int]:
    attempts = run.about.get("attempts", [])
    found = {number for number, attempt in enumerate(attempts, start=1) if "ended" not in attempt}
    if len(attempts) in found and life_of(run.rundir, dict(run.about)).running:
        found.remove(len(attempts))
    return found


def _tries(run: ReportRun) -> list[_Try]:
    """Each training that a worker was given, in order, with the epochs that followed."""
    found: list[_Try] = []
    latest: dict[tuple[int, Job], _Try] = {}
    for line in run.progress:
        key = line.attempt, line.job()
        if isinstance(line, JobStarted) and line.kind in TRAINED:
            latest[key] = _Try(*key, line.began, line.began)
            found.append(latest[key])
        elif isinstance(line, JobEpoch) and key in latest:
            latest[key].last = line.time
            latest[key].epochs += 1
            latest[key].has_all_epochs = line.epoch >= line.num_epochs
    return found


def _count_ended(run: ReportRun, tries: list[_Try], told: set[int], found: BrokenOff) -> None:
    """Trainings whose end without a result is noted."""
    epochs = {(one.attempt, one.job, one.began): one.epochs for one in tries}
    for line in run.jobs:
        if line.attempt in told and line.kind in TRAINED and line.how in ENDINGS:
            found.add(line.job(), line.ended - line.began, epochs.get((line.attempt, line.job(), line.began), 0))


def _count_killed(run: ReportRun, tries: list[_Try], killed: set[int], found: BrokenOff) -> None:
    """Trainings whose end is not noted, because their attempt was killed."""
    ended = {(line.attempt, line.job(), line.began) for line in run.jobs}
    for number, one in enumerate(tries):
        if one.attempt not in killed or (one.attempt, one.job, one.began) in ended:
            continue
        # Its worker may have stored the result before it was killed as well: then nobody was given the job again.
        is_stored = one.has_all_epochs and all(other.job != one.job for other in tries[number + 1:])
        if not is_stored:
            found.add(one.job, one.last - one.began, one.epochs)


def _count_older(run: ReportRun, told: set[int], killed: set[int], found: BrokenOff) -> None:
    """Of attempts of earlier versions: jobs that ended without a result, and what logs say of them and of the killed.

    Args:
        run: The run.
        told: Attempts whose ``jobs.jsonl`` tells of starts and epochs.
        killed: Killed attempts that are not among them.
        found: What is found is added.
    """
    spent: dict[tuple[int, Job], float] = defaultdict(float)
    for line in run.jobs:
        if line.attempt not in told and line.kind in TRAINED and line.how in ENDINGS:
            spent[line.attempt, line.job()] += max(0.0, line.ended - line.began)
    for attempt in sorted({*killed, *(attempt for attempt, _ in spent)}):
        for job, log in _logs(run, attempt):
            if attempt not in killed and (attempt, job) not in spent:
                continue
            seconds, epochs = unfinished(log)
            spent[attempt, job] = max(spent[attempt, job], seconds)
            found.epochs += epochs
    for (_, job), seconds in spent.items():
        if seconds:
            found.add(job, seconds, 0)


def _logs(run: ReportRun, attempt: int) -> Iterator[tuple[Job, str]]:
    for name, spot in run.rundir.logs(attempt).items():
        job = training_of(name)
        if job is not None:
            yield job, spot.read_appended().decode(errors="replace")
