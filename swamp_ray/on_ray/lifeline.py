"""Are the processes of Ray that a run depends on still there? When one has died, a sentence says so in seconds.

Ray itself waits for up to a minute, or ends the process that it is part of at once, without a word of ours. So there
are two watchers: a thread, and a small process that is left when Ray has ended this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray._private import worker as ray_worker

from swamp_ray.errors import EXIT_FAILED, EXIT_INTERRUPTED
from swamp_ray.on_ray import survivor
from swamp_ray.on_ray.listening import children, command_of
from swamp_ray.run.signals import was_stopped

LOOK_S = 0.2
GCS_PATIENCE_S = 5.0
"""A GCS that does not answer for so long is given up; a restarted one, or a slow network, may come back before."""
LEAVE_S = 7.0
"""The run has so long to end by itself. Then the process is ended, because calls of Ray's may never return."""
_AGENTS = ("dashboard/agent.py", "DashboardAgent", "runtime_env/agent/main.py", "RuntimeEnvAgent")
GO_ON = "What is finished is stored: the same command goes on."
NO_ANSWER = "stopped, because Ray does not answer any more. Run the same command again to go on."
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


class Lifeline:
    """Watches Ray's processes, until it is closed.

    Args:
        address: Of the cluster that was joined; None for an embedded Ray.
    """

    def __init__(self, address: str | None) -> None:
        node: Any = ray_worker._global_node
        found = list(_embedded(node) if address is None else _joined(node))
        self._gcs = str(node.gcs_address) if address is not None else None
        texts = {pid: _sentence(name, "has died", self._gcs, node.get_logs_dir_path()) for name, pid in found}
        self._silent = _sentence("head (its GCS)", "does not answer any more", self._gcs, "")
        self._handles = dict(_opened(texts))
        self._lost: str | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._survivor = _start_survivor(texts)
        # Where nobody closes it, Ray's own end at the end of this process must not be taken for a death.
        atexit.register(self.close)
        threading.Thread(target=self._watch, name="swamp-lifeline", daemon=True).start()

    def lost(self) -> str | None:
        """What has died and how to go on, as a sentence; None as long as all are there."""
        with self._lock:
            if self._lost is None:
                for handle, text in self._handles.items():
                    if _has_ended(handle):
                        self._lost = text
                        break
            return self._lost

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        self._over.set()
        atexit.unregister(self.close)
        self._release()
        with self._lock:
            handles = self._handles
            self._handles = {}
        for handle in handles:
            os.close(handle)

    def say_and_exit(self, text: str, code: int = EXIT_FAILED) -> None:
        """End this process with a sentence, without asking anything of Ray again."""
        self._release()
        with contextlib.suppress(OSError, ValueError):
            print(f"\nswamp: {text}", file=sys.stderr, flush=True)
        os._exit(code)

    def _release(self) -> None:
        """The small process has nothing to say any more."""
        process = self._survivor
        self._survivor = None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(survivor.OVER)
                process.stdin.close()
            process.wait()

    def _watch(self) -> None:
        silent_since: float | None = None
        while not self._over.wait(LOOK_S):
            if self._gcs is not None and self._lost is None:
                now = time.monotonic()
                silent_since = None if _answers(self._gcs) else silent_since or now
                if silent_since is not None and time.monotonic() - silent_since > GCS_PATIENCE_S:
                    self._lost = self._silent
            text = self.lost()
            if text is not None:
                if self._over.wait(LEAVE_S):
                    return
                if was_stopped():  # by a signal to all processes, it may be, that has ended Ray's as well
                    self.say_and_exit(NO_ANSWER, EXIT_INTERRUPTED)
                self.say_and_exit(text)


def _sentence(name: str, what: str, gcs: str | None, logs: str) -> str:
    if gcs is None:
        return (f"Ray's {name} {what}, and no run goes on without it. Something outside of the run has ended it, such "
                f"as a signal or a lack of memory. {GO_ON} Ray's own logs: {logs}")
    return (f"Ray's {name} {what}, and this run was joined to its cluster ({gcs}). {GO_ON} Start the cluster again "
            "before, or name another one with --address.")


def _start_survivor(texts: dict[int, str]) -> subprocess.Popen[bytes] | None:
    """The process that speaks when this one cannot any more."""
    given = {"texts": {str(pid): text for pid, text in texts.items()},
             "otherwise": f"the command was killed, or Ray has ended it. {GO_ON}"}
    with contextlib.suppress(OSError):
        process = subprocess.Popen([sys.executable, "-I", "-S", survivor.__file__], stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.flush()
        return process
    return None


@contextlib.contextmanager
def no_lines_of_ray() -> Iterator[None]:
    """What Ray's nodes report, such as the log of a raylet that has died, is not printed; it is in their logs."""
    module: Any = ray_worker
    printing: Callable[..., None] = module.print_to_stdstream
    module.print_to_stdstream = _print_nothing
    try:
        yield
    finally:
        module.print_to_stdstream = printing


@contextlib.contextmanager
def quiet_core() -> Iterator[None]:
    """A block in which this process is connected, so that Ray's compiled part does not print errors of its own.

    Only the connection is made so: the processes that are started keep their logs.
    """
    module: Any = ray_worker
    connecting: Callable[..., Any] = module.connect

    def connect(*arguments: Any, **options: Any) -> Any:
        if _LOG_LEVEL in os.environ:
            return connecting(*arguments, **options)
        os.environ[_LOG_LEVEL] = "fatal"
        try:
            with _no_stderr():  # where Ray would print that the level has been set
                return connecting(*arguments, **options)
        finally:
            del os.environ[_LOG_LEVEL]

    module.connect = connect
    try:
        yield
    finally:
        module.connect = connecting


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """A block in which nothing that is compiled prints errors."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _print_nothing(*_: object, **__: object) -> None:
    pass


def _embedded(node: Any) -> Iterator[tuple[str, int]]:
    """Processes of an embedded Ray. The raylet ends with its agents, so these are looked at first."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in children(raylet):
        if any(part in command_of(pid) for part in _AGENTS):
            yield "agent", pid
    yield "raylet", raylet
    yield "GCS", node.all_processes["gcs_server"][0].process.pid


def _joined(node: Any) -> Iterator[tuple[str, int]]:
    """This node's raylet: who listens at its socket."""
    with contextlib.suppress(OSError, AttributeError), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(node.raylet_socket_name)
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        if pid > 0:
            yield "raylet of this node", pid


def _opened(texts: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Handles of processes. Only Linux has them; elsewhere a death is noticed as Ray notices it."""
    for pid, text in texts.items():
        with contextlib.suppress(AttributeError, OSError):
            yield os.pidfd_open(pid), text


def _has_ended(handle: int) -> bool:
    ended, _, _ = select.select([handle], [], [], 0)
    return bool(ended)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True
