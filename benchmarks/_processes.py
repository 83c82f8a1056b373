"""What processes hold in memory, from /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray


def status_bytes(pid: int, field: str) -> int:
    """A field of /proc/PID/status such as VmRSS or RssAnon; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def share_bytes(pid: int) -> int:
    """A process's memory, of what it shares with others only its share (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def descendants(pid: int) -> list[int]:
    """All living processes below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def named(pids: Sequence[int], start: str) -> list[int]:
    """Those whose command line begins so, such as ``ray::ParticleActor``."""
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(start.encode()):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def store_bytes_used() -> Callable[[], int]:
    """What asks this node's raylet how many bytes of its object store are in use."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    node = next(node for node in ray.nodes() if node["Alive"])
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    stub: Any = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
    request: Any = node_manager_pb2.GetNodeStatsRequest  # pyright: ignore[reportAttributeAccessIssue]

    def ask() -> int:
        return int(stub.GetNodeStats(request(include_memory_info=False), timeout=10).store_stats
                   .object_store_bytes_used)

    return ask


class Sampler:
    """The most that processes hold of their own, and the object store with it, while a block runs.

    A process's own memory is its anonymous pages (RssAnon): those of the object store are mapped by several processes
    and counted once, by the raylet.

    Args:
        pids: The processes.
        interval_s: Between two looks.
    """

    def __init__(self, pids: Sequence[int], interval_s: float = 0.02) -> None:
        self._pids, self._interval_s = pids, interval_s
        self._store = store_bytes_used()
        self._over = threading.Event()
        self.most = 0

    def now(self) -> int:
        """Bytes at this moment."""
        return sum(status_bytes(pid, "RssAnon") for pid in self._pids) + self._store()

    def __enter__(self) -> Sampler:
        self._over.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, self.now())
            time.sleep(self._interval_s)


def own_pid() -> int:
    """This process."""
    return os.getpid()
