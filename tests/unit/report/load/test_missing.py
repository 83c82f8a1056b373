"""Damaged, shortened and renamed runs: the page says what it lacks, and shows the rest."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.report import write_report
from swamp_ray.report.charts.timeline import jobs_of
from swamp_ray.report.load.broken_off import broken_off
from swamp_ray.report.load.costs import broken_off_time, device_time
from swamp_ray.report.load.missing import missing, missing_rounds, unknown_trainings
from swamp_ray.report.load.runs import ReportRun, read_runs
from swamp_ray.report.page import building
from swamp_ray.report.page.card import card
from swamp_ray.report.page.contents import WORKERS
from swamp_ray.storage.json_lines import Lines, dump_json, sealed
from swamp_ray.storage.records import JobEnded, JobEpoch, JobStarted
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.tables import ranges

pytestmark = pytest.mark.usefixtures("own_figures")
NAME = "swamp-seed0"


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """The study in a place where anything may be changed."""
    return Path(shutil.copytree(study, tmp_path / "copy"))


def read(storage: Path, name: str = NAME) -> ReportRun:
    return read_runs([name], str(storage))[0]


def shorten(path: Path) -> None:
    """Without its last line."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def spoil(path: Path) -> None:
    """With a line in it that is no JSON."""
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b'{"kind": \n', *rest]))


def cut_off(path: Path) -> None:
    """In the middle of its last line."""
    path.write_bytes(path.read_bytes()[:-5])


def test_of_a_whole_run_nothing_is_missing(both: list[ReportRun]) -> None:
    assert [missing(run) for run in both] == [()] * len(both)


@pytest.mark.parametrize(("file", "damage", "words"), [
    ("rounds.jsonl", shorten, "rounds.jsonl has 2 of 3 rounds, and run.json says that the run is complete: round 1 is"),
    ("rounds.jsonl", spoil, "rounds.jsonl: line 2 of 4 is damaged; tables and figures do without."),
    ("rounds.jsonl", cut_off, "rounds.jsonl: its last line is cut off; tables and figures do without."),
    ("metrics.jsonl", shorten, "metrics.jsonl lacks epochs of 1 of"),
    ("metrics.jsonl", spoil, "metrics.jsonl: line 2 of "),
    ("jobs.jsonl", shorten, "jobs.jsonl has "),
    ("jobs.jsonl", spoil, "jobs.jsonl: line 2 of "),
    ("results.jsonl", spoil, "results.jsonl: line 2 of "),
    ("run.json", Path.unlink, "run.json is not there"),
])
def test_what_cannot_be_read_is_said_on_the_page_and_to_the_caller(
    copy: Path, file: str, damage: Callable[[Path], None], words: str
) -> None:
    path = copy / "runs" / NAME / file
    if file == "metrics.jsonl" and damage is shorten:
        lines = [line for line in path.read_bytes().splitlines(keepends=True)
                 if not (b'"particle_epoch"' in line and b'"round":1' in line.replace(b" ", b"")
                         and b'"particle":1' in line.replace(b" ", b""))]
        assert len(lines) < len(path.read_bytes().splitlines())
        path.write_bytes(b"".join(lines))
    elif file == "jobs.jsonl" and damage is shorten:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if b'"evaluation"' in line))
    else:
        damage(path)
    written = write_report([NAME], str(copy), copy / "page.html", measure=False)
    assert any(text.startswith(f"{NAME}: {words}") for text in written.missing), written.missing
    page = (copy / "page.html").read_text()
    assert '<section id="missing">' in page
    assert words.split(":")[0] in page
    assert "something is missing" in page


def test_a_run_without_a_record_of_its_workers_says_so_among_the_workers(copy: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "runs" / NAME / "jobs.jsonl").unlink()
    monkeypatch.setattr(building, "SECTIONS", (WORKERS,))
    written = write_report([NAME, "imp-seed0"], str(copy), copy / "page.html", measure=False)
    assert not any("jobs" in text for text in written.missing)
    assert f"Who trained what is not recorded of {NAME}: jobs.jsonl is not there." in (copy / "page.html").read_text()


