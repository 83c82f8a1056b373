"""Whole runs whose storage root is a bucket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from swamp_ray import Result, SwampTrainer, UserError, load_ticket
from swamp_ray.cli import main
from swamp_ray.commands.doctor import _storage
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.config.reading import dump_config
from swamp_ray.errors import Interrupted
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.find import find_run
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.training.results import Progress
from tests.helpers import ticket_digests, tiny
from tests.s3_server import fail
from tests.unit.storage.processes import run_python

REPOSITORY = Path(__file__).resolve().parents[3]


def swamp(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


class At(Reporter):
    """Does something when a particle has reached an epoch."""

    def __init__(self, act: Any, job: Job, epoch: int) -> None:
        self._act, self._work, self._epoch = act, job, epoch

    def job_advanced(self, job: Job, progress: Progress) -> None:
        if job == self._work and progress.epoch == self._epoch:
            self._act()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run in a folder."""
    folder = tmp_path_factory.mktemp("local")
    run(tiny(folder))
    return folder


@pytest.fixture(scope="module")
def finished(bucket: str) -> Result:
    """The finished run in a bucket."""
    return SwampTrainer(tiny(f"{bucket}/finished"), quiet=True).fit()


@pytest.fixture
def root(bucket: str, finished: Result) -> str:
    return f"{bucket}/finished"


@pytest.fixture
def server(s3: str) -> Iterator[str]:
    """The server, which works again after the test."""
    yield s3
    fail(s3, 0)


def test_tickets_and_records_are_those_of_a_run_in_a_folder(local: Path, root: str) -> None:
    assert ticket_digests(root) == ticket_digests(local)
    here, there = RunDir(local, "tiny"), RunDir(root, "tiny")
    for mine, theirs in zip(here.read_rounds(), there.read_rounds(), strict=True):
        assert mine | {"peak_bytes": None} == theirs | {"peak_bytes": None}
    files = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    place = open_place(root)
    artifacts = {f"artifacts/{xx}/{name}/{entry.name}" for xx in place.folders("artifacts")
                 for name in place.folders(f"artifacts/{xx}") for entry in place.entries(f"artifacts/{xx}/{name}")}
    # Timings are in the manifests of results, but not in their names or payloads.
    assert artifacts == {file for file in files if file.startswith("artifacts/")}


def test_the_trainers_result_reads_from_the_bucket(finished: Result, root: str) -> None:
    assert finished.path == f"{root}/runs/tiny"
    assert [str(path) for path in finished.ticket_paths] == [f"{root}/{record.ticket}" for record in finished.rounds]
    assert finished.ticket().sparsity == pytest.approx(0.75)
    kinds = list(finished.metrics["kind"])
    assert set(kinds) >= {"round", "particle_epoch", "dense_epoch"}
    assert kinds.count("particle_epoch") == 3 * 3 * 2


def test_commands_take_a_bucket(root: str, tmp_path: Path) -> None:
    status = swamp("status", "tiny", "--storage", root)
    assert status.exit_code == 0, status.output
    assert "tiny: complete, 3 of 3 rounds" in status.output
    assert swamp("status", f"{root}/runs/tiny").output == status.output
    assert "Did you mean 'tiny'?" in swamp("status", "tny", "--storage", root).output
    levels = json.loads(swamp("evaluate", "tiny", "--storage", root, "--json").output)
    assert [round(level["sparsity"], 4) for level in levels] == [0.0, 0.5, 0.75]
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(tiny(root)))
    check = swamp("check", str(path))
    assert check.exit_code == 0, check.output
    assert f"results in {root}/runs/tiny" in check.output.replace("\n", "")
    again = swamp("run", str(path))
    assert again.exit_code == 0, again.output
    assert f"{root}/runs/tiny/tickets/0.7500/model.safetensors" in again.output.replace("\n", "")
    assert not list(tmp_path.glob("s3:*"))


def test_evaluation_gives_the_recorded_metrics(root: str) -> None:
    rundir = find_run("tiny", root)
    levels, _ = evaluate_runs([rundir])
    for level, record in zip(levels, rundir.read_rounds(), strict=True):
        assert level.members[0]["test"] == pytest.approx(record["average"]["test"], abs=1e-6)


def test_an_analysis_is_kept_in_the_bucket(root: str) -> None:
    command = ["analyze", "particles", "tiny", "--round", "2", "--storage", root]
    first, again = swamp(*command), swamp(*command)
    assert "tiny: 1 piece of work\n" in first.output
    assert "all of them measured before" in again.output
    assert "ensemble test" in again.output


