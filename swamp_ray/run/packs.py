"""Packed jobs of one worker side by side: each reports for itself, and what goes wrong with one ends that one alone."""

from __future__ import annotations

import contextlib
import copy
import pickle
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swamp_ray.errors import RunError
from swamp_ray.run.failures import out_of_memory
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.worker import Message, Steps, Worker
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch
from swamp_ray.training.training_run import GradientRequest


@dataclass(frozen=True)
class PackedJobFailed:
    """What a packed job says instead of an outcome: the error that ended it."""

    error: BaseException


Said = tuple[int, Message | PackedJobFailed]
"""Which of the jobs says it, and what."""


def train_together(pack: Pack, seated: Sequence[tuple[int, Steps]]) -> Generator[Said]:
    """Carry training jobs to their ends, step by step next to each other. The caller applies the arithmetic.

    A job's outcome is followed by the pieces of its state, with nothing of other jobs between them. Closed early, every
    job ends with a checkpoint.

    Args:
        pack: With a seat for each job.
        jobs: Each with the seat that it trains on.

    Raises:
        Exception: The joint computation failed, which ends all jobs.
    """
    open_jobs = dict(seated)
    numbers = {seat: number for number, (seat, _) in enumerate(seated)}
    answers: Mapping[int, Gradients] = {}
    try:
        with pack.randomness():
            while open_jobs:
                batches: dict[int, Batch] = {}
                for seat in list(open_jobs):
                    pending = yield from _until_pending(numbers[seat], open_jobs[seat], answers.get(seat))
                    if pending is None:
                        del open_jobs[seat]
                    else:
                        batches[seat] = pending.batch
                answers = pack.gradients(batches) if batches else {}
    finally:
        for steps in open_jobs.values():
            steps.close()


def train_packed(
    pack: Pack, workers: Sequence[Worker], specs: Sequence[JobSpec], inputs: Sequence[Sequence[Any]],
    stop: Callable[[], bool],
) -> Generator[Said]:
    """Train packed jobs, each on its own seat. The caller applies the arithmetic.

    Args:
        pack: The seats.
        workers: Each job's own run.
        specs: The jobs.
        inputs: Of each, start, mask and surviving values.
        stop: Asked after every step of each job.
    """
    seated = [(spec.seat, worker.train(spec, *given, stop=stop, seat=pack.seats[spec.seat]))
            for worker, spec, given in zip(workers, specs, inputs, strict=True)]
    with contextlib.closing(train_together(pack, seated)) as said:
        yield from said


def _until_pending(
    number: int, steps: Steps, answer: Gradients | None
) -> Generator[Said, None, GradientRequest | None]:
    """Pass on what a job says until it needs gradients; None once it has ended."""
    while True:
        try:
            message = steps.send(answer)
        except StopIteration:
            return None
        except Exception as error:
            if out_of_memory(error):
                raise
            yield number, PackedJobFailed(_portable(error))
            return None
        if isinstance(message, GradientRequest):
            return message
        yield number, message
        answer = None


def alone(messages: Iterator[Message]) -> Iterator[Said]:
    """What a worker says of a job that has it for itself."""
    for message in messages:
        yield 0, message


def _portable(error: Exception) -> BaseException:
    """The error, or what can be said of it where it cannot travel to another process."""
    try:
        pickle.dumps(error)
        made_again: Any = copy.copy(error)  # as on the other side, from what it says of itself
    except Exception:  # whatever an error of the user's does when it is copied
        made_again = None
    if isinstance(made_again, type(error)):
        return error
    return RunError("".join(traceback.format_exception(error)).strip())
