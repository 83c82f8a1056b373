"""Whole runs in one process: what they write, what they reuse, what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from swamp_ray import load_ticket
from swamp_ray.data.samples import ArraySamples
from swamp_ray.errors import DivergedError, RunError, UserError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.driver import WAIT_S
from swamp_ray.run.inline_executor import InlineExecutor
from swamp_ray.run.journal import Journal
from swamp_ray.run.messages import JobSpec, Report, RoundRecord
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.seeding import derive_seed
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import HeldLease, artifact_lease
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.training.models import build_model
from swamp_ray.training.trainer import initial_model
from tests.helpers import artifacts_of, ticket_digests, tiny


class Watcher(Reporter):
    """Remembers what was trained, what was found and what was warned of."""

    def __init__(self) -> None:
        self.items: dict[Job, JobSpec] = {}
        self.trained: list[Job] = []
        self.found: list[Job] = []
        self.warnings: list[str] = []
        self.started = False
        self.rounds: list[int] = []

    def job_submitted(self, spec: JobSpec) -> None:
        self.items[spec.job] = spec

    def job_finished(self, job: Job, found: bool) -> None:
        (self.found if found else self.trained).append(job)

    def executor_starting(self, executor: str) -> None:
        self.started = True

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def round_finished(self, record: RoundRecord) -> None:
        self.rounds.append(record.round)


def watched(storage: Path, **values: object) -> tuple[Run, Watcher]:
    watcher = Watcher()
    return run(tiny(storage, **values), watcher), watcher


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of the tiny run, which is complete."""
    storage = tmp_path_factory.mktemp("complete")
    run(tiny(storage))
    return storage


@pytest.fixture
def copied(tmp_path: Path, complete: Path) -> None:
    """The tiny run is complete in the test's folder: the same command only reads."""
    shutil.copytree(complete, tmp_path, dirs_exist_ok=True)


