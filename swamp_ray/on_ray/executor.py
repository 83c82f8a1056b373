"""The executor on Ray: one run's share of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from swamp_ray.errors import CorruptArtifactError, RunError, first_line
from swamp_ray.method.events import Job
from swamp_ray.on_ray.pool import Pool
from swamp_ray.run.failures import memory_error, out_of_memory
from swamp_ray.run.messages import (
    AveragerLostReport,
    AverageSpec,
    Handle,
    JobSpec,
    NoticeReport,
    Outcome,
    Report,
    RoundAveragedReport,
    StateLostReport,
)
from swamp_ray.run.object_store_memory import RoundBytes
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.timesheet import JobTimes, Shift
from swamp_ray.sparsity.compact import spans
from swamp_ray.storage.artifacts import without_advice


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
        self._states: dict[Job, list[ObjectRef[Any]]] = {}
        self._additions: dict[ObjectRef[Any], Job] = {}
        self._complete: tuple[AverageSpec, Handle, Handle] | None = None
        self._averaging: dict[ObjectRef[Any], tuple[AverageSpec, Shift]] = {}
        self._reports: list[Report] = []
        self._worked: list[JobTimes] = []
        self._told_shortage = False

    @property
    def num_workers(self) -> int:
        """How many jobs run side by side."""
        return self._pool.num_workers

    @property
    def awaited(self) -> list[ObjectRef[Any]]:
        """References that the averaging actors answer."""
        return [*self._additions, *self._averaging]

    def put(self, value: Any) -> Handle:
        """A reference into the object store."""
        return ray.put(value)

    def submit(self, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        self._pool.submit(self, spec, start, mask_bits, values, urgent)

    def add(self, job: Job, outcome: Outcome, size: int, from_storage: bool) -> None:
        """Let a state enter the average; actor calls keep their order. A state that was lost is read from storage."""
        pieces = self._states.pop(job, None)
        actors = self._pool.averagers.actors()
        actors = actors[:len(spans(size, len(actors)))]
        given = [None] * len(actors) if from_storage or not pieces else pieces
        for actor, piece in zip(actors, given, strict=True):
            call = actor.add.remote(self.member, job, outcome.name, outcome.digest, size, piece)
            self._additions[call] = job

    def release(self, job: Job) -> None:
        """Release a state that waits for the average."""
        self._states.pop(job, None)

    def room_for_states(self, needs: RoundBytes, asked: int) -> int:
        """As many as were asked for or fit into the object stores; tells the user where memory is short."""
        room, text = self._pool.room_for_states(needs, asked)
        if text is not None and not self._told_shortage:
            self._told_shortage = True
            self.tell(NoticeReport("object store", text))
        return room

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close a round's average, once every shard has said that it has all states."""
        self._complete = spec, start, mask_bits
        self._close_complete()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or end the worker that does it."""
        self._pool.cancel(self, job)
        self._states.pop(job, None)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Reports since the last call; blocks for the pool's next message, which may concern another run."""
        if not self._reports:
            self._pool.pump(timeout_s)
        reports = self._reports
        self._reports = []
        return reports

    def worked(self) -> list[JobTimes]:
        """Timings of jobs that ended since the last call."""
        worked = self._worked
        self._worked = []
        return worked

    def note(self, worked: JobTimes) -> None:
        """Keep a job's times for the next call of `worked`."""
        self._worked.append(worked)

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Cancel the running jobs, which then write a checkpoint, and wait until their actors are idle."""
        self._pool.stop(grace_s, hurry, self)

    def close(self) -> None:
        """End all jobs; with the last run of a pool all its actors."""
        self._states.clear()
        self._forget_average()
        self._pool.leave(self)

    def tell(self, report: Report) -> None:
        """Keep a report for the next call of `wait`."""
        self._reports.append(report)

    def keep_state(self, job: Job, pieces: list[ObjectRef[Any]]) -> None:
        """Keep the pieces of a job's state for the average."""
        self._states[job] = pieces

    def read_average(self, found: ObjectRef[Any]) -> None:
        """Take in an answer of an averaging actor."""
        begun = self._averaging.pop(found, None)
        job = self._additions.pop(found, None)
        try:
            result = ray.get(found)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if job is not None and isinstance(cause, CorruptArtifactError):
                self._forget_average()
                self.tell(StateLostReport(job, without_advice(cause)))
            elif isinstance(cause, RayError) or isinstance(error, ObjectLostError):
                self._lose_average(cause or error)
            elif isinstance(cause, BaseException) and out_of_memory(cause):
                self._lose_average(memory_error(cause))
            else:
                raise (cause if isinstance(cause, Exception) else RunError(str(error))) from error
        except RayError as error:
            self._lose_average(error)
        else:
            if begun is not None:
                spec, shift = begun
                self.note(shift.over(Job("average", spec.round), "done"))
                self.tell(RoundAveragedReport(spec.round, result))
            self._close_complete()

    def _close_complete(self) -> None:
        # The shards are asked by the first of them, whose calls have no order with this process's.
        if self._complete is None or self._additions:
            return
        (spec, start, mask_bits), self._complete = self._complete, None
        first, *others = self._pool.averagers.actors()
        call = first.finish.remote(self.member, spec, start, mask_bits, others)
        self._averaging[call] = spec, Shift(None)

    def _lose_average(self, error: BaseException) -> None:
        """Everything enters it again, from storage: what waits in memory may have been lost with its node as well."""
        died = self._pool.averagers.died(error)
        for spec, shift in self._averaging.values():
            self.note(shift.over(Job("average", spec.round), "machine"))
        self._states = {job: [] for job in self._states}
        self._forget_average()
        self.tell(AveragerLostReport(first_line(error), died=died))

    def _forget_average(self) -> None:
        self._additions.clear()
        self._averaging.clear()
        self._complete = None
