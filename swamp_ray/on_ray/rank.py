"""What each rank of a particle does, as the training function that Ray Train runs on it.

Rank 0 leads: it takes jobs from the coordinator (:mod:`swamp_ray.on_ray.ranked_worker`), does them as any worker does,
and says what comes of them. The others follow it, and know no Ray.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import get_current_placement_group, remove_placement_group

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import DivergedError, RunError
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.shared_code import Code
from swamp_ray.run.timesheet import Whereabouts
from swamp_ray.run.worker import Message, Worker
from swamp_ray.training.arithmetic import Arithmetic, applied, local_device
from swamp_ray.training.rank_following import follow
from swamp_ray.training.ranks import Ranks
from swamp_ray.training.trainer import ParticleTrainer

LOOK_S = 0.1
"""How often a coordinator looks whether its job was cancelled, and its first rank whether it has to stop."""


@dataclass(frozen=True)
class RankedJob:
    """What the first rank does next; ``given`` are references to start, mask and values."""

    member: int
    spec: JobSpec
    given: list[Any]


@dataclass(frozen=True)
class Ended:
    """A job has ended: well, or by an error that all ranks have seen."""

    error: BaseException | None = None


@dataclass(frozen=True)
class Built:
    """The ranks are there, in this placement group; ``where``: the first of them."""

    placement: Any
    where: Whereabouts


@dataclass(frozen=True)
class Given:
    """What the ranks of a group work with."""

    configs: Sequence[SwampConfig]
    data: list[ObjectRef[Data]]
    arithmetic: Arithmetic
    storage: str
    code: Code
    coordinator: Any
    generation: int


def work_as_rank(given: Given) -> None:
    """What every rank does: lead, or follow, until all are sent home.

    Errors that are raised here end the group; they have to reach the coordinator as they are.
    """
    if given.arithmetic.device == "cuda":
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
        local_device("cuda")
    try:
        given.code.take_over()
        ranks = Ranks()
        data = ray.get(given.data[0])
        if ranks.leads:
            with _tidy():
                _lead(given, ranks, data)
        else:
            _follow(given, ranks, data)
    except Exception as error:
        raise _portable(error) from None


def _lead(given: Given, ranks: Ranks, data: Data) -> None:
    workers: dict[int, Worker] = {}

    def worker(member: int) -> Worker:
        if member not in workers:
            batches = next(iter(workers.values())).trainer.batches_by_split if workers else None
            workers[member] = Worker(given.configs[member], data, given.arithmetic, given.storage, batches, ranks,
                                     member)
        return workers[member]

    def say(message: Message | Ended | Built) -> None:
        ray.get(given.coordinator.say.remote(given.generation, message))

    def next_job() -> RankedJob | None:
        found: Any = ray.get(given.coordinator.next_job.remote(given.generation))
        return found

    worker(0)
    devices = f"{given.arithmetic.ranks} x {given.arithmetic.device}"
    say(Built(get_current_placement_group(), Whereabouts(socket.gethostname(), devices)))
    while (ranked := next_job()) is not None:
        start, mask_bits, values = map(_fetched, ranked.given)
        stop = ranks.shared_stop(_Stopping(given))
        try:
            for message in worker(ranked.member).run(ranked.spec, start, mask_bits, values, stop):
                say(message)
        except DivergedError as error:  # all ranks have seen it, and wait for the next order
            say(Ended(error))
        else:
            say(Ended())
    ranks.send_instruction(None)


@contextlib.contextmanager
def _tidy() -> Iterator[None]:
    """If the coordinator is gone nobody else gives back what the ranks hold."""
    try:
        yield
    except RayActorError:
        placement = get_current_placement_group()
        if placement is not None:
            remove_placement_group(placement)
        raise


def _fetched(reference: Any) -> Any:
    return None if reference is None else ray.get(reference)


def _follow(given: Given, ranks: Ranks, data: Data) -> None:
    trainers: dict[int, ParticleTrainer] = {}

    def trainer(member: int) -> ParticleTrainer:
        if member not in trainers:
            batches = next(iter(trainers.values())).batches_by_split if trainers else None
            with applied(given.arithmetic):
                trainers[member] = ParticleTrainer(given.configs[member], data, given.arithmetic, batches, ranks,
                                                   member)
        return trainers[member]

    trainer(0)
    follow(ranks, trainer)


class _Stopping:
    """Whether the job was cancelled, as of the last answer: a question takes longer than a step."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._found = False
        self._next = 0.0
        self._question: Any = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._question is None and now >= self._next:
            self._question = self._given.coordinator.stopping.remote(self._given.generation)
        if self._question is not None:
            try:
                self._found = bool(ray.get(self._question, timeout=0))
            except GetTimeoutError:
                return self._found
            self._question = None
            self._next = now + LOOK_S
        return self._found


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot travel."""
    try:
        copy.deepcopy(error)  # takes it apart and makes it anew, as a journey does
    except Exception:  # an error of the user's may fail in any way
        return RunError(f"{type(error).__name__}: {error}")
    return error