def test_a_damaged_analysis_says_how_it_is_measured_anew(copy: Path) -> None:
    folder = copy / "runs" / NAME / "analysis"
    folder.mkdir(exist_ok=True)
    (folder / "curvature.json").write_text('{"rows": [')
    (folder / "masks.json").write_text('{"rows": {"no": "list"}}')
    found = missing(read(copy))
    assert any(f"swamp analyze curvature {NAME}" in text for text in found)
    assert any(f"swamp analyze masks {NAME}" in text for text in found)


def test_a_ticket_that_is_gone_is_noted_by_whoever_needs_it(copy: Path) -> None:
    run = read(copy)
    Path(str(run.rundir.ticket_of(run.records[1]).location)).unlink()
    assert run.ticket(run.records[0]) is not None
    assert run.ticket(run.records[1]) is None
    assert any("The ticket of round 1 cannot be read" in text for text in missing(run))


def test_a_run_of_which_no_round_can_be_read_is_refused_with_the_way_out(copy: Path) -> None:
    (copy / "runs" / NAME / "rounds.jsonl").write_bytes(b"nothing\nof this\n")
    with pytest.raises(Exception, match=r"no round can be read .*run the same command as before"):
        read(copy)


def test_a_renamed_run_shows_what_it_showed_before(copy: Path) -> None:
    before = read(copy)
    (copy / "runs" / NAME).rename(copy / "runs" / "renamed")
    after = read(copy, "renamed")
    assert missing(after) == ()
    assert device_time(after) == device_time(before)
    assert device_time(after) is not None
    assert not jobs_of(after).empty
    assert dict(card(after).facts)["Epochs"] == dict(card(before).facts)["Epochs"]
    ticket = after.ticket(after.records[0])
    assert ticket is not None
    assert ticket.sparsity == 0


def test_missing_rounds_of_an_unfinished_run_are_those_before_its_last(copy: Path) -> None:
    rundir = RunDir(copy, NAME)
    about = rundir.read_run()
    assert about is not None
    rundir.run_json.write(dump_json({**about, "status": "failed"}))
    lines = rundir.rounds.read() or b""
    first, *others = lines.splitlines(keepends=True)
    rundir.rounds.write(b"".join(others))
    run = read(copy)
    assert missing_rounds(run) == [0]
    rundir.rounds.write(first)
    assert missing_rounds(read(copy)) == [1, 2], "their metrics are there"


def test_a_killed_attempts_work_is_counted_up_to_its_last_epoch_and_said_to_be_a_bound(copy: Path) -> None:
    rundir = with_killed_attempt(copy)
    lines = [started(0, 0.0), epoch(0, 30.0, 1), epoch(0, 60.0, 2),
             started(1, 0.0), epoch(1, 50.0, 1), ended(1, 0.0, 55.0, "machine"), started(1, 55.0),
             started(2, 0.0, round=0), epoch(2, 70.0, 1, round=0), ended(2, 0.0, 80.0, "done", round=0)]
    write_jobs(rundir, lines)
    broken = broken_off(read(copy))
    assert (broken.num_killed, broken.epochs) == (1, 2 + 1 + 0)
    assert broken_off_time(read(copy), broken) == 60.0 + 55.0 + 0.0
    write_jobs(rundir, [ended(3, 0.0, 7.0, "stopped")])
    assert broken_off_time(read(copy), broken_off(read(copy))) == 115.0 + 7.0, "of which no start was noted"
    facts = dict(card(read(copy)).facts)
    assert "3 of them in trainings that were broken off" in facts["Epochs"]


