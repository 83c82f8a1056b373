"""Leases: who is working on something right now, so that nobody else does the same work.

A lease is one small object that its holder keeps rewriting with a higher counter. It only saves work: results are
named by what they are made from, so two that train the same store the same, and nothing depends on a lease being
respected. Hence whatever goes wrong with one is let go.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from swamp_ray.errors import RunError
from swamp_ray.storage.holders import Holder, Life, parse_holder
from swamp_ray.storage.place import Place
from swamp_ray.storage.retrying import PatientPlace, impatient
from swamp_ray.storage.wrapped_place import WrappedPlace

LEASE_FILE = ".lease.json"
"""The name with a dot cannot be that of a slot of an artifact, whose manifest is ``<slot>.json``."""

EXPIRY_S = 30.0
BEATS = 5
LONGEST_EXPIRY_S = 3600.0
TRIES = 5

_T = TypeVar("_T")

_ours: set[str] = set()
"""Tokens of the leases that this process holds."""


def artifact_lease(name: str) -> str:
    """Key of the lease of an artifact that is being computed."""
    return f"artifacts/{name[:2]}/{name}/{LEASE_FILE}"


@dataclass(frozen=True)
class HeldLease:
    """Somebody's lease as it was read.

    Attributes:
        content: Raw bytes; each heartbeat changes them.
        holder: Who holds it; None if that cannot be read.
        token: What its holder knows it by.
        expiry_s: How long its holder may be silent, as the holder says.
        key: Where it lies.
    """

    content: bytes
    holder: Holder | None = None
    token: str = ""
    expiry_s: float = 0.0
    key: str = ""

    @property
    def life(self) -> Life:
        """Whether its holder lives, as far as that can be seen from this process."""
        return "elsewhere" if self.holder is None else self.holder.life

    @property
    def who(self) -> str:
        """The holder in words."""
        return "another process" if self.holder is None else f"run {self.holder.run} on {self.holder.host}"


class Watch:
    """Tells whether holders are silent for too long, by this process's own clock.

    Args:
        expiry_s: Seconds of silence after which a lease is free; a holder that beats more slowly gets its own.
        clock: Seconds that never go back.
    """

    def __init__(self, expiry_s: float = EXPIRY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._expiry_s = expiry_s
        self._clock = clock
        self._seen: dict[str, tuple[bytes, float]] = {}

    def stale(self, key: str, held: HeldLease) -> bool:
        """Whether the lease can be taken over: its holder is gone, or was silent since it was first seen like this."""
        now = self._clock()
        content, since = self._seen.get(key, (None, now))
        if content != held.content:
            self._seen[key] = held.content, now
            since = now
        return held.life == "gone" or now - since >= max(self._expiry_s, held.expiry_s)


class Leases:
    """The leases of a storage root.

    Args:
        place: The storage root.
        expiry_s: Seconds without a sign of life after which others may take a lease over.
    """

    def __init__(self, place: Place, expiry_s: float = EXPIRY_S) -> None:
        self.place = place
        self.expiry_s = expiry_s
        self.interval_s = expiry_s / BEATS

    def acquire(self, key: str, holder: Holder, stale: bytes = b"") -> Lease | HeldLease:
        """Take a lease that is free, whose holder is gone, or that was seen to be stale.

        Args:
            key: Where it lies.
            holder: Who takes it.
            stale: The content that a :class:`Watch` found stale.

        Returns:
            The lease, or who else holds it.

        Raises:
            RunError: The storage cannot be read or written.
        """
        lease = Lease(self, key, holder)
        _ours.add(lease.token)
        try:
            found = self._take(key, lease, holder, stale)
        except BaseException:
            _ours.discard(lease.token)
            raise
        if found is not lease:
            _ours.discard(lease.token)
        return found

    def _take(self, key: str, lease: Lease, holder: Holder, stale: bytes) -> Lease | HeldLease:
        for _ in range(TRIES):
            if self.place.write(key, lease.content, keep_existing=True):
                return lease.start()
            held = self.look(key)
            if held is None:
                continue
            # A write whose answer was lost has happened all the same.
            if held.token == lease.token:
                return lease.start()
            if not is_free(held, holder, stale):
                return held
            if self.place.swap(key, lease.content, expected=held.content):
                return lease.start()
        return self.look(key) or HeldLease(b"", key=key)

    def look(self, key: str) -> HeldLease | None:
        """Who holds a lease; None if it is free. Raises RunError if the storage cannot be read."""
        try:
            content = self.place.read(key)
        except FileNotFoundError:
            return None
        return replace(_parse(content), key=key)

    def last_seen_s(self, key: str) -> float | None:
        """When the holder of a lease last gave a sign of life, by the storage's clock."""
        folder, _, name = key.rpartition("/")
        return next((entry.modified_s for entry in self.place.entries(folder) if entry.name == name), None)

    def remove(self, key: str, *, token: str = "", session: str = "") -> None:
        """Remove a lease that still has this token, or is of this attempt; storages that fail are left alone."""
        with contextlib.suppress(RunError, OSError), self.place.locked(key.rpartition("/")[0]):
            held = self.look(key)
            if held is None:
                return
            # An object store removes nothing on a condition: a lease taken over since the look above would be lost to
            # its new holder, who then finds that out before it writes a record.
            if (token and held.token == token) or (session and held.holder and held.holder.session == session):
                self.place.remove(key)