@pytest.mark.usefixtures("copied")
def test_a_run_writes_tickets_of_exactly_the_planned_sparsities(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    total = done.prepared.layout.num_prunable
    assert [record.survivors for record in done.records] == [total, (total + 1) // 2, (total + 2) // 4]
    previous = None
    for record in done.records:
        ticket = load_ticket(tmp_path / record.ticket)
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == record.survivors
        assert ticket.sparsity == pytest.approx(record.sparsity)
        for name, mask in ticket.masks.items():
            assert not ticket.state[name][~mask].any()
            if previous is not None:
                assert not (mask & ~previous.masks[name]).any(), "a pruned weight came back"
        previous = ticket


@pytest.mark.usefixtures("copied")
def test_a_ticket_in_a_plain_model_gives_the_recorded_accuracy(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    data = done.prepared.data
    model = build_model(done.prepared.config.model, num_classes=data.num_classes, input_shape=data.input_shape, seed=9)
    for record in done.records:
        load_ticket(tmp_path / record.ticket).load_into(model)
        model.eval()
        assert isinstance(data.test, ArraySamples)
        inputs, labels = data.test.arrays
        images = torch.tensor(inputs)
        if data.test.images is not None:
            mean, std = torch.tensor(data.test.images.mean), torch.tensor(data.test.images.std)
            images = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.no_grad():
            accuracy = (model(images.float()).argmax(1) == torch.tensor(labels)).double().mean().item()
        assert accuracy == pytest.approx(record.average["test"]["accuracy"], abs=1e-9)


@pytest.mark.usefixtures("copied")
def test_the_average_is_the_float64_mean_of_the_particles(tmp_path: Path) -> None:
    from swamp_ray.storage.states import read_state

    done, _ = watched(tmp_path)
    store = ArtifactStore(tmp_path)
    for record in done.records:
        names = [entry["name"] for entry in record.artifacts["particles"]]
        states = [read_state(store, manifest) for name in names if (manifest := store.find(name)) is not None]
        average = store.find(record.artifacts["average"]["name"])
        assert average is not None
        expected = np.mean([state.values.astype(np.float64) for state in states], axis=0).astype(np.float32)
        np.testing.assert_array_equal(read_state(store, average).values, expected)
        distances = [np.sum((state.values.astype(np.float64) - expected) ** 2) for state in states]
        assert record.spread == pytest.approx(np.sqrt(np.mean(distances)), rel=1e-3)


def test_the_same_command_again_trains_nothing_and_starts_no_workers(tmp_path: Path) -> None:
    first, _ = watched(tmp_path)
    before = ticket_digests(tmp_path)
    second, watcher = watched(tmp_path)
    assert watcher.rounds == [0, 1, 2]
    assert not watcher.trained
    assert not watcher.started
    assert second.records == first.records
    assert ticket_digests(tmp_path) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_the_memory_that_particles_took_is_recorded_and_decides_nothing(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    store, peaks = ArtifactStore(tmp_path), []
    for record, line in zip(done.records, done.rundir.read_rounds(), strict=True):
        stored = [store.find(entry["name"]) for entry in record.artifacts["particles"]]
        assert record.peak_bytes == line["peak_bytes"] == [one.info["peak_bytes"] for one in stored if one is not None]
        peaks += record.peak_bytes
    assert len(peaks) == 9
    assert all(peak > 50e6 for peak in peaks), "torch alone takes up more"
    other = replace(done.records[0], peak_bytes=[1, 2, 3])
    assert other == done.records[0]
    lines = done.rundir.rounds.read()
    journal = Journal(done.rundir, store)
    journal.open(prepare(tiny(tmp_path)))
    journal.write_round(other)
    journal.close("complete")
    assert done.rundir.rounds.read() == lines, "a round that was recorded is not recorded anew for it"


def test_two_fresh_runs_give_the_same_bytes(tmp_path: Path) -> None:
    watched(tmp_path / "a")
    torch.manual_seed(12345)
    torch.rand(7)
    watched(tmp_path / "b")
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


@pytest.mark.usefixtures("copied")
def test_runs_share_what_they_have_in_common(tmp_path: Path) -> None:
    watched(tmp_path)
    _, deeper = watched(tmp_path, name="deeper", pruning__target=0.875)
    assert {(job.kind, job.round) for job in deeper.found} >= {("dense", -1), ("particle", 0), ("particle", 1)}
    assert {job.round for job in deeper.trained} == {3}
    _, more = watched(tmp_path, name="more", particles__count=4)
    first_round = [job for job in more.trained if job.round == 0 and job.kind == "particle"]
    assert first_round == [Job("particle", 0, 3)], "the seeds of particles depend on how many there are"


def test_a_moved_storage_goes_on_where_it_was(tmp_path: Path) -> None:
    watched(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    _, watcher = watched(tmp_path / "new")
    assert not watcher.trained


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("file", ["state.safetensors", "next_mask.safetensors"])
def test_a_damaged_result_is_computed_again_with_the_same_bytes(tmp_path: Path, file: str) -> None:
    done, _ = watched(tmp_path)
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    average = store.find(done.records[0].artifacts["average"]["name"])
    assert average is not None
    path = artifacts_of(store) / average.name[:2] / average.name / f"{average.files[file].sha256}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    _, watcher = watched(tmp_path)
    assert any("damaged" in warning for warning in watcher.warnings)
    assert ticket_digests(tmp_path) == before


@pytest.mark.usefixtures("copied")
def test_a_damaged_particle_state_is_trained_again(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    for record in done.records[:1]:
        store.discard(record.artifacts["average"]["name"], "result")
        particle = store.find(record.artifacts["particles"][1]["name"])
        assert particle is not None
        entry = particle.files["state.safetensors"]
        path = artifacts_of(store) / particle.name[:2] / particle.name / f"{entry.sha256}.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
    _, watcher = watched(tmp_path)
    assert watcher.trained.count(Job("particle", 0, 1)) == 1
    assert ticket_digests(tmp_path) == before


@pytest.mark.usefixtures("copied")
def test_a_name_used_again_with_another_recipe_is_refused_with_a_diff(tmp_path: Path) -> None:
    watched(tmp_path)
    before = ticket_digests(tmp_path)
    with pytest.raises(UserError, match=r"training\.lr: 0\.05 -> 0\.1"):
        watched(tmp_path, training__lr=0.1)
    assert ticket_digests(tmp_path) == before
    with pytest.raises(UserError, match=r"threads: 1 -> 2"):
        watched(tmp_path, execution__threads=2)


@pytest.mark.usefixtures("copied")
def test_a_damaged_state_among_new_ones_is_trained_again(tmp_path: Path) -> None:
    """One particle is found damaged while others of its round are still to be trained."""
    done, _ = watched(tmp_path)
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    record = done.records[1]
    store.discard(record.artifacts["average"]["name"], "result")
    store.discard(record.artifacts["particles"][2]["name"], "result")
    particle = store.find(record.artifacts["particles"][0]["name"])
    assert particle is not None
    file = f"{particle.files['state.safetensors'].sha256}.safetensors"
    path = artifacts_of(store) / particle.name[:2] / particle.name / file
    path.write_bytes(b"")
    _, watcher = watched(tmp_path)
    assert [job for job in watcher.trained if job.kind == "particle"] == [
        Job("particle", 1, 2), Job("particle", 1, 0)]
    assert ticket_digests(tmp_path) == before


def test_a_damaged_dense_phase_is_trained_again_with_the_same_bytes(tmp_path: Path) -> None:
    _, first = watched(tmp_path)
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    dense = store.find(first.items[Job("dense")].named.name)
    assert dense is not None
    path = artifacts_of(store) / dense.name[:2] / dense.name / f"{dense.files['state.safetensors'].sha256}.safetensors"
    path.write_bytes(b"damaged")
    _, watcher = watched(tmp_path)
    assert watcher.trained == [Job("dense")]
    assert ticket_digests(tmp_path) == before


@pytest.mark.usefixtures("copied")
def test_where_data_and_checkpoint_lie_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    watched(tmp_path, data__loader_workers=1, identity__strict=False, data__root=str(tmp_path))
    for folder, index in (("a", 1), ("b", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.safetensors").write_bytes((tmp_path / done.records[index].ticket).read_bytes())
    watched(tmp_path, name="further", start_from={"path": str(tmp_path / "a" / "t.safetensors")})
    _, moved = watched(tmp_path, name="further", start_from={"path": str(tmp_path / "b" / "t.safetensors")})
    assert not moved.trained
    (tmp_path / "a" / "t.safetensors").write_bytes((tmp_path / done.records[2].ticket).read_bytes())
    with pytest.raises(UserError, match="from another start"):
        watched(tmp_path, name="further", start_from={"path": str(tmp_path / "a" / "t.safetensors")})


def test_execution_settings_do_not_change_results(tmp_path: Path, complete: Path) -> None:
    watched(tmp_path, execution__max_waiting_states=0, execution__checkpoint_every=0)
    assert ticket_digests(tmp_path) == ticket_digests(complete)


def test_an_interrupted_particle_goes_on_at_its_checkpoint_with_the_same_bytes(tmp_path: Path) -> None:
    from swamp_ray.errors import Interrupted
    from swamp_ray.training.results import Progress

    class Interrupter(Watcher):
        def job_advanced(self, job: Job, progress: Progress) -> None:
            if job == Job("particle", 1, 1) and progress.epoch == 3:
                raise KeyboardInterrupt

    watched(tmp_path / "undisturbed", round__length=4)
    with pytest.raises(Interrupted, match="Run the same command again"):
        run(tiny(tmp_path / "b", round__length=4), Interrupter())
    assert json.loads((tmp_path / "b/runs/tiny/run.json").read_text())["status"] == "interrupted"
    _, watcher = watched(tmp_path / "b", round__length=4)
    assert Job("particle", 1, 0) in watcher.found
    assert ticket_digests(tmp_path / "b") == ticket_digests(tmp_path / "undisturbed")
    attempts = json.loads((tmp_path / "b/runs/tiny/run.json").read_text())["attempts"]
    total = 1 + 3 * 3 * 4
    # The three epochs before the interruption are in its checkpoint, and counted in neither attempt.
    assert sum(attempt["trained_epochs"] for attempt in attempts) == total - 3


def test_the_metrics_agree_with_the_records(tmp_path: Path) -> None:
    done, _ = watched(tmp_path)
    frame = pd.read_parquet(Path(done.rundir.metrics_parquet.location))
    rounds = frame[frame["kind"] == "round"]
    assert list(rounds["test/accuracy"]) == [record.average["test"]["accuracy"] for record in done.records]
    assert len(frame[frame["kind"] == "particle_epoch"]) == 3 * 3 * 2
    watched(tmp_path)
    again = pd.read_parquet(Path(done.rundir.metrics_parquet.location))
    assert len(again) == len(frame), "a second attempt logs nothing twice"
    runs = {path.parent.relative_to(Path(done.rundir.tensorboard.location)).as_posix()
            for path in Path(done.rundir.tensorboard.location).rglob("events*")}
    particles = {f"particle-{number:02d}" for number in range(3)}
    trainings = {f"round-{index:02d}/{particle}" for index in range(3) for particle in particles}
    assert runs == {"dense", "average", "particles_mean", "particles_std", *particles, *trainings}


def test_swamp_plus_trains_one_particle_below_a_sparsity(tmp_path: Path) -> None:
    done, _ = watched(tmp_path, particles__count=1, particles__schedule=[{"sparsity": 0.5, "count": 2}])
    assert [record.num_particles for record in done.records] == [1, 2, 2]


def test_the_best_particle_goes_on_alone(tmp_path: Path) -> None:
    done, _ = watched(tmp_path, particles__combine="best")
    for record in done.records:
        scores = [metrics["validation"]["accuracy"] for metrics in record.particles]
        assert record.combined == [scores.index(max(scores))]
        average = record.artifacts["average"]["name"]
        store = ArtifactStore(tmp_path)
        manifest, best = store.find(average), store.find(record.artifacts["particles"][record.combined[0]]["name"])
        assert manifest is not None
        assert best is not None
        from swamp_ray.storage.states import read_state

        np.testing.assert_array_equal(read_state(store, manifest).values, read_state(store, best).values)


def _starts(storage: Path, done: Run, index: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State and masks of a round's ticket."""
    ticket = load_ticket(storage / done.records[index].ticket)
    return ticket.state, ticket.masks


def test_rewinding_starts_every_round_at_its_point(tmp_path: Path) -> None:
    """With a rate of almost nothing a round's result is its start: that shows where it started."""
    still = {"training__lr": 1e-12, "averaging__within": "none", "training__weight_decay": 0.0, "particles__count": 1,
             "training__schedule__warmup": 0}
    t0, _ = watched(tmp_path / "t0", dense__length=1, **still)
    initial = initial_model(t0.prepared.config, t0.prepared.data).state_dict()
    for index in range(3):
        state, masks = _starts(tmp_path / "t0", t0, index)
        for name, mask in masks.items():
            torch.testing.assert_close(state[name], initial[name] * mask, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("weights", "same"), [("t0", True), ("init", True), ("none", False)])
def test_the_rewind_setting_decides_the_starting_weights(tmp_path: Path, weights: str, same: bool) -> None:
    done, watcher = watched(tmp_path, rewind__weights=weights, averaging__within="none", particles__count=1)
    assert (Job("dense") in watcher.items) == (weights != "init")
    recipes = [watcher.items[Job("particle", index, 0)].named.recipe for index in range(3)]
    assert len({recipe["start"] for recipe in recipes}) == 1
    assert [recipe["values"] is None for recipe in recipes] == [True, same, same]
    if weights == "none":
        averages = [record.artifacts["average"]["sha256"] for record in done.records]
        assert [recipe["values"] for recipe in recipes[1:]] == averages[:2]
    if weights == "init":
        prepared = done.prepared
        assert recipes[0]["start"] == prepared.recipes.state_digest(
            prepared.initial.parameters, prepared.initial.buffers)


def test_one_shot_prunes_in_one_round(tmp_path: Path) -> None:
    done, _ = watched(tmp_path, pruning__rate=0.9, pruning__target=0.75)
    assert [record.sparsity for record in done.records] == pytest.approx([0, 0.75], abs=1e-3)


@pytest.mark.parametrize("scope", ["uniform", "erk"])
@pytest.mark.parametrize("score", ["magnitude", "movement", "random"])
def test_scores_and_scopes_prune_exactly(tmp_path: Path, scope: str, score: str) -> None:
    done, _ = watched(tmp_path, pruning__scope=scope, pruning__score=score, particles__count=1)
    final = done.records[-1]
    assert load_ticket(tmp_path / final.ticket).sparsity == pytest.approx(final.sparsity)
    if scope == "uniform":
        assert list(final.layer_densities.values()) == pytest.approx([0.25] * len(final.layer_densities), abs=0.05)


def test_a_checkpoint_replaces_the_dense_phase(tmp_path: Path) -> None:
    model = initial_model(tiny(tmp_path), prepare(tiny(tmp_path)).data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    checkpoint = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": checkpoint}, tmp_path / "checkpoint.pt")
    save_file(checkpoint, tmp_path / "checkpoint.safetensors")
    starts = []
    for number, start in enumerate([{"path": str(tmp_path / "checkpoint.pt"), "prefix": "state_dict"},
                                    {"path": str(tmp_path / "checkpoint.safetensors")}]):
        _, watcher = watched(tmp_path / str(number), start_from=start)
        assert Job("dense") not in watcher.items
        starts.append(watcher.items[Job("particle", 0, 0)].named.recipe["start"])
    assert starts[0] == starts[1]


def test_a_checkpoint_that_does_not_fit_says_which_tensors_differ(tmp_path: Path) -> None:
    other = tiny(tmp_path, data__options={"num_train": 96, "num_test": 40, "num_classes": 5, "shape": [1, 6, 6]})
    torch.save(initial_model(other, prepare(other).data).state_dict(), tmp_path / "five.pt")
    with pytest.raises(UserError, match=r"classifier\.weight: the model has \(3, \d+\), the checkpoint \(5, \d+\)"):
        prepare(tiny(tmp_path, start_from={"path": str(tmp_path / "five.pt")}))
    torch.save({"state_dict": {}}, tmp_path / "nested.pt")
    with pytest.raises(UserError, match=r"start_from\.prefix"):
        prepare(tiny(tmp_path, start_from={"path": str(tmp_path / "nested.pt")}))
    (tmp_path / "junk.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="neither safetensors nor a torch file"):
        prepare(tiny(tmp_path, start_from={"path": str(tmp_path / "junk.pt")}))


def test_an_earlier_ticket_is_pruned_further(tmp_path: Path, complete: Path) -> None:
    ticket = complete / "runs/tiny/tickets/0.5000/model.safetensors"
    further, _ = watched(tmp_path / "second", start_from={"path": str(ticket)}, pruning__target=0.875)
    assert [record.sparsity for record in further.records] == pytest.approx([0.5, 0.75, 0.875], abs=1e-3)
    before, after = load_ticket(ticket), load_ticket(tmp_path / "second" / further.records[-1].ticket)
    for name, mask in after.masks.items():
        assert not (mask & ~before.masks[name]).any()
    with pytest.raises(UserError, match="denser than the ticket"):
        prepare(tiny(tmp_path, start_from={"path": str(ticket)}, pruning__target=0.3))


def test_a_diverging_particle_stops_the_run_with_its_number_and_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 0, particle 0 diverged: the loss was (nan|inf) at step \d+ \(epoch \d+"):
        watched(tmp_path, training__lr=1e30, averaging__lr=1e30, dense__length=0)
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert record["status"] == "failed"
    assert "diverged" in record["attempts"][0]["reason"]
    assert issubclass(DivergedError, RunError)


def test_emptied_layers_are_warned_of_by_name_or_refused(tmp_path: Path) -> None:
    extreme = {"pruning__target": 0.9995, "pruning__rate": 0.9996, "particles__count": 1}
    _, watcher = watched(tmp_path / "warn", **extreme)
    assert any("leaves no weight in" in warning for warning in watcher.warnings)
    with pytest.raises(RunError, match="would leave no weight in"):
        watched(tmp_path / "refuse", pruning__empty_layers="refuse", **extreme)


def test_seeds_come_from_purpose_and_index_alone(tmp_path: Path) -> None:
    few, many = prepare(tiny(tmp_path)), prepare(tiny(tmp_path, particles__count=8))
    assert [few.particle_seed(1, n) for n in range(3)] == [many.particle_seed(1, n) for n in range(3)]
    assert few.particle_seed(1, 2) == derive_seed(0, "particle", 1, 2, 0)


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path) -> None:
    messages = []

    class Second(Reporter):
        def job_finished(self, job: Job, found: bool) -> None:
            if job == Job("particle", 0, 0):
                with pytest.raises(UserError, match=r"being worked on by process \d+ on "):
                    run(tiny(tmp_path))
                messages.append("refused")

    run(tiny(tmp_path), Second())
    assert messages == ["refused"]
    watched(tmp_path)


def test_a_lease_that_cannot_be_taken_costs_nothing(tmp_path: Path, complete: Path) -> None:
    class InTheWay(Watcher):
        def job_submitted(self, spec: JobSpec) -> None:
            super().job_submitted(spec)
            (tmp_path / artifact_lease(spec.named.name)).mkdir(parents=True, exist_ok=True)

    run(tiny(tmp_path), InTheWay())
    assert ticket_digests(tmp_path) == ticket_digests(complete)


def content_of(rundir: RunDir) -> bytes:
    held = rundir.held()
    assert held is not None
    return held.content


def test_a_run_that_was_taken_over_while_it_was_silent_ends_and_leaves_the_records_alone(tmp_path: Path) -> None:
    """As after a night in a laptop that was closed: another process works on the run by then."""
    rundir = RunDir(tmp_path, "tiny")
    earlier = set(threading.enumerate())
    successor = replace(this_process("tiny"), host="elsewhere.example", boot="another machine")
    before = []

    class Silent(Reporter):
        def job_finished(self, job: Job, found: bool) -> None:
            if job == Job("dense"):
                [beating] = [thread for thread in set(threading.enumerate()) - earlier if "lease" in thread.name]
                while isinstance(rundir.leases().acquire(rundir.lease_key, successor, content_of(rundir)), HeldLease):
                    pass  # it has just given a sign of life
                beating.join(60)
                before.append(Path(rundir.run_json.location).read_bytes())

    with pytest.raises(RunError, match="another process works on the run 'tiny' now"):
        run(tiny(tmp_path, execution__lease_expiry_s=1.0), Silent())
    assert Path(rundir.run_json.location).read_bytes() == before[0]
    held = rundir.held()
    assert held is not None
    assert held.holder == successor


def test_batchnorm_over_a_single_value_is_refused_before_any_work(tmp_path: Path) -> None:
    code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), " \
           "nn.BatchNorm1d(4), nn.Linear(4, 3))\n"
    (tmp_path / "norm_net.py").write_text(code)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"training batch of 1: ValueError: Expected more than 1 value"):
            prepare(tiny(tmp_path, model__name="norm_net:net", training__batch_size=1))
        prepare(tiny(tmp_path, model__name="norm_net:net", training__batch_size=16))
    finally:
        sys.path.remove(str(tmp_path))


def test_an_error_of_the_users_code_is_shown_with_its_own_frames_and_traced_in_the_log(tmp_path: Path) -> None:
    code = ("from torch import nn\nclass Net(nn.Module):\n    steps = 0\n    def __init__(self):\n"
            "        super().__init__()\n        self.layer = nn.Linear(36, 3)\n    def forward(self, x):\n"
            "        Net.steps += self.training\n        if Net.steps > 4:\n"
            "            raise ValueError('five is too many')\n        return self.layer(x.flatten(1))\n")
    (tmp_path / "late_net.py").write_text(code)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"^dense phase: .* failed in training step \d") as caught:
            run(tiny(tmp_path, model__name="late_net:Net"))
    finally:
        sys.path.remove(str(tmp_path))
    log = tmp_path / "runs/tiny/logs/attempt-1/dense-phase.log"
    assert str(caught.value).endswith("ValueError: five is too many")
    assert 'late_net.py", line 10, in forward' in str(caught.value)
    assert "swamp_ray/" not in str(caught.value)
    assert "site-packages" not in str(caught.value)
    assert 'late_net.py", line 10, in forward' in log.read_text()


def test_rounds_that_keep_equal_shares_have_tickets_of_their_own(tmp_path: Path) -> None:
    done, _ = watched(tmp_path, model__name="mlp", model__options={"hidden": []}, data__options={
        "num_train": 96, "num_test": 40, "num_classes": 2, "shape": [1, 1, 2]}, pruning__target=0.8)
    tickets = [record.ticket.split("/")[-2] for record in done.records]
    assert tickets == ["0.0000", "0.5000", "0.7500", "0.7500-2"]
    assert sorted(ticket_digests(tmp_path)) == tickets


@pytest.mark.usefixtures("copied")
def test_a_lost_config_does_not_let_another_recipe_into_a_run(tmp_path: Path) -> None:
    watched(tmp_path)
    tickets = ticket_digests(tmp_path)
    (tmp_path / "runs/tiny/config.yaml").unlink()
    with pytest.raises(UserError, match="exists already with another recipe"):
        run(tiny(tmp_path, seed=1))
    assert ticket_digests(tmp_path) == tickets
    _, watcher = watched(tmp_path)
    assert not watcher.started
    assert ticket_digests(tmp_path) == tickets


def test_epochs_that_are_short_are_not_all_followed_by_a_checkpoint(tmp_path: Path) -> None:
    def checkpoints(storage: Path, interval_s: float) -> set[str]:
        found: set[str] = set()

        class Looks(Reporter):
            def job_advanced(self, job: Job, progress: object) -> None:
                found.update(str(path) for path in storage.glob("artifacts/*/*/checkpoint.json"))

        run(tiny(storage, execution__checkpoint_interval_s=interval_s), Looks())
        return found

    assert checkpoints(tmp_path / "a", 0.0)
    assert not checkpoints(tmp_path / "b", 3600.0)
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


def test_answers_that_report_nothing_cost_no_time(tmp_path: Path) -> None:
    class Hesitant(InlineExecutor):
        """Says nothing many times before it says something, as a pool does whose workers' answers come in parts."""

        silences = 0

        def wait(self, timeout_s: float) -> Sequence[Report]:
            if self.silences % 50:
                self.silences += 1
                return ()
            self.silences += 1
            return super().wait(timeout_s)

    began = time.monotonic()
    run(tiny(tmp_path), executor=Hesitant)
    assert time.monotonic() - began < 100 * WAIT_S


@pytest.mark.parametrize("given", [
    {"pruning__target": 0.9999, "pruning__rate": 0.9999},
    {"pruning__when": "before", "pruning__score": "random", "pruning__target": 0.9999},
    {"pruning__when": "gradual", "pruning__target": 0.9999, "pruning__updates__every": "1 step",
     "averaging__within": "none"},
])
def test_a_mask_that_empties_layers_is_refused_whoever_has_stored_it(tmp_path: Path, given: dict[str, object]) -> None:
    _, watcher = watched(tmp_path, **given)
    assert any("leaves no weight in" in text for text in watcher.warnings)
    with pytest.raises(RunError, match="would leave no weight in"):
        watched(tmp_path, name="strict", pruning__empty_layers="refuse", **given)
