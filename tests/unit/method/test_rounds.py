from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from swamp_ray.method.rounds import Rounds, plan_rounds


def plan_of(*num_particles: int, trunk: bool = False) -> list[RoundPlan]:
    survivors = [100 - 10 * index for index in range(len(num_particles))]
    return plan_rounds(100, survivors, num_particles, has_trunk=trunk)


def particle(index: int, n: int) -> Job:
    return Job("particle", index, n)


def evaluation(index: int) -> Job:
    return Job("evaluation", index)


@dataclass
class World:
    """Carries instructions out, knows what may happen next, and objects to what must not happen."""

    machine: Rounds
    max_waiting_states: int
    pause: bool = False
    best: bool = False
    policy: Policy = field(default_factory=Policy)
    decisions: list[Decision] = field(default_factory=list)
    deadline: bool = False
    scores: dict[Job, float] = field(default_factory=dict)
    running: list[Job] = field(default_factory=list)
    attempts: dict[Job, int] = field(default_factory=dict)
    done: set[Job] = field(default_factory=set)
    in_memory: set[Job] = field(default_factory=set)
    round: int = -1
    added: list[int] = field(default_factory=list)
    averaging: bool = False
    averaged: list[int] = field(default_factory=list)
    recorded: list[int] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    failed: str | None = None
    log: list[Instruction] = field(default_factory=list)

    def start(self) -> World:
        self.obey(self.machine.start())
        return self

    def obey(self, instructions: list[Instruction]) -> None:
        assert self.failed is None or not instructions, "nothing may follow a failure"
        for instruction in instructions:
            self.log.append(instruction)
            match instruction:
                case SubmitJob():
                    self._do(instruction)
                case AddState():
                    self._add(instruction)
                case RecordDecision(decision=decision):
                    self._decide(decision)
                case CancelJob(job=job):
                    if job.particle not in self._dropped(job.round):
                        assert self._lacks_trunk(job), "only what was dropped, or lost its trunk, is cancelled"
                        self.attempts.pop(job, None)  # it is submitted anew
                    self.running.remove(job)
                case ReleaseState(round=index, particle=n):
                    assert particle(index, n) in self.in_memory, "only states in memory can be released"
                    self.in_memory.remove(particle(index, n))
                case CloseAverage(round=index, particles=particles):
                    assert index == self.machine.current
                    assert not self.averaging, "a round is closed once per averager"
                    assert list(particles) == self.added, "the average consists of what was added"
                    assert self.added == ([self._best(index)] if self.best else self._entering(index))
                    assert len(self._entering(index)) >= min(self.policy.min_count, self._num(index))
                    assert not self.in_memory, "a closed round holds no state"
                    self.averaging = True
                case RecordRound(round=index):
                    assert evaluation(index) in self.done
                    assert index in self.averaged
                    assert index not in self.recorded
                    self.recorded.append(index)
                case StopRun(reason=reason):
                    self.failed = reason
        assert len(self.in_memory) <= self.max_waiting_states
        assert self.machine.open_jobs == frozenset(self.running) or self.failed
        assert self.machine.finished == (self.failed is not None or len(self.recorded) == len(self.machine.plan))

    def _do(self, do: SubmitJob) -> None:
        assert do.job not in self.running, "a job is not given out twice at a time"
        assert do.job not in self.done, "a finished job is not given out again"
        assert do.attempt == self.attempts.get(do.job, 0)
        assert do.reseed == self._reseeds(do.job), "a seed was decided on before it is used"
        assert do.job.particle not in self._dropped(do.job.round), "what was dropped is not done"
        if do.job.kind in ("trunk", "particle"):
            assert not self._lacks_trunk(do.job), "particles part from a trunk that has trained"
            assert do.job.round == 0 or do.job.round - 1 in self.averaged
            assert do.job.round == len(self.averaged)
            assert not self.pause or do.job.round == 0 or do.job.round - 1 in self.resumed
            assert do.job.particle < self._num(do.job.round)
            if do.job.round != self.round:
                self.round, self.added, self.averaging, self.deadline = do.job.round, [], False, False
        if do.job.kind == "evaluation":
            assert do.job.round in self.averaged
            last = do.job.round + 1 == len(self.machine.plan)
            assert do.urgent == (last or (self.pause and do.job.round not in self.resumed)) or do.attempt > 0
        self.running.append(do.job)

    def _add(self, add: AddState) -> None:
        job = particle(add.round, add.particle)
        assert add.round == self.machine.current
        assert job in self.done, "only finished particles are added"
        assert add.particle not in self.added, "each once for each averager"
        if not self.best:
            assert [*self.added, add.particle] == self._entering(add.round)[:len(self.added) + 1], "in index order"
        assert add.from_storage == (job not in self.in_memory)
        self.in_memory.discard(job)
        self.added.append(add.particle)

    def _lacks_trunk(self, job: Job) -> bool:
        has_trunk = job.kind == "particle" and self.machine.plan[job.round].has_trunk
        return has_trunk and trunk_of(job.round) not in self.done

    def _num(self, index: int) -> int:
        return self.machine.plan[index].num_particles

    def _best(self, index: int) -> int:
        scores = {n: self.scores.get(particle(index, n), 0.0) for n in self._entering(index)}
        return max(scores, key=lambda n: (scores[n], -n))

    def _dropped(self, index: int) -> set[int]:
        return {one.particle for one in self.decisions if one.round == index and one.drops}

    def _entering(self, index: int) -> list[int]:
        return [n for n in range(self._num(index)) if n not in self._dropped(index)]

    def _reseeds(self, job: Job) -> int:
        return max([one.attempt for one in self.decisions if one.job == job and one.what == "reseed"], default=0)

    def _decide(self, decision: Decision) -> None:
        job = decision.job
        assert job not in self.done, "what is finished is not decided on"
        assert job.round == self.machine.current
        assert not self.averaging, "nothing is decided after a round was closed"
        if decision.what == "reseed":
            assert self.policy.on_failure == "retry"
            assert decision.attempt == self._reseeds(job) + 1 <= self.policy.max_reseeds
            self.attempts[job] = 0
        if decision.what == "drop":
            assert self.policy.on_failure == "drop"
            assert job.kind == "particle", "the dense phase cannot be dropped"
        if decision.what == "quorum":
            assert self.deadline
            finished = sum(one.kind == "particle" and one.round == job.round for one in self.done)
            assert self.policy.quorum is not None
            assert finished >= self.policy.quorum
            assert job in self.running
        self.decisions.append(decision)

    def finish(self, job: Job, in_memory: bool = True) -> None:
        self.running.remove(job)
        self.done.add(job)
        if in_memory and job.kind == "particle":
            self.in_memory.add(job)
        self.obey_after(JobFinishedEvent(job, self.scores.get(job, 0.0), in_memory and job.kind == "particle"))

    def obey_after(self, event: Event) -> None:
        # The bound holds once the machine has answered.
        self.obey(self.machine.handle(event))

    def fail(self, job: Job, kind: Literal["machine", "error"] = "machine") -> None:
        self.running.remove(job)
        self.attempts[job] = self.attempts.get(job, 0) + 1
        self.obey_after(JobFailedEvent(job, "its worker died", kind))

    def diverge(self, job: Job) -> None:
        self.running.remove(job)
        self.obey_after(JobFailedEvent(job, "the loss was nan", "diverged"))

    def pass_deadline(self) -> None:
        self.deadline = True
        self.obey_after(DeadlinePassedEvent(self.machine.current))

    def close(self) -> None:
        assert self.averaging
        self.averaging = False
        self.averaged.append(self.machine.current)
        self.obey_after(RoundAveragedEvent(self.machine.current))

    def resume(self, index: int) -> None:
        self.resumed.append(index)
        self.obey_after(RoundResumedEvent(index))

    def lose_averager(self) -> None:
        self.added, self.averaging = [], False
        # States that wait in memory outlive the actor.
        self.obey_after(AveragerLostEvent("out of memory"))

    def lose_state(self, job: Job) -> None:
        """A stored state is damaged; what the averager had is started anew."""
        self.done.remove(job)
        if job.kind == "trunk":  # particles that have finished stay what they are
            self.attempts.pop(job, None)
            self.obey_after(StateLostEvent(job, "its file is damaged"))
            return
        self.in_memory.discard(job)
        self.attempts.pop(job, None)  # it is a new job, whose attempts are counted anew
        self.added, self.averaging, self.deadline = [], False, False
        self.obey_after(StateLostEvent(job, "its file is damaged"))

    def ignores(self, event: Event) -> None:
        before = self.machine.open_jobs, self.machine.current, self.machine.finished
        assert self.machine.handle(event) == []
        assert before == (self.machine.open_jobs, self.machine.current, self.machine.finished)

    def choices(self) -> list[tuple[str, Job | None]]:
        """Everything that may happen now in the ordinary course."""
        paused = [index for index in self.recorded if self.pause and index not in self.resumed]
        return [*(("finish", job) for job in self.running), *([("close", None)] if self.averaging else []),
                *(("resume", evaluation(index)) for index in paused if index + 1 < len(self.machine.plan))]

    def act(self, choice: tuple[str, Job | None], in_memory: bool = True) -> None:
        if choice[1] is None:
            self.close()
        elif choice[0] == "resume":
            self.resume(choice[1].round)
        else:
            self.finish(choice[1], in_memory)


