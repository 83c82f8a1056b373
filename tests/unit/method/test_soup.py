"""The greedy soup: who enters, whatever happens in whatever order, as the obvious loop says."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from swamp_ray.method.events import (
    AddState,
    AveragerLostEvent,
    CloseAverage,
    DeadlinePassedEvent,
    Instruction,
    Job,
    JobFailedEvent,
    JobFinishedEvent,
    Policy,
    RecordDecision,
    ReleaseState,
    RoundAveragedEvent,
    StateLostEvent,
    SubmitJob,
)
from swamp_ray.method.rounds import Rounds, plan_rounds
from swamp_ray.method.soup import GreedySoup


def quality(members: tuple[int, ...], seed: int) -> float:
    """The score of an average: any number, of few values, so that there are ties; now and then NaN."""
    draw = random.Random(f"{seed} {members}")
    return math.nan if draw.random() < 0.1 else float(draw.randrange(4))


def obvious(particles: list[int], seed: int) -> list[int]:
    def better(one: float, than: float) -> bool:
        return not math.isnan(one) and (math.isnan(than) or one >= than)

    scores = {n: quality((n,), seed) for n in particles}
    order = sorted(particles, key=lambda n: (math.isnan(scores[n]), -scores[n] if scores[n] == scores[n] else 0, n))
    kept, best = order[:1], scores[order[0]]
    for n in order[1:]:
        score = quality(tuple(sorted([*kept, n])), seed)
        if better(score, best) or (math.isnan(score) and math.isnan(best)):
            kept.append(n)
            best = score
    return sorted(kept)


@given(st.integers(1, 7), st.integers(0, 10_000))
def test_it_is_the_obvious_loop(num: int, seed: int) -> None:
    soup = GreedySoup.of({n: quality((n,), seed) for n in range(num)})
    while soup.candidate is not None:
        assert list(soup.with_candidate) == sorted([*soup.kept, soup.candidate])
        soup.judge(quality(soup.with_candidate, seed))
    assert sorted(soup.kept) == obvious(list(range(num)), seed)


class Kitchen:
    """Carries out one round, and remembers what it has to know of it."""

    def __init__(self, num: int, seed: int, policy: Policy | None = None, max_waiting: int = 8) -> None:
        self.seed = seed
        self.machine = Rounds(plan_rounds(10, [10], [num]), dense=False, combine="greedy", policy=policy,
                              max_waiting_states=max_waiting)
        self.running: dict[Job, SubmitJob] = {}
        self.attempts: dict[Job, int] = {}
        self.held: set[int] = set()
        self.done: set[int] = set()
        self.added: list[int] = []
        self.closed: tuple[int, ...] | None = None
        self.dropped: set[int] = set()
        self.measured: list[tuple[int, ...]] = []
        self.obey(self.machine.start())

    def obey(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            match one:
                case SubmitJob(job=job):
                    assert job not in self.running
                    if job.kind == "soup":
                        assert job.particle in one.particles
                        assert set(one.particles) <= self.done, "of finished particles"
                    self.running[job] = one
                case AddState(particle=n, from_storage=from_storage):
                    assert from_storage == (n not in self.held)
                    self.held.discard(n)
                    self.added.append(n)
                case ReleaseState(particle=n):
                    self.held.remove(n)
                case CloseAverage(particles=particles):
                    assert list(particles) == self.added == sorted(self.added)
                    assert not self.held
                    self.closed = particles
                case RecordDecision(decision=decision):
                    self.dropped.add(decision.particle)
                    self.running.pop(decision.job, None)
                case _:
                    pass
        if self.closed is None and self.machine.failed is None:
            assert set(self.machine.open_jobs) == set(self.running)

    def finish(self, job: Job, held: bool) -> None:
        submitted = self.running.pop(job)
        if job.kind == "soup":
            self.measured.append(submitted.particles)
            self.obey(self.machine.handle(JobFinishedEvent(job, quality(submitted.particles, self.seed))))
            return
        self.done.add(job.particle)
        if held:
            self.held.add(job.particle)
        self.obey(self.machine.handle(JobFinishedEvent(job, quality((job.particle,), self.seed), held)))

    def fail(self, job: Job) -> None:
        submitted = self.running.pop(job)
        self.obey(self.machine.handle(JobFailedEvent(job, "its worker died")))
        if self.machine.failed is None:
            assert self.running[job].attempt == submitted.attempt + 1
            assert self.running[job].particles == submitted.particles

    def lose(self, particle: int) -> None:
        """A stored state is damaged, as a soup or the average finds: what was measured of it has no meaning."""
        self.done.discard(particle)
        self.held.discard(particle)
        self.added, self.closed = [], None
        for job in [job for job in self.running if job.kind == "soup"]:
            del self.running[job]
        self.obey(self.machine.handle(StateLostEvent(Job("particle", 0, particle), "damaged")))

    def lose_averager(self) -> None:
        self.added, self.closed = [], None
        self.obey(self.machine.handle(AveragerLostEvent("out of memory")))


@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0, 0.4), st.integers(0, 3))
@settings(deadline=None)
def test_the_same_particles_enter_whatever_fails_on_the_way(
    num: int, seed: int, trouble: float, max_waiting: int
) -> None:
    draw = random.Random(seed)
    kitchen = Kitchen(num, seed, max_waiting=max_waiting)
    for _ in range(500):
        if kitchen.closed is not None or kitchen.machine.failed is not None:
            break
        if draw.random() < trouble:
            kind = draw.choice(["fail", "lose", "averager"])
            if kind == "fail":
                kitchen.fail(draw.choice(list(kitchen.running)))
            elif kind == "lose" and kitchen.done:
                kitchen.lose(draw.choice(sorted(kitchen.done)))
            elif kind == "averager":
                kitchen.lose_averager()
        elif kitchen.running:
            kitchen.finish(draw.choice(list(kitchen.running)), held=draw.random() < 0.7)
    if kitchen.machine.failed is None:
        assert kitchen.closed == tuple(obvious(list(range(num)), seed))


def test_averages_are_measured_one_after_the_other() -> None:
    kitchen = Kitchen(4, seed=3)
    for n in range(4):
        assert not any(job.kind == "soup" for job in kitchen.running)
        kitchen.finish(Job("particle", 0, n), held=True)
    for _ in range(3):
        [job] = kitchen.running
        assert job.kind == "soup"
        assert kitchen.running[job].urgent
        kitchen.finish(job, held=False)
    assert len(kitchen.measured) == 3
    assert kitchen.closed == tuple(obvious([0, 1, 2, 3], 3))
    kitchen.obey(kitchen.machine.handle(RoundAveragedEvent(0)))


def test_those_that_were_dropped_are_not_tried() -> None:
    kitchen = Kitchen(4, seed=5, policy=Policy(quorum=2))
    kitchen.finish(Job("particle", 0, 3), held=True)
    kitchen.finish(Job("particle", 0, 1), held=True)
    kitchen.obey(kitchen.machine.handle(DeadlinePassedEvent(0)))
    assert kitchen.dropped == {0, 2}
    [job] = kitchen.running
    assert kitchen.running[job].particles == (1, 3)
    kitchen.finish(job, held=False)
    assert kitchen.closed == tuple(obvious([1, 3], 5))


def test_a_single_particle_is_its_own_soup() -> None:
    kitchen = Kitchen(1, seed=0)
    kitchen.finish(Job("particle", 0, 0), held=True)
    assert kitchen.closed == (0,)
    assert not kitchen.measured
