"""Who holds a lease: a process that can be told from all others, and whether it is still there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Life = Literal["alive", "gone", "elsewhere"]


@dataclass(frozen=True)
class Holder:
    """A process.

    Attributes:
        run: Name of the run that it works for.
        host: Name of its machine, for people.
        pid: Its number.
        started: When it started, in ticks since the machine did, which tells it from a later process of that number.
        boot: Identity of the machine since it started; empty where the system has none.
        namespace: The numbering of processes that ``pid`` belongs to: every container has its own.
        session: The attempt at the run that gave a worker its job; empty for the process that runs the run.
    """

    run: str
    host: str
    pid: int
    started: int | None
    boot: str
    namespace: str
    session: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def life(self) -> Life:
        """Whether it lives; ``elsewhere`` if that cannot be seen from here."""
        if not self.boot or (self.boot, self.namespace) != (_boot(), _namespace()):
            return "elsewhere"
        return "alive" if _lives(self.pid, self.started) else "gone"


def this_process(run: str, session: str = "") -> Holder:
    """The process that asks."""
    pid = os.getpid()
    return Holder(run, socket.gethostname(), pid, _state_and_start(pid)[1], _boot(), _namespace(), session)


def parse_holder(plain: object) -> Holder | None:
    """A holder from its fields; None if they are not those of one."""
    if not isinstance(plain, Mapping):
        return None
    fields: dict[str, Any] = {name: plain.get(name) for name in Holder.__dataclass_fields__}
    numbers = type(fields["pid"]) is int and 0 < fields["pid"] < 1 << 31 and (
        fields["started"] is None or type(fields["started"]) is int)
    words = all(isinstance(value, str) for name, value in fields.items() if name not in ("pid", "started"))
    return Holder(**fields) if numbers and words else None


def _lives(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there and belongs to somebody else
    state, start = _state_and_start(pid)
    if state in ("Z", "X"):
        return False  # killed, and only not yet waited for
    return start is None or started is None or start == started


def _state_and_start(pid: int) -> tuple[str, int | None]:
    """State and start of a process as Linux tells them; unknown elsewhere."""
    try:
        # The name before the last bracket may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
