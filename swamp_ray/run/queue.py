"""The queue of jobs without a worker, and which of them one worker takes as a pack."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

from swamp_ray.run.messages import Handle, JobSpec

PATIENCE_S = 2.0
"""How long an incomplete pack waits for jobs of other runs, which may be between two rounds."""

Owner = TypeVar("Owner")


@dataclass(frozen=True, eq=False)
class QueuedJob(Generic[Owner]):
    """A job without a worker: its run, what to do, and handles of start, mask and surviving values."""

    owner: Owner
    spec: JobSpec
    given: tuple[Handle, Handle, Handle | None]

    def joins(self, first: QueuedJob[Owner]) -> bool:
        """Whether both can be packed together: they train equally long, in the same form."""
        mine = self.spec.program
        other = first.spec.program
        return (self.spec.packing == first.spec.packing and mine is not None and other is not None
                and mine.num_steps == other.num_steps)


class JobQueue(Generic[Owner]):
    """Jobs in the order in which they were asked for, urgent ones first."""

    def __init__(self) -> None:
        self._entries: deque[QueuedJob[Owner]] = deque()
        self._waits_since: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def owners(self) -> set[Owner]:
        """Those who have a job here."""
        return {entry.owner for entry in self._entries}

    @property
    def num_packs(self) -> int:
        """How many workers the jobs would keep busy."""
        counts = Counter((entry.spec.packing, entry.spec.width) for entry in self._entries)
        return sum(ceil(count / width) for (_, width), count in counts.items())

    def add(self, entry: QueuedJob[Owner], urgent: bool) -> None:
        """Put a job at the end, or in front."""
        if urgent:
            self._entries.appendleft(entry)
        else:
            self._entries.append(entry)

    def forget(self, unwanted: Callable[[QueuedJob[Owner]], bool]) -> None:
        """Remove jobs that nobody wants any more."""
        self._entries = deque(entry for entry in self._entries if not unwanted(entry))

    def is_ready(self, at_work: Collection[Owner], everybody: Collection[Owner]) -> bool:
        """Whether a worker should take what comes next: the pack is full, or nobody is about to bring more for it.

        Runs that share workers reach their next rounds one shortly after the other.

        Args:
            at_work: Whose jobs are being done.
            everybody: All runs that have not ended.
        """
        if not self._entries:
            return False
        if len(self._next()) == self._entries[0].spec.width or self.owners.union(at_work).issuperset(everybody):
            return True
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        return now - self._waits_since >= PATIENCE_S

    def take(self) -> list[QueuedJob[Owner]]:
        """The job whose turn it is, and those that can be packed with it, in order."""
        self._waits_since = None
        taken = self._next()
        self._entries = deque(entry for entry in self._entries if entry not in taken)
        return taken

    def _next(self) -> list[QueuedJob[Owner]]:
        first = self._entries[0]
        seated: dict[int, QueuedJob[Owner]] = {first.spec.seat: first}
        for entry in self._entries:
            if entry.joins(first):
                seated.setdefault(entry.spec.seat, entry)
        return [entry for entry in self._entries if seated.get(entry.spec.seat) is entry]
