"""Two runs at the same time in one storage root, one here and one in another process: nothing is trained twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.commands.status import describe
from swamp_ray.launch import run
from swamp_ray.storage.find import find_run
from tests.helpers import ticket_digests, tiny
from tests.integration.sharing_process import carry_out

REPOSITORY = Path(__file__).resolve().parents[2]


class Other:
    """A process that carries out one run after the other, started when there is none."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def begin(self, storage: Path, values: dict[str, Any], **request: Any) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.sharing_process"], cwd=REPOSITORY, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked(storage, values, **request)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return json.loads(line)

    def end(self) -> int | None:
        """Wait until the process has ended, and return its exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        try:
            return process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    other = Other()
    yield other
    other.end()


def asked(storage: Path, values: dict[str, Any], **request: Any) -> dict[str, Any]:
    return {"storage": str(storage), "values": values, **request}


def here(storage: Path, values: dict[str, Any], **request: Any) -> dict[str, Any]:
    """What the other process does, done in this one."""
    return carry_out(asked(storage, values, **request))


def trained(*answers: dict[str, Any]) -> int:
    return sum(answer["attempt"]["trained"] for answer in answers)


def leases_left(storage: Path) -> list[Path]:
    return list(storage.rglob(".lease.json"))


def test_two_runs_at_the_same_time_train_each_particle_once(tmp_path: Path, other: Other) -> None:
    """One stops in the middle of the dense phase until the other has met its lease; from there on they race."""
    other.begin(tmp_path, {"name": "b", "particles__count": 4}, after="a-paused")
    a = here(tmp_path, {"name": "a", "particles__count": 2}, pause_at="dense phase, epoch 1", until="b-blocked")
    b = other.answer()
    assert b["blocked"][0] == f"dense phase by run a on {socket.gethostname()}"
    # The dense phase, and round 0 with the particles 0 to 3; later rounds start from different averages.
    assert trained(a, b) == 1 + 4 + 2 * (2 + 4)
    run(tiny(tmp_path / "alone", name="b", particles__count=4))
    assert ticket_digests(tmp_path, "b") == ticket_digests(tmp_path / "alone", "b")
    assert not leases_left(tmp_path)


def test_two_runs_with_opposite_orders_do_not_wait_for_each_other(tmp_path: Path, other: Other) -> None:
    """Each has one worker and begins with what the other comes to last; all of their work is the same."""
    values = {"particles__count": 4, "dense__length": 0}
    other.begin(tmp_path, {"name": "b", **values}, from_the_back=True, after="a-paused")
    a = here(tmp_path, {"name": "a", **values}, pause_at="round 0, particle 0, epoch 1", until="b-blocked")
    b = other.answer()
    assert b["blocked"][0].startswith("round 0, particle 0 by run a")
    assert a["attempt"]["trained"] + b["attempt"]["trained"] == 3 * 4
    assert b["attempt"]["trained"] >= 3, "it waited while there was other work"
    assert ticket_digests(tmp_path, "a") == ticket_digests(tmp_path, "b")
    assert not leases_left(tmp_path)


def test_the_second_process_on_a_runs_name_is_told_who_holds_it(tmp_path: Path, other: Other) -> None:
    values = {"name": "a", "particles__count": 2}
    other.begin(tmp_path, values, pause_at="round 0, particle 1, epoch 1", until="go-on")
    refused = here(tmp_path, values, after="a-paused")
    shown = "\n".join(str(part) for part in describe(find_run("a", str(tmp_path))))
    (tmp_path / "go-on").touch()
    a = other.answer()
    assert f"the run 'a' is being worked on by process {a['pid']} on {socket.gethostname()}" in refused["error"]
    assert "a: running, 0 of 3 rounds" in shown
    assert "round 0: 1 of 2 particles done; training, epoch 1/2: particle 1" in shown
    assert a["attempt"]["status"] == "complete"
    assert str(describe(find_run("a", str(tmp_path)))[0]) == "a: complete, 3 of 3 rounds"


def test_a_killed_run_is_taken_over_from_its_last_checkpoint(tmp_path: Path, other: Other) -> None:
    """It dies in its third epoch of six, while the other waits; two checkpoints are there."""
    values = {"particles__count": 1, "dense__length": 0, "round__length": 6, "pruning__target": 0.5}
    moment = "round 0, particle 0, epoch 3"
    other.begin(tmp_path, {"name": "a", **values}, pause_at=moment, until="b-blocked", kill_at=moment)
    b = here(tmp_path, {"name": "b", **values}, after="a-paused")
    assert other.end() == -signal.SIGKILL
    assert b["blocked"]
    assert b["attempt"]["trained_epochs"] == (6 - 2) + 6
    shown = "\n".join(str(part) for part in describe(find_run("a", str(tmp_path))))
    assert "a: stopped without a word (killed?); the same command goes on, 0 of 2 rounds" in shown
    assert "round 0: 1 of 1 particles done" in shown
    again = run(tiny(tmp_path, name="a", **values))
    assert json.loads(Path(again.rundir.run_json.location).read_text())["attempts"][-1]["trained"] == 0
    assert ticket_digests(tmp_path, "a") == ticket_digests(tmp_path, "b")
    assert not leases_left(tmp_path)
