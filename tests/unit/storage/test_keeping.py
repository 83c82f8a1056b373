"""Policies for the states of particles: what goes, that nothing changes by it, and that it can be had again."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.launch import Run, run
from swamp_ray.method.events import (
    AddState,
    CloseAverage,
    Job,
    JobFinishedEvent,
    RoundAveragedEvent,
    RoundPlan,
    StateLostEvent,
    SubmitJob,
)
from swamp_ray.method.rounds import Rounds
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import lacks_state
from swamp_ray.storage.usage import read_usage
from tests.helpers import root_of, ticket_digests, tiny

STATE = "state.safetensors"


class Watcher(Reporter):
    """Remembers what was trained and what was said."""

    def __init__(self) -> None:
        self.trained: list[Job] = []
        self.warnings: list[str] = []

    def job_finished(self, job: Job, found: bool) -> None:
        if not found:
            self.trained.append(job)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def watched(storage: Path, **values: object) -> tuple[Run, Watcher]:
    watcher = Watcher()
    return run(tiny(storage, **{"pruning__target": 0.5, **values}), watcher), watcher


def states(done: Run) -> list[list[bool]]:
    """By round: which particles' states are there."""
    store = ArtifactStore(root_of(done.rundir))
    names = [[entry["name"] for entry in record.artifacts["particles"]] for record in done.records]
    return [[not store.lacks(name, STATE) for name in one] for one in names]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return watched(tmp_path_factory.mktemp("all"))[0]


@pytest.mark.parametrize(("policy", "kept"), [("last", [False, True]), ("none", [False, False])])
def test_a_policy_frees_states_and_changes_nothing_else(
    tmp_path: Path, everything: Run, policy: str, kept: list[bool]
) -> None:
    assert states(everything) == [[True] * 3] * 2
    done, watcher = watched(tmp_path, keep__particles=policy)
    assert states(done) == [[one] * 3 for one in kept]
    assert done.records == everything.records
    assert ticket_digests(tmp_path) == ticket_digests(root_of(everything.rundir))
    again, second = watched(tmp_path, keep__particles=policy)
    assert again.records == done.records
    assert not second.trained
    assert not watcher.warnings + second.warnings


def test_a_finished_run_can_be_made_smaller_later(tmp_path: Path) -> None:
    watched(tmp_path)
    done, watcher = watched(tmp_path, keep__particles="none")
    assert states(done) == [[False] * 3] * 2
    assert not watcher.trained


def test_states_that_are_needed_once_more_are_trained_again_and_nothing_is_called_damaged(
    tmp_path: Path, everything: Run
) -> None:
    done, _ = watched(tmp_path, keep__particles="none", execution__max_retries=0)
    store = ArtifactStore(tmp_path)
    store.discard(done.records[0].artifacts["average"]["name"], "result")
    again, watcher = watched(tmp_path, keep__particles="none", execution__max_retries=0)
    assert watcher.trained == [Job("particle", 0, particle) for particle in range(3)]
    assert len(watcher.warnings) == 1
    assert "keep.particles" in watcher.warnings[0]
    assert not (again.rundir.read_run() or {})["attempts"][-1]["incidents"]
    assert ticket_digests(tmp_path) == ticket_digests(root_of(everything.rundir))
    assert again.records == done.records


def test_a_run_that_shares_particles_without_states_gets_the_same_bytes(tmp_path: Path) -> None:
    watched(tmp_path / "a", particles__count=2, keep__particles="none")
    shared, watcher = watched(tmp_path / "a", name="more", particles__count=3)
    alone, _ = watched(tmp_path / "b", name="more", particles__count=3)
    assert shared.records == alone.records
    assert ticket_digests(tmp_path / "a", "more") == ticket_digests(tmp_path / "b", "more")
    assert [job for job in watcher.trained if job.round == 0 and job.kind == "particle"] == [
        Job("particle", 0, 2), Job("particle", 0, 0), Job("particle", 0, 1)]


