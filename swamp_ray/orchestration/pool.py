"""The executor on Ray: a pool of warm particle workers and one averaging actor.

The rewind weights and the data go into the object store once; a round broadcasts its mask as bits. States come
back as numpy buffers that belong to the driver, so that they outlive the worker that made them.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray import ObjectRef
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swamp_ray.config import ExecutionConfig, SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.orchestration.averager import Averager, Local, ShardCall
from swamp_ray.orchestration.cluster import connect, living_nodes
from swamp_ray.orchestration.crew import Crew
from swamp_ray.orchestration.failures import kind_of, memory_error, out_of_memory
from swamp_ray.orchestration.messages import (
    Advanced,
    AverageDone,
    AverageLost,
    AverageSpec,
    Blocked,
    Broken,
    Busy,
    Done,
    Handle,
    Notice,
    Outcome,
    Report,
    Resized,
    StateLost,
    WorkItem,
)
from swamp_ray.orchestration.placement import eligible, next_node, worker_labels
from swamp_ray.orchestration.preparation import Prepared, State
from swamp_ray.orchestration.ranked import end_worker, start_ranked
from swamp_ray.orchestration.resources import Resources, capacity, describe_resources, pool_size, worker_resources
from swamp_ray.orchestration.shard import Shard, num_shards
from swamp_ray.orchestration.store_memory import RoundBytes, shortage
from swamp_ray.orchestration.worker import Message, Worker
from swamp_ray.rounds import Work
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.packing import Packed, spans
from swamp_ray.storage.artifacts import without_advice
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.data import Data
from swamp_ray.training.particle import Progress

PROGRESS_INTERVAL_S = 0.25
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STOP_INTERVAL_S = 0.1
LOOK_S = 5.0
"""So often the nodes of the cluster are counted."""
SPARE_S = 5.0
"""A spare actor that does not answer for so long is not used."""


class ParticleActor:
    """A particle worker as a Ray actor; runs that differ in their seed alone share one."""

    def __init__(self, configs: Sequence[SwampConfig], data: Data, arithmetic: Arithmetic, storage: str) -> None:
        self._workers: dict[int, Worker] = {}
        self.setup(configs, data, arithmetic, storage)

    def setup(self, configs: Sequence[SwampConfig], data: Data, arithmetic: Arithmetic, storage: str) -> None:
        """Work for these runs from now on, and forget those before."""
        self._workers.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._configs, self._data, self._arithmetic, self._storage = configs, data, arithmetic, storage
        self._worker(0)

    def ready(self) -> None:
        """Answer: the worker is built, the job before has ended, and its node is alive."""
        self._worker(0)  # raises again what went wrong in a later setup

    def run(
        self, member: int, item: WorkItem, start: State, mask_bits: np.ndarray, values: Packed | None
    ) -> Iterator[Message]:
        """Stream a job's progress, its outcome, and its state."""
        last = 0.0
        for message in self._worker(member).run(item, start, mask_bits, values, _Cancelled()):
            now = time.monotonic()
            if isinstance(message, Progress) and now - last < PROGRESS_INTERVAL_S:
                continue
            last = now
            yield message

    def _worker(self, member: int) -> Worker:
        if member not in self._workers:
            feeds = self._workers[0].trainer.feeds if self._workers else None
            self._workers[member] = Worker(
                self._configs[member], self._data, self._arithmetic, self._storage, feeds)
        return self._workers[member]


class _Cancelled:
    """Whether the driver has cancelled the running job; asked after every step, it looks only now and then."""

    def __init__(self) -> None:
        self._found, self._next = False, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now >= self._next:
            self._found, self._next = ray.get_runtime_context().is_canceled(), now + STOP_INTERVAL_S
        return self._found


class AveragingActor:
    """A shard of the averages of one run, or of several, as a Ray actor; the first of them puts rounds together."""

    def __init__(self, configs: Sequence[SwampConfig], layout: Layout, storage: str, index: int) -> None:
        self.setup(configs, layout, storage, index)

    def setup(self, configs: Sequence[SwampConfig], layout: Layout, storage: str, index: int) -> None:
        """Average for these runs from now on, and forget those before."""
        self._shards = [Shard(config, layout, storage, index) for config in configs]

    def add(self, member: int, work: Work, name: str, digest: str, size: int, packed: Packed | None) -> None:
        """Let a particle's slice enter the average; the shared arrays are only read."""
        self._shards[member].add(work.round, work.particle, name, digest, size, packed)

    def call(self, member: int, method: str, *arguments: Any) -> Any:
        """What the first shard asks of another one."""
        return getattr(self._shards[member], method)(*arguments)

    def finish(self, member: int, spec: AverageSpec, start: State, mask_bits: np.ndarray, others: list[Any]) -> str:
        """Close the round's average; ``others`` are the actors of the other shards, in order."""
        own = self._shards[member]
        shards: list[ShardCall] = [Local(own), *(_Remote(actor, member) for actor in others)]
        return Averager(own.config, own.layout, own.store).finish(spec, start, mask_bits, shards)


