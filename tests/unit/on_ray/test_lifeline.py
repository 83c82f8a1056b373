"""A process of Ray's dies: what is said, by whom; with stand-ins for the processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import worker as ray_worker

from swamp_ray.on_ray import lifeline, survivor
from swamp_ray.on_ray.lifeline import Lifeline, no_lines_of_ray

DYING = "import time; time.sleep(100)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DYING!r}, 'AGENT']).wait()"


@contextlib.contextmanager
def process(code: str = DYING) -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
    try:
        yield found
    finally:
        found.kill()
        found.wait()


def _wait_for(condition: Any) -> Any:
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's record of a connection, to be filled by the test."""
    found = SimpleNamespace(get_logs_dir_path=lambda: "/tmp/ray-0/logs")
    monkeypatch.setattr(ray_worker, "_global_node", found)
    monkeypatch.setattr(lifeline, "LEAVE_S", 10_000.0)
    return found


def _embedded(node: Any, raylet: subprocess.Popen[bytes], gcs: subprocess.Popen[bytes]) -> Lifeline:
    node.all_processes = {"raylet": [SimpleNamespace(process=raylet)], "gcs_server": [SimpleNamespace(process=gcs)]}
    return Lifeline(None)


@pytest.mark.parametrize(("victim", "said"), [("raylet", "Ray's raylet has died"), ("gcs", "Ray's GCS has died")])
def test_a_process_of_an_embedded_ray_that_dies_is_named(node: Any, victim: str, said: str) -> None:
    with process() as raylet, process() as gcs:
        watched = _embedded(node, raylet, gcs)
        assert watched.lost() is None
        (raylet if victim == "raylet" else gcs).send_signal(signal.SIGKILL)
        text = _wait_for(watched.lost)
        watched.close()
    assert text.startswith(said)
    assert "the same command goes on" in text
    assert "/tmp/ray-0/logs" in text
    assert watched.lost() == text, "also when nothing is watched any more"


@pytest.mark.parametrize("part", [
    "ray::DashboardAgent", "ray::RuntimeEnvAgent", "/ray/dashboard/agent.py", "/ray/runtime_env/agent/main.py",
])
def test_an_agent_that_dies_before_its_raylet_is_named(node: Any, part: str) -> None:
    with process(PARENT.replace("AGENT", part)) as raylet, process() as gcs:
        (agent,) = _wait_for(lambda: [pid for pid in lifeline.children(raylet.pid) if part in lifeline.command_of(pid)])
        watched = _embedded(node, raylet, gcs)
        os.kill(agent, signal.SIGKILL)
        text = _wait_for(watched.lost)
        watched.close()
    assert text.startswith("Ray's agent has died")


@contextlib.contextmanager
def head(node: Any, folder: Path) -> Iterator[socket.socket]:
    """A GCS that listens, and a raylet with a socket, which is this process."""
    with socket.socket(socket.AF_UNIX) as raylet, socket.socket() as gcs:
        raylet.bind(str(folder / "raylet"))
        raylet.listen()
        gcs.bind(("127.0.0.1", 0))
        gcs.listen(100)
        node.raylet_socket_name = str(folder / "raylet")
        node.gcs_address = f"127.0.0.1:{gcs.getsockname()[1]}"
        yield gcs


def test_a_head_that_does_not_answer_any_more_is_named(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline, "GCS_PATIENCE_S", 0.3)
    with head(node, tmp_path) as gcs:
        watched = Lifeline("auto")
        time.sleep(3 * lifeline.LOOK_S)
        assert watched.lost() is None
        gcs.close()
        text = _wait_for(watched.lost)
        watched.close()
    assert text.startswith("Ray's head (its GCS) does not answer any more")
    assert node.gcs_address in text
    assert "Start the cluster again" in text


def test_a_head_that_is_back_soon_is_not_given_up(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, False, True, False, True])
    asked = threading.Event()

    def answer(_: str) -> bool:
        found = next(answers, None)
        if found is None:
            asked.set()
        return found is not False

    monkeypatch.setattr(lifeline, "_answers", answer)
    monkeypatch.setattr(lifeline, "LOOK_S", 0.01)
    with head(node, tmp_path):
        watched = Lifeline("auto")
        assert asked.wait(30)
        assert watched.lost() is None
        watched.close()


def _survivor(texts: dict[int, str]) -> subprocess.Popen[bytes]:
    found = subprocess.Popen([sys.executable, "-I", "-S", survivor.__file__], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert found.stdin is not None
    found.stdin.write(json.dumps({"texts": texts, "otherwise": "killed?"}).encode() + b"\n")
    found.stdin.flush()
    return found


@pytest.mark.parametrize(("dies", "word", "said"), [
    ([0], b"", "the first"), ([1], b"", "the second"), ([1, 0], b"", "the second"), ([], b"", "killed?"),
    ([0, 1], survivor.OVER, ""), ([], survivor.OVER, ""),
])
def test_the_process_that_is_left_says_what_died_first_unless_all_is_over(
    dies: list[int], word: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process() as one, process() as two:
        victims = [one, two]
        left = _survivor({one.pid: "the first", two.pid: "the second"})
        if dies:
            time.sleep(0.3)  # it has to be watching before the first of them dies
        for index in dies:
            victims[index].kill()
            victims[index].wait()
            time.sleep(0.1)
        out, err = left.communicate(word, timeout=30)
    assert out == b""
    assert err.decode().strip() == (f"swamp: {said}" if said else "")
    assert left.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_process_that_is_left_outlives_a_signal_to_all(number: signal.Signals) -> None:
    with process() as one:
        left = _survivor({one.pid: "the first"})
        time.sleep(0.3)
        left.send_signal(number)
        one.kill()
        _, err = left.communicate(timeout=30)
    assert err.decode().strip() == "swamp: the first"


def test_what_ray_reports_of_its_nodes_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = ray_worker
    lines = {"lines": ["Raylet is terminated."], "pid": "raylet", "is_err": False}
    with no_lines_of_ray():
        module.print_to_stdstream(lines, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
    module.print_to_stdstream({**lines, "lines": ["of others"]}, ignore_prefix=False)
    assert "of others" in capsys.readouterr().out
