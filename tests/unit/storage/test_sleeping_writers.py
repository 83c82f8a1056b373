"""A process that slept past its lease, or whose storage was moved away, writes no record any more."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.errors import RunError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage import local_place
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import Lease, LeaseLostError
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from tests.helpers import folder_of, ticket_digests, tiny
from tests.unit.storage.processes import REPOSITORY

WRITER = """
import sys
from swamp_ray.errors import RunError
from swamp_ray.storage.json_lines import Lines
from swamp_ray.storage.run_folder import RunDir

unheld = RunDir(sys.argv[1], "q")
lease = unheld.hold(expiry_s=0.2)
rundir = unheld.held_by(lease)
metrics = Lines(rundir.metrics)
ticket = rundir.ticket(0.5)
number = 0
print("ready", flush=True)
try:
    while True:
        number += 1
        rundir.write_run({"writer": "slept", "number": number})
        rundir.append_round({"round": number})
        rundir.append_decision({"round": number})
        rundir.append_result({"round": number})
        metrics.append({"round": number})
        ticket.write(b"slept")
        rundir.report.write(b"slept")
except RunError as error:
    print(type(error).__name__, error)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")}


def take_over(rundir: RunDir) -> Lease:
    """As another machine does that has heard nothing for long enough."""
    successor = replace(this_process("q"), host="elsewhere.example", boot="another machine")
    held = rundir.held()
    assert held is not None
    taken = rundir.leases().acquire(rundir.lease_key, successor, held.content)
    assert isinstance(taken, Lease), taken
    return taken


def test_a_process_that_was_stopped_at_any_moment_overwrites_nothing_of_its_successor(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_place, "LOCK_S", 0.05)
    generator = random.Random(0)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / str(number))], cwd=REPOSITORY, text=True,
                                stdout=subprocess.PIPE) for number in range(6)]
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        rundir = RunDir(open_place(tmp_path / str(number), patience_s=0), "q")
        while True:
            time.sleep(generator.uniform(0.001, 0.02))
            writer.send_signal(signal.SIGSTOP)
            try:
                lease = take_over(rundir)
                break
            except RunError:
                writer.send_signal(signal.SIGCONT)  # stopped in the middle of a write, which nobody may overtake
        rundir.held_by(lease).write_run({"writer": "successor"})
        before = contents(folder_of(rundir))
        writer.send_signal(signal.SIGCONT)
        said = writer.communicate(timeout=60)[0]
        assert "LeaseLostError another process works on the run 'q' now (process" in said
        assert contents(folder_of(rundir)) == before
        assert rundir.read_run() == {"writer": "successor"}
        lease.release()


RECORDS: dict[str, Callable[[RunDir], Any]] = {
    "run.json": lambda rundir: rundir.write_run({"a": 1}, b"what it was"),
    "config.yaml": lambda rundir: rundir.write_config("seed: 0"),
    "rounds.jsonl": lambda rundir: rundir.append_round({"round": 0}),
    "decisions.jsonl": lambda rundir: rundir.append_decision({"round": 0}),
    "results.jsonl": lambda rundir: rundir.append_result({"round": 0}),
    "a ticket": lambda rundir: rundir.ticket(0.5).write(b"x"),
    "the table": lambda rundir: rundir.metrics_parquet.write(b"x"),
}


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(tmp_path / "storage" if request.param == "local" else request.getfixturevalue("remote"))


def test_every_record_needs_the_lease(place: Place) -> None:
    unheld = RunDir(place, "q")
    lease = unheld.hold(expiry_s=60)
    rundir = unheld.held_by(lease)
    for write in RECORDS.values():
        write(rundir)
    first = rundir.run_json.read()
    successor = take_over(unheld)
    unheld.held_by(successor).write_run({"successor": True}, first)
    for name, write in RECORDS.items():
        with pytest.raises(LeaseLostError):
            write(rundir)
        assert lease.lost, name
    assert unheld.read_run() == {"successor": True}
    successor.release()
    with pytest.raises(LeaseLostError, match="another process works"):
        rundir.write_config("seed: 1")
    lease.release()


def test_a_holder_whose_lease_is_gone_says_so_and_not_that_another_works(tmp_path: Path) -> None:
    unheld = RunDir(tmp_path, "q")
    lease = unheld.hold(expiry_s=60)
    rundir = unheld.held_by(lease)
    rundir.write_config("seed: 0")
    shutil.move(folder_of(unheld), tmp_path / "runs" / "moved")
    with pytest.raises(LeaseLostError, match="moved or deleted"):
        rundir.append_round({"round": 0})
    lease.release()
    assert os.listdir(tmp_path / "runs") == ["moved"]


def test_a_sweep_is_guarded_in_the_same_way(tmp_path: Path) -> None:
    unheld = SweepDir(tmp_path, "s")
    lease = unheld.hold(expiry_s=60)
    sweepdir = unheld.held_by(lease)
    sweepdir.write_record({"a": 1})
    held = unheld.held()
    assert held is not None
    other = unheld.place
    assert other.swap(unheld.lease_key, b'{"token": "other"}', held.content)
    for write in (lambda: sweepdir.write_record({"a": 2}), lambda: sweepdir.append_trial({"label": "x"})):
        with pytest.raises(LeaseLostError, match="the sweep 's'"):
            write()
    assert unheld.read_record() == {"a": 1}
    lease.release()


def test_two_threads_of_one_process_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """The heartbeat takes the same lock as the records."""
    unheld = RunDir(tmp_path, "q")
    lease = unheld.hold(expiry_s=0.05)
    rundir = unheld.held_by(lease)
    for number in range(50):
        rundir.append_round({"round": number})
    assert not lease.lost
    assert not isinstance(unheld.leases().acquire(unheld.lease_key, this_process("other")), Lease)
    lease.release()
    assert unheld.held() is None


class After(Reporter):
    """Does something to the storage after the dense phase."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def job_finished(self, job: Job, found: bool) -> None:
        if job == Job("dense"):
            self._act()


ACTS: dict[str, Callable[[Path, Path], object]] = {
    "moved": lambda old, new: old.rename(new),
    "deleted": lambda old, new: shutil.rmtree(old),
    "replaced": lambda old, new: (old.rename(new), old.mkdir()),
    "run moved": lambda old, new: (old / "runs" / "tiny").rename(old / "runs" / "away"),
    "run deleted": lambda old, new: shutil.rmtree(old / "runs" / "tiny"),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_storage_that_is_moved_or_deleted_under_a_run_is_not_made_anew(tmp_path: Path, act: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    config = tiny(old, pruning__target=0.5, particles__count=2)
    with pytest.raises(RunError, match=r"moved|deleted"):
        run(config, After(lambda: ACTS[act](old, new)))
    if act.startswith("run"):
        assert not (old / "runs" / "tiny").exists()
    else:
        assert not old.exists() or not list(old.iterdir())
    if act == "moved":
        again = run(tiny(new, pruning__target=0.5, particles__count=2))
        attempts = (again.rundir.read_run() or {})["attempts"]
        assert [attempt["trained"] for attempt in attempts] == [attempts[0]["trained"], 5 - attempts[0]["trained"]]
        run(config)
        assert ticket_digests(old) == ticket_digests(new)


def test_a_storage_can_be_deleted_between_two_runs_of_one_process(tmp_path: Path) -> None:
    config = tiny(tmp_path / "s", pruning__target=0.0, particles__count=1)
    run(config)
    shutil.rmtree(tmp_path / "s")
    assert (run(config).rundir.read_run() or {})["attempts"][-1]["trained"] == 2


