"""The processes of a pool as Ray actors: particle workers and averaging shards, and those that wait for work."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError
from swamp_ray.method.events import Job
from swamp_ray.run.averager import Averager
from swamp_ray.run.messages import AverageSpec, JobSpec
from swamp_ray.run.packs import Said, alone, train_packed
from swamp_ray.run.shard import Shard
from swamp_ray.run.shared_code import NO_CODE, Code
from swamp_ray.run.state import State
from swamp_ray.run.timesheet import Whereabouts
from swamp_ray.run.worker import Worker
from swamp_ray.sparsity.compact import CompactState
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.selection import Ask, here
from swamp_ray.training.arithmetic import Arithmetic, applied
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.packs.timing import PackingTime, time_packings
from swamp_ray.training.results import Progress

PROGRESS_INTERVAL_S = 0.25
STOP_INTERVAL_S = 0.1
SPARE_S = 5.0
"""A spare actor that does not answer for so long is not used."""


class ParticleActor:
    """A particle worker as a Ray actor; runs that differ in their seed alone share one."""

    def __init__(self, configs: Sequence[SwampConfig], data: list[ObjectRef[Data]], arithmetic: Arithmetic,
                 storage: str, code: Code = NO_CODE) -> None:
        self._workers: dict[int, Worker] = {}
        self.setup(configs, data, arithmetic, storage, code)

    def setup(self, configs: Sequence[SwampConfig], data: list[ObjectRef[Data]], arithmetic: Arithmetic,
              storage: str, code: Code = NO_CODE) -> None:
        """Work for these runs from now on, and forget those before.

        What the user has to change is raised by :meth:`ready`: Ray would hide it, and start the actor again.

        Args:
            configs: The runs.
            data: A list of one reference: user code must be in place before its samples are unpacked.
            arithmetic: As resolved when the run started.
            storage: Storage root.
            code: The user code that this process must have.
        """
        self._workers.clear()
        self._packs: dict[str, Pack] = {}
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._configs = configs
        self._arithmetic = arithmetic
        self._storage = storage
        self._problem: UserError | None = None
        try:
            code.take_over()
            self._data = ray.get(data[0])
            self._worker(0)
        except UserError as error:
            self._problem = error

    def ready(self) -> Whereabouts:
        """Answer: the worker is built, the job before has ended, and its node is alive."""
        self._worker(0)  # raises again what went wrong in a later setup
        return Whereabouts(socket.gethostname(), ":".join([self._arithmetic.device, *self._accelerators()]))

    def run(self, members: list[int], specs: list[JobSpec], *given: Any) -> Iterator[Said | CompactState]:
        """Stream the progress, the outcomes and the states of one job, or of several that are packed.

        The pieces of a state come bare, so that the averaging actors get them as they are.

        Args:
            members: Which of the runs each job belongs to.
            specs: What to do.
            given: Start, mask and surviving values, for one job after the other.
        """
        last: dict[int, float] = {}
        inputs: list[Any] = [given[first:first + 3] for first in range(0, len(given), 3)]
        for index, message in self._said(members, specs, inputs, _Cancelled()):
            now = time.monotonic()
            if isinstance(message, Progress) and now - last.get(index, 0.0) < PROGRESS_INTERVAL_S:
                continue
            last[index] = now
            yield message if isinstance(message, CompactState) else (index, message)

    def _accelerators(self) -> list[str]:
        if self._arithmetic.device == "cpu":
            return []
        return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])

    def measure(self, packings: Sequence[str]) -> list[PackingTime]:
        """How long a particle's step takes in each form and width of packing."""
        self._worker(0)
        with applied(self._arithmetic):
            return time_packings(self._configs[0], self._data, self._arithmetic, packings)

    def _said(
        self, members: list[int], specs: list[JobSpec], inputs: Sequence[Any], stop: Callable[[], bool]
    ) -> Iterator[Said]:
        workers = [self._worker(member) for member in members]
        if not specs[0].is_packed:
            yield from alone(workers[0].run(specs[0], *inputs[0], stop=stop))
            return
        arithmetic = self._arithmetic.packed(specs[0].packing)
        with applied(arithmetic):
            yield from train_packed(self._pack(arithmetic), workers, specs, inputs, stop)

    def _pack(self, arithmetic: Arithmetic) -> Pack:
        """Seats for that many particles; only those of one form and width are kept, for they hold memory."""
        if arithmetic.packing not in self._packs:
            self._packs.clear()
            self._packs[arithmetic.packing] = Pack(
                self._configs[0], self._data, arithmetic, self._worker(0).trainer.batches_by_split)
        return self._packs[arithmetic.packing]

    def _worker(self, member: int) -> Worker:
        if self._problem is not None:
            raise self._problem
        if member not in self._workers:
            batches = self._workers[0].trainer.batches_by_split if self._workers else None
            self._workers[member] = Worker(
                self._configs[member], self._data, self._arithmetic, self._storage, batches)
        return self._workers[member]


class _Cancelled:
    """Whether the driver has cancelled the running job; asked after every step, it looks only now and then."""

    def __init__(self) -> None:
        self._found = False
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now >= self._next:
            self._found = ray.get_runtime_context().is_canceled()
            self._next = now + STOP_INTERVAL_S
        return self._found


class AveragingActor:
    """A shard of the averages of one run, or of several, as a Ray actor; the first of them puts rounds together."""

    def __init__(self, configs: Sequence[SwampConfig], layout: Layout, storage: str, index: int,
                 code: Code = NO_CODE) -> None:
        self.setup(configs, layout, storage, index, code)

    def setup(self, configs: Sequence[SwampConfig], layout: Layout, storage: str, index: int,
              code: Code = NO_CODE) -> None:
        """Average for these runs from now on, and forget those before; `code`: of a score of the user's own."""
        self._problem: UserError | None = None
        try:
            code.take_over()
        except UserError as error:
            self._problem = error
        self._shards = [Shard(config, layout, storage, index) for config in configs]

    def add(self, member: int, job: Job, name: str, digest: str, size: int, compact: CompactState | None) -> None:
        """Let a particle's slice enter the average; the shared arrays are only read."""
        if self._problem is not None:
            raise self._problem
        self._shards[member].add(job.round, job.particle, name, digest, size, compact)

    def call(self, member: int, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a method of :class:`Shard`, for the shard that puts the round together."""
        return method(self._shards[member], *args, **kwargs)

    def finish(self, member: int, spec: AverageSpec, start: State, mask_bits: np.ndarray, others: list[Any]) -> str:
        """Close the round's average; ``others`` are the actors of the other shards, in order."""
        own = self._shards[member]
        shards: list[Ask[Shard]] = [here(own)]
        shards += [elsewhere(actor, member) for actor in others]
        return Averager(own.config, own.layout, own.store).finish(spec, start, mask_bits, shards)


def elsewhere(actor: Any, member: int) -> Ask[Shard]:
    """A shard in another actor; it works from the moment it is asked."""

    def ask(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
        reference = actor.call.remote(member, method, *args, **kwargs)
        return lambda: _get(reference)

    return ask


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


def worker_environment(execution: ExecutionConfig) -> dict[str, str]:
    """Threads, deterministic cuBLAS, and an allocator that keeps freed memory.

    With glibc's defaults particles were seen to train up to a tenth slower in an actor than inline on the CPU; keeping
    freed memory took most of that away.
    """
    return {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
            "MALLOC_TOP_PAD_": str(1 << 26),
            "OMP_NUM_THREADS": str(execution.threads), "MKL_NUM_THREADS": str(execution.threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