class _Remote:
    """A shard in another actor; it works from the call on."""

    def __init__(self, actor: Any, member: int) -> None:
        self._actor, self._member = actor, member

    def __call__(self, method: str, *arguments: Any) -> Callable[[], Any]:
        reference = self._actor.call.remote(self._member, method, *arguments)
        return lambda: _get(reference)


def _get(reference: ObjectRef[Any]) -> Any:
    """A result; an error that was raised on the other side is raised here as itself."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, BaseException) else error) from error


class Spares:
    """Actors that have nothing to do, for the next pool of this process: starting one takes seconds."""

    def __init__(self) -> None:
        self._kept: dict[object, list[Any]] = {}

    def keep(self, kind: object, actor: Any) -> None:
        """Keep an actor; only one of the same kind stands in for another."""
        self._kept.setdefault(kind, []).append(actor)

    def take(self, kind: object) -> Any | None:
        """An actor that lives, if one is kept."""
        while self._kept.get(kind):
            actor = self._kept[kind].pop()
            try:
                ray.get(actor.__ray_ready__.remote(), timeout=SPARE_S)
            except RayError:
                continue
            return actor
        return None


@dataclass
class _Running:
    """A job on an actor; ``outcome`` once it is known, the references of the state's pieces follow."""

    owner: RayExecutor
    actor: Any
    item: WorkItem
    stream: Any
    outcome: Outcome | None = None
    pieces: list[ObjectRef[Any]] = field(default_factory=list)


