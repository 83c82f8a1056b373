"""Whole runs whose particles are packed, in one process: interrupted, in part, with members that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.errors import DivergedError, Interrupted, RunError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run import packs
from swamp_ray.run.packs import PackedJobFailed, train_together
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.worker import Worker
from swamp_ray.storage.artifacts import RESULT, ArtifactStore
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import Lease, Leases, artifact_lease
from swamp_ray.storage.places import open_place
from swamp_ray.storage.states import read_state
from tests.helpers import ticket_digests, tiny

PACKED: dict[str, Any] = {"execution__particles_per_worker": 2, "pruning__target": 0.5}


class Watcher(Reporter):
    """Remembers what happened, and interrupts the run where it is told to."""

    def __init__(self, stop_at: Callable[[Job, int], bool] = lambda job, epoch: False) -> None:
        self._stop_at = stop_at
        self.trained: list[Job] = []
        self.found: list[Job] = []
        self.blocked: list[Job] = []
        self.names: dict[Job, str] = {}

    def job_submitted(self, spec: Any) -> None:
        self.names[spec.job] = spec.named.name

    def job_advanced(self, job: Job, progress: Any) -> None:
        if self._stop_at(job, progress.epoch):
            raise KeyboardInterrupt

    def job_blocked(self, job: Job, who: str) -> None:
        self.blocked.append(job)

    def job_finished(self, job: Job, found: bool) -> None:
        (self.found if found else self.trained).append(job)
        if self._stop_at(job, 0):
            raise KeyboardInterrupt


def packed(storage: Path, watcher: Reporter | None = None, **values: Any) -> Run:
    return run(tiny(storage, **{**PACKED, **values}), watcher)


def particle(index: int, n: int) -> Job:
    return Job("particle", index, n)


def log_of(storage: Path, index: int, n: int, attempt: int = 1) -> str:
    return (storage / f"runs/tiny/logs/attempt-{attempt}/round-{index}-particle-{n}.log").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    storage = tmp_path_factory.mktemp("packed")
    return storage, packed(storage)


def states(storage: Path, done: Run) -> list[np.ndarray]:
    store = ArtifactStore(storage)
    return [read_state(store, found).values for record in done.records for entry in record.artifacts["particles"]
            if (found := store.find(entry["name"])) is not None]


def test_packed_particles_are_those_of_an_unpacked_run_but_for_rounding(
    tmp_path: Path, undisturbed: tuple[Path, Run]
) -> None:
    """In the first round; in later ones a weight at the threshold may be pruned in one run and not in the other."""
    storage, done = undisturbed
    single = packed(tmp_path, execution__particles_per_worker=1)
    mine, other = states(storage, done)[:3], states(tmp_path, single)[:3]
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
        assert a.tobytes() != b.tobytes(), "otherwise nothing was packed"
    first, second = done.records[0], single.records[0]
    assert first.average["test"]["loss"] == pytest.approx(second.average["test"]["loss"], abs=1e-3)
    assert "stacked:2, density 1.0000" in log_of(storage, 0, 2), "the third of three particles, padded"


def test_packed_and_unpacked_runs_share_the_dense_phase_and_nothing_else(
    tmp_path: Path, undisturbed: tuple[Path, Run]
) -> None:
    watcher = Watcher()
    packed(tmp_path, execution__particles_per_worker=1)
    packed(tmp_path, watcher, name="packed")
    assert [str(job) for job in watcher.found] == ["dense phase"]
    again = Watcher()
    packed(tmp_path, again, name="narrower", particles__count=2)
    assert {particle(0, 0), particle(0, 1)} <= set(again.found), "the particle count is in no name"
    assert ticket_digests(tmp_path, "packed") == ticket_digests(undisturbed[0])


@pytest.mark.parametrize("stop_at", [
    (0, 0, 1), (0, 1, 0), (1, 2, 0),
    *(pytest.param(moment, marks=pytest.mark.nightly) for moment in ((0, 1, 2), (0, 2, 1), (1, 0, 1))),
])
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, Run], stop_at: tuple[int, int, int]
) -> None:
    """At an epoch of a particle, or (0) when it is finished: then only one of its pack goes on, padded."""
    index, n, epoch = stop_at
    with pytest.raises(Interrupted):
        packed(tmp_path, Watcher(lambda job, at: (job, at) == (particle(index, n), epoch)))
    watcher = Watcher()
    packed(tmp_path, watcher)
    assert ticket_digests(tmp_path) == ticket_digests(undisturbed[0])
    if epoch == 0:
        assert particle(index, n) in watcher.found


def test_what_was_stopped_in_the_middle_of_an_epoch_goes_on_from_there(
    tmp_path: Path, undisturbed: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = packs.Pack.gradients, []

    def interrupted(self: Any, batches: Any) -> Any:
        steps.append(len(batches))
        if len(steps) == 8:  # the third step of the second epoch
            raise KeyboardInterrupt
        return real(self, batches)

    monkeypatch.setattr(packs.Pack, "gradients", interrupted)
    with pytest.raises(Interrupted):
        packed(tmp_path)
    for n in (0, 1):
        assert "a checkpoint was written after step 7" in log_of(tmp_path, 0, n)
    monkeypatch.undo()
    packed(tmp_path)
    assert "from step 7" in log_of(tmp_path, 0, 1, attempt=2)
    assert ticket_digests(tmp_path) == ticket_digests(undisturbed[0])


def test_one_that_is_missing_is_trained_beside_padding_to_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, Run]
) -> None:
    watcher = Watcher()
    done = packed(tmp_path, watcher)
    store = ArtifactStore(tmp_path)
    for job in (particle(0, 1), particle(1, 0)):
        store.discard(watcher.names[job], RESULT)
        store.discard(done.records[job.round].artifacts["average"]["name"], RESULT)
    (tmp_path / "runs/tiny/rounds.jsonl").unlink()
    again = Watcher()
    packed(tmp_path, again)
    assert set(again.trained) >= {particle(0, 1), particle(1, 0)}
    assert not {particle(0, 0), particle(1, 1)} & set(again.trained)
    assert ticket_digests(tmp_path) == ticket_digests(undisturbed[0])


def test_one_that_diverges_is_dropped_and_its_pack_goes_on(tmp_path: Path) -> None:
    done = packed(tmp_path, particles__on_failure="drop", particles__vary__lr=[0.05, 1e30, 0.05])
    assert [record.combined for record in done.records] == [[0, 2], [0, 2]]
    assert "the loss was nan" in log_of(tmp_path, 0, 1)
    assert "finished" in log_of(tmp_path, 0, 0)


def test_one_that_cannot_be_stored_ends_the_run_and_costs_the_others_nothing(
    tmp_path: Path, undisturbed: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker._keep

    def full(self: Worker, spec: Any, *rest: Any) -> Any:
        if spec.job == particle(0, 0):
            raise RunError("the disk is full")
        return real(self, spec, *rest)

    monkeypatch.setattr(Worker, "_keep", full)
    with pytest.raises(RunError, match=r"round 0, particle 0 failed.*the disk is full"):
        packed(tmp_path)
    monkeypatch.undo()
    watcher = Watcher()
    packed(tmp_path, watcher)
    assert particle(0, 0) in watcher.trained
    assert "from step 9" in log_of(tmp_path, 0, 1, attempt=2), "its last step was about to be taken"
    assert ticket_digests(tmp_path) == ticket_digests(undisturbed[0])


def test_what_another_run_trains_is_left_out_of_the_pack_and_used_when_it_is_there(
    tmp_path: Path, undisturbed: tuple[Path, Run]
) -> None:
    names = Watcher()
    packed(tmp_path / "names", names)
    place = open_place(str(tmp_path))
    lease = Leases(place, 30.0).acquire(artifact_lease(names.names[particle(0, 1)]), this_process("another"))
    assert isinstance(lease, Lease)

    class Releases(Watcher):
        def job_finished(self, job: Job, found: bool) -> None:
            super().job_finished(job, found)
            if job == particle(0, 2):
                assert particle(0, 0) in self.trained
                lease.release()

    watcher = Releases()
    packed(tmp_path, watcher)
    assert watcher.blocked == [particle(0, 1)]
    assert watcher.trained.index(particle(0, 1)) > watcher.trained.index(particle(0, 2))
    assert ticket_digests(tmp_path) == ticket_digests(undisturbed[0])


def test_swamp_plus_s_single_particles_are_not_padded(tmp_path: Path) -> None:
    done = packed(tmp_path, particles__count=1, particles__schedule=[{"sparsity": 0.5, "count": 2}])
    assert [record.num_particles for record in done.records] == [1, 2]
    assert "stacked" not in log_of(tmp_path, 0, 0)
    assert "stacked:2" in log_of(tmp_path, 1, 1)
    watcher = Watcher()
    packed(tmp_path, watcher, name="imp", particles__count=1)
    assert particle(0, 0) in watcher.found, "an IMP run has trained the same"


def test_how_particles_are_packed_is_a_run_s_arithmetic(tmp_path: Path) -> None:
    done = packed(tmp_path)
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert record["arithmetic"]["packing"] == done.prepared.arithmetic.packing == "stacked:2"
    with pytest.raises(Exception, match=r"under another arithmetic(?s:.)*packing: 'stacked:2' -> 'single:1'"):
        packed(tmp_path, execution__particles_per_worker=1)


class Odd(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(("error", "expected"), [
    (DivergedError("p", 1, 2, 0.1, float("nan")), DivergedError), (KeyError("x"), KeyError), (Odd(1, 2), RunError)])
def test_errors_travel_and_the_others_go_on(error: Exception, expected: type[Exception]) -> None:
    class NoPack:
        def randomness(self) -> Any:
            import contextlib
            return contextlib.nullcontext()

        def gradients(self, batches: dict[int, Any]) -> dict[int, Any]:
            return {seat: (seat, {}) for seat in batches}

    def fails() -> Any:
        yield packs.GradientRequest("batch")
        raise error

    def jobs() -> Any:
        answer = yield packs.GradientRequest("batch")
        answer = yield packs.GradientRequest(answer)
        yield f"done with {answer[0]}"

    said = list(train_together(NoPack(), [(3, fails()), (1, jobs())]))  # type: ignore[arg-type]
    assert [number for number, _ in said] == [0, 1]
    broke = said[0][1]
    assert isinstance(broke, PackedJobFailed)
    assert isinstance(broke.error, expected)
    assert str(error) in str(broke.error)
    assert said[1][1] == "done with 1"