def world_of(
    *num_particles: int, dense: bool = False, combine: str = "average", max_retries: int = 3,
    max_waiting_states: int = 8, pause: bool = False, scores: dict[Job, float] | None = None,
    policy: Policy | None = None, decisions: Sequence[Decision] = (), trunk: bool = False,
) -> World:
    policy = policy or Policy()
    machine = Rounds(plan_of(*num_particles, trunk=trunk), dense=dense, combine=combine, max_retries=max_retries,
                     max_waiting_states=max_waiting_states, policy=policy, decisions=decisions,
                     pause_after=range(len(num_particles)) if pause else ())
    return World(machine, max_waiting_states, pause, combine == "best", policy, list(decisions),
                 scores=scores or {}).start()


def replay(path: list[int], **settings: bool | int | str) -> World:
    world = world_of(3, 3, **settings)  # pyright: ignore[reportArgumentType]
    for index in path:
        world.act(world.choices()[index])
    return world


class TestEveryOrder:
    @pytest.mark.parametrize("max_waiting_states", [0, 1, 8])
    @pytest.mark.parametrize("combine", ["average", "best"])
    @pytest.mark.parametrize("pause", [False, True])
    def test_two_rounds_of_three_particles(self, max_waiting_states: int, combine: str, pause: bool) -> None:
        settings: dict[str, bool | int | str] = {
            "max_waiting_states": max_waiting_states, "combine": combine, "pause": pause}
        complete = 0
        todo: list[list[int]] = [[]]
        while todo:
            path = todo.pop()
            world = replay(path, **settings)
            if world.machine.finished:
                assert sorted(world.recorded) == [0, 1]
                assert not world.choices()
                complete += 1
            else:
                assert world.choices(), "never stuck"
            todo += [[*path, index] for index in range(len(world.choices()))]
        # 3! orders of each round; without a pause the first evaluation falls into any of 6 places of the
        # second round: before, between and after 3 particles, the average and the last evaluation.
        assert complete == (36 if pause else 36 * 6)

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("moment", range(5))
    @pytest.mark.parametrize("max_waiting_states", [0, 1, 8])
    def test_averager_lost_at_any_moment(self, order: tuple[int, ...], moment: int, max_waiting_states: int) -> None:
        world = world_of(3, 1, max_waiting_states=max_waiting_states)
        for step, n in enumerate(order):
            if step == moment:
                world.lose_averager()
            world.finish(particle(0, n))
        if moment >= 3:
            world.lose_averager()
        assert world.averaging, "what was closed is closed again by the next averager"
        world.close()
        if moment == 4:
            world.lose_averager()
        world.finish(particle(1, 0))
        world.close()
        world.finish(evaluation(1))
        world.finish(evaluation(0))
        assert world.machine.finished
        assert world.recorded == [1, 0]


