"""The executor on Ray: a pool of warm particle workers and one averaging actor.

The rewind weights and the data go into the object store once; a round broadcasts its mask as bits. States come
back as numpy buffers that belong to the driver, so that they outlive the worker that made them.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from swamp_ray.config import ExecutionConfig, SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.orchestration.averager import Averager
from swamp_ray.orchestration.cluster import connect, node_resources
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
    StateLost,
    WorkItem,
)
from swamp_ray.orchestration.preparation import Prepared, State
from swamp_ray.orchestration.resources import capacity, describe_resources, pool_size, worker_resources
from swamp_ray.orchestration.worker import Message, Worker
from swamp_ray.rounds import Work
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.packing import Packed
from swamp_ray.storage.artifacts import without_advice
from swamp_ray.storage.leases import Held
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.data import Data
from swamp_ray.training.particle import Progress

PROGRESS_INTERVAL_S = 0.25
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STOP_INTERVAL_S = 0.1


class ParticleActor:
    """A particle worker as a Ray actor."""

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic, storage: str) -> None:
        self._worker = Worker(config, data, arithmetic, storage)

    def ready(self) -> None:
        """Answer: the worker is built, the job before has ended, and its node is alive."""

    def run(
        self, item: WorkItem, start: State, mask_bits: np.ndarray, values: Packed | None
    ) -> Iterator[Message]:
        """Stream a job's progress, its outcome, and its state."""
        last = 0.0
        for message in self._worker.run(item, start, mask_bits, values, _Cancelled()):
            now = time.monotonic()
            if isinstance(message, Progress) and now - last < PROGRESS_INTERVAL_S:
                continue
            last = now
            yield message


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
    """The averager as a Ray actor."""

    def __init__(self, config: SwampConfig, layout: Layout, storage: str) -> None:
        self._averager = Averager(config, layout, storage)

    def add(self, work: Work, name: str, digest: str, packed: Packed | None) -> None:
        """Let a particle enter the average; the shared arrays are only read."""
        self._averager.add(work.round, work.particle, name, digest, packed)

    def finish(self, spec: AverageSpec, start: State, mask_bits: np.ndarray) -> str:
        """Close the round's average."""
        return self._averager.finish(spec, start, mask_bits)


@dataclass
class _Running:
    """A job on an actor; ``outcome`` once it is known, the state's reference follows."""

    actor: Any
    item: WorkItem
    stream: Any
    outcome: Outcome | None = None


