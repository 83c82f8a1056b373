"""Which worker did which job, from when to when. It decides nothing: it is for whoever looks at a run afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from swamp_ray.method.events import Job

Ending = Literal["done", "machine", "diverged", "error", "given back", "stopped"]
"""How a job ended; ``given back``: another run is training it; ``stopped``: it was not wanted any more."""


@dataclass(frozen=True)
class Whereabouts:
    """The host that a worker is on, and the device or devices that it trains with."""

    host: str
    device: str


@dataclass(frozen=True)
class JobStart:
    """A worker was given a job.

    Attributes:
        job: The job.
        worker, where: As in :class:`JobTimes`.
        began: When, in seconds since 1970, driver's clock.
        attempt, reseed: As in :class:`swamp_ray.run.messages.JobSpec`.
    """

    job: Job
    worker: int | None
    where: Whereabouts | None
    began: float
    attempt: int = 0
    reseed: int = 0


@dataclass(frozen=True)
class JobTimes:
    """Times of one job.

    Attributes:
        job: The job; of kind ``average`` for a round's average.
        worker: Index, counted from 0; a replacement reuses the lost worker's. None: the averaging actors.
        where: None where it is not known.
        began, ended: When the job was given out and when its last message came, in seconds since 1970, driver's clock.
        how: The way in which it ended.
        attempt, reseed: As in :class:`swamp_ray.run.messages.JobSpec`.
        epochs: That were trained; 0 where the result was found.
    """

    job: Job
    worker: int | None
    where: Whereabouts | None
    began: float
    ended: float
    how: Ending
    attempt: int = 0
    reseed: int = 0
    epochs: int = 0


@dataclass(frozen=True)
class Shift:
    """A worker at a job, or at several that are packed, since a moment."""

    worker: int | None
    where: Whereabouts | None = None
    _began: float = field(default_factory=time.time)
    _clock: float = field(default_factory=time.perf_counter)

    def start(self, job: Job, attempt: int = 0, reseed: int = 0) -> JobStart:
        """That the worker was given a job at the shift's beginning."""
        return JobStart(job, self.worker, self.where, self._began, attempt, reseed)

    def over(self, job: Job, how: Ending, attempt: int = 0, reseed: int = 0, epochs: int = 0) -> JobTimes:
        """Times of a job that ends now. A wall clock that is set meanwhile does not change its length."""
        ended = self._began + time.perf_counter() - self._clock
        return JobTimes(job, self.worker, self.where, self._began, ended, how, attempt, reseed, epochs)