class TestRandomOrders:
    @given(
        seed=st.integers(0, 2**32), num_particles=st.lists(st.integers(1, 6), min_size=1, max_size=4),
        dense=st.booleans(), combine=st.sampled_from(["average", "best"]), max_waiting_states=st.integers(0, 3),
        pause=st.booleans(), max_retries=st.integers(0, 3), trouble=st.floats(0, 0.5), trunk=st.booleans(),
    )
    def test_the_invariants_hold(
        self, seed: int, num_particles: list[int], dense: bool, combine: str, max_waiting_states: int,
        pause: bool, max_retries: int, trouble: float, trunk: bool,
    ) -> None:
        draw = random.Random(seed)
        scores = {particle(r, n): float(draw.randrange(3)) for r, num in enumerate(num_particles) for n in range(num)}
        world = world_of(*num_particles, dense=dense, combine=combine, max_retries=max_retries, scores=scores,
                         max_waiting_states=max_waiting_states, pause=pause, trunk=trunk)
        losses, states = {-1: 0}, {DENSE: 0}
        while not world.machine.finished:
            current = world.machine.current
            if draw.random() < trouble:
                self._trouble(world, draw, losses, states)
            elif world.choices():
                world.act(draw.choice(world.choices()), in_memory=draw.random() < 0.8)
            assert world.choices() or world.machine.finished, "never stuck"
            assert world.machine.current >= current
        assert all(count <= max_retries + 1 for count in [*world.attempts.values(), *losses.values(), *states.values()])
        if world.failed is None:
            assert sorted(world.recorded) == list(range(len(num_particles)))
            assert world.averaged == list(range(len(num_particles)))
        else:
            assert max([*world.attempts.values(), *losses.values(), *states.values()]) == max_retries + 1
        for event in [JobFinishedEvent(particle(0, 0)), JobFailedEvent(particle(0, 0), "late"), RoundAveragedEvent(0),
                      AveragerLostEvent("late"),
                      DeadlinePassedEvent(0)]:
            world.ignores(event)

    def _trouble(
        self, world: World, draw: random.Random, losses: dict[int, int], states: dict[Job, int]
    ) -> None:
        kind = draw.randrange(5)
        if kind == 0 and world.running:
            world.fail(draw.choice(world.running))
        elif kind == 1:
            current = world.machine.current
            if current >= 0 and current not in world.averaged:
                losses[current] = losses.get(current, 0) + 1
                world.lose_averager()
            else:
                world.ignores(AveragerLostEvent("nothing was in it"))
        elif kind == 2 and world.done:
            job = draw.choice(sorted(world.done, key=str))
            world.ignores(draw.choice([JobFinishedEvent(job, 9.0, in_memory=True), JobFailedEvent(job, "late")]))
        elif kind == 3:
            job = draw.choice([*(trunk_of(plan.index) for plan in world.machine.plan),
                               *(Job("particle", r, n) for r in range(len(world.machine.plan)) for n in range(6))])
            if job in world.done and job.round == world.machine.current and job.round not in world.averaged:
                states[job] = states.get(job, 0) + 1
                world.lose_state(job)
            else:
                world.ignores(StateLostEvent(job, "nobody needs it"))
        else:
            index = draw.choice([*world.averaged, len(world.machine.plan), -1])
            world.ignores(RoundAveragedEvent(index))
            if not world.averaging:
                world.ignores(RoundAveragedEvent(world.machine.current))


