"""Which jobs a worker takes together, and for whom it waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swamp_ray.method.events import Job
from swamp_ray.run import queue as backlog
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.queue import JobQueue, QueuedJob
from swamp_ray.storage.recipes import Named
from swamp_ray.training.program import Program, Rate

PROGRAM = Program(8, 4, Rate("constant", base=0.1, total=8), 0.0)


def entry(particle: int, *, packing: str = "stacked:2", seat: int | None = None, owner: str = "a",
          program: Program | None = PROGRAM) -> QueuedJob[str]:
    width = int(packing.partition(":")[2])
    item = JobSpec(Job("particle", 0, particle), 0, Named("x", {}), program=program, packing=packing,
                    seat=particle % width if seat is None else seat)
    return QueuedJob(owner, item, (None, None, None))


def filled(*entries: QueuedJob[str]) -> JobQueue[str]:
    jobs: JobQueue[str] = JobQueue()
    for one in entries:
        jobs.add(one, urgent=False)
    return jobs


def particles(taken: list[QueuedJob[str]]) -> list[int]:
    return [one.spec.job.particle for one in taken]


def test_packs_take_their_turn_in_order() -> None:
    jobs = filled(*(entry(n) for n in range(5)))
    assert jobs.num_packs == 3
    assert [particles(jobs.take()) for _ in range(3)] == [[0, 1], [2, 3], [4]]
    assert not jobs


def test_what_is_not_packed_is_taken_alone() -> None:
    jobs = filled(*(entry(n, packing="single:1") for n in range(2)))
    jobs.add(entry(7, packing="single:1", program=None), urgent=True)
    assert jobs.num_packs == 3
    assert [particles(jobs.take()) for _ in range(3)] == [[7], [0], [1]]


def test_two_jobs_for_one_seat_are_not_packed_together() -> None:
    jobs = filled(entry(0), entry(2), entry(3))
    assert particles(jobs.take()) == [0, 3]
    assert particles(jobs.take()) == [2]


def test_other_lengths_and_forms_are_passed_over_and_keep_their_place() -> None:
    longer = replace(PROGRAM, num_steps=9)
    jobs = filled(entry(0), entry(1, program=longer), entry(3, packing="graphs:2"), entry(5), entry(6, program=longer))
    assert particles(jobs.take()) == [0, 5]
    assert particles(jobs.take()) == [1, 6]
    assert particles(jobs.take()) == [3]


def test_a_job_that_is_not_wanted_any_more_is_in_no_pack() -> None:
    jobs = filled(*(entry(n) for n in range(3)))
    jobs.forget(lambda one: one.spec.job.particle == 1)
    assert [particles(jobs.take()) for _ in range(2)] == [[0], [2]]


def test_a_pack_waits_for_runs_that_may_bring_more_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(backlog.time, "monotonic", lambda: now)
    jobs = filled(entry(0))
    everybody = ["a", "b"]
    assert not JobQueue[str]().is_ready([], everybody)
    assert jobs.is_ready([], ["a"]), "nobody else is there"
    assert jobs.is_ready(["b"], everybody), "b is busy with something"
    assert not jobs.is_ready([], everybody)
    now += backlog.PATIENCE_S / 2
    assert not jobs.is_ready([], everybody)
    now += backlog.PATIENCE_S / 2
    assert jobs.is_ready([], everybody)
    jobs.take()
    jobs.add(entry(2), urgent=False)
    assert not jobs.is_ready([], everybody), "another pack waits anew"
    jobs.add(entry(3, owner="b"), urgent=False)
    assert jobs.is_ready([], everybody), "the pack is full"
    alone = filled(entry(0, packing="single:1"))
    assert alone.is_ready([], everybody)
