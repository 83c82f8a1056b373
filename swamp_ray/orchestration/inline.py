"""The executor without Ray: everything in this process, one job at a time.

For a debugger, and as the yardstick for what the orchestration costs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.orchestration.averager import Averager, Local
from swamp_ray.orchestration.failures import kind_of, memory_error, out_of_memory
from swamp_ray.orchestration.messages import (
    Advanced,
    AverageDone,
    AverageSpec,
    Blocked,
    Broken,
    Busy,
    Done,
    Handle,
    Outcome,
    Report,
    StateLost,
    WorkItem,
)
from swamp_ray.orchestration.preparation import Prepared
from swamp_ray.orchestration.shard import Shard, num_shards
from swamp_ray.orchestration.stopping import Stopping
from swamp_ray.orchestration.store_memory import RoundBytes
from swamp_ray.orchestration.worker import Message, Worker
from swamp_ray.rounds import Work
from swamp_ray.sparsity.packing import Packed, spans
from swamp_ray.storage.artifacts import without_advice
from swamp_ray.training.records import Progress


class InlineExecutor:
    """Runs jobs in the order of the queue, an epoch a call of :meth:`wait`.

    Args:
        prepared: The run.
        storage: Storage root.
        stopping: A training that is asked to stop writes a checkpoint first, then KeyboardInterrupt is raised.
    """

    def __init__(self, prepared: Prepared, storage: str, stopping: Stopping) -> None:
        self._stopping = stopping
        self._worker = Worker(prepared.config, prepared.data, prepared.arithmetic, storage)
        self._shards = [Shard(prepared.config, prepared.layout, storage, index)
                        for index in range(num_shards(prepared.config, prepared.layout))]
        self._averager = Averager(prepared.config, prepared.layout, self._shards[0].store)
        self._queue: deque[tuple[WorkItem, Handle, Handle, Handle | None]] = deque()
        self._running: tuple[WorkItem, Generator[Message]] | None = None
        self._held: dict[Work, list[Packed]] = {}
        self._reports: list[Report] = []

    @property
    def num_workers(self) -> int:
        """One job at a time."""
        return 1

    def put(self, value: Any) -> Handle:
        """The value itself."""
        return value

    def submit(self, item: WorkItem, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job."""
        entry = (item, start, mask_bits, values)
        if urgent:
            self._queue.appendleft(entry)
        else:
            self._queue.append(entry)

    def add(self, work: Work, outcome: Outcome, size: int, from_storage: bool) -> None:
        """Average a state now."""
        shards = self._shards[:len(spans(size, len(self._shards)))]
        pieces = [None] * len(shards) if from_storage else self._held.pop(work)
        try:
            for shard, piece in zip(shards, pieces, strict=True):
                shard.add(work.round, work.particle, outcome.name, outcome.digest, size, piece)
        except CorruptArtifactError as error:
            self._reports.append(StateLost(work, without_advice(error)))

    def drop(self, work: Work) -> None:
        """Release a held state."""
        self._held.pop(work, None)

    def waiting_room(self, needs: RoundBytes, asked: int) -> int:
        """As many as were asked for: jobs finish in order, and none waits."""
        return asked

    def cancel(self, work: Work) -> None:
        """Take a job out of the queue, or leave it where it is."""
        self._queue = deque(entry for entry in self._queue if entry[0].work != work)
        if self._running is not None and self._running[0].work == work:
            getattr(self._running[1], "close", lambda: None)()
            self._running = None
        self._held.pop(work, None)

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close the round's average now."""
        if any(isinstance(report, StateLost) for report in self._reports):
            return
        shards = [Local(shard) for shard in self._shards]
        self._reports.append(AverageDone(spec.round, self._averager.finish(spec, start, mask_bits, shards)))

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Work until there is something to report; without work, wait for others."""
        while not self._reports and (self._running or self._queue):
            self._step()
        if not self._reports:
            time.sleep(timeout_s)
        reports, self._reports = self._reports, []
        return reports

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Nothing runs while the driver is asking."""

    def close(self) -> None:
        """Forget whatever is queued or running."""
        if self._running is not None:
            self._running[1].close()
        self._queue.clear()
        self._running = None

    def _step(self) -> None:
        if self._running is None:
            item, start, mask_bits, values = self._queue.popleft()
            self._running = item, self._worker.run(item, start, mask_bits, values, self._stopping.asked)
        item, steps = self._running
        work = item.work
        try:
            with self._stopping.noted():
                message = next(steps)
        except StopIteration:
            raise KeyboardInterrupt from None
        except Exception as error:
            self._running = None
            if out_of_memory(error):  # there is no other process that might fare better
                self._reports.append(Broken(work, memory_error(error), "error"))
            else:
                self._reports.append(Broken(work, error, kind_of(error)))
            return
        if isinstance(message, Progress):
            self._reports.append(Advanced(work, message))
            return
        if isinstance(message, Busy):
            steps.close()
            self._running = None
            self._reports.append(Blocked(item, message.held))
            return
        assert isinstance(message, Outcome)
        pieces = [piece for piece in steps if isinstance(piece, Packed)]
        if pieces:
            self._held[work] = pieces
        self._running = None
        self._reports.append(Done(work, message, held=work in self._held))
