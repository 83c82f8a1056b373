"""A Ray cluster of its own for a test: one head node as processes of the test's, on free ports, with a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import descendants

PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
         "dashboard-agent-grpc-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port",
         "metrics-export-port")
NUM_WORKER_PORTS = 60
LABEL = ("role", "stable")


@dataclass(frozen=True)
class Head:
    """A running head node: its dashboard's URL, and the file of its token."""

    url: str
    token_file: Path

    @property
    def token(self) -> str:
        return self.token_file.read_text()


@contextmanager
def ray_head() -> Iterator[Head]:
    """A head node with two CPUs, for as long as the block takes."""
    # Ray's sockets lie in there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="swamp-ray-"))
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    ports, first = _free_ports(len(PORTS)), _free_range(NUM_WORKER_PORTS)
    options = [f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_USAGE_STATS_ENABLED": "0",
        # Jobs are started with the `python` that is found first.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2",
               "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", f"--labels={'='.join(LABEL)}",
               f"--min-worker-port={first}", f"--max-worker-port={first + NUM_WORKER_PORTS - 1}", *options]
    log = folder / "start.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True)
    try:
        head = Head(f"http://127.0.0.1:{ports[1]}", token_file)
        _wait_until_it_answers(head, process, log)
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 90
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with suppress(OSError), opener.open(request, timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the node and what it started, and nothing else."""
    below = descendants(process.pid)
    for pid in [process.pid, *below]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=20)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _free_range(count: int) -> int:
    """The first of so many free ports in a row, below those that the system hands out by itself."""
    for first in range(20_000 + os.getpid() % 5_000, 32_000, count):
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
