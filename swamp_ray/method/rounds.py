"""The rounds of a run as a state machine: event in, instructions out.

It knows nothing of training, files or Ray, so that every order of events can be tested. Whoever drives it
carries the instructions out and reports what happened (both are in :mod:`swamp_ray.method.events`)::

    machine = Rounds(plan, ...)
    instructions = machine.start()
    while not machine.finished:
        ...carry out instructions, wait for an event...
        instructions = machine.handle(event)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from swamp_ray.method.events import (
    DENSE,
    MASK,
    AddState,
    AveragerLostEvent,
    CancelJob,
    CloseAverage,
    DeadlinePassedEvent,
    Decision,
    Event,
    Instruction,
    Job,
    JobFailedEvent,
    JobFinishedEvent,
    Policy,
    RecordDecision,
    RecordRound,
    ReleaseState,
    RoundAveragedEvent,
    RoundPlan,
    RoundResumedEvent,
    StateLostEvent,
    StopRun,
    SubmitJob,
    trunk_of,
)
from swamp_ray.method.retries import Retries
from swamp_ray.method.soup import GreedySoup, comparable


@dataclass
class _Round:
    """What has happened in the current round."""

    finished: dict[int, float] = field(default_factory=dict)
    in_memory: set[int] = field(default_factory=set)
    added: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    deadline_passed: bool = False
    closing: bool = False
    soup: GreedySoup | None = None


class Rounds:
    """The state of a run.

    Args:
        plan: All rounds.
        dense: Whether a dense phase comes first.
        mask: Whether a job chooses the first round's mask, after the dense phase.
        combine: ``"average"`` of all particles, ``"best"``: the one with the highest score, or ``"greedy"``: the
            average of those that do not lower its score.
        max_retries: How often a job is tried again after its worker died; the averager likewise.
        max_waiting_states: How many finished states may wait in memory for their turn.
        pause_after: Rounds after which nothing begins before a `RoundResumedEvent`: a scheduler may stop the run there.
        policy: What becomes of particles that diverge or lag behind; None: a divergence ends the run.
        decisions: What was decided before, by an earlier attempt at the run; it is followed, whatever the policy is.
    """

    def __init__(
        self,
        plan: Sequence[RoundPlan],
        *,
        dense: bool,
        mask: bool = False,
        combine: str = "average",
        max_retries: int = 3,
        max_waiting_states: int = 8,
        pause_after: Collection[int] = (),
        policy: Policy | None = None,
        decisions: Sequence[Decision] = (),
    ) -> None:
        self.plan = tuple(plan)
        self.current = -1
        self.failed: str | None = None
        self._before = [job for job, wanted in ((DENSE, dense), (MASK, mask)) if wanted]
        self._combine = combine
        self._max_waiting_states = max_waiting_states
        self._pauses = set(pause_after)
        self._policy = policy or Policy()
        self._decisions = list(decisions)
        self._retries = Retries(max_retries, decisions)
        self._round = _Round()
        self._open: set[Job] = set()
        self._averaged: set[int] = set()
        self._recorded: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: every round is recorded, or the run failed."""
        return self.failed is not None or len(self._recorded) == len(self.plan)

    @property
    def open_jobs(self) -> frozenset[Job]:
        """Jobs that were given out and have neither finished nor failed for good."""
        return frozenset(self._open)

    def dropped(self, index: int) -> list[Decision]:
        """Why particles of a round do not enter its average, in index order."""
        drops = {one.particle: one for one in self._decisions if one.round == index and one.drops}
        return [drops[particle] for particle in sorted(drops)]

    def limit_waiting_states(self, num: int) -> None:
        """From now on at most so many finished states may wait in memory for their turn."""
        self._max_waiting_states = num

    def start(self) -> list[Instruction]:
        """The first instructions."""
        return self._go_on_before()

    def handle(self, event: Event) -> list[Instruction]:
        """What has to be done because of an event; late and repeated events change nothing."""
        if self.finished:
            return []
        if isinstance(event, JobFinishedEvent):
            return self._on_finished(event)
        if isinstance(event, JobFailedEvent):
            return self._on_failed(event)
        if isinstance(event, RoundAveragedEvent):
            return self._on_averaged(event)
        if isinstance(event, StateLostEvent):
            return self._on_lost(event)
        if isinstance(event, DeadlinePassedEvent):
            return self._on_deadline(event)
        if isinstance(event, RoundResumedEvent):
            return self._on_resumed(event)
        return self._on_averager_lost(event)

    def _do(self, job: Job, *, urgent: bool = False) -> SubmitJob:
        self._open.add(job)
        particles: tuple[int, ...] = ()
        if job.kind == "soup" and self._round.soup is not None:
            particles = self._round.soup.with_candidate
        return SubmitJob(job, self._retries.attempt(job), urgent, self._retries.seeds_before(job), particles)

    def _close(self, job: Job) -> bool:
        """Whether a job was open, which it is not any more."""
        was_open = job in self._open
        self._open.discard(job)
        self._retries.forget(job)
        return was_open

    def _go_on_before(self) -> list[Instruction]:
        """The next of the jobs that come before the rounds, one after the other; then the first round."""
        return [self._do(self._before.pop(0))] if self._before else self._begin(0)

    def _begin(self, index: int) -> list[Instruction]:
        self.current = index
        self._round = _Round()
        self._retries.begin_round()
        self._round.dropped = {decision.particle for decision in self.dropped(index)}
        wanted = self._wanted()
        if not wanted:
            return self._fail(f"the recorded decisions leave no particle in round {index}")
        if self.plan[index].has_trunk:
            return [self._do(trunk_of(index))]
        return self._train_particles()

    def _train_particles(self) -> list[Instruction]:
        """Submit the current round's particles that are neither finished nor submitted."""
        instructions: list[Instruction] = []
        for particle in self._wanted():
            job = Job("particle", self.current, particle)
            if particle not in self._round.finished and job not in self._open:
                instructions.append(self._do(job))
        return instructions

    def _wanted(self) -> list[int]:
        """The current round's particles that were not dropped."""
        return [n for n in range(self.plan[self.current].num_particles) if n not in self._round.dropped]

    def _on_finished(self, event: JobFinishedEvent) -> list[Instruction]:
        if not self._close(event.job):
            return []
        if event.job in (DENSE, MASK):
            return self._go_on_before()
        if event.job.kind == "trunk":
            return self._train_particles()
        if event.job.kind == "evaluation":
            self._recorded.add(event.job.round)
            return [RecordRound(event.job.round)]
        if event.job.kind == "soup":
            assert self._round.soup is not None
            self._round.soup.judge(event.score)
            return self._advance()
        self._round.finished[event.job.particle] = event.score
        if event.in_memory:
            self._round.in_memory.add(event.job.particle)
        return self._advance()

    def _advance(self) -> list[Instruction]:
        """Add whatever has its turn; drop what waits beyond the bound; close a complete round."""
        instructions = self._drop_stragglers()
        state = self._round
        turn = self._wanted()
        complete = len(state.finished) == len(turn)
        if self._combine == "best":
            turn = [self._best()] if complete else []
        if self._combine == "greedy":
            turn = []
            if complete:
                instructions += self._measure_soup()
                turn = self._soup_members()
                complete = bool(turn)
        for particle in turn[len(state.added):]:
            if particle not in state.finished:
                break
            instructions.append(AddState(self.current, particle, from_storage=particle not in state.in_memory))
            state.added.append(particle)
            state.in_memory.discard(particle)
        instructions += self._release_excess()
        if complete and not state.closing:
            state.closing = True
            instructions += [ReleaseState(self.current, particle) for particle in sorted(state.in_memory)]
            state.in_memory.clear()
            instructions.append(CloseAverage(self.current, tuple(state.added)))
        return instructions

    def _release_excess(self) -> list[Instruction]:
        """States furthest from their turn go first."""
        excess = sorted(self._round.in_memory)[self._max_waiting_states:]
        self._round.in_memory.difference_update(excess)
        return [ReleaseState(self.current, particle) for particle in excess]

    def _best(self) -> int:
        """The particle with the highest score; equal scores keep the lower index, NaN is worse than any number."""
        scores = self._round.finished
        return max(scores, key=lambda particle: (comparable(scores[particle]), -particle))

    def _measure_soup(self) -> list[Instruction]:
        """Once all particles are finished: measure the average with the next of them, unless that is under way."""
        state = self._round
        if state.soup is None:
            state.soup = GreedySoup.of(state.finished)
        if state.soup.candidate is None:
            return []
        job = Job("soup", self.current, state.soup.candidate)
        return [] if job in self._open else [self._do(job, urgent=True)]

    def _soup_members(self) -> list[int]:
        """The particles that enter the average; none before that is clear."""
        soup = self._round.soup
        if soup is None or soup.candidate is not None:
            return []
        return sorted(soup.kept)

    def _on_failed(self, event: JobFailedEvent) -> list[Instruction]:
        if event.job not in self._open:
            return []
        if event.kind == "diverged":
            return self._on_diverged(event.job, event.reason)
        if self._retries.after_failure(event):
            return [self._do(event.job, urgent=True)]
        attempts = self._retries.attempt(event.job)
        times = f" after {attempts} attempts" if attempts > 1 else ""
        return self._fail(f"{event.job} failed{times}: {event.reason}")

    def _on_diverged(self, job: Job, reason: str) -> list[Instruction]:
        policy = self._policy
        seeds = self._retries.seeds_before(job) + 1
        if policy.on_failure == "retry" and seeds <= policy.max_reseeds:
            self._retries.take_next_seed(job)
            decision = Decision(job.round, job.particle, "reseed", reason, seeds)
            return [self._decide(decision), self._do(job, urgent=True)]
        if policy.on_failure == "drop" and job.kind == "particle":
            if len(self._wanted()) <= policy.min_count:
                num = self.plan[self.current].num_particles
                left = len(self._wanted()) - 1
                return self._fail(f"{job} diverged: {reason}. Round {job.round} has {left} of {num} particles left, "
                                  f"and needs {policy.min_count}")
            return [self._drop(job, "drop", reason), *self._advance()]
        times = f" with each of {seeds} seeds" if seeds > 1 else ""
        return self._fail(f"{job} diverged{times}: {reason}")

    def _drop(self, job: Job, what: Literal["drop", "quorum"], reason: str) -> Instruction:
        self._close(job)
        self._round.dropped.add(job.particle)
        return self._decide(Decision(job.round, job.particle, what, reason, self._retries.seeds_before(job)))

    def _decide(self, decision: Decision) -> Instruction:
        self._decisions.append(decision)
        return RecordDecision(decision)

    def _on_deadline(self, event: DeadlinePassedEvent) -> list[Instruction]:
        if event.round != self.current or self.current in self._averaged:
            return []
        self._round.deadline_passed = True
        return self._advance()

    def _drop_stragglers(self) -> list[Instruction]:
        """Once the deadline has passed and the quorum is there, the round does not wait any longer."""
        state = self._round
        quorum = self._policy.quorum
        if not state.deadline_passed or quorum is None or len(state.finished) < quorum:
            return []
        instructions: list[Instruction] = []
        for particle in self._wanted():
            if particle not in state.finished:
                job = Job("particle", self.current, particle)
                reason = f"not finished when the deadline had passed and {len(state.finished)} others were"
                instructions += [self._drop(job, "quorum", reason), CancelJob(job)]
        return instructions

    def _on_averaged(self, event: RoundAveragedEvent) -> list[Instruction]:
        if event.round != self.current or event.round in self._averaged or not self._round.closing:
            return []
        self._averaged.add(event.round)
        last = event.round + 1 == len(self.plan)
        pauses = event.round in self._pauses
        evaluation = self._do(Job("evaluation", event.round), urgent=last or pauses)
        if last or pauses:
            return [evaluation]
        return [*self._begin(event.round + 1), evaluation]

    def _on_resumed(self, event: RoundResumedEvent) -> list[Instruction]:
        if event.round not in self._pauses:
            return []
        self._pauses.discard(event.round)
        waits = event.round == self.current and event.round in self._averaged and event.round + 1 < len(self.plan)
        return self._begin(event.round + 1) if waits else []

    def _on_averager_lost(self, event: AveragerLostEvent) -> list[Instruction]:
        """A new averager gets what the old one had, in the same order, from storage."""
        state = self._round
        if self.current in self._averaged or self.current < 0:
            return []
        why_not = self._retries.after_lost_averager()
        if why_not is not None:
            return self._fail(f"{why_not}: {event.reason}")
        instructions: list[Instruction] = [AddState(self.current, n, from_storage=True) for n in state.added]
        if state.closing:
            instructions.append(CloseAverage(self.current, tuple(state.added)))
        return instructions

    def _on_lost(self, event: StateLostEvent) -> list[Instruction]:
        """The particle is done again, and the round's average begins anew."""
        state = self._round
        job = event.job
        if job.kind == "trunk":
            return self._on_trunk_lost(event)
        if job.round != self.current or self.current in self._averaged or job.particle not in state.finished:
            return []
        why_not = self._retries.after_lost_state(job, event.damaged)
        if why_not is not None:
            return self._fail(f"{why_not}: {event.reason}")
        del state.finished[job.particle]
        state.in_memory.discard(job.particle)
        state.added.clear()
        state.closing = state.deadline_passed = False
        if state.soup is not None:
            # Which averages are measured is decided anew, from the same scores: those that were, are stored.
            candidate = state.soup.candidate
            if candidate is not None:
                self._close(Job("soup", self.current, candidate))
            state.soup = None
        return [self._do(job)]

    def _on_trunk_lost(self, event: StateLostEvent) -> list[Instruction]:
        """The trunk is trained again; the particles that have not finished wait for it."""
        job = event.job
        if job.round != self.current or self.current in self._averaged or not self.plan[self.current].has_trunk:
            return []
        instructions: list[Instruction] = []
        for particle in self._wanted():
            waiting = Job("particle", self.current, particle)
            if self._close(waiting):
                instructions.append(CancelJob(waiting))
        if job in self._open:
            return instructions
        why_not = self._retries.after_lost_state(job, event.damaged)
        if why_not is not None:
            return self._fail(f"{why_not}: {event.reason}")
        return [*instructions, self._do(job)]

    def _fail(self, reason: str) -> list[Instruction]:
        self.failed = reason
        return [StopRun(reason)]


def plan_rounds(
    num_prunable: int, survivors: Sequence[int], num_particles: Sequence[int], has_trunk: bool = False
) -> list[RoundPlan]:
    """Rounds from the survivors of each and the particles of each.

    Args:
        num_prunable: P.
        survivors: k_0, ..., k_R.
        num_particles: N of each round, as long as ``survivors``.
        has_trunk: Whether the particles of each round part from a trunk.
    """
    following: list[int | None] = [*survivors[1:], None]
    return [
        RoundPlan(index, kept, 1.0 - kept / num_prunable, particles, after, has_trunk)
        for index, (kept, particles, after) in enumerate(zip(survivors, num_particles, following, strict=True))
    ]