class TestTrunks:
    def test_particles_wait_for_the_trunk(self) -> None:
        world = world_of(2, 1, trunk=True)
        assert world.running == [trunk_of(0)]
        world.finish(trunk_of(0))
        assert world.running == [particle(0, 0), particle(0, 1)]
        world.finish(particle(0, 1))
        world.finish(particle(0, 0))
        world.close()
        assert world.running == [trunk_of(1), evaluation(0)]

    def test_is_tried_again_and_takes_another_seed(self) -> None:
        world = world_of(2, trunk=True, policy=Policy("retry", max_reseeds=1))
        world.fail(trunk_of(0))
        assert world.log[-1] == SubmitJob(trunk_of(0), 1, urgent=True)
        world.diverge(trunk_of(0))
        decision = Decision(0, -1, "reseed", "the loss was nan", 1)
        assert world.log[-2:] == [RecordDecision(decision), SubmitJob(trunk_of(0), 0, urgent=True, reseed=1)]
        world.diverge(trunk_of(0))
        assert world.failed == "round 0, trunk diverged with each of 2 seeds: the loss was nan"

    def test_cannot_be_dropped(self) -> None:
        world = world_of(3, trunk=True, policy=Policy("drop"))
        world.diverge(trunk_of(0))
        assert world.failed == "round 0, trunk diverged: the loss was nan"

    def test_one_that_is_lost_takes_unfinished_particles_along_and_no_others(self) -> None:
        world = world_of(3, trunk=True)
        world.finish(trunk_of(0))
        world.finish(particle(0, 0))
        world.lose_state(trunk_of(0))
        assert world.running == [trunk_of(0)]
        world.ignores(StateLostEvent(trunk_of(0), "somebody else has found out too"))
        world.finish(trunk_of(0))
        assert world.running == [particle(0, 1), particle(0, 2)]
        world.finish(particle(0, 2))
        world.finish(particle(0, 1))
        assert world.averaging

    def test_a_lost_particle_does_not_need_a_trunk_that_is_kept(self) -> None:
        world = world_of(2, trunk=True)
        world.finish(trunk_of(0))
        for n in (0, 1):
            world.finish(particle(0, n))
        world.lose_state(particle(0, 1))
        assert world.running == [particle(0, 1)]


class TestRetries:
    def test_bounded_and_named(self) -> None:
        world = world_of(2, max_retries=2)
        for attempt in (1, 2):
            world.fail(particle(0, 1))
            assert world.log[-1] == SubmitJob(particle(0, 1), attempt, urgent=True)
        world.fail(particle(0, 1))
        assert world.log[-1] == StopRun("round 0, particle 1 failed after 3 attempts: its worker died")
        assert world.machine.failed == world.failed
        world.ignores(JobFinishedEvent(particle(0, 0)))

    def test_what_would_fail_again_is_not_retried(self) -> None:
        world = world_of(2, dense=True)
        world.fail(DENSE, "error")
        assert world.failed == "dense phase failed: its worker died"

    def test_no_retries(self) -> None:
        world = world_of(1, max_retries=0)
        world.fail(particle(0, 0))
        assert world.failed == "round 0, particle 0 failed: its worker died"

    def test_averager_losses_are_counted_by_round(self) -> None:
        world = world_of(1, 1, max_retries=1)
        for index in (0, 1):
            world.finish(particle(index, 0))
            world.lose_averager()
            assert world.log[-2:] == [AddState(index, 0, from_storage=True), CloseAverage(index, (0,))]
            if index == 0:
                world.close()
        world.lose_averager()
        assert world.failed == "the averaging actor died 2 times: out of memory"

    def test_evaluation_is_retried_while_the_next_round_trains(self) -> None:
        world = world_of(1, 1)
        world.finish(particle(0, 0))
        world.close()
        world.fail(evaluation(0))
        assert world.log[-1] == SubmitJob(evaluation(0), 1, urgent=True)
        world.finish(particle(1, 0))
        world.finish(evaluation(0))
        assert world.log[-1] == RecordRound(0)


