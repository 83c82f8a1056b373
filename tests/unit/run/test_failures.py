"""Particles that diverge or lag behind, and a storage that takes nothing more, in whole runs in one process."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.commands.status import describe
from swamp_ray.errors import CorruptArtifactError, DivergedError, Interrupted, RunError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import DENSE, Job
from swamp_ray.run.failures import divergence_advice, kind_of, memory_error, out_of_memory
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import read_state
from swamp_ray.training.results import Progress
from tests.faults import epoch_seed
from tests.helpers import ticket_digests, tiny


class Watcher(Reporter):
    """Remembers what was given out, trained and dropped, and stops where it is told to."""

    def __init__(self, stop_at: str = "") -> None:
        self.items: list[JobSpec] = []
        self.trained: list[Job] = []
        self.dropped: list[Job] = []
        self.failed: list[str] = []
        self.started = False
        self._stop_at = stop_at

    def executor_starting(self, executor: str) -> None:
        self.started = True

    def job_submitted(self, spec: JobSpec) -> None:
        self.items.append(spec)

    def job_advanced(self, job: Job, progress: Progress) -> None:
        self._stop(f"advanced {job}")

    def job_finished(self, job: Job, found: bool) -> None:
        if not found:
            self.trained.append(job)
        self._stop(f"finished {job}")

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        self.failed.append(f"{job}: {reason}")
        self._stop(f"failed {job}")

    def particle_dropped(self, job: Job, reason: str) -> None:
        self.dropped.append(job)
        self._stop(f"dropped {job}")

    def _stop(self, what: str) -> None:
        if what == self._stop_at:
            raise KeyboardInterrupt


def particle(index: int, n: int) -> Job:
    return Job("particle", index, n)


def faulty(storage: Path, watcher: Watcher | None = None, *, nan: list[int] | None = None, **values: Any) -> Run:
    """Two rounds of three particles, of which round 0's second one diverges in its second epoch."""
    nan = [epoch_seed(0, 1, epoch=1)] if nan is None else nan
    values = {"task__name": "tests.faults:Faulty", "task__options": {"nan": nan}, "pruning__target": 0.5, **values}
    return run(tiny(storage, **values), watcher)


def record_of(storage: Path) -> dict[str, Any]:
    return json.loads((storage / "runs/tiny/run.json").read_text())


def decisions(storage: Path) -> list[tuple[str, int, int, int]]:
    lines = [json.loads(line) for line in (storage / "runs/tiny/decisions.jsonl").read_text().splitlines()]
    return [(line["what"], line["round"], line["particle"], line["attempt"]) for line in lines]