def test_what_was_stored_before_its_attempt_was_killed_is_not_broken_off(copy: Path) -> None:
    rundir = with_killed_attempt(copy)
    whole = [started(0, 0.0), epoch(0, 30.0, 1, of=2), epoch(0, 60.0, 2, of=2)]
    write_jobs(rundir, whole)
    assert broken_off(read(copy)).epochs == 0, "its driver was killed after its worker had stored it"
    write_jobs(rundir, [started(0, 100.0)])
    assert broken_off(read(copy)).epochs == 2, "it was given out once more: nothing had been stored"


def test_lines_that_a_later_version_adds_are_skipped_and_not_called_damaged(copy: Path) -> None:
    before = read(copy)
    write_jobs(RunDir(copy, NAME), [{"what": "paused", "kind": "particle"}, {**started(0, 5.0), "mood": "good"}])
    after = read(copy)
    assert missing(after) == ()
    assert after.jobs == before.jobs
    assert len(after.progress) == len(before.progress) + 1
    write_jobs(RunDir(copy, NAME), [{**started(0, 5.0), "began": "today"}])
    assert any(text.startswith("jobs.jsonl: line") for text in missing(read(copy)))


def test_of_an_earlier_version_a_killed_attempts_work_is_counted_from_its_logs(copy: Path) -> None:
    with_killed_attempt(copy)
    log = copy / "runs" / NAME / "logs" / "attempt-2" / "round-1-particle-0.log"
    log.parent.mkdir(parents=True)
    begins = "2026-01-01 10:00:00 round 1, particle 0: attempt 1, seed 1, from the start, on a host"
    log.write_text(f"{begins}\n2026-01-01 10:00:30 epoch 1/2: loss 1.0\n2026-01-01 10:01:00 epoch 2/2: loss 0.9\n")
    run = read(copy)
    broken = broken_off(run)
    assert (broken.num_killed, broken.epochs) == (1, 2)
    assert broken_off_time(run, broken) == 60.0
    facts = dict(card(run).facts)
    assert "at least" in facts["Epochs"]
    assert "2 of them in trainings that were broken off" in facts["Epochs"]
    assert "at least" in facts["Core-hours"]
    assert unknown_trainings(run) == []


def with_killed_attempt(copy: Path) -> RunDir:
    """The run, with a second attempt that has left no word of its end."""
    rundir = RunDir(copy, NAME)
    about = rundir.read_run()
    assert about is not None
    [attempt] = about["attempts"]
    killed = {key: value for key, value in attempt.items() if key != "ended"} | {"trained": 0, "trained_epochs": 0}
    rundir.run_json.write(dump_json({**about, "attempts": [attempt, killed]}))
    return rundir


def write_jobs(rundir: RunDir, lines: list[dict[str, Any]]) -> None:
    with contextlib.closing(Lines(rundir.jobs)) as jobs:
        for line in lines:
            jobs.append(sealed(line))


def of_job(particle: int, round: int) -> dict[str, Any]:
    return {"kind": "particle", "round": round, "particle": particle, "attempt": 2}


def started(particle: int, began: float, round: int = 1) -> dict[str, Any]:
    return JobStarted(**of_job(particle, round), worker=0, host="h", device="cpu", retry=0, reseed=0,
                      began=began).line()


def epoch(particle: int, time: float, number: int, of: int = 9, round: int = 1) -> dict[str, Any]:
    return JobEpoch(**of_job(particle, round), time=time, epoch=number, num_epochs=of, loss=1.0, metrics={}, lr=0.1,
                    samples_per_s=1.0).line()


def ended(particle: int, began: float, end: float, how: str, round: int = 1) -> dict[str, Any]:
    return JobEnded(**of_job(particle, round), retry=0, reseed=0, began=began, ended=end, how=how, epochs=0).line()


def test_numbers_in_a_row_are_told_together() -> None:
    assert ranges([3, 0, 1, 2, 7, 8]) == "0 to 3, 7, 8"
    assert ranges([]) == ""
    assert ranges(range(0, 40, 2), most=3) == "0, 2, 4 ..."
