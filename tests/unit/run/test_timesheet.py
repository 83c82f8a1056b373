"""What is recorded of who did which job, and that it decides nothing."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.errors import Interrupted
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.inline_executor import InlineExecutor
from swamp_ray.run.messages import Report
from swamp_ray.run.timesheet import Shift, Whereabouts
from swamp_ray.storage.json_lines import read_lines
from swamp_ray.storage.metrics import read_metrics
from swamp_ray.storage.run_folder import RunDir
from tests.faults import epoch_seed
from tests.helpers import ticket_digests, tiny

SMALL: dict[str, Any] = {"pruning__target": 0.5}
"""The dense phase and two rounds of three particles."""


def lines_of(storage: Path) -> list[dict[str, Any]]:
    return read_lines(RunDir(storage, "tiny").jobs)


def jobs(storage: Path) -> list[dict[str, Any]]:
    """The lines of jobs that have ended, which earlier versions wrote as well."""
    return [line for line in lines_of(storage) if "what" not in line]


def test_every_job_of_a_run_is_recorded_once_and_in_one_place(tmp_path: Path) -> None:
    before = time.time()
    run(tiny(tmp_path, **SMALL))
    lines = jobs(tmp_path)
    assert Counter((line["kind"], line["round"]) for line in lines) == {
        ("dense", None): 1, ("particle", 0): 3, ("average", 0): 1, ("evaluation", 0): 1,
        ("particle", 1): 3, ("average", 1): 1, ("evaluation", 1): 1}
    assert sorted(line["particle"] for line in lines if line["round"] == 1 and line["kind"] == "particle") == [0, 1, 2]
    assert {(line["worker"], line["device"], line["attempt"], line["how"]) for line in lines} == {(0, "cpu", 1, "done")}
    assert {line["epochs"] for line in lines if line["kind"] == "particle"} == {2}
    assert before <= min(line["began"] for line in lines)
    assert max(line["ended"] for line in lines) <= time.time() + 0.1
    inorder = sorted(lines, key=lambda line: line["began"])
    assert all(one["ended"] <= two["began"] + 1e-3 for one, two in pairwise(inorder)), (
        "a single worker does one after the other")


def test_a_line_says_that_a_job_was_given_out_and_one_each_epoch_that_it_has_trained(tmp_path: Path) -> None:
    run(tiny(tmp_path, **SMALL))
    ended = {(line["kind"], line["round"], line["particle"]): line for line in jobs(tmp_path)}
    lines = lines_of(tmp_path)
    started = [line for line in lines if line.get("what") == "started"]
    assert {(line["kind"], line["round"], line["particle"]) for line in started} == {
        key for key in ended if key[0] != "average"}
    for line in started:
        key = line["kind"], line["round"], line["particle"]
        same = ("attempt", "retry", "reseed", "began", "worker", "host", "device")
        assert {name: line[name] for name in same} == {name: ended[key][name] for name in same}
    scalars = {(line["kind"], line.get("round"), line.get("particle"), line["epoch"]): line
               for line in read_metrics(RunDir(tmp_path, "tiny").metrics) if line["kind"].endswith("_epoch")}
    epochs = [line for line in lines if line.get("what") == "epoch"]
    assert len(epochs) == len(scalars) == 1 + 2 * 3 * 2
    for line in epochs:
        key = line["kind"], line["round"], line["particle"]
        scalar = scalars[f"{line['kind']}_epoch", *key[1:], line["epoch"]]
        assert (line["loss"], line["lr"], line["metrics"]["accuracy"]) == (
            scalar["loss"], scalar["lr"], scalar["accuracy"])
        assert line["num_epochs"] == ended[key]["epochs"]
        assert ended[key]["began"] <= line["time"] <= ended[key]["ended"] + 0.1


def test_packed_particles_of_one_worker_overlap(tmp_path: Path) -> None:
    run(tiny(tmp_path, execution__particles_per_worker=3, **SMALL))
    first = [line for line in jobs(tmp_path) if line["kind"] == "particle" and line["round"] == 0]
    assert max(line["began"] for line in first) < min(line["ended"] for line in first)


def test_a_job_that_diverges_says_so_and_what_followed_it(tmp_path: Path) -> None:
    run(tiny(tmp_path, task__name="tests.faults:Faulty", task__options={"nan": [epoch_seed(0, 1)]},
             particles__on_failure="drop", pruning__target=0.0))
    assert {line["particle"]: line["how"] for line in jobs(tmp_path) if line["kind"] == "particle"} == {
        0: "done", 1: "diverged", 2: "done"}


class Interrupting(InlineExecutor):
    """Somebody presses Ctrl-C while the first particle trains."""

    def wait(self, timeout_s: float) -> list[Report]:
        reports = list(super().wait(timeout_s))
        if self._running is not None and Job("particle", 0, 0) in self._running.open:
            raise KeyboardInterrupt
        return reports


def test_an_interrupted_run_has_what_was_running_and_the_next_attempt_what_was_left(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    run(tiny(undisturbed, **SMALL))
    with pytest.raises(Interrupted):
        run(tiny(disturbed, **SMALL), executor=Interrupting)
    assert [(line["kind"], line["how"]) for line in jobs(disturbed)] == [("dense", "done"), ("particle", "stopped")]
    with Path(RunDir(disturbed, "tiny").jobs.location).open("ab") as file:
        file.write(b'{"attempt": 1, "kind": "par')  # torn, as by a kill
    run(tiny(disturbed, **SMALL))
    attempts = Counter(line["attempt"] for line in jobs(disturbed))
    assert attempts == {1: 2, 2: 10}
    begun = Counter(line["attempt"] for line in lines_of(disturbed) if line.get("what") == "started")
    assert begun[2] == 8, "averages are not given out"
    assert ticket_digests(undisturbed) == ticket_digests(disturbed)


def test_a_run_that_finds_everything_records_no_job(tmp_path: Path) -> None:
    run(tiny(tmp_path, **SMALL))
    before = Path(RunDir(tmp_path, "tiny").jobs.location).read_bytes()
    run(tiny(tmp_path, **SMALL))
    assert Path(RunDir(tmp_path, "tiny").jobs.location).read_bytes() == before


def test_where_it_cannot_be_written_the_run_goes_on(tmp_path: Path) -> None:
    Path(RunDir(tmp_path, "tiny").jobs.location).mkdir(parents=True)
    done: Run = run(tiny(tmp_path, **SMALL))
    assert len(done.records) == 2


def test_a_clock_that_is_set_meanwhile_changes_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = Shift(3, Whereabouts("node", "cuda:1"))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    worked = shift.over(Job("particle", 1, 2), "machine", attempt=1)
    assert 0.0 <= worked.ended - worked.began < 1.0
    assert (worked.worker, worked.where, worked.how, worked.attempt) == (3, Whereabouts("node", "cuda:1"), "machine", 1)