class TestDrop:
    def test_the_round_is_averaged_and_recorded_without_it(self, tmp_path: Path) -> None:
        watcher = Watcher()
        done = faulty(tmp_path, watcher, particles__on_failure="drop")
        first, second = done.records
        assert first.combined == [0, 2]
        assert first.num_particles == 3
        [dropped] = first.dropped
        assert (dropped["particle"], dropped["what"]) == (1, "drop")
        assert "the loss was nan at step 5 (epoch 1, learning rate" in dropped["reason"]
        assert (second.combined, second.dropped) == ([0, 1, 2], [])
        accuracies = [one["test"]["accuracy"] for one in first.particles]
        assert first.mean["test"]["accuracy"] == pytest.approx(statistics.fmean(accuracies))
        assert first.std["test"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
        store = ArtifactStore(tmp_path)
        states = [read_state(store, found).values.astype(np.float64) for entry in first.artifacts["particles"]
                  if (found := store.find(entry["name"])) is not None]
        assert len(states) == len(accuracies) == 2
        average = store.find(first.artifacts["average"]["name"])
        assert average is not None
        np.testing.assert_array_equal(read_state(store, average).values, np.mean(states, axis=0).astype(np.float32))
        assert watcher.dropped == [particle(0, 1)]
        assert decisions(tmp_path) == [("drop", 0, 1, 0)]
        incidents = record_of(tmp_path)["attempts"][0]["incidents"]
        assert [(one["who"], one["kind"], one["particle"]) for one in incidents] == [
            ("round 0, particle 1", "diverged", 1), ("round 0, particle 1", "drop", 1)]

    def test_a_round_of_fewer_than_the_minimum_ends_the_run_and_a_lower_minimum_goes_on(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"(?s)particle 1 diverged.*Round 0 has 2 of 3 particles left, and needs 3.*"
                                           r"lower particles\.min_count"):
            faulty(tmp_path, particles__on_failure="drop", particles__min_count=3)
        assert not (tmp_path / "runs/tiny/decisions.jsonl").exists()
        watcher = Watcher()
        done = faulty(tmp_path, watcher, particles__on_failure="drop", particles__min_count=2)
        assert done.records[0].combined == [0, 2]
        assert particle(0, 1) not in watcher.trained

    @pytest.mark.parametrize("stop_at", [
        "dropped round 0, particle 1", "advanced round 1, particle 1",
        pytest.param("advanced round 0, particle 2", marks=pytest.mark.nightly),
        pytest.param("finished round 0, particle 2", marks=pytest.mark.nightly),
    ])
    def test_an_interrupted_run_ends_with_the_same_bytes_whatever_the_policy_is_then(
        self, tmp_path: Path, stop_at: str
    ) -> None:
        faulty(tmp_path / "undisturbed", particles__on_failure="drop")
        with pytest.raises(Interrupted):
            faulty(tmp_path / "b", Watcher(stop_at), particles__on_failure="drop")
        watcher = Watcher()
        done = faulty(tmp_path / "b", watcher, particles__on_failure="stop", particles__min_count=3)
        assert particle(0, 1) not in [spec.job for spec in watcher.items]
        assert ticket_digests(tmp_path / "b") == ticket_digests(tmp_path / "undisturbed")
        assert decisions(tmp_path / "b") == [("drop", 0, 1, 0)]
        assert done.records[0].dropped[0]["particle"] == 1

    def test_the_same_command_again_only_reads(self, tmp_path: Path) -> None:
        first = faulty(tmp_path, particles__on_failure="drop")
        before = ticket_digests(tmp_path)
        watcher = Watcher()
        second = faulty(tmp_path, watcher, particles__on_failure="drop")
        assert not watcher.started
        assert second.records == first.records
        assert ticket_digests(tmp_path) == before
        assert decisions(tmp_path) == [("drop", 0, 1, 0)]

    def test_the_best_of_the_others_goes_on(self, tmp_path: Path) -> None:
        done = faulty(tmp_path, particles__on_failure="drop", particles__combine="best")
        scores = [metrics["validation"]["accuracy"] for metrics in done.records[0].particles]
        assert done.records[0].combined == [[0, 2][scores.index(max(scores))]]


    def test_the_status_shows_what_happened(self, tmp_path: Path) -> None:
        done = faulty(tmp_path, particles__on_failure="drop")
        text = "\n".join(str(part) for part in describe(done.rundir))
        assert " round 0, particle 1 (diverged): the loss was nan at step 5" in text
        assert " round 0, particle 1 (drop): the loss was nan at step 5" in text


class TestRetry:
    def test_another_seed_is_tried_and_the_diverged_one_never_again(self, tmp_path: Path) -> None:
        watcher = Watcher()
        done = faulty(tmp_path, watcher, particles__on_failure="retry")
        tried = [spec for spec in watcher.items if spec.job == particle(0, 1)]
        assert [spec.seed for spec in tried] == [done.prepared.particle_seed(0, 1, attempt) for attempt in (0, 1)]
        assert tried[0].named != tried[1].named
        assert done.records[0].combined == [0, 1, 2]
        assert done.records[0].dropped == []
        assert done.records[0].artifacts["particles"][1]["name"] == tried[1].named.name
        assert decisions(tmp_path) == [("reseed", 0, 1, 1)]
        assert watcher.failed
        assert "seed 1 of at most 2" in watcher.failed[0]
        again = Watcher()
        faulty(tmp_path, again, particles__on_failure="retry")
        assert [spec.reseed for spec in again.items if spec.job == particle(0, 1)] == [1]
        assert not again.started

    def test_bounded(self, tmp_path: Path) -> None:
        nan = [epoch_seed(0, 1, attempt) for attempt in range(3)]
        with pytest.raises(RunError, match=r"(?s)particle 1 diverged with each of 3 seeds: the loss was nan at step 0"
                                           r".*raise particles\.max_reseeds"):
            faulty(tmp_path, nan=nan, particles__on_failure="retry")
        done = faulty(tmp_path, nan=nan, particles__on_failure="retry", particles__max_reseeds=3)
        assert done.records[0].combined == [0, 1, 2]
        assert decisions(tmp_path) == [("reseed", 0, 1, 1), ("reseed", 0, 1, 2), ("reseed", 0, 1, 3)]

    def test_an_interrupted_run_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        faulty(tmp_path / "undisturbed", particles__on_failure="retry")
        with pytest.raises(Interrupted):
            faulty(tmp_path / "b", Watcher("failed round 0, particle 1"), particles__on_failure="retry")
        faulty(tmp_path / "b", particles__on_failure="stop")
        assert ticket_digests(tmp_path / "b") == ticket_digests(tmp_path / "undisturbed")

    def test_the_dense_phase_too(self, tmp_path: Path) -> None:
        watcher = Watcher()
        faulty(tmp_path, watcher, nan=[epoch_seed(-1, 0)], particles__on_failure="retry")
        assert [spec.reseed for spec in watcher.items if spec.job == DENSE] == [0, 1]
        before = ticket_digests(tmp_path)
        again = Watcher()
        faulty(tmp_path, again, nan=[epoch_seed(-1, 0)])
        assert not again.started
        assert ticket_digests(tmp_path) == before


class TestStop:
    def test_the_same_command_says_the_same_at_once_and_another_policy_goes_on(self, tmp_path: Path) -> None:
        message = r"(?s)round 0, particle 1 diverged: the loss was nan at step 5 .*set particles\.on_failure to retry"
        with pytest.raises(RunError, match=message) as first:
            faulty(tmp_path)
        watcher = Watcher()
        with pytest.raises(RunError, match=message) as second:
            faulty(tmp_path, watcher)
        assert str(second.value) == str(first.value)
        assert not watcher.trained
        assert not watcher.started
        assert record_of(tmp_path)["attempts"][1]["reason"] == str(first.value)
        faulty(tmp_path, watcher, particles__on_failure="drop")
        assert particle(0, 0) not in watcher.trained, "what was finished before is not trained again"

    def test_a_divergence_can_be_forgotten_as_the_message_says(self, tmp_path: Path) -> None:
        with pytest.raises(RunError) as caught:
            faulty(tmp_path)
        path = Path(str(caught.value).partition("delete ")[2])
        assert path.is_file()
        assert '"loss":"NaN"' in path.read_text()
        path.unlink()
        watcher = Watcher()
        with pytest.raises(RunError, match="diverged"):
            faulty(tmp_path, watcher)
        assert watcher.started
        assert path.is_file()

    def test_another_run_does_not_train_what_is_known_to_diverge(self, tmp_path: Path) -> None:
        with pytest.raises(RunError):
            faulty(tmp_path)
        watcher = Watcher()
        with pytest.raises(RunError, match="round 0, particle 1 diverged"):
            faulty(tmp_path, watcher, name="another", pruning__target=0.75)
        assert not watcher.started

    def test_a_damaged_record_of_a_divergence_costs_its_training(self, tmp_path: Path) -> None:
        with pytest.raises(RunError) as caught:
            faulty(tmp_path)
        path = Path(str(caught.value).partition("delete ")[2])
        path.write_bytes(path.read_bytes().replace(b"step", b"stop"))
        watcher = Watcher()
        with pytest.raises(RunError, match="diverged: the loss was nan at step 5"):
            faulty(tmp_path, watcher)
        assert watcher.started


class TestQuorum:
    def test_the_last_one_is_left_out_and_stays_out(self, tmp_path: Path) -> None:
        watcher = Watcher()
        done = faulty(tmp_path, watcher, nan=[], particles__quorum=2, particles__deadline_s=1e-6)
        assert [record.combined for record in done.records] == [[0, 1], [0, 1]]
        assert [record.dropped[0]["what"] for record in done.records] == ["quorum", "quorum"]
        assert watcher.dropped == [particle(0, 2), particle(1, 2)]
        assert not [job for job in watcher.trained if job.particle == 2]
        before = ticket_digests(tmp_path)
        shutil.rmtree(tmp_path / "artifacts")
        again = Watcher()
        faulty(tmp_path, again, nan=[])
        assert again.trained
        assert ticket_digests(tmp_path) == before, "the decision stands without the policy that led to it"

    def test_a_deadline_that_does_not_pass_drops_nobody(self, tmp_path: Path) -> None:
        done = faulty(tmp_path, nan=[], particles__quorum=1, particles__deadline_s=1e6)
        assert [record.combined for record in done.records] == [[0, 1, 2], [0, 1, 2]]


class TestTheRecordOfDecisions:
    def test_what_cannot_be_written_down_is_not_done(self, tmp_path: Path) -> None:
        path = tmp_path / "runs/tiny/decisions.jsonl"

        class InTheWay(Watcher):
            def job_finished(self, job: Job, found: bool) -> None:
                if job == particle(0, 0):
                    path.mkdir()

        with pytest.raises(RunError, match=r"decisions\.jsonl: could not be written"):
            faulty(tmp_path, InTheWay(), particles__on_failure="drop")
        path.rmdir()
        assert faulty(tmp_path, particles__on_failure="drop").records[0].combined == [0, 2]

    def test_a_damaged_one_is_an_error_and_no_other_result(self, tmp_path: Path) -> None:
        faulty(tmp_path, particles__on_failure="drop")
        path = tmp_path / "runs/tiny/decisions.jsonl"
        path.write_text('{"round": 0, "particle": 1}\n' + path.read_text())
        with pytest.raises(CorruptArtifactError, match="a line is not a decision"):
            faulty(tmp_path, particles__on_failure="drop")

    @pytest.mark.parametrize(("old", "new", "message"), [
        ('"particle": 1', '"particle": 0', "a line has changed since it was written"),
        ("\n", "", r"round 0 was recorded without particles \[1\], but it leaves out \[\]"),
    ])
    def test_one_that_changed_or_vanished_never_changes_a_recorded_round(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        faulty(tmp_path, particles__on_failure="drop")
        path, tickets = tmp_path / "runs/tiny/decisions.jsonl", ticket_digests(tmp_path)
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(CorruptArtifactError, match=message):
            faulty(tmp_path, particles__on_failure="drop")
        assert ticket_digests(tmp_path) == tickets

    def test_one_on_a_particle_that_the_run_does_not_have_is_an_error(self, tmp_path: Path) -> None:
        faulty(tmp_path, particles__on_failure="drop")
        RunDir(tmp_path, "tiny").append_decision(
            {"round": 1, "particle": 5, "what": "drop", "reason": "none", "attempt": 0})
        with pytest.raises(CorruptArtifactError, match="round 1, particle 5, which the run does not have"):
            faulty(tmp_path, particles__on_failure="drop")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--recursive", str(folder)], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_ends_the_run_and_the_same_command_goes_on(small_disk: Path, tmp_path: Path,
                                                                            trouble: str) -> None:
    run(tiny(tmp_path / "undisturbed"))
    artifacts = small_disk / "artifacts"
    artifacts.mkdir()
    mount("bind", artifacts, artifacts)

    class Spoiler(Watcher):
        def job_finished(self, job: Job, found: bool) -> None:
            super().job_finished(job, found)
            if job == particle(1, 0) and trouble == "read-only":
                mount("remount,ro,bind", artifacts)
            elif job == particle(1, 0):
                with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
                    while file.tell() < 16_000_000:
                        file.write(bytes(4096))

    with pytest.raises(RunError, match=r"could not be written.*(MiB free|[Rr]ead-only)"):
        run(tiny(small_disk), Spoiler())
    subprocess.run(["umount", str(artifacts)], check=True)
    (small_disk / "ballast").unlink(missing_ok=True)
    watcher = Watcher()
    run(tiny(small_disk), watcher)
    assert not [job for job in watcher.trained if job.kind == "particle" and job.round == 0]
    assert particle(1, 0) not in watcher.trained
    assert ticket_digests(small_disk) == ticket_digests(tmp_path / "undisturbed")


def mount(options: str, *paths: Path) -> None:
    subprocess.run(["mount", "-o", options, *map(str, paths)], check=True)


class TestKinds:
    @pytest.mark.parametrize(("error", "kind"), [
        (DivergedError("x", 0, 0, 0.1, float("nan")), "diverged"), (MemoryError(), "machine"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"), "machine"),
        (RuntimeError("shapes differ"), "error"), (RunError("disk full"), "error"), (KeyError("x"), "error"),
    ])
    def test_of_errors_that_a_job_raises(self, error: Exception, kind: str) -> None:
        assert kind_of(error) == kind
        assert out_of_memory(error) == (kind == "machine")

    def test_a_lack_of_memory_is_explained(self) -> None:
        text = str(memory_error(RuntimeError("CUDA out of memory. Tried 2 GiB\nmore")))
        assert text.splitlines()[0] == "out of memory: CUDA out of memory. Tried 2 GiB"
        for option in ("execution.num_gpus", "training.micro_batch", "training.batch_size"):
            assert option in text
        assert str(memory_error(MemoryError())).startswith("out of memory: MemoryError\n")

    def test_advice_names_what_is_recorded_only_where_something_is(self, tmp_path: Path) -> None:
        policy = tiny(tmp_path).particles
        assert divergence_advice(policy, "/a/diverged.json").endswith("delete /a/diverged.json")
        assert "delete" not in divergence_advice(policy, None)
