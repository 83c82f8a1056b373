"""The rounds of a run as a state machine: event in, instructions out.

It knows nothing of training, files or Ray, so that every order of events can be tested. Whoever drives it
carries the instructions out and reports what happened::

    machine = Rounds(plan, ...)
    instructions = machine.start()
    while not machine.finished:
        ...carry out instructions, wait for an event...
        instructions = machine.handle(event)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
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
    """

    index: int
    survivors: int
    sparsity: float
    num_particles: int
    next_survivors: int | None


@dataclass(frozen=True)
class Work:
    """A job for a worker: the dense phase, a particle, or the evaluation of a round's average."""

    kind: str
    round: int = -1
    particle: int = -1

    def __str__(self) -> str:
        if self.kind == "dense":
            return "dense phase"
        part = f"particle {self.particle}" if self.kind == "particle" else "evaluation"
        return f"round {self.round}, {part}"


DENSE = Work("dense")


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
        particle: Its index; -1 for the dense phase.
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
    def work(self) -> Work:
        """The job that it is about."""
        return DENSE if self.round < 0 else Work("particle", self.round, self.particle)

    @property
    def drops(self) -> bool:
        """Whether the particle does not enter its round's average."""
        return self.what != "reseed"


# Instructions


@dataclass(frozen=True)
class Do:
    """Give a job to the queue of workers; ``urgent`` jobs go to its front.

    ``attempt`` counts the machine's failures with the present seed, ``reseed`` the seeds before it.
    """

    work: Work
    attempt: int = 0
    urgent: bool = False
    reseed: int = 0


@dataclass(frozen=True)
class Decide:
    """Record a decision durably, before anything that follows from it is done."""

    decision: Decision


@dataclass(frozen=True)
class Cancel:
    """A job's result is not wanted any more: take it out of the queue, or stop it."""

    work: Work


@dataclass(frozen=True)
class Add:
    """Let the next particle's state enter the average; from storage if it is not held in memory any more."""

    round: int
    particle: int
    from_storage: bool = False


@dataclass(frozen=True)
class Drop:
    """Release the state of a particle that waits for its turn: it is read from storage then."""

    round: int
    particle: int


@dataclass(frozen=True)
class Average:
    """Close the average of these particles, which have been added, and choose the next mask."""

    round: int
    particles: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """The round is averaged and evaluated: write its record and its ticket."""

    round: int


@dataclass(frozen=True)
class Fail:
    """Stop the run."""

    reason: str


Instruction = Do | Decide | Cancel | Add | Drop | Average | Record | Fail


# Events


@dataclass(frozen=True)
class Finished:
    """A job is done and its result is stored. ``score``: a particle's validation metric, higher is better."""

    work: Work
    score: float = 0.0
    held: bool = False


@dataclass(frozen=True)
class Failed:
    """An attempt at a job ended without a result.

    Attributes:
        work: The job.
        reason: In words.
        kind: ``"machine"``: its worker failed, and the same seed may well work on another; ``"diverged"``: its loss
            is not finite, as it would be with this seed every time; ``"error"``: anything else, such as an error in
            the user's code or a storage that takes no files, which no other attempt would help.
    """

    work: Work
    reason: str
    kind: Literal["machine", "diverged", "error"] = "machine"


@dataclass(frozen=True)
class Averaged:
    """A round's average and its next mask are stored."""

    round: int


@dataclass(frozen=True)
class AveragerLost:
    """The averaging actor died; whatever it had added is gone."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """A finished particle's state cannot be read when it is to be averaged.

    ``damaged``: it should have been there; otherwise it had been let go to save space.
    """

    work: Work
    reason: str
    damaged: bool = True


@dataclass(frozen=True)
class DeadlinePassed:
    """A round's deadline is over: from now on its quorum is enough."""

    round: int


@dataclass(frozen=True)
class Released:
    """The rounds after this one may begin, see ``hold_after``."""

    round: int


Event = Finished | Failed | Averaged | AveragerLost | Lost | DeadlinePassed | Released


@dataclass
class _Round:
    """What has happened in the current round."""

    finished: dict[int, float] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    added: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    deadline_passed: bool = False
    closing: bool = False


