"""A run that is stopped or killed, as its user sees it: in a process of its own, on real Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.launch import run
from tests.helpers import TINY, descendants, ticket_digests, tiny, wait_for

LENGTH = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    storage = tmp_path_factory.mktemp("undisturbed")
    run(tiny(storage, round__length=LENGTH, execution__checkpoint_interval_s=60.0))
    return ticket_digests(storage)


def command(folder: Path, **execution: Any) -> list[str]:
    """Arguments of swamp."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "round": {"length": LENGTH}, "execution": {"device": "cpu", **execution}}))
    return ["run", str(path), "--storage", str(folder / "results")]


def start(folder: Path, **execution: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "swamp_ray", *command(folder, **execution)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def goes_on(folder: Path, **execution: Any) -> None:
    """The same command once more, in this process, which has imported torch and Ray already."""
    done = CliRunner().invoke(main, command(folder, **execution))
    assert done.exit_code == 0, done.output


def training(folder: Path) -> bool:
    """Whether the particles of round 1 are at work."""
    logs = (folder / "results/runs/tiny/logs").glob("attempt-1/round-1-particle-*.log")
    return any("epoch" in path.read_text() for path in logs)


def starting(folder: Path) -> bool:
    return (folder / "results/runs/tiny/run.json").exists()


@pytest.mark.parametrize(("signals", "when"), [
    pytest.param([signal.SIGINT], training, marks=pytest.mark.slow),
    pytest.param([signal.SIGTERM], training, marks=pytest.mark.slow),
    pytest.param([signal.SIGINT, signal.SIGINT], training, marks=pytest.mark.slow), ([signal.SIGINT], starting),
])
def test_a_stopped_run_says_how_to_go_on_and_leaves_nothing_behind(
    tmp_path: Path, signals: list[signal.Signals], when: Callable[[Path], bool]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: when(tmp_path), process)
    below = descendants(process.pid)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert output.strip().splitlines()[-1].startswith("swamp: stopped")
    assert "Run the same command again" in output
    assert "Traceback" not in output
    end = time.monotonic() + 15
    while any(_alive(pid) for pid in below) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in below if _alive(pid)], "processes were left behind"
    assert not list(tmp_path.rglob(".lease.json")), "others would have to wait for what nobody does"


@pytest.mark.parametrize("executor", [pytest.param("ray", marks=pytest.mark.slow), "inline"])
def test_a_stopped_run_leaves_checkpoints_and_goes_on_to_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str], executor: str
) -> None:
    never_by_itself = 0
    process = start(tmp_path, executor=executor, checkpoint_every=never_by_itself)
    wait_for(lambda: training(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Run the same command again" in output
    assert list((tmp_path / "results/artifacts").glob("*/*/checkpoint.json")), output
    logs = (tmp_path / "results/runs/tiny/logs/attempt-1").glob("round-1-particle-*.log")
    assert any("asked to stop; a checkpoint was written after step" in path.read_text() for path in logs)
    goes_on(tmp_path, executor=executor, checkpoint_every=never_by_itself)
    logs = (tmp_path / "results/runs/tiny/logs/attempt-2").glob("round-1-particle-*.log")
    assert any("from step" in path.read_text() for path in logs)
    assert ticket_digests(tmp_path / "results") == undisturbed


@pytest.mark.nightly
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    process = start(tmp_path)
    wait_for(lambda: training(tmp_path), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    goes_on(tmp_path)
    assert ticket_digests(tmp_path / "results") == undisturbed


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
