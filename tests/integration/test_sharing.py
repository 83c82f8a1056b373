"""Two runs at the same time in one storage root, each in a process of its own: nothing is trained twice."""

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

from swamp_ray.locating import find_run
from swamp_ray.orchestration.running import run
from swamp_ray.status import describe
from tests.helpers import ticket_digests, tiny

REPOSITORY = Path(__file__).resolve().parents[2]


class Other:
    """A process that carries out one run after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.sharing_process"], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})

    def begin(self, storage: Path, values: dict[str, Any], **request: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"storage": str(storage), "values": values, **request}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Other, Other]]:
    others = Other(), Other()
    yield others
    for other in others:
        other.close()


def trained(*answers: dict[str, Any]) -> int:
    return sum(answer["attempt"]["trained"] for answer in answers)


def leases_left(storage: Path) -> list[Path]:
    return list(storage.rglob(".lease.json"))


def test_two_runs_at_the_same_time_train_each_particle_once(tmp_path: Path, pair: tuple[Other, Other]) -> None:
    """One stops in the middle of the dense phase until the other has met its lease; from there on they race."""
    first, second = pair
    first.begin(tmp_path, {"name": "a", "particles__count": 2}, pause_at="dense phase, epoch 1", until="b-blocked")
    second.begin(tmp_path, {"name": "b", "particles__count": 4}, after="a-paused")
    a, b = first.answer(), second.answer()
    assert b["blocked"][0] == f"dense phase by run a on {socket.gethostname()}"
    # The dense phase, and round 0 with the particles 0 to 3; later rounds start from different averages.
    assert trained(a, b) == 1 + 4 + 2 * (2 + 4)
    run(tiny(tmp_path / "alone", name="b", particles__count=4))
    assert ticket_digests(tmp_path, "b") == ticket_digests(tmp_path / "alone", "b")
    assert not leases_left(tmp_path)


def test_two_runs_with_opposite_orders_do_not_wait_for_each_other(tmp_path: Path, pair: tuple[Other, Other]) -> None:
    """Each has one worker and begins with what the other comes to last; all of their work is the same."""
    first, second = pair
    values = {"particles__count": 4, "dense__length": 0}
    first.begin(tmp_path, {"name": "a", **values}, pause_at="round 0, particle 0, epoch 1", until="b-blocked")
    second.begin(tmp_path, {"name": "b", **values}, from_the_back=True, after="a-paused")
    a, b = first.answer(), second.answer()
    assert b["blocked"][0].startswith("round 0, particle 0 by run a")
    assert a["attempt"]["trained"] + b["attempt"]["trained"] == 3 * 4
    assert b["attempt"]["trained"] >= 3, "it waited while there was other work"
    assert ticket_digests(tmp_path, "a") == ticket_digests(tmp_path, "b")
    assert not leases_left(tmp_path)


def test_a_killed_run_is_taken_over_from_its_last_checkpoint(tmp_path: Path, pair: tuple[Other, Other]) -> None:
    """It dies in its third epoch of six, while the other waits; two checkpoints are there."""
    victim, (_, second) = Other(), pair
    values = {"particles__count": 1, "dense__length": 0, "round__length": 6, "pruning__target": 0.5}
    moment = "round 0, particle 0, epoch 3"
    victim.begin(tmp_path, {"name": "a", **values}, pause_at=moment, until="b-blocked", kill_at=moment)
    second.begin(tmp_path, {"name": "b", **values}, after="a-paused")
    b = second.answer()
    assert victim.process.wait(timeout=60) == -signal.SIGKILL
    victim.close()
    assert b["blocked"]
    assert b["attempt"]["trained_epochs"] == (6 - 2) + 6
    shown = "\n".join(str(part) for part in describe(find_run("a", str(tmp_path))))
    assert "a: stopped without a word (killed?); the same command goes on, 0 of 2 rounds" in shown
    assert "round 0: 1 of 1 particles done" in shown
    again = run(tiny(tmp_path, name="a", **values))
    assert json.loads(again.rundir.run_json_path.read_text())["attempts"][-1]["trained"] == 0
    assert ticket_digests(tmp_path, "a") == ticket_digests(tmp_path, "b")
    assert not leases_left(tmp_path)


def test_the_second_process_on_a_runs_name_is_told_who_holds_it(tmp_path: Path, pair: tuple[Other, Other]) -> None:
    first, second = pair
    values = {"name": "a", "particles__count": 2}
    first.begin(tmp_path, values, pause_at="round 0, particle 1, epoch 1", until="go-on")
    second.begin(tmp_path, values, after="a-paused")
    refused = second.answer()
    shown = "\n".join(str(part) for part in describe(find_run("a", str(tmp_path))))
    (tmp_path / "go-on").touch()
    a = first.answer()
    assert f"the run 'a' is being worked on by process {a['pid']} on {socket.gethostname()}" in refused["error"]
    assert "a: running, 0 of 3 rounds" in shown
    assert "round 0: 1 of 2 particles done; training, epoch 1/2: particle 1" in shown
    assert a["attempt"]["status"] == "complete"
    assert str(describe(find_run("a", str(tmp_path)))[0]) == "a: complete, 3 of 3 rounds"
