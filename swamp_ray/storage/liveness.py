"""Whether a process works on a run or a sweep at the moment, from its lease alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from swamp_ray.storage.leases import EXPIRY_S, HeldLease, Leases, Watch
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.tables import duration

KILLED = "stopped without a word (killed?); the same command goes on"


@dataclass(frozen=True)
class Life:
    """Whether somebody works on a run, and how that is said."""

    running: bool
    text: str


def life_of(rundir: RunDir, record: dict[str, Any], watch: Watch | None = None) -> Life:
    """Whether a process works on the run: what ``run.json`` says of one that was killed is not true any more."""
    return life_by_lease(rundir.leases(), rundir.lease_key, str(record.get("status")), watch)


def life_by_lease(leases: Leases, key: str, status: str, watch: Watch | None = None) -> Life:
    """Whether a process holds a lease, where the last thing that was recorded is this status."""
    if status != "running":
        return Life(False, status)
    held = leases.look(key)
    if held is None or held.life == "gone":
        return Life(False, KILLED)
    if held.life == "alive":
        return Life(True, "running")
    return _life_elsewhere(leases, key, held, watch)


def _life_elsewhere(leases: Leases, key: str, held: HeldLease, watch: Watch | None) -> Life:
    host = held.holder.host if held.holder is not None else "another machine"
    if watch is not None and watch.stale(key, held):
        return Life(False, KILLED)
    seen = leases.last_seen_s(key)
    age = None if seen is None else max(0.0, time.time() - seen)
    # Compared with this machine's clock, which may differ from the storage's: a hint, and only the watch decides.
    if age is not None and watch is None and age > 2 * max(held.expiry_s, EXPIRY_S):
        return Life(False, f"not heard of for {duration(age)}, was running on {host} (killed?); the same command "
                           "goes on")
    return Life(True, f"running on {host}" + ("" if age is None else f", last seen {duration(age)} ago"))
