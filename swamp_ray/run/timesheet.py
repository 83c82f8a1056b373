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
class JobTimes:
    """What a worker did.

    Attributes:
        work: The job; of kind ``average`` for a round's average.
        worker: Workers are counted from 0; who stands in for a lost one takes its number. None: the averaging actors.
        where: None where it is not known.
        began, ended: Seconds since 1970 by the driver's clock: given out, and heard of for the last time.
        how: It ended.
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
    """A worker that has begun a job, or several that are packed."""

    worker: int | None
    where: Whereabouts | None = None
    _began: float = field(default_factory=time.time)
    _clock: float = field(default_factory=time.perf_counter)

    def over(self, job: Job, how: Ending, attempt: int = 0, reseed: int = 0, epochs: int = 0) -> JobTimes:
        """The job has ended now. A wall clock that is set meanwhile does not change how long it took."""
        ended = self._began + time.perf_counter() - self._clock
        return JobTimes(job, self.worker, self.where, self._began, ended, how, attempt, reseed, epochs)
