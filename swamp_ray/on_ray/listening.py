"""What the processes of an embedded Ray listen on, and whether somebody without its token gets an answer there."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

_LISTENING = "0A"
_PATIENCE_S = 2.0
_PROC = Path("/proc")
# One harmless question to each of Ray's services; a port that knows the question has to refuse it.
_QUESTIONS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
)
_JOBS = "/api/job_agent/jobs/"
_REFUSALS = (http.client.UNAUTHORIZED, http.client.FORBIDDEN)


@dataclass(frozen=True)
class Listener:
    """A TCP port on which a process listens.

    Attributes:
        host: The address it is bound to; ``0.0.0.0`` or ``::`` are all interfaces.
        port: Its number.
        process: The name of the process.
    """

    host: str
    port: int
    process: str

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def reached_at(self) -> str:
        """An address at which this machine reaches it."""
        host = ipaddress.ip_address(self.host)
        return "127.0.0.1" if host.is_unspecified else str(host)


def listeners(pid: int) -> list[Listener] | None:
    """What a process and those below it listen on; None where the system does not say (it has no /proc)."""
    sockets = _listening_sockets()
    if sockets is None:
        return None
    found = []
    for process in (pid, *_below(pid)):
        name = _name(process)
        for inode in _inodes(process):
            if inode in sockets:
                host, port = sockets[inode]
                found.append(Listener(host, port, name))
    return sorted(set(found), key=lambda one: (one.process, one.port))


def answer_without_token(listener: Listener) -> str | None:
    """What a port gives away to somebody who has no token; None if it refuses."""
    status = _http_status(listener)
    if status is not None:
        return None if status in _REFUSALS else f"HTTP {status}"
    with grpc.insecure_channel(f"{listener.reached_at}:{listener.port}", [("grpc.enable_http_proxy", 0)]) as channel:
        for question in _QUESTIONS:
            if _is_answered(channel, question):
                return question
    return None


def _http_status(listener: Listener) -> int | None:
    """None: the port does not speak HTTP/1."""
    connection = http.client.HTTPConnection(listener.reached_at, listener.port, timeout=_PATIENCE_S)
    try:
        # An empty body is no job: a server that lets this in answers that the request is wrong.
        connection.request("POST", _JOBS, b"", {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _is_answered(channel: grpc.Channel, question: str) -> bool:
    ask = channel.unary_unary(question)
    try:
        ask(b"", timeout=_PATIENCE_S)
    except grpc.RpcError as error:
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED,
                   grpc.StatusCode.UNAVAILABLE)
        return error.code() not in refused
    return True


def _listening_sockets() -> dict[str, tuple[str, int]] | None:
    """Addresses of all listening TCP sockets by inode."""
    found = {}
    has_proc = False
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
            has_proc = True
            for line in lines:
                words = line.split()
                if words[3] == _LISTENING:
                    found[words[9]] = _address(words[1])
    return found if has_proc else None


def _address(text: str) -> tuple[str, int]:
    """The kernel writes the address as hexadecimal words in the machine's byte order."""
    host, _, port = text.partition(":")
    words = [bytes.fromhex(host[start:start + 8])[::-1] for start in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)


def children(pid: int) -> list[int]:
    """Processes that a process has started, as far as the system says."""
    return _parents().get(pid, [])


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _below(pid: int) -> list[int]:
    parents = _parents()
    found = []
    to_visit = [pid]
    while to_visit:
        below = parents.get(to_visit.pop(), [])
        found += below
        to_visit += below
    return found


def _parents() -> dict[int, list[int]]:
    """The children of each process."""
    parents: dict[int, list[int]] = {}
    if not _PROC.is_dir():
        return parents
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    return parents


def _inodes(pid: int) -> Iterator[str]:
    try:
        entries = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith("socket:["):
                yield target.removeprefix("socket:[").removesuffix("]")


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text().strip()
    return "a process"