class Pool:
    """Workers and an averaging actor for one run, or for several that differ in their seed alone.

    Args:
        members: The runs.
        storage: Storage root, an absolute path or a URL that every node sees.
        num_workers: How many jobs run side by side, in the placement group of the caller; default: as the config says
            and the cluster can hold, which changes as nodes come and go.
        deadline_s: An error is raised once jobs have waited for so long without any worker; None: never.
        spares: Where actors are taken from, and left when the pool ends; None: all are started, and ended.

    Raises:
        UserError: The cluster does not answer, or cannot hold a worker.
    """

    def __init__(self, members: Sequence[Prepared], storage: str, num_workers: int | None = None,
                 deadline_s: float | None = None, spares: Spares | None = None) -> None:
        self._members, self._storage, self._deadline_s = members, storage, deadline_s
        self._spares = spares
        self._prepared = prepared = members[0]
        execution = prepared.config.execution
        self._owns_ray = connect(execution)
        try:
            self._most = sum(max(plan.num_particles for plan in one.plan) for one in members)
            self._resources = worker_resources(execution, prepared.arithmetic.device)
            self._ranks = prepared.arithmetic.ranks
            self._in_group = num_workers is not None
            self.num_workers = num_workers or self._fitting(eligible(living_nodes(), execution))
            self._data = ray.put(prepared.data)
            self._num_shards = num_shards(prepared.config, prepared.layout)
        except BaseException:
            self._disconnect()
            raise
        self._crew = Crew(self._start_worker, self.num_workers, self._places,
                          describe_resources(self._resources, self._ranks), end_worker)
        self._next_look = time.monotonic() + LOOK_S
        self._queue: deque[tuple[RayExecutor, WorkItem, Handle, Handle, Handle | None]] = deque()
        self._running: dict[Any, _Running] = {}
        self._averagers: dict[int, Any] = {}
        self._dead_averagers: set[str] = set()
        self._told: set[str] = set()
        self._node_of: dict[Any, str | None] = {}
        self._executors: list[RayExecutor] = []
        if spares is None:
            # All at once: starting an actor takes seconds, which the dense phase hides.
            self._crew.grow(self.num_workers)
        self.averagers()

    def join(self, executor: RayExecutor) -> None:
        """From now on a member's executor takes part."""
        self._executors.append(executor)

    def leave(self, executor: RayExecutor) -> None:
        """A member has ended: its jobs are ended too. With the last one the pool ends."""
        if executor not in self._executors:
            return
        self._executors.remove(executor)
        if not self._executors:
            self.close()
            return
        self._queue = deque(entry for entry in self._queue if entry[0] is not executor)
        for running in [running for running in self._running.values() if running.owner is executor]:
            self._end(running)

    def submit(self, executor: RayExecutor, item: WorkItem, start: Handle, mask_bits: Handle, values: Handle | None,
               urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        entry = (executor, item, start, mask_bits, values)
        if urgent:
            self._queue.appendleft(entry)
        else:
            self._queue.append(entry)
        if not self._crew.all:  # of a setting most of which may be found, not before something is to be trained
            self._crew.grow(self.num_workers)
        self._fill()

    def cancel(self, executor: RayExecutor, work: Work) -> None:
        """Take a job out of the queue, or end the worker that does it."""
        self._queue = deque(entry for entry in self._queue if (entry[0], entry[1].work) != (executor, work))
        for running in [running for running in self._running.values()
                        if running.owner is executor and running.item.work == work]:
            self._end(running)

    def pump(self, timeout_s: float) -> None:
        """Wait for the next stream item, the averager, or a worker that has started, and tell whom it concerns.

        Raises:
            RunError: No worker was there for as long as the deadline.
        """
        self._look_at_nodes()
        self._fill()
        if self._queue and not self._running:
            self._look_at_silence()
        averages = {found: executor for executor in self._executors for found in executor.waiting}
        waiting: list[Any] = [*self._running, *averages, *self._crew.waiting]
        if not waiting:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        for found in ready:
            if found in self._running:
                self._read_stream(found)
            elif found in averages:
                averages[found].read_average(found)
            else:
                self._read_worker(found)
        self._fill()

    def stop(self, grace_s: float, hurry: Callable[[], bool], executor: RayExecutor | None = None) -> None:
        """Cancel the running jobs, of one member or of all, and wait until their actors are idle."""
        stopped = [running for running in self._running.values() if executor in (None, running.owner)]
        for running in stopped:
            ray.cancel(running.stream)
        waiting = [running.actor.ready.remote() for running in stopped]
        end = time.monotonic() + grace_s
        while waiting and time.monotonic() < end and not hurry():
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=STOP_INTERVAL_S)

    def close(self) -> None:
        """End all actors, or leave those that are idle to the next pool; an embedded Ray ends as well."""
        if self._spares is not None:
            for worker in self._crew.leave_idle():
                self._spares.keep(self._worker_kind, worker)
            for actor in self._averagers.values():
                self._spares.keep(self._averager_kind, actor)
            self._averagers.clear()
        for actor in [*self._crew.all, *self._averagers.values()]:
            if ray.is_initialized():
                end_worker(actor)
        self._running.clear()
        self._averagers.clear()
        self._executors.clear()
        self._queue.clear()
        self._disconnect()

    def averagers(self) -> list[Any]:
        """The averaging actors, one a shard; those that have died are started anew."""
        for index in range(self._num_shards):
            if index not in self._averagers:
                self._averagers[index] = self._start_averager(index)
        return [self._averagers[index] for index in range(self._num_shards)]

    def waiting_room(self, needs: RoundBytes, asked: int) -> tuple[int, str | None]:
        """How many states of a member's round may wait, and what to say where there is too little memory for it.

        Members of a pool share the nodes' object stores.
        """
        room, text = asked, None
        for node in eligible(living_nodes(), self._prepared.config.execution):
            workers = min(self.num_workers, capacity([node], self._resources))
            store_bytes = node.get("object_store_memory", 0.0)
            if workers and store_bytes:
                share = store_bytes / max(1, len(self._executors))
                room = min(room, needs.waiting_room(share, workers, asked))
                text = text or shortage(needs.needed(workers, 0), store_bytes)
        return room, text

    def averager_died(self, error: BaseException) -> bool:
        """Whether an error means that an averaging actor is gone; it is not used any more then."""
        known = {actor._actor_id.hex(): index for index, actor in self._averagers.items()}
        dead = error.actor_id if isinstance(error, RayActorError) else None
        if dead in self._dead_averagers:  # other members hear of the same death
            return True
        if isinstance(error, ObjectLostError) or (isinstance(error, RayActorError) and dead not in known):
            return False
        # What is no word of a single actor's death, such as a lack of memory, may concern any of them.
        for name, index in known.items():
            if dead in (None, name):
                ray.kill(self._averagers.pop(index))
                self._dead_averagers.add(name)
        return True

    def _disconnect(self) -> None:
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    def _fitting(self, nodes: list[Resources]) -> int:
        execution, arithmetic = self._prepared.config.execution, self._prepared.arithmetic
        return pool_size(execution, arithmetic.device, self._most, nodes, arithmetic.ranks)

    def _places(self) -> int:
        """How many workers the living nodes could hold; many where the cluster starts nodes for those that wait."""
        execution = self._prepared.config.execution
        if execution.autoscaling:
            return self._most
        return capacity(eligible(living_nodes(), execution), self._resources, self._ranks)

    def _look_at_nodes(self) -> None:
        """Now and then: nodes that have joined take waiting jobs; those that have left are not counted on any more."""
        if self._in_group or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        execution = self._prepared.config.execution
        if execution.num_workers is not None or execution.autoscaling or not (fitting := self._places()):
            return
        fitting = min(fitting, self._most)
        if fitting != self.num_workers:
            self.num_workers = self._crew.most = fitting
            for executor in self._executors:
                executor.tell(Resized(fitting))

    def _look_at_silence(self) -> None:
        text = self._crew.silence()
        if self._deadline_s is not None and self._crew.silent_s > self._deadline_s:
            raise RunError(f"no worker for {self._crew.silent_s:.0f} s: each needs "
                           f"{describe_resources(self._resources, self._ranks)}, and the cluster has not given one "
                           "back. What is finished is kept; the same command goes on")
        if text is not None:
            for executor in self._executors:
                executor.tell(Notice("workers", text))

    def _fill(self) -> None:
        self._crew.grow(len(self._queue))
        while self._queue and (actor := self._crew.take()) is not None:
            executor, item, start, mask_bits, values = self._queue.popleft()
            # Ranks read the values themselves, not the actor that stands for them.
            given = (start, mask_bits, values) if self._ranks == 1 else ([start, mask_bits, values],)
            stream = actor.run.options(num_returns="streaming").remote(executor.member, item, *given)
            self._running[stream] = _Running(executor, actor, item, stream)

    @property
    def _worker_kind(self) -> object:
        environment = _worker_environment(self._prepared.config.execution)
        return (tuple(self._resources.items()), tuple(environment.items()), self._ranks)

    def _start_worker(self) -> Any:
        environment = _worker_environment(self._prepared.config.execution)
        data = self._data if self._ranks == 1 else [self._data]
        given = self._configs, data, self._prepared.arithmetic, self._storage
        spare = None if self._spares is None else self._spares.take(self._worker_kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        if self._ranks > 1:
            return start_ranked(given, environment)
        kind: Any = ray.remote(ParticleActor)
        node, where = self._next_place()
        actor = kind.options(num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"], max_restarts=0,
                             runtime_env={"env_vars": environment}, **where).remote(*given)
        self._node_of[actor] = node
        return actor

    def _next_place(self) -> tuple[str | None, dict[str, Any]]:
        """Where the next worker goes: its node if that is decided here, and Ray's options for it."""
        execution = self._prepared.config.execution
        labels = worker_labels(execution)
        selector: dict[str, Any] = {"label_selector": labels} if labels else {}
        if self._in_group:
            return None, {}  # the group's bundles have been placed by the same labels
        nodes = living_nodes()
        if len(nodes) == 1:
            return None, selector
        present, starting = (Counter(node for actor in actors if (node := self._node_of.get(actor)) is not None)
                             for actors in (self._crew.all, self._crew.starting))
        node = next_node(nodes, execution, self._resources, present, starting)
        if node is None:
            return None, {**selector, "scheduling_strategy": "SPREAD"}
        # Should it go meanwhile, another one will do, unless labels count.
        return node, {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=not labels)}

    @property
    def _averager_kind(self) -> object:
        return "averager", tuple(self._prepared.config.execution.stable_labels.items())

    def _start_averager(self, index: int) -> Any:
        given = self._configs, self._prepared.layout, self._storage, index
        spare = None if self._spares is None else self._spares.take(self._averager_kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        kind: Any = ray.remote(AveragingActor)
        labels = self._prepared.config.execution.stable_labels
        return kind.options(num_cpus=0, max_restarts=0, label_selector=labels or None,
                            scheduling_strategy="SPREAD" if self._num_shards > 1 else None).remote(*given)

    @property
    def _configs(self) -> list[SwampConfig]:
        return [prepared.config for prepared in self._members]

    def _read_stream(self, stream: Any) -> None:
        running = self._running[stream]
        work = running.item.work
        try:
            reference = next(stream)
            if running.outcome is not None:
                running.pieces.append(reference)
                if len(running.pieces) == running.outcome.num_pieces:
                    self._finish(running)
                return
            message = ray.get(reference)
        except StopIteration:
            if running.outcome is None:
                self._break(running, RunError(f"{work} ended without a result"), "machine")
            else:
                self._finish(running)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            self._break_off(running, cause if isinstance(cause, BaseException) else error)
        except RayError as error:
            self._lose(running, error)
        else:
            if isinstance(message, Outcome):
                running.outcome = message
                if not message.num_pieces:
                    self._finish(running)
            elif isinstance(message, Progress):
                running.owner.tell(Advanced(work, message))
            elif isinstance(message, Busy):
                self._give_back(running)
                running.owner.tell(Blocked(running.item, message.held))

    def _give_back(self, running: _Running) -> None:
        del self._running[running.stream]
        self._crew.give_back(running.actor)

    def _end(self, running: _Running) -> None:
        """End a job together with its worker."""
        del self._running[running.stream]
        self._crew.lose(running.actor)
        self._node_of.pop(running.actor, None)

    def _finish(self, running: _Running) -> None:
        self._give_back(running)
        assert running.outcome is not None
        whole = len(running.pieces) == running.outcome.num_pieces
        running.owner.done(running.item.work, running.outcome, running.pieces if whole else [])

    def _break(self, running: _Running, error: BaseException, kind: Literal["machine", "diverged", "error"]) -> None:
        self._give_back(running)
        running.owner.tell(Broken(running.item.work, error, kind))

    def _break_off(self, running: _Running, error: BaseException) -> None:
        """The job raised an error. A worker that ran out of memory is not used again: what it holds may stay there."""
        if kind_of(error) != "machine":
            self._break(running, error, kind_of(error))
            return
        self._end(running)
        words = memory_error(error) if out_of_memory(error) else error
        running.owner.tell(Broken(running.item.work, words, "machine"))

    def _lose(self, running: _Running, error: RayError) -> None:
        """The worker is gone, by a crash, with its node, or for lack of memory."""
        self._end(running)
        if running.outcome is not None:  # it had stored its result before it said so
            running.owner.done(running.item.work, running.outcome, [])
        else:
            running.owner.tell(Broken(running.item.work, _in_words(error), "machine"))

    def _read_worker(self, found: ObjectRef[Any]) -> None:
        error = self._crew.answered(found)
        if error is None:
            return
        if not self._crew.all and self._queue:  # somebody has to count how often this is tried
            executor, item, *_ = self._queue.popleft()
            executor.tell(Broken(item.work, _in_words(error), "machine"))
        elif (text := f"one could not be started: {_in_words(error)}") not in self._told:
            self._told.add(text)
            for executor in self._executors:
                executor.tell(Notice("workers", text))


class RayExecutor:
    """One run's share of a pool of actors; fewer workers than particles means several waves.

    Args:
        prepared: The run.
        storage: Storage root, an absolute path or a URL that every node sees.
        pool: The pool that several runs share; by default one of its own.
        member: The run's index among those of the pool.

    Raises:
        UserError: The cluster does not answer, or cannot hold a worker.
    """

    def __init__(self, prepared: Prepared, storage: str, pool: Pool | None = None, member: int = 0) -> None:
        self.member = member
        self._pool = pool or Pool([prepared], storage)
        self._pool.join(self)
        self._held: dict[Work, list[ObjectRef[Any]]] = {}
        self._additions: dict[ObjectRef[Any], Work] = {}
        self._complete: tuple[AverageSpec, Handle, Handle] | None = None
        self._averaging: dict[ObjectRef[Any], AverageSpec] = {}
        self._reports: list[Report] = []
        self._told_shortage = False

    @property
    def num_workers(self) -> int:
        """How many jobs run side by side."""
        return self._pool.num_workers

    @property
    def waiting(self) -> list[ObjectRef[Any]]:
        """References that the averaging actors answer."""
        return [*self._additions, *self._averaging]

    def put(self, value: Any) -> Handle:
        """A reference into the object store."""
        return ray.put(value)

    def submit(self, item: WorkItem, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        self._pool.submit(self, item, start, mask_bits, values, urgent)

    def add(self, work: Work, outcome: Outcome, size: int, from_storage: bool) -> None:
        """Let a state enter the average; actor calls keep their order. A state that was lost is read from storage."""
        pieces = self._held.pop(work, None)
        actors = self._pool.averagers()
        actors = actors[:len(spans(size, len(actors)))]
        given = [None] * len(actors) if from_storage or not pieces else pieces
        for actor, piece in zip(actors, given, strict=True):
            call = actor.add.remote(self.member, work, outcome.name, outcome.digest, size, piece)
            self._additions[call] = work

    def drop(self, work: Work) -> None:
        """Release a held state."""
        self._held.pop(work, None)

    def waiting_room(self, needs: RoundBytes, asked: int) -> int:
        """As many as were asked for, or as fit into the object stores; says where not even none fits."""
        room, text = self._pool.waiting_room(needs, asked)
        if text is not None and not self._told_shortage:
            self._told_shortage = True
            self.tell(Notice("object store", text))
        return room

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close a round's average, once every shard has said that it has all states."""
        self._complete = spec, start, mask_bits
        self._close_complete()

    def cancel(self, work: Work) -> None:
        """Take a job out of the queue, or end the worker that does it."""
        self._pool.cancel(self, work)
        self._held.pop(work, None)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """What has happened; if nothing has, whatever happens next in the pool, which may concern another run."""
        if not self._reports:
            self._pool.pump(timeout_s)
        reports, self._reports = self._reports, []
        return reports

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Cancel the running jobs, which then write a checkpoint, and wait until their actors are idle."""
        self._pool.stop(grace_s, hurry, self)

    def close(self) -> None:
        """End all jobs; with the last run of a pool all its actors."""
        self._held.clear()
        self._forget_average()
        self._pool.leave(self)

    def tell(self, report: Report) -> None:
        """Keep a report for the next call of `wait`."""
        self._reports.append(report)

    def done(self, work: Work, outcome: Outcome, pieces: list[ObjectRef[Any]]) -> None:
        """A job is done; its state is kept for the average where it came along."""
        if pieces:
            self._held[work] = pieces
        self.tell(Done(work, outcome, held=bool(pieces)))

    def read_average(self, found: ObjectRef[Any]) -> None:
        """Take in an answer of an averaging actor."""
        spec, work = self._averaging.pop(found, None), self._additions.pop(found, None)
        try:
            result = ray.get(found)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if work is not None and isinstance(cause, CorruptArtifactError):
                self._forget_average()
                self.tell(StateLost(work, without_advice(cause)))
            elif isinstance(cause, RayError) or isinstance(error, ObjectLostError):
                self._lose_average(cause or error)
            elif isinstance(cause, BaseException) and out_of_memory(cause):
                self._lose_average(memory_error(cause))
            else:
                raise (cause if isinstance(cause, Exception) else RunError(str(error))) from error
        except RayError as error:
            self._lose_average(error)
        else:
            if spec is not None:
                self.tell(AverageDone(spec.round, result))
            self._close_complete()

    def _close_complete(self) -> None:
        # The shards are asked by the first of them, whose calls have no order with this process's.
        if self._complete is None or self._additions:
            return
        (spec, start, mask_bits), self._complete = self._complete, None
        first, *others = self._pool.averagers()
        self._averaging[first.finish.remote(self.member, spec, start, mask_bits, others)] = spec

    def _lose_average(self, error: BaseException) -> None:
        """Everything enters it again, from storage: what waits in memory may have been lost with its node as well."""
        died = self._pool.averager_died(error)
        self._held = {work: [] for work in self._held}
        self._forget_average()
        self.tell(AverageLost(_first_line(error), died=died))

    def _forget_average(self) -> None:
        self._additions.clear()
        self._averaging.clear()
        self._complete = None


def _worker_environment(execution: ExecutionConfig) -> dict[str, str]:
    """Threads, deterministic cuBLAS, and an allocator that keeps freed memory.

    With glibc's defaults particles were seen to train up to a tenth slower in an actor than inline on the CPU; keeping
    freed memory took most of that away.
    """
    return {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
            "MALLOC_TOP_PAD_": str(1 << 26),
            "OMP_NUM_THREADS": str(execution.threads), "MKL_NUM_THREADS": str(execution.threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def _in_words(error: RayError) -> BaseException:
    """Ray's error, or what to do where memory was short. A mere crash names the memory too, as one possible cause."""
    if isinstance(error, OutOfMemoryError) or "running low on memory" in str(error):
        return memory_error(error)
    text = _COLOUR.sub("", str(error)).strip()
    if "creation task" in text:
        return RunError(f"a worker could not be started: {text.splitlines()[-1].strip()}")
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