class LeaseLostError(RunError):
    """What this process held is another's now, or gone: its records must not be written any more."""


class Lease:
    """A lease of this process, which shows that it is held from :meth:`start` to :meth:`release`.

    Args:
        leases: Where it belongs.
        key: Where it lies.
        holder: Who holds it.
    """

    def __init__(self, leases: Leases, key: str, holder: Holder) -> None:
        self._leases = leases
        self._key = key
        self._holder = holder
        self.token = uuid.uuid4().hex
        self._counter = 0
        self.content = self._dump()
        self.loss = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {key}", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether it is known that somebody else has taken the lease over, or that it is gone."""
        return bool(self.loss)

    def start(self) -> Lease:
        """Give signs of life from now on."""
        self._thread.start()
        return self

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back, if it is still held; never fails, since it would expire by itself."""
        if self._stop.is_set():
            return
        self._stop.set()
        _ours.discard(self.token)
        self._thread.join(timeout=self._leases.interval_s)
        # A beat that hangs in a slow storage would bring the lease back after its removal.
        if not self._thread.is_alive():
            self._leases.remove(self._key, token=self.token)

    def beat(self) -> None:
        """Give a sign of life; ``lost`` says whether the lease turned out to be another's, or gone."""
        self._counter += 1
        content = self._dump()
        try:
            if self._leases.place.swap(self._key, content, expected=self.content):
                self.content = content
                return
            held = self._leases.look(self._key)
        except (RunError, OSError):
            return  # the next beat may come through
        if held is not None and held.token == self.token:
            self.content = held.content  # an earlier beat came through, though it seemed to fail
        else:
            self._lose(held)

    def confirm(self) -> None:
        """Look whether the lease is still held. A process that slept cannot know it by itself.

        Raises:
            LeaseLostError: Somebody else has taken it over, or it is gone.
            RunError: The storage could not be read.
        """
        if not self.lost:
            try:
                held = _parse(impatient(self._leases.place).read(self._key))
            except FileNotFoundError:
                held = None
            if held is not None and held.token == self.token:
                return
            self._lose(held)
        raise LeaseLostError(self.loss)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """A moment in which the lease is certainly held, for one write.

        Where the storage has locks nobody can take the lease over before the block ends, even if this process is
        stopped in it. In an object store there are none; what must not be overwritten there is put on a condition.

        Raises:
            LeaseLostError: It is not held any more.
        """
        with impatient(self._leases.place).locked(self._key.rpartition("/")[0]):
            self.confirm()
            yield

    def _lose(self, held: HeldLease | None) -> None:
        what = f"the {self._key.partition('s/')[0]} {self._holder.run!r}"
        if held is not None:
            self.loss = (f"another process works on {what} now ({held.holder or 'unknown'}): this one was silent for "
                         "so long that it was taken for dead. It writes nothing more. Watch the other one with swamp "
                         "status.")
        else:
            self.loss = (f"{what} is not held by this process any more: its folder was moved or deleted, or another "
                         "process took it over and has ended. Nothing more is written. Run the same command again: it "
                         "goes on from what is stored.")

    def _run(self) -> None:
        while not self.lost and not self._stop.wait(self._leases.interval_s):
            self.beat()

    def _dump(self) -> bytes:
        return json.dumps({"token": self.token, "counter": self._counter, "expiry_s": self._leases.expiry_s,
                           "holder": asdict(self._holder)}, sort_keys=True).encode()


