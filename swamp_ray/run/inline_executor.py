"""The executor without Ray: everything in this process, one job at a time.

For a debugger, and as the yardstick for what the orchestration costs.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.method.events import Job
from swamp_ray.run.averager import Averager
from swamp_ray.run.failures import kind_of, memory_error, out_of_memory
from swamp_ray.run.messages import (
    AverageSpec,
    BlockedByLease,
    Handle,
    JobAdvancedReport,
    JobBlockedReport,
    JobFailedReport,
    JobFinishedReport,
    JobSpec,
    JobStartedReport,
    Outcome,
    Report,
    RoundAveragedReport,
    StateLostReport,
)
from swamp_ray.run.object_store_memory import RoundBytes
from swamp_ray.run.packs import PackedJobFailed, Said, alone, train_packed
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.queue import JobQueue, QueuedJob
from swamp_ray.run.shard import Shard, num_shards
from swamp_ray.run.signals import Stopping
from swamp_ray.run.timesheet import Ending, JobTimes, Shift, Whereabouts
from swamp_ray.run.worker import Message, Worker
from swamp_ray.sparsity.compact import CompactState, spans
from swamp_ray.sparsity.selection import here
from swamp_ray.storage.artifacts import without_advice
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.results import Progress
from swamp_ray.user_code.loading import frozen


class InlineExecutor:
    """Runs jobs in the order of the queue, an epoch a call of :meth:`wait`.

    Args:
        prepared: The run.
        storage: Storage root.
        stopping: A training that is asked to stop writes a checkpoint first, then KeyboardInterrupt is raised.
    """

    def __init__(self, prepared: Prepared, storage: str, stopping: Stopping) -> None:
        self._stopping = stopping
        prepared.code.check_imported()
        self._code = contextlib.ExitStack()
        self._code.enter_context(frozen(prepared.code.digests))
        self._worker = Worker(prepared.config, prepared.data, prepared.arithmetic, storage)
        self._shards = [Shard(prepared.config, prepared.layout, storage, index)
                        for index in range(num_shards(prepared.config, prepared.layout))]
        self._averager = Averager(prepared.config, prepared.layout, self._shards[0].store)
        self._backlog: JobQueue[None] = JobQueue()
        self._running: _Running | None = None
        self._prepared = prepared
        self._pack: Pack | None = None
        self._states: dict[Job, list[CompactState]] = {}
        self._reports: list[Report] = []
        self._where = Whereabouts(socket.gethostname(), prepared.arithmetic.device)
        self._worked: list[JobTimes] = []

    @property
    def num_workers(self) -> int:
        """One job at a time."""
        return 1

    def put(self, value: Any) -> Handle:
        """The value itself."""
        return value

    def submit(self, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job."""
        self._backlog.add(QueuedJob(None, spec, (start, mask_bits, values)), urgent)

    def add(self, job: Job, outcome: Outcome, size: int, from_storage: bool) -> None:
        """Average a state now."""
        shards = self._shards[:len(spans(size, len(self._shards)))]
        pieces = [None] * len(shards) if from_storage else self._states.pop(job)
        try:
            for shard, piece in zip(shards, pieces, strict=True):
                shard.add(job.round, job.particle, outcome.name, outcome.digest, size, piece)
        except CorruptArtifactError as error:
            self._reports.append(StateLostReport(job, without_advice(error)))

    def release(self, job: Job) -> None:
        """Release a state that waits for the average."""
        self._states.pop(job, None)

    def room_for_states(self, needs: RoundBytes, asked: int) -> int:
        """As many as were asked for: jobs finish in order, and none waits."""
        return asked

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or leave it where it is."""
        self._backlog.forget(lambda entry: entry.spec.job == job)
        running = self._running
        if running is not None and job in running.open:
            self._over(running, job, "stopped")
            if not running.open:
                self._end(running)
        self._states.pop(job, None)

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close the round's average now."""
        if any(isinstance(report, StateLostReport) for report in self._reports):
            return
        shards = [here(shard) for shard in self._shards]
        shift = Shift(0, self._where)
        self._reports.append(RoundAveragedReport(spec.round, self._averager.finish(spec, start, mask_bits, shards)))
        self._worked.append(shift.over(Job("average", spec.round), "done"))

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Work until there is something to report; without work, wait for others."""
        while not self._reports and (self._running or self._backlog):
            self._step()
        if not self._reports:
            time.sleep(timeout_s)
        reports = self._reports
        self._reports = []
        return reports

    def worked(self) -> list[JobTimes]:
        """What was done since the last call."""
        worked = self._worked
        self._worked = []
        return worked

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Nothing runs while the driver is asking."""

    def close(self) -> None:
        """Forget whatever is queued or running."""
        self._end(self._running)
        self._backlog = JobQueue()
        self._code.close()

    def _step(self) -> None:
        if self._running is None:
            self._running = self._start(self._backlog.take())
        running = self._running
        try:
            with self._stopping.noted():
                index, message = next(running.steps)
        except StopIteration:
            raise KeyboardInterrupt from None
        except Exception as error:
            self._running = None
            # Out of memory: there is no other process that might fare better.
            kind, words = ("error", memory_error(error)) if out_of_memory(error) else (kind_of(error), error)
            for job in list(running.open):
                self._report(running, job, JobFailedReport(job, words, kind), kind)
            return
        self._hear(running, running.specs[index], message)
        if not running.open:
            self._end(running)

    def _start(self, entries: list[QueuedJob[None]]) -> _Running:
        specs = [entry.spec for entry in entries]
        shift = Shift(0, self._where)
        for spec in specs:
            self._reports.append(JobStartedReport(spec.job, shift.start(spec.job, spec.attempt, spec.reseed)))
        if not specs[0].is_packed:
            return _Running(shift, specs, alone(self._worker.run(specs[0], *entries[0].given, self._stopping.asked)))
        return _Running(shift, specs, self._train_pack(entries))

    def _train_pack(self, entries: list[QueuedJob[None]]) -> Generator[Said]:
        arithmetic = self._prepared.arithmetic.packed(entries[0].spec.packing)
        with applied(arithmetic):
            if self._pack is None:
                prepared = self._prepared
                self._pack = Pack(prepared.config, prepared.data, arithmetic, self._worker.trainer.batches_by_split)
            yield from train_packed(self._pack, [self._worker] * len(entries), [entry.spec for entry in entries],
                                    [entry.given for entry in entries], self._stopping.asked)

    def _hear(self, running: _Running, spec: JobSpec, message: Message | PackedJobFailed) -> None:
        job = spec.job
        if isinstance(message, Outcome):
            following = islice(running.steps, message.num_pieces)
            pieces = [piece for _, piece in following if isinstance(piece, CompactState)]
            if job in running.open and pieces:
                self._states[job] = pieces
            finished = JobFinishedReport(job, message, in_memory=job in self._states)
            self._report(running, job, finished, "done", message.trained_epochs)
        elif isinstance(message, Progress):
            self._report(running, job, JobAdvancedReport(job, message))
        elif isinstance(message, BlockedByLease):
            self._report(running, job, JobBlockedReport(spec, message.held), "given back")
        elif isinstance(message, PackedJobFailed):
            kind = kind_of(message.error)
            self._report(running, job, JobFailedReport(job, message.error, kind), kind)

    def _report(self, running: _Running, job: Job, report: Report, how: Ending | None = None, epochs: int = 0
                ) -> None:
        """Tell of a job that somebody waits for, and, where it has ended, how."""
        if job in running.open:
            self._reports.append(report)
            if how is not None:
                self._over(running, job, how, epochs)

    def _over(self, running: _Running, job: Job, how: Ending, epochs: int = 0) -> None:
        spec = running.open.pop(job)
        self._worked.append(running.shift.over(job, how, spec.attempt, spec.reseed, epochs))

    def _end(self, running: _Running | None) -> None:
        if running is not None:
            for job in list(running.open):
                self._over(running, job, "stopped")
            getattr(running.steps, "close", lambda: None)()
        self._running = None


class _Running:
    """Jobs that are being done: one, or several that are packed; ``open``: those that somebody waits for."""

    def __init__(self, shift: Shift, specs: list[JobSpec], steps: Iterator[Said]) -> None:
        self.shift = shift
        self.specs = specs
        self.steps = steps
        self.open = {spec.job: spec for spec in specs}
