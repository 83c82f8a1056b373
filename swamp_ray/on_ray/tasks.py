"""Pieces of work that depend on nothing but what all of them share, done by warm actors on Ray, in any order."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import RunError, SwampError
from swamp_ray.on_ray.actors import worker_environment
from swamp_ray.on_ray.cluster import COUNT_NODES_S, answers, check_alive, living_nodes
from swamp_ray.on_ray.nodes import check_shared
from swamp_ray.on_ray.workers import Workers
from swamp_ray.run.capacity import capacity, describe_resources, pool_size, worker_resources
from swamp_ray.run.failures import kind_of, memory_error
from swamp_ray.run.placement import check_labels, eligible, worker_labels
from swamp_ray.storage.place import Place

WAIT_S = 0.2
Do = Callable[[Any, Any], Any]
"""Takes what an actor holds, and a piece; gives its result."""


@dataclass(frozen=True)
class Shared:
    """What every actor builds once, and holds.

    Attributes:
        build: A function of a module, called in the actor.
        given: Its arguments; those that are large are in the object store.
        do: A function of a module, called with what was built and a piece.
    """

    build: Callable[..., Any]
    given: tuple[Any, ...]
    do: Do


class FarmActor:
    """Builds what the pieces share, and does one piece after the other."""

    def __init__(self, build: Callable[..., Any], do: Do, *given: Any) -> None:
        self._build = build
        self._do = do
        self._given = given
        self._built: list[Any] = []

    def ready(self) -> None:
        """Answer: what the pieces share is built. What went wrong with it is raised here, as itself."""
        if not self._built:
            self._built.append(self._build(*self._given))

    def do(self, piece: Any) -> Any:
        """The result of a piece."""
        return self._do(self._built[0], piece)


class Farm:
    """Actors for some pieces of work, on the connected cluster.

    Args:
        execution: What a worker needs, where it may run, and how often a piece is tried again.
        device: Kind of device that it works on.
        place: The storage root, which all nodes must see.
        shared: What every actor holds.
        most: How many pieces there are.
        say: Told when workers are missing.

    Raises:
        UserError: The cluster cannot hold a worker, or its nodes do not see the storage.
    """

    def __init__(self, execution: ExecutionConfig, device: str, place: Place, shared: Shared, most: int,
                 say: Callable[[str], None] = lambda _: None) -> None:
        self._execution = execution
        self._shared = shared
        self._most = most
        self._say = say
        nodes = living_nodes()
        check_labels(nodes, execution)
        self._resources = worker_resources(execution, device)
        # What a run was given on another cluster is no reason to refuse; as many as fit are as good.
        any_number = execution.model_copy(update={"num_workers": None})
        fitting = pool_size(any_number, device, most, eligible(nodes, execution))
        self.num_workers = min(fitting, execution.num_workers or fitting)
        if len(nodes) > 1:
            check_shared(place)
        self._workers = Workers(self._start, self.num_workers, self._places, describe_resources(self._resources))
        self._running: dict[ObjectRef[Any], tuple[Any, int]] = {}
        self._tries: Counter[int] = Counter()
        self._not_started = 0
        self._next_look = time.monotonic() + COUNT_NODES_S

    def run(self, pieces: Sequence[Any], check: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Any]]:
        """Do all pieces; gives the index and the result of each as it is done.

        Args:
            pieces: What to do.
            check: Called again and again; what it raises ends the work.

        Raises:
            RunError: A piece, or the start of a worker, failed too often for reasons of the machine.
            SwampError: What a piece raised, as itself; other errors likewise.
        """
        queue = deque(range(len(pieces)))
        while queue or self._running:
            check()
            check_alive()
            self._look_at_nodes()
            self._workers.grow(len(queue))
            while queue and (actor := self._workers.take()) is not None:
                index = queue.popleft()
                self._running[actor.do.remote(pieces[index])] = actor, index
            if queue and not self._running and (text := self._workers.silence()) is not None:
                self._say(text)
            for reference in self._ready():
                if reference not in self._running:
                    self._hear(reference)
                    continue
                index = self._running[reference][1]
                found = self._take(reference)
                if found is None:
                    queue.appendleft(index)
                else:
                    yield index, found[0]

    def close(self) -> None:
        """End all actors."""
        for actor in self._workers.all:
            if answers():
                ray.kill(actor)
        self._running.clear()

    def _ready(self) -> list[ObjectRef[Any]]:
        asked = [*self._running, *self._workers.awaited]
        if not asked:
            time.sleep(WAIT_S)
            return []
        return ray.wait(asked, num_returns=1, timeout=WAIT_S)[0]

    def _take(self, reference: ObjectRef[Any]) -> tuple[Any] | None:
        """The result of a piece in a tuple; None: it has to be done again."""
        actor, index = self._running.pop(reference)
        try:
            found = ray.get(reference)
        except RayTaskError as error:
            cause = _cause(error)
            if kind_of(cause) != "machine":
                raise cause from None
            # A worker that ran out of memory is not used again: what it holds may stay there.
            self._again(index, actor, memory_error(cause))
            return None
        except RayError as error:
            self._again(index, actor, error)
            return None
        self._workers.give_back(actor)
        return (found,)

    def _again(self, index: int, actor: Any, error: BaseException) -> None:
        self._workers.evict(actor)
        self._tries[index] += 1
        reason = "its worker died" if isinstance(error, RayActorError) else str(error).strip().splitlines()[0]
        if self._tries[index] > self._execution.max_retries:
            raise RunError(f"a piece of work failed {self._tries[index]} times: {reason}") from error
        self._say(f"a piece of work is done again: {reason}")

    def _hear(self, reference: ObjectRef[Any]) -> None:
        """A worker answers, or could not be started."""
        error = self._workers.answered(reference)
        if error is None:
            return
        cause = _cause(error)
        if isinstance(cause, SwampError):
            raise cause from None
        self._not_started += 1
        reason = f"a worker could not be started: {str(cause).strip().splitlines()[-1]}"
        if not self._workers.all and self._not_started > self._execution.max_retries:
            raise RunError(reason) from error
        self._say(reason)

    def _look_at_nodes(self) -> None:
        """Now and then: nodes that have joined take pieces too."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + COUNT_NODES_S
        if self._execution.num_workers is None and (places := self._places()):
            self._workers.most = min(places, self._most)

    def _places(self) -> int:
        if self._execution.autoscaling:
            return self._most
        return capacity(eligible(living_nodes(), self._execution), self._resources)

    def _start(self) -> Any:
        kind: Any = ray.remote(FarmActor)
        labels = worker_labels(self._execution)
        return kind.options(
            num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"], max_restarts=0,
            runtime_env={"env_vars": worker_environment(self._execution)}, label_selector=labels or None,
            scheduling_strategy="SPREAD").remote(self._shared.build, self._shared.do, *self._shared.given)


def placed(value: Any) -> Any:
    """A reference to a value in the object store, where it is put once for all actors."""
    return ray.put(value)


def fetched(placed: list[ObjectRef[Any]]) -> Any:
    """The value of a reference that came in a list: Ray unpacks one that comes bare before the function begins."""
    return ray.get(placed[0])


def _cause(error: BaseException) -> BaseException:
    """What was raised on the other side."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, RayTaskError) and isinstance(cause, BaseException) else error