class TestPoliciesInEveryOrder:
    """Exhaustive over two rounds of three particles, of which one may diverge, and the deadline may pass."""

    @pytest.mark.parametrize("combine", ["average", "best"])
    @pytest.mark.parametrize(("policy", "entered"), [
        (Policy("retry", max_reseeds=1), {3}), (Policy("drop", min_count=2), {2, 3}),
        (Policy("drop", min_count=3), {3}), (Policy(quorum=2), {2, 3}), (Policy("drop", quorum=1), {1, 2, 3}),
        (Policy("retry", max_reseeds=1, quorum=2, min_count=2), {2, 3}),
    ], ids=str)
    def test_no_order_breaks_an_invariant(self, policy: Policy, entered: set[int], combine: str) -> None:
        scores = {particle(r, n): float(n == 1) for r in range(2) for n in range(3)}
        complete, failed = set(), set()
        todo: list[list[int]] = [[]]
        while todo:
            path = todo.pop()
            world = world_of(3, 1, combine=combine, policy=policy, scores=scores, max_waiting_states=1)
            for index in path:
                self._choices(world, policy)[index]()
            if world.machine.finished:
                assert world.failed is not None or sorted(world.recorded) == [0, 1]
                (complete if world.failed is None else failed).add(len(world._entering(0)))
            else:
                assert self._choices(world, policy), "never stuck"
                todo += [[*path, index] for index in range(len(self._choices(world, policy)))]
        assert complete == entered
        assert bool(failed) == (policy.on_failure == "retry" or (policy.min_count >= 2 and policy.on_failure == "drop"))

    def _choices(self, world: World, policy: Policy) -> list[Callable[[], None]]:
        """In the first round two particles may diverge and the deadline may pass; the second is undisturbed."""
        choices: list[Callable[[], None]] = [lambda choice=choice: world.act(choice) for choice in world.choices()]
        if world.machine.current == 0:
            diverging = [job for job in world.running if job in (particle(0, 0), particle(0, 2))
                         and len(world.decisions) < 2]
            if policy.on_failure != "stop":
                choices += [lambda job=job: world.diverge(job) for job in diverging]
            if policy.quorum is not None and not world.deadline and world.done:
                choices.append(world.pass_deadline)
        return choices


class TestPoliciesAtRandom:
    @given(
        seed=st.integers(0, 2**32), num_particles=st.lists(st.integers(2, 6), min_size=1, max_size=3),
        dense=st.booleans(), combine=st.sampled_from(["average", "best"]), max_waiting_states=st.integers(0, 3),
        on_failure=st.sampled_from(["stop", "retry", "drop"]), max_reseeds=st.integers(1, 3),
        min_count=st.integers(1, 2), quorum=st.sampled_from([None, 2, 3]), trouble=st.floats(0, 0.4),
    )
    def test_the_invariants_hold_and_what_was_decided_is_decided_again(
        self, seed: int, num_particles: list[int], dense: bool, combine: str, max_waiting_states: int,
        on_failure: Literal["stop", "retry", "drop"], max_reseeds: int, min_count: int, quorum: int | None,
        trouble: float,
    ) -> None:
        draw = random.Random(seed)
        scores = {particle(r, n): float(draw.randrange(3)) for r, num in enumerate(num_particles) for n in range(num)}
        policy = Policy(on_failure, max_reseeds, min_count, quorum)
        settings: dict[str, Any] = {"dense": dense, "combine": combine, "max_waiting_states": max_waiting_states,
                                    "scores": scores}
        world = world_of(*num_particles, policy=policy, **settings)
        while not world.machine.finished:
            self._step(world, draw, trouble)
            assert world.choices() or world.machine.finished, "never stuck"
        if world.failed is not None:
            assert "diverged" in world.failed or "4 attempts" in world.failed or "4 times" in world.failed
            return
        averages = [item for item in world.log if isinstance(item, CloseAverage)]
        entered = {item.round: item.particles for item in averages}
        # An undisturbed second attempt, under a policy that would decide otherwise, follows what is written.
        again = world_of(*num_particles, decisions=world.decisions, policy=Policy(), **settings)
        while not again.machine.finished:
            again.act(draw.choice(again.choices()))
        assert {item.round: item.particles for item in again.log if isinstance(item, CloseAverage)} == entered
        assert not [item for item in again.log if isinstance(item, RecordDecision | CancelJob)]
        for index in range(len(num_particles)):
            assert again.machine.dropped(index) == world.machine.dropped(index)

    def _step(self, world: World, draw: random.Random, trouble: float) -> None:
        current = world.machine.current
        if draw.random() >= trouble:
            world.act(draw.choice(world.choices()), in_memory=draw.random() < 0.8)
            return
        trainings = [job for job in world.running if job.kind != "evaluation"]
        kind = draw.randrange(5)
        if kind == 0 and trainings:
            world.diverge(draw.choice(trainings))
        elif kind == 1 and current >= 0 and current not in world.averaged:
            world.pass_deadline()
        elif kind == 2 and world.running and draw.random() < 0.3:
            world.fail(draw.choice(world.running))
        elif kind == 3 and current not in world.averaged and draw.random() < 0.3:
            states = [job for job in world.done if job.kind == "particle" and job.round == current]
            if states:
                world.lose_state(draw.choice(sorted(states, key=str)))
        elif kind == 4 and world.decisions:
            late = draw.choice(world.decisions)
            if late.drops:
                world.ignores(draw.choice([
                    JobFinishedEvent(late.job, 9.0, in_memory=True), JobFailedEvent(late.job, "late"),
                    JobFailedEvent(late.job, "late", "diverged"), StateLostEvent(late.job, "late")]))
            world.ignores(DeadlinePassedEvent(current + 1))


