"""A pool of warm particle workers and averaging actors on Ray, for one run or for several side by side.

The rewind weights and the data go into the object store once; a round broadcasts its mask as bits. States come
back as numpy buffers that belong to the driver, so that they outlive the worker that made them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from swamp_ray.errors import RunError, UserError
from swamp_ray.method.events import Job
from swamp_ray.on_ray.actors import Spares
from swamp_ray.on_ray.averagers import Averagers
from swamp_ray.on_ray.cluster import COUNT_NODES_S, answers, check_alive, connect, living_nodes
from swamp_ray.on_ray.pool_jobs import JobState, Member, PooledJob, WorkerRun
from swamp_ray.on_ray.ranked_worker import end_worker
from swamp_ray.on_ray.start_workers import WorkerStarter
from swamp_ray.on_ray.workers import Workers
from swamp_ray.run.capacity import Resources, capacity, describe_resources, pool_size, worker_resources
from swamp_ray.run.failures import kind_of, memory_error, out_of_memory
from swamp_ray.run.messages import (
    BlockedByLease,
    Handle,
    JobAdvancedReport,
    JobBlockedReport,
    JobFailedReport,
    JobFinishedReport,
    JobSpec,
    JobStartedReport,
    NoticeReport,
    Outcome,
    Report,
    WorkersChangedReport,
)
from swamp_ray.run.object_store_memory import RoundBytes, shortage
from swamp_ray.run.packs import PackedJobFailed
from swamp_ray.run.placement import eligible
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.queue import JobQueue, QueuedJob
from swamp_ray.run.timesheet import Ending, Shift
from swamp_ray.training.results import Progress

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STOP_INTERVAL_S = 0.1


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
        self._members = members
        self._storage = storage
        self._deadline_s = deadline_s
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
            data = ray.put(prepared.data)
        except BaseException:
            self._connection.close()
            raise
        self._starter = WorkerStarter(members, storage, data, self._resources, self._in_group, spares)
        self._workers = Workers(self._start_worker, self.num_workers, self._places,
                                describe_resources(self._resources, self._ranks), end_worker)
        self._next_look = time.monotonic() + COUNT_NODES_S
        self._queue: JobQueue[Member] = JobQueue()
        self._running: dict[Any, WorkerRun] = {}
        self.averagers = Averagers(members, storage, spares)
        self._told: set[str] = set()
        self._owners: list[Member] = []
        if spares is None:
            # All at once: starting an actor takes seconds, which the dense phase hides.
            self._workers.grow(self.num_workers)
        self.averagers.actors()

    def join(self, executor: Member) -> None:
        """From now on a member's executor takes part."""
        self._owners.append(executor)

    def leave(self, executor: Member) -> None:
        """A member has ended: its jobs are ended too. With the last one the pool ends."""
        if executor not in self._owners:
            return
        self._owners.remove(executor)
        if not self._owners:
            self.close()
            return
        self._queue.forget(lambda entry: entry.owner is executor)
        self._mark_unwanted_where(lambda pooled: pooled.owner is executor)

    def submit(self, executor: Member, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None,
               urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        self._queue.add(QueuedJob(executor, spec, (start, mask_bits, values)), urgent)
        if not self._workers.all:  # of a setting most of which may be found, not before something is to be trained
            self._workers.grow(self.num_workers)
        if not spec.is_packed:  # others may follow at once that can be packed with it
            self._fill()

    def cancel(self, executor: Member, job: Job) -> None:
        """Take a job out of the queue, or stop waiting for it; its worker is ended once its other wanted jobs end."""
        self._queue.forget(lambda entry: entry.owner is executor and entry.spec.job == job)
        self._mark_unwanted_where(lambda pooled: pooled.owner is executor and pooled.spec.job == job)

    def pump(self, timeout_s: float) -> None:
        """Wait for the next stream item, the averager, or a worker that has started, and tell whom it concerns.

        Raises:
            RunError: No worker was there for as long as the deadline, or a process of Ray's has died.
        """
        check_alive()
        self._look_at_nodes()
        self._fill()
        if self._queue and not self._running:
            self._look_at_silence()
        averages = {found: executor for executor in self._owners for found in executor.awaited}
        awaited: list[Any] = [*self._running, *averages, *self._workers.awaited]
        if not awaited:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(awaited, num_returns=1, timeout=timeout_s, fetch_local=False)
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
                   if executor is None or any(pooled.owner is executor for pooled in running.wanted)]
        for running in stopped:
            ray.cancel(running.stream)
        stopping = [running.actor.ready.remote() for running in stopped]
        end = time.monotonic() + grace_s
        while stopping and time.monotonic() < end and not hurry():
            _, stopping = ray.wait(stopping, num_returns=len(stopping), timeout=STOP_INTERVAL_S)

    def close(self) -> None:
        """End all actors, or leave those that are idle to the next pool; an embedded Ray ends as well."""
        if self._spares is not None:
            for worker in self._workers.leave_idle():
                self._spares.keep(self._starter.kind, worker)
        self.averagers.leave()
        for actor in [*self._workers.all, *self.averagers.living]:
            if answers():
                end_worker(actor)
        for running in self._running.values():
            for pooled in running.wanted:
                self._mark_unwanted(pooled)
        self._running.clear()
        self.averagers.forget()
        self._owners.clear()
        self._queue = JobQueue()
        self._connection.close()

    def room_for_states(self, needs: RoundBytes, asked: int) -> tuple[int, str | None]:
        """How many states of a member's round may wait, and what to say where there is too little memory for it.

        Members of a pool share the nodes' object stores.
        """
        room = asked
        text = None
        for node in eligible(living_nodes(), self._prepared.config.execution):
            workers = min(self.num_workers, capacity([node], self._resources)) * self._prepared.arithmetic.width
            store_bytes = node.get("object_store_memory", 0.0)
            if workers and store_bytes:
                share = store_bytes / max(1, len(self._owners))
                room = min(room, needs.room_for_states(share, workers, asked))
                text = text or shortage(needs.needed(workers, 0), store_bytes)
        return room, text

    def _fitting(self, nodes: list[Resources]) -> int:
        execution = self._prepared.config.execution
        arithmetic = self._prepared.arithmetic
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
        self._next_look = time.monotonic() + COUNT_NODES_S
        execution = self._prepared.config.execution
        if execution.num_workers is not None or execution.autoscaling or not (fitting := self._places()):
            return
        fitting = min(fitting, self._most)
        if fitting != self.num_workers:
            self.num_workers = self._workers.most = fitting
            for executor in self._owners:
                executor.tell(WorkersChangedReport(fitting))

    def _look_at_silence(self) -> None:
        text = self._workers.silence()
        if self._deadline_s is not None and self._workers.silent_s > self._deadline_s:
            raise RunError(f"no worker for {self._workers.silent_s:.0f} s: each needs "
                           f"{describe_resources(self._resources, self._ranks)}, and the cluster has not given one "
                           "back. What is finished is kept; the same command goes on")
        if text is not None:
            for executor in self._owners:
                executor.tell(NoticeReport("workers", text))

    def _start_worker(self) -> Any:
        return self._starter.start(self._workers.all, self._workers.starting)

    def _fill(self) -> None:
        """Give queued jobs to idle workers."""
        self._workers.grow(self._queue.num_packs)
        while self._is_ready():
            actor = self._workers.take()
            if actor is None:
                return
            self._give(actor, self._queue.take())

    def _is_ready(self) -> bool:
        at_work: set[Member] = set()
        for running in self._running.values():
            at_work.update(pooled.owner for pooled in running.wanted)
        return self._queue.is_ready(at_work, self._owners)

    def _give(self, actor: Any, entries: Sequence[QueuedJob[Member]]) -> None:
        """Let a worker begin one job, or several that are packed."""
        run = actor.run.options(num_returns="streaming")
        if self._ranks > 1:  # the ranks read the values themselves, not the actor that stands for them
            [only] = entries
            stream = run.remote(only.owner.member, only.spec, list(only.given))
        else:
            members = [entry.owner.member for entry in entries]
            specs = [entry.spec for entry in entries]
            # Ray resolves references among the arguments of a call, but not in lists: values are given one by one.
            values = [value for entry in entries for value in entry.given]
            stream = run.remote(members, specs, *values)
        known = self._workers.known(actor)
        shift = Shift(known.number, known.answer)
        jobs = [PooledJob(entry.owner, entry.spec, shift) for entry in entries]
        self._running[stream] = WorkerRun(actor, stream, jobs)
        for pooled in jobs:
            pooled.owner.tell(JobStartedReport(pooled.spec.job, pooled.start()))

    # What workers say

    def _read_stream(self, stream: Any) -> None:
        """Take the next message, or the next piece of a state, of a worker."""
        running = self._running[stream]
        try:
            reference = next(stream)
            if running.delivers is not None:
                self._take_piece(running, running.delivers, reference)
                return
            message = ray.get(reference)
        except StopIteration:
            self._free(running)
            self._end_all(running, lambda job: RunError(f"{job} ended without a result"), "machine")
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            self._end_by_error(running, cause if isinstance(cause, BaseException) else error)
        except RayError as error:  # the worker crashed, went with its node, or was ended for lack of memory
            self._evict(running)
            words = _in_words(error)
            self._end_all(running, lambda _: words, "machine")
        else:
            index, said = (0, message) if self._ranks > 1 else message
            self._take_message(running, running.jobs[index], said)

    def _take_message(self, running: WorkerRun, pooled: PooledJob, said: Any) -> None:
        if isinstance(said, Outcome):
            pooled.outcome = said
            if not pooled.lacks_pieces:
                self._finish(running, pooled)
                return
            running.delivers = pooled
            if pooled.is_wanted:
                pooled.state = JobState.DELIVERING
        elif isinstance(said, Progress):
            if pooled.is_wanted:
                pooled.owner.tell(JobAdvancedReport(pooled.spec.job, said))
        elif isinstance(said, BlockedByLease):
            self._end_job(running, pooled, "given back", JobBlockedReport(pooled.spec, said.held))
        elif isinstance(said, PackedJobFailed):
            kind = kind_of(said.error)
            self._end_job(running, pooled, kind, JobFailedReport(pooled.spec.job, said.error, kind))

    def _take_piece(self, running: WorkerRun, pooled: PooledJob, reference: ObjectRef[Any]) -> None:
        pooled.pieces.append(reference)
        if not pooled.lacks_pieces:
            running.delivers = None
            self._finish(running, pooled)

    # Where jobs end

    def _end_job(self, running: WorkerRun, pooled: PooledJob, how: Ending, report: Report) -> None:
        """A job has ended: its times are noted, its worker is freed, its run is told.

        This is the one place where jobs end. The times of a job that nobody waits for were noted when that was so.
        """
        was_wanted = pooled.is_wanted
        if was_wanted:
            pooled.owner.note(pooled.times(how))
        pooled.state = JobState.ENDED
        self._free_if_unused(running)
        if was_wanted:
            pooled.owner.tell(report)

    def _finish(self, running: WorkerRun, pooled: PooledJob) -> None:
        """A job has ended with a result; its state waits for the average if all of it has come along."""
        assert pooled.outcome is not None
        pieces = [] if pooled.lacks_pieces else pooled.pieces
        if pooled.is_wanted and pieces:
            pooled.owner.keep_state(pooled.spec.job, pieces)
        report = JobFinishedReport(pooled.spec.job, pooled.outcome, in_memory=bool(pieces))
        self._end_job(running, pooled, "done", report)

    def _end_all(self, running: WorkerRun, error_of: Callable[[Job], BaseException],
                 kind: Literal["machine", "diverged", "error"]) -> None:
        """A worker sends nothing more. Jobs whose result is known are done: it was stored first. Others failed."""
        for pooled in running.wanted:
            if pooled.outcome is not None:
                self._finish(running, pooled)
            else:
                job = pooled.spec.job
                self._end_job(running, pooled, kind, JobFailedReport(job, error_of(job), kind))

    def _end_by_error(self, running: WorkerRun, error: BaseException) -> None:
        """An error was raised in a worker. One that ran out of memory is not used again: what it holds may stay."""
        kind = kind_of(error)
        if kind == "machine":
            self._evict(running)
        else:
            self._free(running)
        words = memory_error(error) if out_of_memory(error) else error
        self._end_all(running, lambda _: words, kind)

    def _mark_unwanted(self, pooled: PooledJob) -> None:
        """Nobody waits for a job from now on."""
        pooled.owner.note(pooled.times("stopped"))
        pooled.state = JobState.UNWANTED

    def _mark_unwanted_where(self, unwanted: Callable[[PooledJob], bool]) -> None:
        """Nobody waits for these jobs from now on: a worker that does nothing else is ended."""
        for running in list(self._running.values()):
            for pooled in running.wanted:
                if unwanted(pooled):
                    self._mark_unwanted(pooled)
            self._free_if_unused(running)

    # What becomes of their workers

    def _free_if_unused(self, running: WorkerRun) -> None:
        """A worker without wanted jobs is idle if all have ended, and is ended if it trains what nobody wants."""
        if running.wanted or running.stream not in self._running:
            return
        if all(pooled.state is JobState.ENDED for pooled in running.jobs):
            self._free(running)
        else:
            self._evict(running)

    def _free(self, running: WorkerRun) -> None:
        del self._running[running.stream]
        self._workers.give_back(running.actor)

    def _evict(self, running: WorkerRun) -> None:
        """End a worker; another one is started when jobs wait for it."""
        del self._running[running.stream]
        self._workers.evict(running.actor)
        self._starter.forget(running.actor)

    def _read_worker(self, found: ObjectRef[Any]) -> None:
        error = self._workers.answered(found)
        if error is None:
            return
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError) and not self._workers.all:  # no worker can do it before the user has acted
            raise cause from None
        if not self._workers.all and self._queue:  # somebody has to count how often this is tried
            for entry in self._queue.take():
                entry.owner.tell(JobFailedReport(entry.spec.job, _in_words(error), "machine"))
            return
        text = f"one could not be started: {cause if isinstance(cause, UserError) else _in_words(error)}"
        if text not in self._told:
            self._told.add(text)
            for executor in self._owners:
                executor.tell(NoticeReport("workers", text))


def _in_words(error: RayError) -> BaseException:
    """Ray's error, or what to do where memory was short. A mere crash names the memory too, as one possible cause."""
    if isinstance(error, OutOfMemoryError) or "running low on memory" in str(error):
        return memory_error(error)
    text = _COLOUR.sub("", str(error)).strip()
    if "creation task" in text:
        return RunError(f"a worker could not be started: {text.splitlines()[-1].strip()}")
    return error