def test_the_doctor_tries_the_bucket(root: str) -> None:
    assert list(_storage(root)) == [f"{root} can be written"]
    with pytest.raises(UserError, match="there is no bucket 'nowhere'"):
        list(_storage("s3://nowhere/x"))


def test_logs_and_events_are_there(root: str) -> None:
    rundir = find_run("tiny", root)
    (*_, (log, line)) = rundir.last_log_lines(3)
    assert str(log).startswith(f"{root}/runs/tiny/logs/attempt-1/")
    assert "test" in line
    place = rundir.place
    attempt = "runs/tiny/logs/attempt-1"
    texts = {name: b"".join(place.read(f"{attempt}/{name}/{part.name}") for part in place.entries(f"{attempt}/{name}"))
             for name in place.folders(attempt)}
    assert len(texts) == 1 + 3 * 3 + 3
    assert all(b"attempt 0, from the start" in texts[f"round-{index}-particle-2.log"] for index in range(3))
    assert place.folders("runs/tiny/tensorboard/round-02") == ["particle-00", "particle-01", "particle-02"]
    (events,) = place.entries("runs/tiny/tensorboard/average")
    assert events.size > 1000


def test_a_ticket_by_its_url_starts_another_run(root: str, finished: Result, tmp_path: Path) -> None:
    ticket = str(finished.ticket_paths[1])
    assert load_ticket(ticket).sparsity == pytest.approx(0.5)
    prepared = prepare(tiny(tmp_path, start_from={"path": ticket}, pruning__target=0.875))
    assert prepared.plan[0].sparsity == pytest.approx(0.5)
    with pytest.raises(UserError, match=f"{root}/nothing: there is no such ticket"):
        load_ticket(f"{root}/nothing")
    with pytest.raises(UserError, match="the checkpoint does not exist"):
        prepare(tiny(tmp_path, start_from={"path": f"{root}/nothing"}))
    open_place(root).write("junk", b"not a ticket")
    with pytest.raises(UserError, match=f"{root}/junk: this is not a ticket"):
        load_ticket(f"{root}/junk")


def test_another_machine_goes_on_from_the_bucket_alone(remote: str, local: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{remote}/runs/tiny"):
        run(tiny(remote), At(interrupt, Job("particle", 1, 1), 2))
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    config = yaml.safe_load(dump_config(tiny(remote)))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}

    elsewhere = subprocess.run([sys.executable, "-m", "swamp_ray", "run", str(tmp_path / "tiny.yaml")], timeout=300,
                               env=environment, cwd=tmp_path / "cwd", capture_output=True, text=True)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert list((tmp_path / "cwd").iterdir()) == []
    assert ticket_digests(remote) == ticket_digests(local)
    rundir = RunDir(remote, "tiny")
    first, second = (rundir.read_run() or {})["attempts"]
    # Both epochs of the particle that was stopped are in its checkpoint; the books count finished jobs alone.
    assert first["trained_epochs"] + second["trained_epochs"] == 1 + 3 * 3 * 2 - 2
    assert second["trained"] == 1 + 3
    run(tiny(remote))
    *_, third = (rundir.read_run() or {})["attempts"]
    assert (third["trained_epochs"], third["trained"]) == (0, 0)
    assert len(rundir.read_rounds()) == 3


def test_a_server_that_fails_for_a_while_changes_nothing(server: str, remote: str, local: Path) -> None:
    run(tiny(remote), At(lambda: fail(server, 4), Job("particle", 0, 1), 1))
    assert ticket_digests(remote) == ticket_digests(local)


OUTAGE = """
import sys
from swamp_ray.run.reporter import Reporter
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from tests.helpers import tiny
from tests.s3_server import fail

class Outage(Reporter):
    def job_advanced(self, job, progress):
        if job == Job("particle", 1, 1) and progress.epoch == 1:
            fail(sys.argv[2], 10**9)

run(tiny(sys.argv[1], execution__storage_patience_s=0.3), Outage())
"""


def test_a_server_that_stays_away_ends_the_run_which_goes_on_later(server: str, remote: str, local: Path) -> None:
    ended = run_python(OUTAGE, remote, server)
    words = rf"RunError: {remote}/.*execution.storage_patience_s.*the same command again: it goes on"
    assert re.search(words, ended.stderr), ended.stderr
    fail(server, 0)
    done = run(tiny(remote))
    assert ticket_digests(remote) == ticket_digests(local)
    attempt = (done.rundir.read_run() or {})["attempts"][-1]
    assert attempt["found"] == 1 + 3 + 1, "what was finished before the outage is not trained again"