class Rounds:
    """The state of a run.

    Args:
        plan: All rounds.
        dense: Whether a dense phase comes first.
        combine: ``"average"`` of all particles, or ``"best"``: the one with the highest score.
        max_retries: How often a job is tried again after its worker died; the averager likewise.
        max_waiting: How many finished states may wait in memory for their turn.
        hold_after: Rounds after which nothing begins before they are released: a scheduler may stop the run there.
        policy: What becomes of particles that diverge or lag behind.
        decisions: What was decided before, by an earlier attempt at the run; it is followed, whatever the policy is.
    """

    def __init__(
        self,
        plan: Sequence[RoundPlan],
        *,
        dense: bool,
        combine: str = "average",
        max_retries: int = 3,
        max_waiting: int = 8,
        hold_after: Collection[int] = (),
        policy: Policy = Policy(),
        decisions: Sequence[Decision] = (),
    ) -> None:
        self.plan = tuple(plan)
        self.current = -1
        self.failed: str | None = None
        self._dense, self._combine = dense, combine
        self._max_retries, self._max_waiting = max_retries, max_waiting
        self._holding, self._policy = set(hold_after), policy
        self._decisions = list(decisions)
        self._reseeds: dict[Work, int] = {}
        for decision in decisions:
            if decision.what == "reseed":
                self._reseeds[decision.work] = max(decision.attempt, self._reseeds.get(decision.work, 0))
        self._round = _Round()
        self._open: dict[Work, int] = {}
        self._averager_losses = 0
        self._losses: dict[Work, int] = {}
        self._averaged: set[int] = set()
        self._recorded: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: every round is recorded, or the run failed."""
        return self.failed is not None or len(self._recorded) == len(self.plan)

    @property
    def open_work(self) -> frozenset[Work]:
        """Jobs that were given out and have neither finished nor failed for good."""
        return frozenset(self._open)

    def dropped(self, index: int) -> list[Decision]:
        """Why particles of a round do not enter its average, in index order."""
        drops = {one.particle: one for one in self._decisions if one.round == index and one.drops}
        return [drops[particle] for particle in sorted(drops)]

    def limit_waiting(self, num: int) -> None:
        """From now on at most so many finished states may wait in memory for their turn."""
        self._max_waiting = num

    def start(self) -> list[Instruction]:
        """The first instructions."""
        return [self._do(DENSE)] if self._dense else self._begin(0)

    def handle(self, event: Event) -> list[Instruction]:
        """What has to be done because of an event; late and repeated events change nothing."""
        if self.finished:
            return []
        if isinstance(event, Finished):
            return self._on_finished(event)
        if isinstance(event, Failed):
            return self._on_failed(event)
        if isinstance(event, Averaged):
            return self._on_averaged(event)
        if isinstance(event, Lost):
            return self._on_lost(event)
        if isinstance(event, DeadlinePassed):
            return self._on_deadline(event)
        if isinstance(event, Released):
            return self._on_released(event)
        return self._on_averager_lost(event)

    def _do(self, work: Work, *, urgent: bool = False) -> Do:
        attempt = self._open.setdefault(work, 0)
        return Do(work, attempt, urgent, self._reseeds.get(work, 0))

    def _begin(self, index: int) -> list[Instruction]:
        self.current, self._round, self._averager_losses = index, _Round(), 0
        self._round.dropped = {decision.particle for decision in self.dropped(index)}
        wanted = self._wanted()
        if not wanted:
            return self._fail(f"the recorded decisions leave no particle in round {index}")
        return [self._do(Work("particle", index, n)) for n in wanted]

    def _wanted(self) -> list[int]:
        """The current round's particles that were not dropped."""
        return [n for n in range(self.plan[self.current].num_particles) if n not in self._round.dropped]

    def _on_finished(self, event: Finished) -> list[Instruction]:
        if self._open.pop(event.work, None) is None:
            return []
        if event.work.kind == "dense":
            return self._begin(0)
        if event.work.kind == "evaluation":
            self._recorded.add(event.work.round)
            return [Record(event.work.round)]
        self._round.finished[event.work.particle] = event.score
        if event.held:
            self._round.held.add(event.work.particle)
        return self._advance()

    def _advance(self) -> list[Instruction]:
        """Add whatever has its turn; drop what waits beyond the bound; close a complete round."""
        instructions = self._drop_stragglers()
        state, turn = self._round, self._wanted()
        complete = len(state.finished) == len(turn)
        if self._combine == "best":
            turn = [self._best()] if complete else []
        for particle in turn[len(state.added):]:
            if particle not in state.finished:
                break
            instructions.append(Add(self.current, particle, from_storage=particle not in state.held))
            state.added.append(particle)
            state.held.discard(particle)
        instructions += self._drop_excess()
        if complete and not state.closing:
            state.closing = True
            instructions += [Drop(self.current, particle) for particle in sorted(state.held)]
            state.held.clear()
            instructions.append(Average(self.current, tuple(state.added)))
        return instructions

    def _drop_excess(self) -> list[Instruction]:
        """States furthest from their turn go first."""
        dropped = sorted(self._round.held)[self._max_waiting:]
        self._round.held.difference_update(dropped)
        return [Drop(self.current, particle) for particle in dropped]

    def _best(self) -> int:
        """The particle with the highest score; equal scores keep the lower index, NaN is worse than any number."""
        scores = self._round.finished
        return max(scores, key=lambda particle: (
            -math.inf if math.isnan(scores[particle]) else scores[particle], -particle))

    def _on_failed(self, event: Failed) -> list[Instruction]:
        if event.work not in self._open:
            return []
        if event.kind == "diverged":
            return self._on_diverged(event.work, event.reason)
        self._open[event.work] += 1
        if event.kind == "machine" and self._open[event.work] <= self._max_retries:
            return [self._do(event.work, urgent=True)]
        attempts = self._open[event.work]
        times = f" after {attempts} attempts" if attempts > 1 else ""
        return self._fail(f"{event.work} failed{times}: {event.reason}")

    def _on_diverged(self, work: Work, reason: str) -> list[Instruction]:
        policy, seeds = self._policy, self._reseeds.get(work, 0) + 1
        if policy.on_failure == "retry" and seeds <= policy.max_reseeds:
            self._reseeds[work], self._open[work] = seeds, 0
            decision = Decision(work.round, work.particle, "reseed", reason, seeds)
            return [self._decide(decision), self._do(work, urgent=True)]
        if policy.on_failure == "drop" and work.kind == "particle":
            if len(self._wanted()) <= policy.min_count:
                num, left = self.plan[self.current].num_particles, len(self._wanted()) - 1
                return self._fail(f"{work} diverged: {reason}. Round {work.round} has {left} of {num} particles left, "
                                  f"and needs {policy.min_count}")
            return [self._drop(work, "drop", reason), *self._advance()]
        times = f" with each of {seeds} seeds" if seeds > 1 else ""
        return self._fail(f"{work} diverged{times}: {reason}")

    def _drop(self, work: Work, what: Literal["drop", "quorum"], reason: str) -> Instruction:
        del self._open[work]
        self._round.dropped.add(work.particle)
        return self._decide(Decision(work.round, work.particle, what, reason, self._reseeds.get(work, 0)))

    def _decide(self, decision: Decision) -> Instruction:
        self._decisions.append(decision)
        return Decide(decision)

    def _on_deadline(self, event: DeadlinePassed) -> list[Instruction]:
        if event.round != self.current or self.current in self._averaged:
            return []
        self._round.deadline_passed = True
        return self._advance()

    def _drop_stragglers(self) -> list[Instruction]:
        """Once the deadline has passed and the quorum is there, the round does not wait any longer."""
        state, quorum = self._round, self._policy.quorum
        if not state.deadline_passed or quorum is None or len(state.finished) < quorum:
            return []
        instructions: list[Instruction] = []
        for particle in self._wanted():
            if particle not in state.finished:
                work = Work("particle", self.current, particle)
                reason = f"not finished when the deadline had passed and {len(state.finished)} others were"
                instructions += [self._drop(work, "quorum", reason), Cancel(work)]
        return instructions

    def _on_averaged(self, event: Averaged) -> list[Instruction]:
        if event.round != self.current or event.round in self._averaged or not self._round.closing:
            return []
        self._averaged.add(event.round)
        last = event.round + 1 == len(self.plan)
        held = event.round in self._holding
        evaluation = self._do(Work("evaluation", event.round), urgent=last or held)
        if last or held:
            return [evaluation]
        return [*self._begin(event.round + 1), evaluation]

    def _on_released(self, event: Released) -> list[Instruction]:
        if event.round not in self._holding:
            return []
        self._holding.discard(event.round)
        waits = event.round == self.current and event.round in self._averaged and event.round + 1 < len(self.plan)
        return self._begin(event.round + 1) if waits else []

    def _on_averager_lost(self, event: AveragerLost) -> list[Instruction]:
        """A new averager gets what the old one had, in the same order, from storage."""
        state = self._round
        if self.current in self._averaged or self.current < 0:
            return []
        self._averager_losses += 1
        if self._averager_losses > self._max_retries:
            return self._fail(f"the averaging actor died {self._averager_losses} times: {event.reason}")
        instructions: list[Instruction] = [Add(self.current, n, from_storage=True) for n in state.added]
        if state.closing:
            instructions.append(Average(self.current, tuple(state.added)))
        return instructions

    def _on_lost(self, event: Lost) -> list[Instruction]:
        """The particle is done again, and the round's average begins anew."""
        state, work = self._round, event.work
        if work.round != self.current or self.current in self._averaged or work.particle not in state.finished:
            return []
        self._losses[work] = self._losses.get(work, 0) + event.damaged
        if self._losses[work] > self._max_retries:
            return self._fail(f"the state of {work} was lost {self._losses[work]} times: {event.reason}")
        del state.finished[work.particle]
        state.held.discard(work.particle)
        state.added.clear()
        state.closing = state.deadline_passed = False
        return [self._do(work)]

    def _fail(self, reason: str) -> list[Instruction]:
        self.failed = reason
        return [Fail(reason)]


def plan_rounds(num_prunable: int, survivors: Sequence[int], num_particles: Sequence[int]) -> list[RoundPlan]:
    """Rounds from the survivors of each and the particles of each.

    Args:
        num_prunable: P.
        survivors: k_0, ..., k_R.
        num_particles: N of each round, as long as ``survivors``.
    """
    following: list[int | None] = [*survivors[1:], None]
    return [
        RoundPlan(index, kept, 1.0 - kept / num_prunable, particles, after)
        for index, (kept, particles, after) in enumerate(zip(survivors, num_particles, following, strict=True))
    ]
