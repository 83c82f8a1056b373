from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.errors import RunError
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore
from swamp_ray.storage.holders import Holder, this_process
from swamp_ray.storage.leases import HeldLease, Lease, Leases, Watch, artifact_lease, claim
from swamp_ray.storage.local_place import LocalPlace

NAME = "ab" * 32
KEY = artifact_lease(NAME)
HERE = this_process("here")
AWAY = replace(HERE, run="away", host="elsewhere.example", boot="another machine")
DEAD = replace(HERE, run="dead", pid=2**22 + 1)
NEVER_S = 3600.0
"""So long that no beat comes unless the test asks for it."""


class Clock:
    """Time that only passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.while_asleep: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_asleep()


class Stubborn(LocalPlace):
    """A storage that fails when it is told to, before or after it has done what it was asked."""

    before = after = False

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        if self.before:
            raise RunError("no storage")
        done = super().swap(key, data, expected)
        if self.after:
            raise RunError("no answer")
        return done

    def read(self, key: str) -> bytes:
        if self.before:
            raise RunError("no storage")
        return super().read(key)


@pytest.fixture
def place(tmp_path: Path) -> Stubborn:
    return Stubborn(tmp_path)


@pytest.fixture
def leases(place: Stubborn) -> Leases:
    return Leases(place, NEVER_S)


def taken(found: Lease | HeldLease) -> Lease:
    assert isinstance(found, Lease), found
    return found


def refused(found: Lease | HeldLease) -> HeldLease:
    assert isinstance(found, HeldLease)
    return found


def test_a_lease_has_one_holder_until_it_is_released(leases: Leases) -> None:
    lease = taken(leases.acquire(KEY, HERE))
    held = refused(leases.acquire(KEY, AWAY))
    assert held.holder == HERE
    assert held.who == f"run here on {HERE.host}"
    lease.release()
    assert leases.look(KEY) is None
    with taken(leases.acquire(KEY, AWAY)):
        assert refused(leases.acquire(KEY, HERE)).holder == AWAY
    assert leases.look(KEY) is None


def test_of_racers_for_a_lease_one_wins(leases: Leases) -> None:
    for _ in range(5):
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda number: leases.acquire(KEY, replace(AWAY, pid=number)), range(1, 7)))
        won = [lease for lease in found if isinstance(lease, Lease)]
        assert len(won) == 1
        won[0].release()


def test_of_racers_for_a_stale_lease_one_wins(leases: Leases) -> None:
    for _ in range(5):
        stale = taken(leases.acquire(KEY, AWAY)).content
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(leases.acquire, [KEY] * 6, [HERE] * 6, [stale] * 6))
        won = [lease for lease in found if isinstance(lease, Lease)]
        assert len(won) == 1
        won[0].release()


def test_each_beat_is_seen_and_a_beating_lease_never_goes_stale(leases: Leases) -> None:
    clock = Clock()
    watch = Watch(30.0, clock)
    lease = taken(Leases(leases.place, 30.0).acquire(KEY, AWAY))
    for _ in range(20):
        held = leases.look(KEY)
        assert held is not None
        assert not watch.stale(KEY, held)
        clock.now += 29.0
        lease.beat()
    lease.release()


def test_a_silent_lease_goes_stale_by_the_watchers_clock_alone() -> None:
    clock = Clock()
    watch = Watch(30.0, clock)
    held = HeldLease(b"as it was", AWAY)
    assert not watch.stale(KEY, held)
    clock.now += 29.9
    assert not watch.stale(KEY, held)
    clock.now += 0.1
    assert watch.stale(KEY, held)
    assert not watch.stale("another", held), "each lease is watched for itself"
    assert not watch.stale(KEY, replace(held, content=b"another"))


def test_a_holder_that_beats_slowly_is_given_its_own_time() -> None:
    clock = Clock()
    watch = Watch(1.0, clock)
    held = HeldLease(b"slow", AWAY, expiry_s=100.0)
    assert not watch.stale(KEY, held)
    clock.now += 99.0
    assert not watch.stale(KEY, held)
    clock.now += 1.0
    assert watch.stale(KEY, held)


def test_a_watcher_that_slept_takes_nothing_over_from_a_holder_that_moved() -> None:
    clock = Clock()
    watch = Watch(30.0, clock)
    assert not watch.stale(KEY, HeldLease(b"1", AWAY))
    clock.now += 1000.0
    assert not watch.stale(KEY, HeldLease(b"2", AWAY))


def test_a_dead_process_on_this_machine_loses_its_lease_at_once(leases: Leases) -> None:
    taken(leases.acquire(KEY, DEAD))
    held = leases.look(KEY)
    assert held is not None
    assert Watch(NEVER_S).stale(KEY, held)
    lease = taken(leases.acquire(KEY, HERE))
    assert refused(leases.acquire(KEY, AWAY)).token == lease.token


def test_a_worker_of_the_same_run_gets_the_lease_of_the_one_before(leases: Leases) -> None:
    taken(leases.acquire(KEY, replace(AWAY, session="attempt")))
    refused(leases.acquire(KEY, replace(HERE, session="another attempt")))
    refused(leases.acquire(KEY, replace(HERE, run="away")))
    taken(leases.acquire(KEY, replace(HERE, run="away", session="next attempt")))


def test_a_take_over_needs_the_content_that_was_seen(leases: Leases) -> None:
    old = taken(leases.acquire(KEY, AWAY))
    seen = old.content
    old.beat()
    assert not old.lost
    refused(leases.acquire(KEY, HERE, seen))
    taken(leases.acquire(KEY, HERE, old.content))


def test_a_holder_notices_that_it_lost_its_lease_and_leaves_the_new_one_alone(leases: Leases) -> None:
    old = taken(leases.acquire(KEY, AWAY))
    new = taken(leases.acquire(KEY, HERE, old.content))
    old.beat()
    assert old.lost
    old.release()
    held = leases.look(KEY)
    assert held is not None
    assert held.token == new.token
    new.beat()
    assert not new.lost


def test_a_lease_that_vanished_is_lost_and_not_written_again(leases: Leases) -> None:
    lease = taken(leases.acquire(KEY, HERE))
    leases.place.remove(KEY)
    lease.beat()
    assert lease.lost
    assert leases.look(KEY) is None


def test_a_storage_that_fails_for_a_while_costs_beats_and_nothing_else(leases: Leases, place: Stubborn) -> None:
    lease = taken(leases.acquire(KEY, HERE))
    place.before = True
    lease.beat()
    place.before, place.after = False, True
    lease.beat()
    place.after = False
    lease.beat()
    assert not lease.lost
    place.before = True
    lease.release()
    place.before = False
    assert leases.look(KEY) is not None, "it could not be removed, and expires"


def test_a_release_after_a_beat_that_seemed_to_fail_still_removes_the_lease(leases: Leases, place: Stubborn) -> None:
    lease = taken(leases.acquire(KEY, HERE))
    place.after = True
    lease.beat()
    place.after = False
    lease.release()
    assert leases.look(KEY) is None


def test_the_thread_beats_and_ends(place: Stubborn) -> None:
    leases = Leases(place, 0.05)
    lease = taken(leases.acquire(KEY, HERE))
    first = lease.content
    for _ in range(2000):
        if lease.content != first:
            break
        lease._thread.join(0.01)
    assert lease.content != first
    lease.release()
    lease.release()
    assert not lease._thread.is_alive()
    assert leases.look(KEY) is None


@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.dictionaries(st.sampled_from(["token", "counter", "expiry_s", "holder", "pid", "boot"]), inner),
).map(lambda plain: json.dumps(plain).encode())))
def test_whatever_stands_there_expires_and_is_taken_over(content: bytes) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        leases, clock = Leases(LocalPlace(folder), NEVER_S), Clock()
        leases.place.write(KEY, content)
        held = leases.look(KEY)
        assert held is not None
        watch = Watch(30.0, clock)
        watch.stale(KEY, held)
        clock.now += NEVER_S
        assert watch.stale(KEY, held)
        taken(leases.acquire(KEY, HERE, content)).release()


def test_only_the_leases_of_a_session_are_removed_with_it(leases: Leases) -> None:
    taken(leases.acquire(KEY, replace(AWAY, session="mine")))
    leases.remove(KEY, session="another")
    leases.remove(KEY, session="")
    leases.remove(KEY, token="another")
    assert leases.look(KEY) is not None
    leases.remove(KEY, session="mine")
    assert leases.look(KEY) is None


def test_an_artifact_store_does_not_take_a_lease_for_one_of_its_own(leases: Leases, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with taken(leases.acquire(KEY, HERE)):
        for number in range(3):
            store.put(NAME, {"run.pt": bytes([number])}, {"epoch": number}, CHECKPOINT)
        payloads = [path for path in (tmp_path / KEY).parent.iterdir() if path.suffix == ".pt"]
        assert len(payloads) == 1, "checkpoints are not swept while a lease is held"
        store.put(NAME, {"state": b"done"}, {})
        store.discard(NAME, CHECKPOINT)
        held = leases.look(KEY)
        assert held is not None
        assert held.holder == HERE


# One process alone


class Claim:
    """A claim with a clock of its own, and what was said meanwhile."""

    def __init__(self, leases: Leases) -> None:
        self.clock, self.said = Clock(), list[str]()
        self._leases = leases

    def __call__(self, holder: Holder = HERE) -> Lease | HeldLease:
        return claim(self._leases, "runs/tiny/lease", holder, self.said.append, self.clock, self.clock.sleep)


def test_a_living_process_here_is_respected_without_waiting(leases: Leases) -> None:
    first, second = Claim(leases), Claim(leases)
    taken(first())
    assert refused(second()).holder == HERE
    assert second.clock.now == Clock().now
    assert second.said == []


def test_a_dead_process_here_is_succeeded_without_waiting(leases: Leases) -> None:
    first, second = Claim(leases), Claim(leases)
    taken(first(DEAD))
    taken(second())
    assert second.clock.now == Clock().now


def test_a_process_elsewhere_that_beats_is_noticed_before_the_time_is_over(leases: Leases) -> None:
    first, second = Claim(leases), Claim(leases)
    other = taken(first(AWAY))
    second.clock.while_asleep = other.beat
    assert refused(second()).holder == AWAY
    assert second.clock.now < Clock().now + NEVER_S
    assert "watching for up to 3600 s" in second.said[0]


def test_a_process_elsewhere_that_is_silent_is_succeeded_after_the_time(place: Stubborn) -> None:
    leases = Leases(place, 30.0)
    first, second = Claim(leases), Claim(leases)
    old = taken(first(AWAY))
    old._stop.set()
    lease = taken(second())
    assert Clock().now + 30.0 <= second.clock.now <= Clock().now + 32.0
    assert second.said[-1] == f"process {AWAY.pid} on elsewhere.example gives no sign of life: taking over"
    lease.release()


def test_of_two_that_wait_for_a_silent_process_one_is_told_of_the_other(place: Stubborn) -> None:
    leases = Leases(place, 30.0)
    first, second = Claim(leases), Claim(leases)
    old = taken(first(AWAY))
    old._stop.set()

    def other_takes_over() -> None:
        if second.clock.now > Clock().now + 10:
            leases.acquire("runs/tiny/lease", replace(AWAY, host="third.example"), old.content)

    second.clock.while_asleep = other_takes_over
    found = refused(second())
    assert found.holder is not None
    assert found.holder.host == "third.example"