class HeldPlace(WrappedPlace):
    """A place that is written to only while a lease is held, which is confirmed before every write.

    Args:
        inner: The place.
        lease: What allows the writes.
    """

    def __init__(self, inner: Place, lease: Lease) -> None:
        super().__init__(inner)
        self.lease = lease

    def writing(self, operation: Callable[[], _T]) -> _T:
        """Carry out a write in a moment in which the lease is held."""
        with self.lease.holding():
            return operation()

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Replace an object that holds what is expected, if the lease is held."""
        # Not inside the lock, which `swap` takes itself.
        self.lease.confirm()
        return self.inner.swap(key, data, expected)


def held_by(place: Place, lease: Lease) -> Place:
    """The same place, written to only while a lease is held."""
    if isinstance(place, PatientPlace):
        return PatientPlace(HeldPlace(place.inner, lease), place.patience)
    return HeldPlace(place, lease)


def claim(
    leases: Leases,
    key: str,
    holder: Holder,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease | HeldLease:
    """Take a lease that one process alone should have; one whose holder cannot be seen is watched first.

    On this machine a holder that lives is respected however silent it is: it may only have been stopped for a while.

    Args:
        leases: Those of the storage root.
        key: Where the lease lies.
        holder: Who takes it.
        say: Told when the watching begins, and how it ends.
        clock: Seconds that never go back.
        sleep: Waits so many seconds.

    Returns:
        The lease, or who holds it and lives.

    Raises:
        RunError: The storage cannot be read or written.
    """
    watch = Watch(leases.expiry_s, clock)
    first: HeldLease | None = None
    stale = b""
    while True:
        found = leases.acquire(key, holder, stale)
        if isinstance(found, Lease):
            if first is not None:
                say(f"{first.holder or 'another process'} gives no sign of life: taking over")
            return found
        if found.life == "alive" or (first is not None and found.content != first.content):
            return found
        if watch.stale(key, found):
            stale = found.content
            continue
        if first is None:
            first = found
            seconds = max(leases.expiry_s, found.expiry_s)
            say(f"{found.holder or 'another process'} was here before: watching for up to {seconds:g} s whether it "
                "still works")
        sleep(min(1.0, leases.interval_s))


def is_free(held: HeldLease, holder: Holder, stale: bytes = b"") -> bool:
    """Whether a holder may take a lease over: its own run had it, or whoever had it is gone or was seen to be stale."""
    if held.content == stale or held.life == "gone":
        return True
    nameless = None if held.holder is None else replace(held.holder, run="", session="")
    # This process knows what it holds. A lease that it could not remove, as of a storage root that was moved, is none
    # of it.
    if nameless == replace(holder, run="", session="") and held.token not in _ours:
        return True
    # A run has one driver, which gives each job to one worker at a time: the one that had it before is dead, or an
    # orphan of an attempt that is.
    before = held.holder
    return before is not None and bool(before.session and holder.session) and before.run == holder.run


def _parse(content: bytes) -> HeldLease:
    """A lease from its bytes; a damaged one is held by nobody that is known, until it expires."""
    try:
        body: Any = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return HeldLease(content)
    token = body.get("token")
    expiry_s = body.get("expiry_s")
    seconds = min(expiry_s, LONGEST_EXPIRY_S) if isinstance(expiry_s, int | float) and expiry_s >= 0 else 0.0
    return HeldLease(content, parse_holder(body.get("holder")), token if isinstance(token, str) else "", seconds)