class TestDivergence:
    def test_stops_by_default(self) -> None:
        world = world_of(2)
        world.diverge(particle(0, 1))
        assert world.failed == "round 0, particle 1 diverged: the loss was nan"

    @pytest.mark.parametrize("job", [DENSE, particle(0, 0)])
    def test_a_retry_has_a_seed_of_its_own_and_a_new_count_of_attempts(self, job: Job) -> None:
        world = world_of(1, dense=job == DENSE, max_retries=1, policy=Policy("retry", max_reseeds=2))
        world.fail(job)
        world.diverge(job)
        assert world.log[-2:] == [RecordDecision(Decision(job.round, job.particle, "reseed", "the loss was nan", 1)),
                                  SubmitJob(job, 0, urgent=True, reseed=1)]
        world.fail(job)
        assert world.log[-1] == SubmitJob(job, 1, urgent=True, reseed=1)
        world.diverge(job)
        assert world.log[-1] == SubmitJob(job, 0, urgent=True, reseed=2)
        world.diverge(job)
        assert world.failed == f"{job} diverged with each of 3 seeds: the loss was nan"

    def test_the_dense_phase_is_never_dropped(self) -> None:
        world = world_of(2, dense=True, policy=Policy("drop"))
        world.diverge(DENSE)
        assert world.failed == "dense phase diverged: the loss was nan"

    def test_the_rest_is_averaged_without_the_dropped_one(self) -> None:
        world = world_of(3, policy=Policy("drop"))
        world.finish(particle(0, 2))
        world.finish(particle(0, 0))
        world.diverge(particle(0, 1))
        decided = RecordDecision(Decision(0, 1, "drop", "the loss was nan"))
        assert world.log[-3:] == [decided, AddState(0, 2), CloseAverage(0, (0, 2))]

    def test_fewer_than_the_minimum_end_the_run_and_are_not_decided_on(self) -> None:
        world = world_of(3, policy=Policy("drop", min_count=2))
        world.diverge(particle(0, 0))
        world.diverge(particle(0, 1))
        assert world.failed == ("round 0, particle 1 diverged: the loss was nan. "
                                "Round 0 has 1 of 3 particles left, and needs 2")
        assert [one.particle for one in world.decisions] == [0]

    def test_a_recorded_drop_stands_under_a_policy_that_would_stop(self) -> None:
        drop = Decision(0, 1, "drop", "the loss was nan")
        world = world_of(3, decisions=[drop], policy=Policy(min_count=3))
        assert world.log == [SubmitJob(particle(0, 0)), SubmitJob(particle(0, 2))]
        assert world.machine.dropped(0) == [drop]

    def test_a_recorded_seed_is_used_at_once(self) -> None:
        reseeds = [Decision(0, 0, "reseed", "nan", attempt) for attempt in (1, 2)]
        assert world_of(2, decisions=reseeds).log == [SubmitJob(particle(0, 0), reseed=2), SubmitJob(particle(0, 1))]

    def test_decisions_that_leave_nobody_are_refused(self) -> None:
        world = world_of(1, decisions=[Decision(0, 0, "drop", "nan")])
        assert world.failed == "the recorded decisions leave no particle in round 0"


