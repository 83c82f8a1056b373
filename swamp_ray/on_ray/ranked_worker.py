"""A particle that trains on several devices: an actor that holds no device itself, and ranks that Ray Train starts.

The ranks stay: one training loop takes job after job, so that networks, data and connections are made once. What goes
wrong on a rank ends the whole group, and reaches the driver as it was raised; retrying is the driver's business.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import exit_actor
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util import remove_placement_group

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import LostRankError, RunError
from swamp_ray.on_ray.rank import LOOK_S, Built, Ended, Given, RankedJob, work_as_rank
from swamp_ray.run.capacity import worker_resources
from swamp_ray.run.failures import memory_error
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.placement import worker_labels
from swamp_ray.run.shared_code import NO_CODE, Code
from swamp_ray.run.timesheet import Whereabouts
from swamp_ray.run.worker import Message
from swamp_ray.storage.job_log import JobLog
from swamp_ray.storage.places import open_place
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.results import Progress

PROGRESS_INTERVAL_S = 0.25
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Nodes may have to start first; and the pool says itself that no worker is there.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(10**7),
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A rank that waits for one that is gone does not take leave of it.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",
}
"""For the coordinator; what Ray Train starts from there inherits it."""


class RankedActor:
    """Stands for the ranks of one particle as one worker of a pool; runs that differ in their seed alone share it.

    Args:
        configs: The runs.
        data: A list of one reference: the data is fetched by the ranks.
        arithmetic: As resolved when the run started.
        storage: Storage root.
        code: The user code that every rank must have.
    """

    def __init__(self, configs: Sequence[SwampConfig], data: list[ObjectRef[Data]], arithmetic: Arithmetic,
                 storage: str, code: Code = NO_CODE) -> None:
        self._group: _Group | None = None
        self._generation = 0
        self.setup(configs, data, arithmetic, storage, code)

    def setup(self, configs: Sequence[SwampConfig], data: list[ObjectRef[Data]], arithmetic: Arithmetic,
              storage: str, code: Code = NO_CODE) -> None:
        """Work for these runs from now on."""
        self._runs = configs, data, arithmetic, storage, code
        self._start()

    def ready(self) -> Whereabouts:
        """Answer: all ranks are there, and the job before has ended."""
        return self._living().wait_until_built().where

    def run(self, member: int, spec: JobSpec, given: list[Any]) -> Iterator[Message]:
        """Stream a job's progress, its outcome, and its state.

        Args:
            member: Which of the runs.
            spec: What to do.
            given: References to start, mask and values.
        """
        last = 0.0
        group = self._living()
        messages = group.run(RankedJob(member, spec, given), ray.get_runtime_context().is_canceled)
        with contextlib.closing(messages), self._noted(spec, group):
            for message in messages:
                now = time.monotonic()
                if isinstance(message, Progress) and now - last < PROGRESS_INTERVAL_S:
                    continue
                last = now
                yield message

    @contextlib.contextmanager
    def _noted(self, spec: JobSpec, group: _Group) -> Iterator[None]:
        """Only rank 0 writes the job's log, and it has ended with the others: what Ray Train saw of them follows."""
        try:
            yield
        finally:
            if group.report:
                configs, _, _, storage, _ = self._runs
                log = JobLog(open_place(storage, configs[0].execution.storage_patience_s), spec.log_path)
                log(f"{spec.job}: its ranks have ended. {group.report}")
                log.close()

    @ray.method(concurrency_group="ranks")
    def end(self) -> None:
        """End the ranks, whatever they do, and this process.

        Ray keeps a placement group until the whole job ends if its makers are killed.
        """
        if self._group is not None:
            self._group.abandon()
        exit_actor()

    @ray.method(concurrency_group="ranks")
    def next_job(self, generation: int) -> RankedJob | None:
        """The next job, once there is one; None: the group is to end (asked by its first rank)."""
        group = self._group
        return group.ranked_jobs.get() if group is not None and group.generation == generation else None

    @ray.method(concurrency_group="ranks")
    def say(self, generation: int, message: Message | Ended | Built) -> None:
        """Take in what the first rank says."""
        group = self._group
        if group is not None and group.generation == generation:
            group.hear(message)

    @ray.method(concurrency_group="ranks")
    def stopping(self, generation: int) -> bool:
        """Whether the job is to write a checkpoint and end."""
        group = self._group
        return group is None or group.generation != generation or group.stopping

    def _living(self) -> _Group:
        """The group; a new one where the last has ended."""
        if self._group is None or self._group.ended.is_set():
            self._start()
        assert self._group is not None
        return self._group

    def _start(self) -> None:
        if self._group is not None:
            self._group.close()
        self._generation += 1
        self._group = _Group(*self._runs, self._generation)


