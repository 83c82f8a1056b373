"""What the lines of a run's records hold, as pydantic models: what is written, and what is accepted on reading.

Fields that a model does not know, as later versions may add them, are skipped. Values are never converted: a whole
number stays one, and what has another type than it was written with is damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from swamp_ray.method.events import DENSE, Job

LATEST_S = 1e12
"""Later timestamps, in seconds since 1970, are rejected as corrupt."""

Timestamp = Annotated[float, Field(gt=-LATEST_S, lt=LATEST_S)]
"""Seconds since 1970."""


class Record(BaseModel):
    """One record on disk. The order of a model's fields is that of the keys in its line."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    def line(self) -> dict[str, Any]:
        """The keys and values that are written."""
        return dict(self)


class IncidentRecord(Record):
    """A failure in an attempt at a run, overcome or not."""

    time: str
    who: str
    reason: str


class AttemptRecord(Record):
    """An attempt at a run, as far as others rely on what stands there."""

    started: str
    host: str
    executor: str
    trained: int
    found: int
    incidents: list[IncidentRecord]


class PlannedRoundRecord(Record):
    """A round as planned."""

    index: int
    sparsity: float


class RunRecord(Record):
    """What ``run.json`` holds, as far as others rely on it; earlier versions wrote less of it."""

    status: str = ""
    primary: str = ""
    start: str = ""
    arithmetic: dict[str, Any] = {}
    data: dict[str, Any] = {}
    rounds: list[PlannedRoundRecord] = []
    attempts: list[AttemptRecord] = []
    num_prunable: int = 0
    higher_is_better: bool = False
    shown_as: dict[str, Any] = {}


class SweepPlanRecord(Record):
    """What a sweep was expected to train."""

    distinct: int = 0
    dense_distinct: int = 0
    distinct_epochs: float = 0.0
    exact: bool = False


class SweepAttemptRecord(Record):
    """An attempt at a sweep."""

    started: str = ""
    seconds: float = 0.0
    trained: int = 0
    trained_epochs: float = 0.0


class SweepRecord(Record):
    """What ``sweep.json`` holds, as far as others rely on it."""

    status: str = ""
    primary: str = ""
    higher_is_better: bool = False
    planned: list[Any] = []
    num_settings: int = 0
    attempts: list[SweepAttemptRecord] = []
    shown_as: dict[str, Any] = {}
    plan: SweepPlanRecord | None = None


class TrialRecord(Record):
    """A line of ``trials.jsonl``: what has become of a setting of a sweep."""

    label: str
    setting: dict[str, Any]
    status: str = "running"
    seeds: list[Any] = []
    runs: list[Any] = []
    reason: str | None = None


class ResultRecord(Record):
    """A line of ``results.jsonl``: an artifact that the run uses or works on."""

    kind: str
    name: str
    round: int | None = None
    particle: int | None = None


class ScalarsRecord(Record):
    """A line of ``metrics.jsonl``, apart from the scalars: what they are about."""

    kind: str = ""
    round: int | None = None
    particle: int | None = None
    epoch: int | None = None
    step: int | None = None


class JobRecord(Record):
    """A line of ``jobs.jsonl``: something that happened to a job. Its kind of line is said by ``what``."""

    def job(self) -> Job:
        """The job that the line is about."""
        return job_of(dict(self))


class JobStarted(JobRecord):
    """A worker was given a job.

    Attributes:
        worker: Its index; None: the averaging actors.
        attempt: At the run, counted from 1.
        retry, reseed: How often the job was tried before with this seed, and how many seeds were.
        began: When.
    """

    what: Literal["started"] = "started"
    kind: str
    round: int | None
    particle: int | None
    worker: int | None
    host: str | None
    device: str | None
    attempt: int
    retry: int
    reseed: int
    began: Timestamp


class JobEpoch(JobRecord):
    """A job has trained another epoch.

    Attributes:
        time: When the driver was told.
        epoch: Finished epochs, those before a checkpoint included; of ``num_epochs``.
        loss, metrics: Means over the epoch's training batches.
        lr: Learning rate of its last step.
    """

    what: Literal["epoch"] = "epoch"
    kind: str
    round: int | None
    particle: int | None
    attempt: int
    time: Timestamp
    epoch: int
    num_epochs: int
    loss: float
    metrics: dict[str, float]
    lr: float
    samples_per_s: float


class JobEnded(JobRecord):
    """A worker has ended a job: its line has no ``what``, as in versions that wrote no other lines.

    Attributes:
        how: ``done``, or why it has no result, see :data:`swamp_ray.run.timesheet.Ending`.
        epochs: That were trained; 0 where the result was found.
    """

    kind: str
    round: int | None = None
    particle: int | None = None
    worker: int | None = None
    host: str | None = None
    device: str | None = None
    attempt: int
    retry: int
    reseed: int
    began: Timestamp
    ended: Timestamp
    how: str
    epochs: int


JobLine = JobStarted | JobEpoch | JobEnded
_JOB_LINES: dict[object, type[JobStarted | JobEpoch | JobEnded]] = {
    None: JobEnded, "started": JobStarted, "epoch": JobEpoch,
}


def fits(model: type[Record], line: Mapping[str, Any]) -> bool:
    """Whether a line is a record of this kind."""
    return not wrong_fields(model, line)


def wrong_fields(model: type[Record], record: object) -> list[str]:
    """What is missing in a record, or has another type than it was written with: ``rounds: sparsity``."""
    try:
        model.model_validate(record)
    except ValidationError as error:
        return [_in_words(one) for one in error.errors(include_url=False, include_context=False, include_input=False)]
    return []


def _in_words(error: ErrorDetails) -> str:
    names = [part for part in error["loc"] if isinstance(part, str)][-2:]
    if error["type"] == "model_type":
        names.append("no object")
    return ": ".join(names)


def parse_job_line(line: Mapping[str, Any]) -> JobLine | None:
    """A line of ``jobs.jsonl``; None for a kind of line that a later version writes.

    Raises:
        ValidationError: It is not what was written.
    """
    model = _JOB_LINES.get(line.get("what"))
    return None if model is None else model.model_validate(line)


def parse_job_lines(lines: Iterable[Mapping[str, Any]]) -> list[JobLine]:
    """Those of the lines of ``jobs.jsonl`` that this version knows."""
    parsed = [parse_job_line(line) for line in lines]
    return [line for line in parsed if line is not None]


def is_job_line(line: Mapping[str, Any]) -> bool:
    """Whether a line of ``jobs.jsonl`` is what was written, as far as this version can tell."""
    try:
        parse_job_line(line)
    except (ValidationError, TypeError):  # a `what` that cannot be a key
        return False
    return True


def job_of(line: Mapping[str, Any]) -> Job:
    """The job that a line with ``kind``, ``round`` and ``particle`` is about."""
    if line["kind"] == DENSE.kind:
        return DENSE
    numbers = [-1 if line[key] is None else line[key] for key in ("round", "particle")]
    return Job(line["kind"], *numbers)