class TestQuorum:
    @pytest.mark.parametrize("deadline_first", [True, False])
    def test_it_takes_both_the_number_and_the_deadline(self, deadline_first: bool) -> None:
        world = world_of(4, policy=Policy(quorum=2))
        world.finish(particle(0, 3))
        if deadline_first:
            world.pass_deadline()
            assert len(world.running) == 3
        world.finish(particle(0, 1))
        if not deadline_first:
            assert len(world.running) == 2
            world.pass_deadline()
        assert not world.running
        assert [one.particle for one in world.decisions] == [0, 2]
        assert world.log[-3:] == [AddState(0, 1), AddState(0, 3), CloseAverage(0, (1, 3))]

    def test_a_late_result_changes_nothing(self) -> None:
        world = world_of(3, policy=Policy(quorum=2))
        world.finish(particle(0, 0))
        world.finish(particle(0, 2))
        world.pass_deadline()
        world.ignores(JobFinishedEvent(particle(0, 1), 1.0, in_memory=True))
        world.close()
        world.ignores(JobFinishedEvent(particle(0, 1), 1.0, in_memory=True))

    def test_without_a_quorum_nothing_is_dropped(self) -> None:
        world = world_of(3)
        world.finish(particle(0, 0))
        world.ignores(DeadlinePassedEvent(0))

    def test_the_best_of_those_that_are_there_goes_on(self) -> None:
        world = world_of(3, combine="best", policy=Policy(quorum=2),
                         scores={particle(0, 0): 1.0, particle(0, 1): 3.0, particle(0, 2): 2.0})
        world.finish(particle(0, 0))
        world.finish(particle(0, 2))
        world.pass_deadline()
        assert world.log[-1] == CloseAverage(0, (2,))

    def test_a_round_that_is_not_larger_than_the_quorum_waits_for_all(self) -> None:
        world = world_of(2, policy=Policy(quorum=2))
        world.finish(particle(0, 1))
        world.pass_deadline()
        assert world.running == [particle(0, 0)]


class TestDamagedStates:
    def test_the_particle_is_done_again_and_the_average_begins_anew(self) -> None:
        world = world_of(3)
        for n in range(3):
            world.finish(particle(0, n), in_memory=False)
        world.lose_state(particle(0, 1))
        assert world.log[-1].__class__ is SubmitJob
        assert world.machine.open_jobs == {particle(0, 1)}
        world.finish(particle(0, 1))
        added = [AddState(0, 0, True), AddState(0, 1), AddState(0, 2, True)]
        assert world.log[-4:] == [*added, CloseAverage(0, (0, 1, 2))]

    def test_bounded(self) -> None:
        world = world_of(1, max_retries=1)
        for _ in range(2):
            world.finish(particle(0, 0))
            world.lose_state(particle(0, 0))
        assert world.failed == "the state of round 0, particle 0 was lost 2 times: its file is damaged"

    def test_another_may_be_the_best_afterwards(self) -> None:
        world = world_of(2, combine="best", scores={particle(0, 0): 1.0, particle(0, 1): 2.0})
        world.finish(particle(0, 1))
        world.finish(particle(0, 0))
        world.lose_state(particle(0, 1))
        world.scores[particle(0, 1)] = 0.5
        world.finish(particle(0, 1))
        assert CloseAverage(0, (0,)) == world.log[-1]


