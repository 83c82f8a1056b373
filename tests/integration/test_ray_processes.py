"""A process of Ray's is killed under a run: a sentence of swamp's, nothing of Ray's, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from swamp_ray.errors import EXIT_FAILED
from tests.helpers import TINY, command_line, descendants, wait_for

PATIENCE_S = 15.0
"""So long the command may take to say it; a machine that is busy with other tests may take twice as long."""


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    config = {**TINY, "round": {"length": 100_000}, "execution": {"device": "cpu", "num_workers": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "swamp_ray", "run", str(folder / "tiny.yaml"), "--storage",
               str(folder / "results"), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    logs = folder / "results/runs/tiny/logs"
    wait_for(lambda: any("epoch" in log.read_text() for log in logs.glob("attempt-1/round-0-*.log")), process)
    return process


def _ends_with_a_sentence(process: subprocess.Popen[str], what: str) -> None:
    began = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 2 * PATIENCE_S
    assert process.returncode == EXIT_FAILED
    (sentence,) = [line for line in err.splitlines() if line.strip()]
    assert sentence.startswith(f"swamp: Ray's {what}")
    assert "the same command goes on" in sentence
    lines = [line for line in out.splitlines() if "raylet" in line.lower() or line.startswith("[20")]
    assert lines == [], "nothing of Ray's own reaches the terminal"


@pytest.mark.parametrize(("part", "name"), [
    pytest.param("raylet/raylet", "raylet has died", marks=pytest.mark.slow),
    pytest.param("gcs_server", "GCS has died", marks=pytest.mark.slow),
    pytest.param("DashboardAgent", "agent has died", marks=pytest.mark.slow),
    ("RuntimeEnvAgent", "agent has died"),
])
@pytest.mark.chaos
def test_a_process_of_an_embedded_ray_is_killed(tmp_path: Path, part: str, name: str) -> None:
    process = _start(tmp_path)
    victim = next(pid for pid in descendants(process.pid) if part in command_line(pid))
    left = descendants(process.pid)
    os.kill(victim, signal.SIGKILL)
    _ends_with_a_sentence(process, name)
    end = time.monotonic() + 60
    while any("ray" in command_line(pid) for pid in left):
        assert time.monotonic() < end, "a process of Ray's is left"
        time.sleep(0.2)


@pytest.fixture
def own_head() -> Iterator[Cluster]:
    found = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 1})
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_the_head_of_a_cluster_that_a_run_has_joined_dies(own_head: Cluster, tmp_path: Path, part: str) -> None:
    node: Any = own_head.head_node
    process = _start(tmp_path, "--address", str(own_head.address))
    os.kill(node.all_processes[part][0].process.pid, signal.SIGKILL)
    _ends_with_a_sentence(process, "head" if part == "gcs_server" else "raylet of this node")