class RunsAnother(Reporter):
    """While the first round is averaged, another run with the same particles comes to its end and lets go of them."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.items = storage, dict[Job, JobSpec]()
        self.lacked: list[bool] = []

    def job_submitted(self, spec: JobSpec) -> None:
        self.items[spec.job] = spec

    def job_finished(self, job: Job, found: bool) -> None:
        if job == Job("particle", 0, 1):
            run(tiny(self.storage, name="other", particles__count=2, pruning__target=0.5, keep__particles="none"))
            store = ArtifactStore(self.storage)
            self.lacked = [store.lacks(self.items[Job("particle", 0, n)].named.name, STATE) for n in range(2)]


def test_a_state_that_another_run_is_about_to_average_stays(tmp_path: Path, everything: Run) -> None:
    watcher = RunsAnother(tmp_path)
    done = run(tiny(tmp_path, pruning__target=0.5, keep__particles="none"), watcher)
    assert watcher.lacked == [False, False]
    assert done.records == everything.records
    assert states(done) == [[False] * 3] * 2, "the last of the two that needs them lets go of them"


class Removes(Reporter):
    """Takes a state away at the very moment at which it is about to be read."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.items, self.warnings = storage, dict[Job, JobSpec](), list[str]()

    def job_submitted(self, spec: JobSpec) -> None:
        self.items[spec.job] = spec

    def job_finished(self, job: Job, found: bool) -> None:
        if job == Job("particle", 0, 2) and not self.warnings:
            ArtifactStore(self.storage).delete_payload(self.items[Job("particle", 0, 0)].named.name, STATE)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_a_state_that_vanishes_in_the_middle_of_a_round_is_trained_again(tmp_path: Path, everything: Run) -> None:
    watcher = Removes(tmp_path)
    done = run(tiny(tmp_path, pruning__target=0.5, execution__max_waiting_states=0), watcher)
    assert done.records == everything.records
    assert all("damaged" not in text for text in watcher.warnings)


def test_a_damaged_record_of_another_run_keeps_every_state(tmp_path: Path) -> None:
    other = RunDir(tmp_path, "other")
    other.append_result({"kind": "particle", "round": 0, "particle": 0, "name": "no name"})
    done, _ = watched(tmp_path, keep__particles="none")
    assert states(done) == [[True] * 3] * 2


def test_letting_go_keeps_the_manifest_and_putting_brings_the_payload_back(tmp_path: Path) -> None:
    store, name = ArtifactStore(tmp_path), "a" * 64
    store.delete_payload(name, STATE)
    manifest = store.put(name, {STATE: b"state", "other": b"kept"}, {"accuracy": 0.5})
    store.delete_payload(name, STATE)
    store.delete_payload(name, STATE)
    store.delete_payload(name, "no such file")
    assert store.find(name) == manifest
    assert store.lacks(name, STATE)
    assert not store.lacks(name, "other")
    assert store.read(manifest, "other") == b"kept"
    store.put(name, {STATE: b"state", "other": b"kept"}, {"accuracy": 0.5})
    assert store.find(name) == manifest
    assert store.read(manifest, STATE) == b"state"


def test_states_let_go_are_no_losses_that_end_a_run() -> None:
    machine = Rounds([RoundPlan(0, 10, 0.0, 2, None)], dense=False, max_retries=0)
    machine.start()
    particles = [Job("particle", 0, particle) for particle in range(2)]
    for particle in particles:
        machine.handle(JobFinishedEvent(particle))
    for _ in range(5):
        assert machine.handle(StateLostEvent(particles[0], "let go", damaged=False)) == [SubmitJob(particles[0])]
        assert machine.handle(JobFinishedEvent(particles[0])) == [
            AddState(0, 0, from_storage=True), AddState(0, 1, from_storage=True), CloseAverage(0, (0, 1))]
    assert machine.failed is None
    assert machine.handle(RoundAveragedEvent(0))


def test_the_policy_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    assert tiny(tmp_path, keep__particles="none").recipe() == tiny(tmp_path).recipe()


def test_what_is_named_is_named_before_it_is_there(tmp_path: Path) -> None:
    class Checks(Reporter):
        def job_submitted(self, spec: JobSpec) -> None:
            assert spec.named.name in read_usage(RunDir(tmp_path, "tiny")).names
            assert ArtifactStore(tmp_path).find(spec.named.name) is None

    run(tiny(tmp_path, pruning__target=0.0, particles__count=1), Checks())


def test_a_policy_lets_no_state_go_that_another_run_keeps_by_its_own(tmp_path: Path) -> None:
    first, _ = watched(tmp_path)
    watched(tmp_path, name="other", keep__particles="none")
    store = ArtifactStore(tmp_path)
    names = [entry["name"] for record in first.records for entry in record.artifacts["particles"]]
    assert not any(lacks_state(store, name) for name in names)