class RayExecutor:
    """Runs jobs on a pool of actors; fewer workers than particles means several waves.

    Args:
        prepared: The run.
        storage: Storage root, an absolute path or a URL that every node sees.

    Raises:
        UserError: The cluster does not answer, or cannot hold a worker.
    """

    def __init__(self, prepared: Prepared, storage: str) -> None:
        self._prepared, self._storage = prepared, storage
        execution = prepared.config.execution
        self._owns_ray = connect(execution)
        try:
            most = max(plan.num_particles for plan in prepared.plan)
            self._resources = worker_resources(execution, prepared.arithmetic.device)
            self._num_workers = pool_size(execution, prepared.arithmetic.device, most, node_resources())
            self._data = ray.put(prepared.data)
        except BaseException:
            self._disconnect()
            raise
        self._crew = Crew(self._start_worker, self._num_workers, lambda: capacity(node_resources(), self._resources),
                          describe_resources(self._resources))
        self._queue: deque[tuple[WorkItem, Handle, Handle, Handle | None]] = deque()
        self._running: dict[Any, _Running] = {}
        self._held: dict[Work, ObjectRef[Any] | None] = {}
        self._averager: Any = None
        self._additions: dict[ObjectRef[Any], Work] = {}
        self._averaging: dict[ObjectRef[Any], AverageSpec] = {}
        self._reports: list[Report] = []
        self._told: set[str] = set()
        # All at once: starting an actor takes seconds, which the dense phase hides.
        self._crew.grow(self._num_workers)
        self._averager = self._start_averager()

    @property
    def num_workers(self) -> int:
        """How many jobs run side by side."""
        return self._num_workers

    def put(self, value: Any) -> Handle:
        """A reference into the object store."""
        return ray.put(value)

    def submit(self, item: WorkItem, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job, and start it if a worker is free."""
        entry = (item, start, mask_bits, values)
        if urgent:
            self._queue.appendleft(entry)
        else:
            self._queue.append(entry)
        self._fill()

    def add(self, work: Work, outcome: Outcome, from_storage: bool) -> None:
        """Let a state enter the average; actor calls keep their order. A state that was lost is read from storage."""
        packed = self._held.pop(work, None)
        averager = self._averager_now()
        packed = None if from_storage else packed
        self._additions[averager.add.remote(work, outcome.name, outcome.digest, packed)] = work

    def drop(self, work: Work) -> None:
        """Release a held state."""
        self._held.pop(work, None)

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close a round's average."""
        self._averaging[self._averager_now().finish.remote(spec, start, mask_bits)] = spec

    def cancel(self, work: Work) -> None:
        """Take a job out of the queue, or end the worker that does it."""
        self._queue = deque(entry for entry in self._queue if entry[0].work != work)
        for running in [running for running in self._running.values() if running.item.work == work]:
            del self._running[running.stream]
            self._crew.lose(running.actor)
        self._held.pop(work, None)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Wait for the next stream item, the averager, or a worker that has started."""
        self._fill()
        if self._queue and not self._running and (text := self._crew.silence()) is not None:
            self._reports.append(Notice("workers", text))
        if self._reports:
            return self._take_reports()
        waiting: list[Any] = [*self._running, *self._additions, *self._averaging, *self._crew.waiting]
        if not waiting:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        for found in ready:
            if found in self._running:
                self._read_stream(found)
            elif found in self._additions or found in self._averaging:
                self._read_averager(found)
            else:
                self._read_worker(found)
        self._fill()
        return self._take_reports()

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Cancel the running jobs, which then write a checkpoint, and wait until their actors are idle."""
        for running in self._running.values():
            ray.cancel(running.stream)
        waiting = [running.actor.ready.remote() for running in self._running.values()]
        end = time.monotonic() + grace_s
        while waiting and time.monotonic() < end and not hurry():
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=STOP_INTERVAL_S)

    def close(self) -> None:
        """End all actors; an embedded Ray ends as well."""
        for actor in [*self._crew.all, self._averager]:
            if actor is not None and ray.is_initialized():
                ray.kill(actor)
        self._running, self._averager = {}, None
        self._held.clear()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    def _take_reports(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def _fill(self) -> None:
        self._crew.grow(len(self._queue))
        while self._queue and (actor := self._crew.take()) is not None:
            item, start, mask_bits, values = self._queue.popleft()
            stream = actor.run.options(num_returns="streaming").remote(item, start, mask_bits, values)
            self._running[stream] = _Running(actor, item, stream)

    def _start_worker(self) -> Any:
        prepared = self._prepared
        kind: Any = ray.remote(ParticleActor)
        return kind.options(num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"], max_restarts=0,
                            runtime_env={"env_vars": _worker_environment(prepared.config.execution)}).remote(
            prepared.config, self._data, prepared.arithmetic, self._storage)

    def _averager_now(self) -> Any:
        if self._averager is None:
            self._averager = self._start_averager()
        return self._averager

    def _start_averager(self) -> Any:
        kind: Any = ray.remote(AveragingActor)
        return kind.options(num_cpus=0, max_restarts=0).remote(
            self._prepared.config, self._prepared.layout, self._storage)

    def _read_stream(self, stream: Any) -> None:
        running = self._running[stream]
        work = running.item.work
        try:
            reference = next(stream)
            if running.outcome is not None:
                self._held[work] = reference
                self._finish(running, held=True)
                return
            message = ray.get(reference)
        except StopIteration:
            if running.outcome is None:
                self._break(running, RunError(f"{work} ended without a result"), "machine")
            else:
                self._finish(running, held=False)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            self._break_off(running, cause if isinstance(cause, BaseException) else error)
        except RayError as error:
            self._lose(running, error)
        else:
            if isinstance(message, Outcome):
                running.outcome = message
                if running.item.program is None:
                    self._finish(running, held=False)
            elif isinstance(message, Progress):
                self._reports.append(Advanced(work, message))
            elif isinstance(message, Busy):
                self._block(running, message.held)

    def _finish(self, running: _Running, held: bool) -> None:
        self._crew.give_back(running.actor)
        self._done(running, held)

    def _done(self, running: _Running, held: bool) -> None:
        del self._running[running.stream]
        assert running.outcome is not None
        self._reports.append(Done(running.item.work, running.outcome, held))

    def _break(self, running: _Running, error: BaseException, kind: Literal["machine", "diverged", "error"]) -> None:
        del self._running[running.stream]
        self._crew.give_back(running.actor)
        self._reports.append(Broken(running.item.work, error, kind))

    def _break_off(self, running: _Running, error: BaseException) -> None:
        """The job raised an error. A worker that ran out of memory is not used again: what it holds may stay there."""
        if not out_of_memory(error):
            self._break(running, error, kind_of(error))
            return
        del self._running[running.stream]
        self._crew.lose(running.actor)
        self._reports.append(Broken(running.item.work, memory_error(error), "machine"))

    def _lose(self, running: _Running, error: RayError) -> None:
        """The worker is gone, by a crash, with its node, or for lack of memory."""
        self._crew.lose(running.actor)
        if running.outcome is not None:  # it had stored its result before it said so
            self._done(running, held=False)
            return
        del self._running[running.stream]
        self._reports.append(Broken(running.item.work, _in_words(error), "machine"))

    def _read_worker(self, found: ObjectRef[Any]) -> None:
        error = self._crew.answered(found)
        if error is None:
            return
        if not self._crew.all and self._queue:  # somebody has to count how often this is tried
            self._reports.append(Broken(self._queue.popleft()[0].work, _in_words(error), "machine"))
        elif (text := f"one could not be started: {_in_words(error)}") not in self._told:
            self._told.add(text)
            self._reports.append(Notice("workers", text))

    def _block(self, running: _Running, held: Held) -> None:
        del self._running[running.stream]
        self._crew.give_back(running.actor)
        self._reports.append(Blocked(running.item, held))

    def _read_averager(self, found: ObjectRef[Any]) -> None:
        spec, work = self._averaging.pop(found, None), self._additions.pop(found, None)
        try:
            result = ray.get(found)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if work is not None and isinstance(cause, CorruptArtifactError):
                self._forget_average()
                self._reports.append(StateLost(work, without_advice(cause)))
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
                self._reports.append(AverageDone(spec.round, result))

    def _lose_average(self, error: BaseException) -> None:
        """Everything enters it again, from storage: what waits in memory may have been lost with its node as well."""
        averager = self._averager_now()
        lives = isinstance(error, ObjectLostError) or (
            isinstance(error, RayActorError) and error.actor_id != averager._actor_id.hex())
        if not lives:
            ray.kill(averager)
            self._averager = None
        self._held = dict.fromkeys(self._held)
        self._forget_average()
        self._reports.append(AverageLost(_first_line(error), died=not lives))

    def _forget_average(self) -> None:
        self._additions.clear()
        self._averaging.clear()


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
