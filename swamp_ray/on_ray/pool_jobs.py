"""Jobs that workers of a pool are doing: the states that each goes through, and what an actor does at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from ray import ObjectRef

from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec, Outcome, Report
from swamp_ray.run.timesheet import Ending, JobStart, JobTimes, Shift


class Member(Protocol):
    """A run's share of a pool, as the pool sees it."""

    member: int

    @property
    def awaited(self) -> Sequence[ObjectRef[Any]]:
        """References whose arrival `read_average` is told of."""
        ...

    def tell(self, report: Report) -> None:
        """Take a report on one of its jobs, or on the pool."""
        ...

    def note(self, worked: JobTimes) -> None:
        """Take the times of a job that has ended."""
        ...

    def keep_state(self, job: Job, pieces: list[ObjectRef[Any]]) -> None:
        """Keep the pieces of a job's state for the average."""
        ...

    def read_average(self, found: ObjectRef[Any]) -> None:
        """Take the answer of an averaging actor."""
        ...


class JobState(Enum):
    """What has become of a job that a worker was given."""

    RUNNING = auto()
    """Its worker does it, and its run waits for it."""
    DELIVERING = auto()
    """Its result is stored and known; pieces of its state are on their way."""
    UNWANTED = auto()
    """Nobody waits for it any more; its worker still does it, because of other jobs in its pack."""
    ENDED = auto()
    """Its worker has sent the last message of it, or is gone."""


@dataclass
class PooledJob:
    """A job that a worker of the pool was given.

    Attributes:
        owner: The run that it belongs to.
        spec: What is to be done.
        shift: Who does it, and since when.
        outcome: Its result, once that is known.
        pieces: References of its state's pieces, as they arrive after the result.
    """

    owner: Member
    spec: JobSpec
    shift: Shift
    state: JobState = JobState.RUNNING
    outcome: Outcome | None = None
    pieces: list[ObjectRef[Any]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether its run waits for it."""
        return self.state in (JobState.RUNNING, JobState.DELIVERING)

    @property
    def lacks_pieces(self) -> bool:
        """Whether pieces of its state have still to arrive."""
        return self.outcome is not None and len(self.pieces) < self.outcome.num_pieces

    def start(self) -> JobStart:
        """Who does it, and since when."""
        return self.shift.start(self.spec.job, self.spec.attempt, self.spec.reseed)

    def times(self, how: Ending) -> JobTimes:
        """When and by whom it was done, if it has ended now."""
        epochs = 0 if self.outcome is None else self.outcome.trained_epochs
        return self.shift.over(self.spec.job, how, self.spec.attempt, self.spec.reseed, epochs)


@dataclass
class WorkerRun:
    """What an actor is doing: one job, or several that are packed.

    Attributes:
        actor: The worker.
        stream: Its messages.
        jobs: In the order of their numbers in the stream.
        delivers: The job whose pieces come next in the stream; None: messages come.
    """

    actor: Any
    stream: Any
    jobs: list[PooledJob]
    delivers: PooledJob | None = None

    @property
    def wanted(self) -> list[PooledJob]:
        """The jobs that a run waits for."""
        return [pooled for pooled in self.jobs if pooled.is_wanted]
