"""The particle workers of a pool: how many there are, which of them answer, which have gone.

Workers come and go with their nodes. A job is only given to a worker that has answered, so that no job waits for one
that can never start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

NO_PLACE_S = 5.0
"""After so long without a worker it is said that no node can hold one."""
NO_ANSWER_S = 120.0
"""After so long it is said that nodes could hold one, but none answers: they are busy, or slow."""
RESTART_S = 30.0
"""A worker that could not be started is tried again after so long, while others work."""


@dataclass(frozen=True)
class Known:
    """A worker that has answered: the lowest number that no other has, and what it said."""

    number: int
    answer: Any


class Workers:
    """Starts workers as they are needed, and forgets those that are lost.

    Args:
        start: Starts one; it has a method ``ready``.
        most: How many run side by side.
        places: How many the living nodes could hold, whatever else they do.
        need: What a worker needs, in words.
        end: Ends one, at once.
    """

    def __init__(self, start: Callable[[], Any], most: int, places: Callable[[], int], need: str,
                 end: Callable[[Any], None] = ray.kill) -> None:
        self._start = start
        self.most = most
        self._places = places
        self._need = need
        self._end = end
        self._idle: list[Any] = []
        self._busy: list[Any] = []
        self._starting: dict[ObjectRef[Any], Any] = {}
        self._known: dict[Any, Known] = {}
        self._not_before = 0.0
        self._silent_since: float | None = None
        self._told = False

    @property
    def all(self) -> list[Any]:
        """Every worker that has not been lost."""
        return [*self._idle, *self._busy, *self._starting.values()]

    @property
    def starting(self) -> list[Any]:
        """Workers that have not answered yet, or not again."""
        return list(self._starting.values())

    @property
    def awaited(self) -> list[ObjectRef[Any]]:
        """References that are ready when a worker has answered, or has turned out to be dead."""
        return list(self._starting)

    def grow(self, num_jobs: int) -> None:
        """Start as many workers as there are jobs that wait for one, up to the bound."""
        if self.all and time.monotonic() < self._not_before:
            return
        for _ in range(min(num_jobs - len(self._idle) - len(self._starting), self.most - len(self.all))):
            self._ask(self._start())

    def take(self) -> Any | None:
        """An idle worker, which is busy from now on."""
        if not self._idle:
            return None
        self._busy.append(self._idle.pop())
        return self._busy[-1]

    def known(self, worker: Any) -> Known:
        """What is known of a worker that has been taken."""
        return self._known[worker]

    def give_back(self, worker: Any) -> None:
        """A worker has done its job."""
        self._busy.remove(worker)
        self._idle.append(worker)

    def leave_idle(self) -> list[Any]:
        """Let go of the idle workers, and say which they are; whoever takes them ends them."""
        idle = self._idle
        self._idle = []
        return idle

    def evict(self, worker: Any) -> None:
        """A worker died, or must not be used again. Others may have died with it: idle ones are asked."""
        self._busy.remove(worker)
        del self._known[worker]
        self._end(worker)
        idle = self._idle
        self._idle = []
        for other in idle:
            self._ask(other)

    def answered(self, reference: ObjectRef[Any]) -> RayError | None:
        """Take in a worker that answers; forget one that is gone. Gives the error of one that could not be started."""
        worker = self._starting.pop(reference)
        try:
            answer = ray.get(reference)
        except RayError as error:
            if self._known.pop(worker, None) is not None:
                return None
            self._not_before = time.monotonic() + RESTART_S
            self._end(worker)  # one that lives and refuses its work would keep its resources
            return error
        self._known.setdefault(worker, Known(self._free_number(), answer))
        self._idle.append(worker)
        self._silent_since = None
        self._told = False
        return None

    def silence(self) -> str | None:
        """Why jobs wait although nothing runs, once each time that it goes on for long; called while that is so."""
        if self._idle or self._busy or self._told:
            return None
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        for_s = now - self._silent_since
        places = self._places()
        if for_s < (NO_ANSWER_S if places else NO_PLACE_S):
            return None
        self._told = True
        why = "nodes could hold one, but are busy or slow to start it" if places else "no living node can hold one"
        return (f"none is there: a worker needs {self._need}, and {why}. The run goes on as soon as one has started; "
                "Ctrl-C stops it, and the same command goes on later.")

    @property
    def silent_s(self) -> float:
        """For how long `silence` has been asked while no worker was there."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def _free_number(self) -> int:
        taken = {known.number for known in self._known.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _ask(self, worker: Any) -> None:
        self._starting[worker.ready.remote()] = worker
