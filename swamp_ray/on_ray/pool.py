"""A pool of warm particle workers and averaging actors on Ray, for one run or for several side by side.

The rewind weights and the data go into the object store once; a round broadcasts its mask as bits. States come
back as numpy buffers that belong to the driver, so that they outlive the worker that made them.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import RunError, UserError
from swamp_ray.method.events import Job
from swamp_ray.on_ray.actors import AveragingActor, ParticleActor, Spares, worker_environment
from swamp_ray.on_ray.cluster import answers, check_alive, connect, living_nodes
from swamp_ray.on_ray.ranked_worker import end_worker, start_ranked
from swamp_ray.on_ray.workers import Crew
from swamp_ray.run.capacity import Resources, capacity, describe_resources, pool_size, worker_resources
from swamp_ray.run.failures import kind_of, memory_error, out_of_memory
from swamp_ray.run.messages import (
    Handle,
    JobAdvancedReport,
    JobBlockedReport,
    JobFailedReport,
    JobSpec,
    LeaseHeld,
    NoticeReport,
    Outcome,
    Report,
    WorkersChangedReport,
)
from swamp_ray.run.object_store_memory import RoundBytes, shortage
from swamp_ray.run.packs import PackedJobFailed
from swamp_ray.run.placement import eligible, next_node, worker_labels
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.queue import JobQueue, QueuedJob
from swamp_ray.run.shard import num_shards
from swamp_ray.run.timesheet import Ending, JobTimes, Shift
from swamp_ray.training.results import Progress

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STOP_INTERVAL_S = 0.1
LOOK_S = 5.0
"""So often the nodes of the cluster are counted."""


class Member(Protocol):
    """A run's share of a pool, as the pool sees it."""

    member: int

    @property
    def waiting(self) -> Sequence[ObjectRef[Any]]:
        """References whose arrival `read_average` is told of."""
        ...

    def tell(self, report: Report) -> None:
        """Take a report on one of its jobs, or on the pool."""
        ...

    def note(self, worked: JobTimes) -> None:
        """Take the times of a job that has ended."""
        ...

    def done(self, job: Job, outcome: Outcome, pieces: list[ObjectRef[Any]]) -> None:
        """Take the result of a job."""
        ...

    def read_average(self, found: ObjectRef[Any]) -> None:
        """Take the answer of an averaging actor."""
        ...


@dataclass
class PooledJob:
    """A job of a stream; ``outcome`` once it is known, the references of the state's pieces follow.

    ``over``: nobody waits for it any more; ``ended``: it has said its last.
    """

    owner: Member
    spec: JobSpec
    shift: Shift
    outcome: Outcome | None = None
    pieces: list[ObjectRef[Any]] = field(default_factory=list)
    over: bool = False
    ended: bool = False

    def end(self, how: Ending) -> None:
        """Nobody waits for it from now on; how it ended is noted once."""
        if not self.over:
            self.over = True
            epochs = 0 if self.outcome is None else self.outcome.trained_epochs
            self.owner.note(self.shift.over(self.spec.job, how, self.spec.attempt, self.spec.reseed, epochs))

    @property
    def lacks_pieces(self) -> bool:
        """Whether what comes next in the stream is a piece of its state."""
        return self.outcome is not None and len(self.pieces) < self.outcome.num_pieces