class TestOrderOfWork:
    def test_dense_phase_comes_first(self) -> None:
        world = world_of(2, dense=True)
        assert world.log == [SubmitJob(DENSE)]
        world.finish(DENSE)
        assert world.log[1:] == [SubmitJob(particle(0, 0)), SubmitJob(particle(0, 1))]

    def test_next_round_starts_before_the_evaluation(self) -> None:
        world = world_of(1, 2)
        world.finish(particle(0, 0))
        world.close()
        assert world.log[-3:] == [SubmitJob(particle(1, 0)), SubmitJob(particle(1, 1)), SubmitJob(evaluation(0))]

    def test_last_evaluation_is_urgent(self) -> None:
        world = world_of(1)
        world.finish(particle(0, 0))
        world.close()
        assert world.log[-1] == SubmitJob(evaluation(0), 0, urgent=True)

    def test_a_paused_round_waits_until_it_is_resumed(self) -> None:
        world = world_of(1, 1, pause=True)
        world.finish(particle(0, 0))
        world.close()
        assert world.log[-1] == SubmitJob(evaluation(0), 0, urgent=True)
        world.finish(evaluation(0))
        assert world.log[-1] == RecordRound(0)
        assert not world.running
        assert not world.machine.finished
        world.resume(0)
        assert world.log[-1] == SubmitJob(particle(1, 0))
        world.ignores(RoundResumedEvent(0))

    def test_resuming_in_advance_lets_the_rounds_follow_each_other(self) -> None:
        world = world_of(1, 1, pause=True)
        world.resume(0)
        world.finish(particle(0, 0))
        world.close()
        assert world.log[-2:] == [SubmitJob(particle(1, 0)), SubmitJob(evaluation(0))]

    def test_a_varying_number_of_particles(self) -> None:
        world = world_of(1, 3, 2)
        for index, num in enumerate((1, 3, 2)):
            assert [job.particle for job in world.running if job.round == index] == list(range(num))
            for n in reversed(range(num)):
                world.finish(particle(index, n))
            assert world.log[-1] == CloseAverage(index, tuple(range(num)))
            world.close()
            world.finish(evaluation(index))
        assert world.recorded == [0, 1, 2]

    def test_states_furthest_from_their_turn_are_dropped(self) -> None:
        world = world_of(5, max_waiting_states=2)
        for n in (4, 2, 3):
            world.finish(particle(0, n))
        assert world.log[-1] == ReleaseState(0, 4)
        world.finish(particle(0, 1))
        assert world.log[-1] == ReleaseState(0, 3)
        world.finish(particle(0, 0))
        assert world.log[-6:] == [
            AddState(0, 0), AddState(0, 1), AddState(0, 2), AddState(0, 3, True), AddState(0, 4, True),
                                  CloseAverage(0, (0, 1, 2, 3, 4))]

    def test_what_was_not_held_comes_from_storage(self) -> None:
        world = world_of(1)
        world.finish(particle(0, 0), in_memory=False)
        assert world.log[-2] == AddState(0, 0, from_storage=True)


class TestBest:
    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
    @pytest.mark.parametrize(("scores", "winner"), [
        ([0.1, 0.9, 0.9, 0.2], 1), ([0.5] * 4, 0), ([-3.0, -2.0, -1.0, -2.0], 2), ([math.nan, 0.1, math.nan, 0.3], 3),
        ([math.nan] * 4, 0), ([math.nan, -math.inf, 0.0, 0.0], 2),
    ])
    def test_highest_score_then_lowest_index(self, order: tuple[int, ...], scores: list[float], winner: int) -> None:
        machine = Rounds(plan_of(4), dense=False, combine="best")
        machine.start()
        found: list[Instruction] = []
        for n in order:
            found += machine.handle(JobFinishedEvent(particle(0, n), scores[n], in_memory=True))
        assert [item for item in found if isinstance(item, AddState)] == [AddState(0, winner)]
        assert found[-1] == CloseAverage(0, (winner,))
        released = sorted(item.particle for item in found if isinstance(item, ReleaseState))
        assert released == sorted({0, 1, 2, 3} - {winner})


def test_plan_rounds() -> None:
    assert plan_rounds(200, [200, 100, 50], [1, 1, 4]) == [
        RoundPlan(0, 200, 0.0, 1, 100), RoundPlan(1, 100, 0.5, 1, 50), RoundPlan(2, 50, 0.75, 4, None)]
    with pytest.raises(ValueError, match="zip"):
        plan_rounds(200, [200, 100], [1])


def test_a_failure_says_which_job() -> None:
    assert [str(job) for job in (DENSE, particle(2, 1), evaluation(3))] == [
        "dense phase", "round 2, particle 1", "round 3, evaluation"]


class TestMaskBeforeTraining:
    def test_comes_after_the_dense_phase_and_is_tried_again(self) -> None:
        machine = Rounds(plan_of(2), dense=True, mask=True, max_retries=1)
        assert machine.start() == [SubmitJob(DENSE)]
        assert machine.handle(JobFinishedEvent(MASK)) == [], "it was not given out yet"
        assert machine.handle(JobFinishedEvent(DENSE)) == [SubmitJob(MASK)]
        assert machine.handle(JobFinishedEvent(DENSE)) == []
        assert machine.handle(JobFailedEvent(MASK, "lost")) == [SubmitJob(MASK, 1, urgent=True)]
        assert machine.handle(JobFinishedEvent(MASK)) == [SubmitJob(particle(0, n)) for n in range(2)]
        assert machine.handle(JobFinishedEvent(MASK)) == []

    def test_that_fails_for_good_ends_the_run(self) -> None:
        machine = Rounds(plan_of(2), dense=False, mask=True)
        assert machine.start() == [SubmitJob(MASK)]
        [stop] = machine.handle(JobFailedEvent(MASK, "the score is NaN", "error"))
        assert isinstance(stop, StopRun)
        assert stop.reason == "mask before training failed: the score is NaN"
        assert machine.finished
