"""The one vocabulary of a run: plans, jobs, decisions, the instructions that follow from events, and the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RoundPlan:
    """One round before it runs.

    Attributes:
        index: r, counted from 0.
        survivors: k_r, the weights that the round's mask keeps.
        sparsity: 1 - k_r / P.
        num_particles: N.
        next_survivors: k_(r+1); None in the last round, which prunes nothing.
        has_trunk: Whether its particles part from one training, the trunk.
    """

    index: int
    survivors: int
    sparsity: float
    num_particles: int
    next_survivors: int | None
    has_trunk: bool = False


@dataclass(frozen=True)
class Job:
    """A job for a worker: the dense phase, the mask before training, a round's trunk, a particle, or an evaluation.

    A soup is an average of some particles that is only measured; ``particle`` is the one that was put to the others.
    """

    kind: str
    round: int = -1
    particle: int = -1

    def __str__(self) -> str:
        if self.kind == "dense":
            return "dense phase"
        if self.kind == "mask":
            return "mask before training"
        part = self.kind
        if self.kind == "particle":
            part = f"particle {self.particle}"
        elif self.kind == "soup":
            part = f"soup with particle {self.particle}"
        return f"round {self.round}, {part}"


DENSE = Job("dense")
MASK = Job("mask")


def trunk_of(index: int) -> Job:
    """The job that trains a round's trunk."""
    return Job("trunk", index)


@dataclass(frozen=True)
class Policy:
    """What becomes of a particle that diverges, and of one that lags behind.

    Attributes:
        on_failure: ``"stop"`` the run, ``"retry"`` with another seed, or ``"drop"`` the particle.
        max_reseeds: retry: how many further seeds a job gets.
        min_count: The fewest particles that a round may be left with.
        quorum: So many finished particles are enough once the round's deadline has passed; None: all of them.
    """

    on_failure: Literal["stop", "retry", "drop"] = "stop"
    max_reseeds: int = 2
    min_count: int = 1
    quorum: int | None = None


@dataclass(frozen=True)
class Decision:
    """Something that a run's results depend on besides its recipe. Once recorded it holds, whatever happens later.

    Attributes:
        round: r; -1 for the dense phase.
        particle: Its index; -1 for the dense phase and for a round's trunk.
        what: ``"reseed"``: it trains with another seed; ``"drop"``: the round goes on without it, because it
            diverged; ``"quorum"``: without it, because enough others were finished.
        reason: In words.
        attempt: Which of its seeds this is about, counted from 0; for a reseed the new one.
    """

    round: int
    particle: int
    what: Literal["reseed", "drop", "quorum"]
    reason: str
    attempt: int = 0

    @property
    def job(self) -> Job:
        """The job that it is about."""
        if self.round < 0:
            return DENSE
        return trunk_of(self.round) if self.particle < 0 else Job("particle", self.round, self.particle)

    @property
    def drops(self) -> bool:
        """Whether the particle does not enter its round's average."""
        return self.what != "reseed"


# Instructions


@dataclass(frozen=True)
class SubmitJob:
    """Put a job into the queue of workers; ``urgent`` jobs go to its front.

    ``attempt`` counts the machine's failures with the present seed, ``reseed`` the seeds before it. ``particles`` are
    those that a soup consists of, in index order.
    """

    job: Job
    attempt: int = 0
    urgent: bool = False
    reseed: int = 0
    particles: tuple[int, ...] = ()


@dataclass(frozen=True)
class RecordDecision:
    """Record a decision durably, before anything that follows from it is done."""

    decision: Decision


@dataclass(frozen=True)
class CancelJob:
    """Remove a job from the queue, or stop it: its result is not wanted any more."""

    job: Job


@dataclass(frozen=True)
class AddState:
    """Add a particle's state to the average; ``from_storage`` if it is not in memory any more."""

    round: int
    particle: int
    from_storage: bool = False


@dataclass(frozen=True)
class ReleaseState:
    """Free the memory of a state that waits for its turn in the average; it is read from storage then."""

    round: int
    particle: int


@dataclass(frozen=True)
class CloseAverage:
    """Compute the average of the particles that were added, and choose the next mask."""

    round: int
    particles: tuple[int, ...]


@dataclass(frozen=True)
class RecordRound:
    """The round is averaged and evaluated: write its record and its ticket."""

    round: int


@dataclass(frozen=True)
class StopRun:
    """Stop the run."""

    reason: str


Instruction = SubmitJob | RecordDecision | CancelJob | AddState | ReleaseState | CloseAverage | RecordRound | StopRun


# Events


@dataclass(frozen=True)
class JobFinishedEvent:
    """A job is done and its result is stored.

    Attributes:
        job: The job.
        score: A particle's, or a soup's, validation metric, higher is better.
        in_memory: Whether the executor keeps the particle's state in memory for the average.
    """

    job: Job
    score: float = 0.0
    in_memory: bool = False


@dataclass(frozen=True)
class JobFailedEvent:
    """An attempt at a job ended without a result.

    Attributes:
        job: The job.
        reason: In words.
        kind: ``"machine"``: its worker failed, and the same seed may well work on another; ``"diverged"``: its loss
            is not finite, as it would be with this seed every time; ``"error"``: anything else, such as an error in
            the user's code or a storage that takes no files, which no other attempt would help.
    """

    job: Job
    reason: str
    kind: Literal["machine", "diverged", "error"] = "machine"


@dataclass(frozen=True)
class RoundAveragedEvent:
    """A round's average and its next mask are stored."""

    round: int


@dataclass(frozen=True)
class AveragerLostEvent:
    """The averaging actor died, and with it the sum of all states that were added."""

    reason: str


@dataclass(frozen=True)
class StateLostEvent:
    """A finished particle's state cannot be read when it is to be averaged, or a trunk's when particles part from it.

    ``damaged``: the bytes were corrupt or missing; otherwise they had been deleted under `keep.particles`.
    """

    job: Job
    reason: str
    damaged: bool = True


@dataclass(frozen=True)
class DeadlinePassedEvent:
    """A round's deadline is over: from now on its quorum is enough."""

    round: int


@dataclass(frozen=True)
class RoundResumedEvent:
    """A scheduler lets the rounds after this one begin, see ``pause_after``."""

    round: int


Event = (JobFinishedEvent | JobFailedEvent | RoundAveragedEvent | AveragerLostEvent | StateLostEvent
         | DeadlinePassedEvent | RoundResumedEvent)