@dataclass
class _Running:
    """What an actor is doing: one job, or several that are packed; ``speaks``: whose pieces are on their way."""

    actor: Any
    stream: Any
    pooled_jobs: list[PooledJob]
    speaks: PooledJob | None = None

    @property
    def open(self) -> list[PooledJob]:
        """Those that somebody waits for."""
        return [pooled for pooled in self.pooled_jobs if not pooled.over]


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
        self._connection = connect(execution)
        try:
            self._most = prepared.most_packs if prepared.num_members == len(members) else sum(
                one.most_packs for one in members)
            self._resources = worker_resources(execution, prepared.arithmetic.device)
            self._ranks = prepared.arithmetic.ranks
            self._in_group = num_workers is not None
            self.num_workers = num_workers or self._fitting(eligible(living_nodes(), execution))
            self._data = ray.put(prepared.data)
            self._num_shards = num_shards(prepared.config, prepared.layout)
        except BaseException:
            self._connection.close()
            raise
        self._crew = Crew(self._start_worker, self.num_workers, self._places,
                          describe_resources(self._resources, self._ranks), end_worker)
        self._next_look = time.monotonic() + LOOK_S
        self._backlog: JobQueue[Member] = JobQueue()
        self._running: dict[Any, _Running] = {}
        self._averagers: dict[int, Any] = {}
        self._dead_averagers: set[str] = set()
        self._told: set[str] = set()
        self._node_of: dict[Any, str | None] = {}
        self._executors: list[Member] = []
        if spares is None:
            # All at once: starting an actor takes seconds, which the dense phase hides.
            self._crew.grow(self.num_workers)
        self.averagers()

    def join(self, executor: Member) -> None:
        """From now on a member's executor takes part."""
        self._executors.append(executor)

    def leave(self, executor: Member) -> None:
        """A member has ended: its jobs are ended too. With the last one the pool ends."""
        if executor not in self._executors:
            return
        self._executors.remove(executor)
        if not self._executors:
            self.close()
            return
        self._backlog.forget(lambda entry: entry.owner is executor)
        self._forget(lambda pooled: pooled.owner is executor)

    def submit(self, executor: Member, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None,
               urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        self._backlog.add(QueuedJob(executor, spec, (start, mask_bits, values)), urgent)
        if not self._crew.all:  # of a setting most of which may be found, not before something is to be trained
            self._crew.grow(self.num_workers)
        if not spec.is_packed:  # others may follow at once that can be packed with it
            self._fill()

    def cancel(self, executor: Member, job: Job) -> None:
        """Take a job out of the queue, or end the worker that does it; not before it has done what it does besides."""
        self._backlog.forget(lambda entry: entry.owner is executor and entry.spec.job == job)
        self._forget(lambda pooled: pooled.owner is executor and pooled.spec.job == job)

    def pump(self, timeout_s: float) -> None:
        """Wait for the next stream item, the averager, or a worker that has started, and tell whom it concerns.

        Raises:
            RunError: No worker was there for as long as the deadline, or a process of Ray's has died.
        """
        check_alive()
        self._look_at_nodes()
        self._fill()
        if self._backlog and not self._running:
            self._look_at_silence()
        averages = {found: executor for executor in self._executors for found in executor.waiting}
        waiting: list[Any] = [*self._running, *averages, *self._crew.waiting]
        if not waiting:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        check_alive()  # else the deaths of its workers would be told one by one, and each job tried again
        for found in ready:
            if found in self._running:
                self._read_stream(found)
            elif found in averages:
                averages[found].read_average(found)
            else:
                self._read_worker(found)
        self._fill()

    def stop(self, grace_s: float, hurry: Callable[[], bool], executor: Member | None = None) -> None:
        """Cancel the running jobs, of one member or of all, and wait until their actors are idle."""
        stopped = [running for running in self._running.values()
                   if executor is None or any(pooled.owner is executor for pooled in running.open)]
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
            if answers():
                end_worker(actor)
        for running in self._running.values():
            for pooled in running.open:
                pooled.end("stopped")
        self._running.clear()
        self._averagers.clear()
        self._executors.clear()
        self._backlog = JobQueue()
        self._connection.close()

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
            workers = min(self.num_workers, capacity([node], self._resources)) * self._prepared.arithmetic.width
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
                executor.tell(WorkersChangedReport(fitting))

    def _look_at_silence(self) -> None:
        text = self._crew.silence()
        if self._deadline_s is not None and self._crew.silent_s > self._deadline_s:
            raise RunError(f"no worker for {self._crew.silent_s:.0f} s: each needs "
                           f"{describe_resources(self._resources, self._ranks)}, and the cluster has not given one "
                           "back. What is finished is kept; the same command goes on")
        if text is not None:
            for executor in self._executors:
                executor.tell(NoticeReport("workers", text))

    def _fill(self) -> None:
        self._crew.grow(self._backlog.num_packs)
        while self._is_ready() and (actor := self._crew.take()) is not None:
            entries = self._backlog.take()
            first, run = entries[0], actor.run.options(num_returns="streaming")
            if self._ranks > 1:  # they read the values themselves, not the actor that stands for them
                stream = run.remote(first.owner.member, first.spec, list(first.given))
            else:
                stream = run.remote([entry.owner.member for entry in entries], [entry.spec for entry in entries],
                                    *(value for entry in entries for value in entry.given))
            known = self._crew.known(actor)
            shift = Shift(known.number, known.answer)
            pooled_jobs = [PooledJob(entry.owner, entry.spec, shift) for entry in entries]
            self._running[stream] = _Running(actor, stream, pooled_jobs)

    def _is_ready(self) -> bool:
        at_work = {pooled.owner for running in self._running.values() for pooled in running.open}
        return self._backlog.is_ready(at_work, self._executors)

    @property
    def _worker_kind(self) -> object:
        environment = worker_environment(self._prepared.config.execution)
        return (tuple(self._resources.items()), tuple(environment.items()), self._ranks)

    def _start_worker(self) -> Any:
        environment = worker_environment(self._prepared.config.execution)
        given = self._configs, [self._data], self._prepared.arithmetic, self._storage, self._prepared.code
        spare = None if self._spares is None else self._spares.take(self._worker_kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        if self._ranks > 1:
            return start_ranked(given, environment)
        kind: Any = ray.remote(ParticleActor)
        node, where = self._next_place()
        actor = kind.options(name=self._name_of("particles"), num_cpus=self._resources["CPU"],
                             num_gpus=self._resources["GPU"], max_restarts=0,
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

    def _name_of(self, task: str) -> str:
        """What an actor is called in Ray's dashboard. Names are unique on a cluster; spares go from run to run."""
        run = self._prepared.config.name if self._spares is None and len(self._members) == 1 else None
        return f"{run or 'several runs'}: {task}, {uuid.uuid4().hex[:8]}"

    @property
    def _averager_kind(self) -> object:
        return "averager", tuple(self._prepared.config.execution.stable_labels.items())

    def _start_averager(self, index: int) -> Any:
        given = self._configs, self._prepared.layout, self._storage, index, self._prepared.code.part("pruning.score")
        spare = None if self._spares is None else self._spares.take(self._averager_kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        kind: Any = ray.remote(AveragingActor)
        labels = self._prepared.config.execution.stable_labels
        return kind.options(name=self._name_of("average"), num_cpus=0, max_restarts=0, label_selector=labels or None,
                            scheduling_strategy="SPREAD" if self._num_shards > 1 else None).remote(*given)

    @property
    def _configs(self) -> list[SwampConfig]:
        return [prepared.config for prepared in self._members]

    def _read_stream(self, stream: Any) -> None:
        running = self._running[stream]
        try:
            reference = next(stream)
            if running.speaks is not None:
                self._take_piece(running, running.speaks, reference)
                return
            message = ray.get(reference)
        except StopIteration:
            self._give_back(running)
            self._break(running, lambda job: RunError(f"{job} ended without a result"), "machine")
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            self._break_off(running, cause if isinstance(cause, BaseException) else error)
        except RayError as error:  # by a crash, with its node, or for lack of memory
            self._end(running)
            words = _in_words(error)
            self._break(running, lambda _: words, "machine")
        else:
            index, said = (0, message) if self._ranks > 1 else message
            self._hear(running, running.pooled_jobs[index], said)

    def _hear(self, running: _Running, pooled: PooledJob, said: Any) -> None:
        """What a job has to say; nobody listens to one that is over."""
        job = pooled.spec.job
        if isinstance(said, Outcome):
            pooled.outcome = said
            running.speaks = pooled if pooled.lacks_pieces else None
            if running.speaks is None:
                self._finish(running, pooled)
        elif pooled.over:
            return
        elif isinstance(said, Progress):
            pooled.owner.tell(JobAdvancedReport(job, said))
        elif isinstance(said, LeaseHeld):
            self._close(running, pooled, "given back")
            pooled.owner.tell(JobBlockedReport(pooled.spec, said.held))
        elif isinstance(said, PackedJobFailed):
            self._close(running, pooled, kind_of(said.error))
            pooled.owner.tell(JobFailedReport(job, said.error, kind_of(said.error)))

    def _take_piece(self, running: _Running, pooled: PooledJob, reference: ObjectRef[Any]) -> None:
        pooled.pieces.append(reference)
        if not pooled.lacks_pieces:
            running.speaks = None
            self._finish(running, pooled)

    def _close(self, running: _Running, pooled: PooledJob, how: Ending) -> None:
        """A job has ended. With the last one that is wanted its worker is free, unless it trains what nobody wants."""
        pooled.end(how)
        pooled.ended = True
        if running.open or running.stream not in self._running:
            return
        if all(one.ended for one in running.pooled_jobs):
            self._give_back(running)
        else:
            self._end(running)

    def _give_back(self, running: _Running) -> None:
        del self._running[running.stream]
        self._crew.give_back(running.actor)

    def _end(self, running: _Running) -> None:
        """End all jobs of a worker together with it."""
        del self._running[running.stream]
        self._crew.lose(running.actor)
        self._node_of.pop(running.actor, None)

    def _forget(self, unwanted: Callable[[PooledJob], bool]) -> None:
        """Nobody wants these jobs any more: a worker that does nothing else is ended."""
        for running in list(self._running.values()):
            for pooled in running.open:
                if unwanted(pooled):
                    pooled.end("stopped")
            if not running.open:
                self._end(running)

    def _finish(self, running: _Running, pooled: PooledJob) -> None:
        wanted = not pooled.over
        self._close(running, pooled, "done")
        if wanted:
            assert pooled.outcome is not None
            pooled.owner.done(pooled.spec.job, pooled.outcome, [] if pooled.lacks_pieces else pooled.pieces)

    def _break(self, running: _Running, reason: Callable[[Job], BaseException],
               kind: Literal["machine", "diverged", "error"]) -> None:
        """Jobs end without having said all; one whose outcome is known had stored its result before it said so."""
        for pooled in running.open:
            if pooled.outcome is not None:
                self._finish(running, pooled)
            else:
                pooled.end(kind)
                pooled.owner.tell(JobFailedReport(pooled.spec.job, reason(pooled.spec.job), kind))

    def _break_off(self, running: _Running, error: BaseException) -> None:
        """An error was raised. A worker that ran out of memory is not used again: what it holds may stay there."""
        kind = kind_of(error)
        if kind == "machine":
            self._end(running)
        else:
            self._give_back(running)
        words = memory_error(error) if out_of_memory(error) else error
        self._break(running, lambda _: words, kind)

    def _read_worker(self, found: ObjectRef[Any]) -> None:
        error = self._crew.answered(found)
        if error is None:
            return
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError) and not self._crew.all:  # no worker can do it before the user has acted
            raise cause from None
        if not self._crew.all and self._backlog:  # somebody has to count how often this is tried
            for entry in self._backlog.take():
                entry.owner.tell(JobFailedReport(entry.spec.job, _in_words(error), "machine"))
            return
        text = f"one could not be started: {cause if isinstance(cause, UserError) else _in_words(error)}"
        if text not in self._told:
            self._told.add(text)
            for executor in self._executors:
                executor.tell(NoticeReport("workers", text))


def _in_words(error: RayError) -> BaseException:
    """Ray's error, or what to do where memory was short. A mere crash names the memory too, as one possible cause."""
    if isinstance(error, OutOfMemoryError) or "running low on memory" in str(error):
        return memory_error(error)
    text = _COLOUR.sub("", str(error)).strip()
    if "creation task" in text:
        return RunError(f"a worker could not be started: {text.splitlines()[-1].strip()}")
    return error