class _Group:
    """One set of ranks, from when Ray Train is asked for them to their end."""

    def __init__(self, configs: Sequence[SwampConfig], data: list[ObjectRef[Data]], arithmetic: Arithmetic,
                 storage: str, code: Code, generation: int) -> None:
        self.generation = generation
        self.stopping = False
        self.ranked_jobs: queue.Queue[RankedJob | None] = queue.Queue()
        self.messages: queue.Queue[Any] = queue.Queue()
        self.ended = threading.Event()
        self.report = ""
        self._error: BaseException | None = None
        self._built: Built | None = None
        self._folder = tempfile.mkdtemp(prefix="swamp-train-")
        coordinator = ray.get_runtime_context().current_actor
        given = Given(configs, data, arithmetic, storage, code, coordinator, generation)
        self._thread = threading.Thread(target=self._fit, args=(given,), daemon=True)
        self._thread.start()

    def wait_until_built(self) -> Built:
        """Return once the ranks are there.

        Raises:
            RunError: They could not be started.
        """
        while self._built is None:
            if self.ended.is_set():
                raise self._error or RunError("the ranks of a particle ended before they began")
            time.sleep(LOOK_S)
        return self._built

    def hear(self, message: Any) -> None:
        """Take in what the first rank says."""
        if isinstance(message, Built):
            self._built = message
            shutil.rmtree(self._folder, ignore_errors=True)  # Train looks at it only when it starts
        else:
            self.messages.put(message)

    def run(self, ranked: RankedJob, cancelled: Callable[[], bool]) -> Generator[Message]:
        """Do a job; what the ranks say of it, until it has ended. Whoever closes this waits for their checkpoint."""
        self.wait_until_built()
        self.stopping = False
        self.ranked_jobs.put(ranked)
        while not isinstance(message := self._next(cancelled), Ended):
            try:
                yield message
            except GeneratorExit:  # Ray ends a cancelled job where it gives something
                while not isinstance(self._next(lambda: True), Ended):
                    pass
                raise
        if message.error is not None:
            raise message.error

    def close(self) -> None:
        """Send the ranks home, and wait until they have gone."""
        self.ranked_jobs.put(None)
        self.stopping = True
        self._thread.join()

    def abandon(self) -> None:
        """End the ranks where they stand; those that are not there yet as soon as they are."""
        while self._built is None and not self.ended.is_set():
            time.sleep(LOOK_S)
        if self._built is not None:
            remove_placement_group(self._built.placement)

    def _next(self, cancelled: Callable[[], bool]) -> Any:
        while True:
            if cancelled():
                self.stopping = True
            try:
                return self.messages.get(timeout=LOOK_S)
            except queue.Empty:
                if self.ended.is_set() and self.messages.empty():
                    raise self._error or RunError("the ranks of a particle ended without a result") from None

    def _fit(self, given: Given) -> None:
        try:
            _trainer(given, self._folder).fit()
        except BaseException as error:
            self._error = cause_of(error, given.arithmetic.ranks)
            self.report = str(error)
        finally:
            self.ranked_jobs.put(None)
            self.ended.set()
            shutil.rmtree(self._folder, ignore_errors=True)


def _trainer(given: Given, folder: str) -> Any:
    """Ray Train's trainer of a group: its workers are the ranks, in a placement group of their own."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        work_as_rank(given)

    execution = given.configs[0].execution
    asked = worker_resources(execution, given.arithmetic.device)
    resources = {kind: amount for kind, amount in asked.items() if amount}
    return TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=given.arithmetic.ranks, use_gpu=bool(resources.get("GPU")),
            resources_per_worker=resources or {"CPU": 0.001},
            placement_strategy="PACK" if execution.placement == "pack" else "SPREAD",
            label_selector=worker_labels(execution) or None),
        run_config=RunConfig(
            name="ranks", storage_path=folder,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)))


def cause_of(error: BaseException, num_ranks: int) -> BaseException:
    """What a group really ended of: a rank's own error before those of ranks that missed it, and no words of Train's.

    Args:
        error: What ``fit`` raised.
        num_ranks: k.
    """
    failures = dict(sorted(getattr(error, "worker_failures", {}).items()))
    for one in failures.values():
        if not isinstance(one, LostRankError | RayError) and not _is_trains(one):
            return one
    for rank, one in failures.items():
        if not isinstance(one, LostRankError):
            if isinstance(one, OutOfMemoryError) or "running low on memory" in str(one):
                return memory_error(one)
            return LostRankError(f"rank {rank} of {num_ranks} was lost: {_first_line(one)}")
    if failures:
        return next(iter(failures.values()))
    inner = getattr(error, "controller_failure", None) or error
    return LostRankError(f"the {num_ranks} ranks could not be started: {_first_line(inner)}")


def _is_trains(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")


def _first_line(error: BaseException) -> str:
    if isinstance(getattr(error, "health_check_failure", error), RayActorError):
        return "its process or its node has gone"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def end_worker(actor: Any) -> None:
    """End a pool's worker at once: the actor alone, or one that stands for ranks together with them."""
    if hasattr(actor, "end"):
        actor.end.remote()
    else:
        ray.kill(actor)


def start_ranked(given: tuple[Any, ...], environment: dict[str, str]) -> Any:
    """A coordinator; it asks for no resources itself.

    Args:
        given: Arguments of :class:`RankedActor`.
        environment: Variables of the ranks' processes.
    """
    decorator: Any = ray.remote
    kind = decorator(concurrency_groups={"ranks": 4})(RankedActor)
    return kind.options(num_cpus=0, max_restarts=0,
                        runtime_env={"env_vars": {**environment, **TRAIN_ENVIRONMENT}}).remote(*given)
