from __future__ import annotations

from dataclasses import replace

from swamp_ray.method.events import Job
from swamp_ray.run.lease_watch import LeaseWatch
from swamp_ray.run.messages import JobSpec
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import HeldLease
from swamp_ray.storage.recipes import Named

AWAY = replace(this_process("other"), host="h", boot="another machine")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def job(particle: int) -> JobSpec:
    return JobSpec(Job("particle", 1, particle), 0, Named(f"{particle:064x}", {}))


def test_a_holder_is_named_once_for_each_job() -> None:
    waiting = LeaseWatch(30.0)
    assert waiting.add(job(0), HeldLease(b"1", AWAY))
    assert not waiting.add(job(0), HeldLease(b"2", AWAY))
    assert waiting.add(job(1), HeldLease(b"1", AWAY))
    assert waiting.add(job(0), HeldLease(b"3", replace(AWAY, host="another")))


def test_all_jobs_are_looked_at_but_not_more_often_than_the_interval() -> None:
    clock = Clock()
    waiting = LeaseWatch(30.0, 1.0, clock)
    assert waiting.due() == []
    waiting.add(job(0), HeldLease(b"1", AWAY))
    assert waiting.due() == [job(0)]
    waiting.add(job(1), HeldLease(b"1", AWAY))
    assert waiting.due() == []
    clock.now += 1.0
    assert waiting.due() == [job(0), job(1)]
    clock.now += 1.0
    waiting.remove(job(0).job)
    assert waiting.due() == [job(1)]


def test_a_free_lease_is_taken_a_live_one_waited_for_and_a_silent_one_taken_over() -> None:
    clock = Clock()
    waiting = LeaseWatch(30.0, 1.0, clock)
    waiting.add(job(0), HeldLease(b"1", AWAY))
    assert waiting.look(job(0).job, None) == b""
    clock.now += 20.0
    assert waiting.look(job(0).job, HeldLease(b"2", AWAY)) is None
    clock.now += 20.0
    assert waiting.look(job(0).job, HeldLease(b"2", AWAY)) is None
    clock.now += 10.0
    assert waiting.look(job(0).job, HeldLease(b"2", AWAY)) == b"2"


def test_a_dead_process_here_is_not_waited_for() -> None:
    waiting = LeaseWatch(30.0)
    dead = HeldLease(b"1", replace(this_process("other"), pid=2**22 + 1))
    waiting.add(job(0), dead)
    assert waiting.look(job(0).job, dead) == b"1"
