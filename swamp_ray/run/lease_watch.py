"""Jobs that another run is training at the moment: when to look at them again, and who was named already."""

from __future__ import annotations

import time
from collections.abc import Callable

from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec
from swamp_ray.storage.leases import HeldLease, Watch, artifact_lease

LOOK_S = 1.0


class LeaseWatch:
    """The jobs that wait for another run. Pure bookkeeping: whoever owns it looks into the storage.

    Args:
        expiry_s: Seconds of silence after which a holder is taken for dead.
        look_s: Seconds between two looks at a lease.
        clock: Seconds that never go back.
    """

    def __init__(self, expiry_s: float, look_s: float = LOOK_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_s = look_s
        self._clock = clock
        self._watch = Watch(expiry_s, clock)
        self._items: dict[Job, JobSpec] = {}
        self._keys: dict[Job, str] = {}
        self._looked: float | None = None
        self._named: set[tuple[Job, str]] = set()

    def add(self, spec: JobSpec, held: HeldLease) -> bool:
        """Let a job wait; True if its holder was not named before."""
        self._items[spec.job] = spec
        self._keys[spec.job] = held.key or artifact_lease(spec.named.name)
        self._watch.stale(self._keys[spec.job], held)
        new = (spec.job, held.who) not in self._named
        self._named.add((spec.job, held.who))
        return new

    def due(self) -> list[JobSpec]:
        """The jobs to look at now: all of them, but not more often than the interval."""
        now = self._clock()
        if not self._items or (self._looked is not None and now - self._looked < self._look_s):
            return []
        self._looked = now
        return list(self._items.values())

    def key(self, job: Job) -> str:
        """Where the lease lies that a job waits for; an earlier version's lies under another name."""
        return self._keys[job]

    def look(self, job: Job, held: HeldLease | None) -> bytes | None:
        """What is to be done with a job, given its lease.

        Returns:
            None to go on waiting; else the content of the lease that may be taken over, empty if it is free.
        """
        if held is None:
            return b""
        return held.content if self._watch.stale(self._keys[job], held) else None

    def remove(self, job: Job) -> None:
        """The job does not wait any more. What was seen of its holder is kept, should it have to wait again."""
        self._items.pop(job, None)
