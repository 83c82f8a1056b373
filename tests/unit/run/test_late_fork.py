"""Runs whose particles part from a trunk: what is trained once, found again, and trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from swamp_ray.errors import Interrupted
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job, trunk_of
from swamp_ray.run.disk_space import estimate
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.states import lacks_state
from swamp_ray.training.results import Progress
from tests.helpers import artifacts_of, ticket_digests, tiny

FORKED: dict[str, Any] = {"particles__fork_at": 0.5, "averaging__start": 0.75, "round__length": 4}
TRUNKS = [trunk_of(0), trunk_of(1), trunk_of(2)]


class Watcher(Reporter):
    """Remembers what was trained, what was found and what was warned of; interrupts a job where it is told to."""

    def __init__(self, interrupt: tuple[Job, int] | None = None) -> None:
        self.trained: list[Job] = []
        self.found: list[Job] = []
        self.warnings: list[str] = []
        self.specs: dict[Job, JobSpec] = {}
        self._interrupt = interrupt

    def job_submitted(self, spec: JobSpec) -> None:
        self.specs[spec.job] = spec

    def job_advanced(self, job: Job, progress: Progress) -> None:
        if (job, progress.epoch) == self._interrupt:
            raise KeyboardInterrupt

    def job_finished(self, job: Job, found: bool) -> None:
        (self.found if found else self.trained).append(job)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def trained_trunks(self) -> list[Job]:
        return [job for job in self.trained if job.kind == "trunk"]


def forked(storage: Path, watcher: Watcher | None = None, **values: Any) -> tuple[Run, Watcher]:
    watcher = watcher or Watcher()
    return run(tiny(storage, **{**FORKED, **values}), watcher), watcher


def state_path(storage: Path, name: str) -> Path:
    store = ArtifactStore(storage)
    manifest = store.find(name)
    assert manifest is not None
    return artifacts_of(store) / name[:2] / name / f"{manifest.files['state.safetensors'].sha256}.safetensors"


def test_a_trunk_is_trained_once_a_round_and_recorded(tmp_path: Path) -> None:
    done, watcher = forked(tmp_path)
    assert watcher.trained_trunks == TRUNKS
    for record in done.records:
        assert record.artifacts["trunk"]["name"] == watcher.specs[trunk_of(record.round)].named.name
    frame = pd.read_parquet(Path(done.rundir.metrics_parquet.location))
    epochs: Any = frame[frame["kind"].isin(["trunk_epoch", "particle_epoch"])].groupby(["kind", "round"]).size()
    assert [int(epochs["trunk_epoch", index]) for index in range(3)] == [2, 2, 2]
    assert [int(epochs["particle_epoch", index]) for index in range(3)] == [6, 6, 6]
    about = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert about["attempts"][0]["trained_epochs"] == 1 + 3 * (2 + 3 * 2)


def test_the_same_command_again_trains_nothing(tmp_path: Path) -> None:
    forked(tmp_path)
    before = ticket_digests(tmp_path)
    _, watcher = forked(tmp_path)
    assert not watcher.trained
    assert watcher.found.count(trunk_of(0)) == 1
    assert ticket_digests(tmp_path) == before


def test_runs_that_differ_in_the_number_of_particles_share_the_trunk(tmp_path: Path) -> None:
    forked(tmp_path, particles__count=2)
    _, more = forked(tmp_path, name="more", particles__count=3)
    in_first_round = [job for job in more.trained if job.round == 0 and job.kind != "evaluation"]
    assert in_first_round == [Job("particle", 0, 2)]
    _, later = forked(tmp_path, name="later", particles__fork_at=0.75)
    assert trunk_of(0) in later.trained


@pytest.mark.parametrize("where", [(trunk_of(1), 1), (Job("particle", 1, 1), 1)])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, where: tuple[Job, int]) -> None:
    forked(tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        forked(tmp_path / "b", Watcher(where))
    _, watcher = forked(tmp_path / "b")
    assert trunk_of(0) in watcher.found
    assert ticket_digests(tmp_path / "b") == ticket_digests(tmp_path / "undisturbed")
    attempts = json.loads((tmp_path / "b/runs/tiny/run.json").read_text())["attempts"]
    assert sum(attempt["trained_epochs"] for attempt in attempts) == 1 + 3 * (2 + 3 * 2) - 1, "one is in its checkpoint"


def test_a_damaged_trunk_is_trained_again_only_where_particles_need_it(tmp_path: Path) -> None:
    done, first = forked(tmp_path)
    before = ticket_digests(tmp_path)
    trunk = state_path(tmp_path, first.specs[trunk_of(1)].named.name)
    trunk.write_bytes(trunk.read_bytes()[:-4])
    _, again = forked(tmp_path)
    assert not again.trained, "all that parts from it is stored"
    store = ArtifactStore(tmp_path)
    for name in (done.records[1].artifacts["average"]["name"], done.records[1].artifacts["particles"][1]["name"]):
        store.discard(name, "result")
    _, watcher = forked(tmp_path)
    assert watcher.trained_trunks == [trunk_of(1)]
    assert [job for job in watcher.trained if job.kind == "particle"] == [Job("particle", 1, 1)]
    assert any("round 1, trunk is trained again, because its stored state is damaged" in text
               for text in watcher.warnings)
    assert ticket_digests(tmp_path) == before


def test_states_that_are_not_kept_are_let_go_and_trained_again_where_needed(tmp_path: Path) -> None:
    done, first = forked(tmp_path, keep__particles="none")
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    assert all(lacks_state(store, first.specs[trunk].named.name) for trunk in TRUNKS)
    _, again = forked(tmp_path, keep__particles="none")
    assert not again.trained
    store.discard(done.records[2].artifacts["average"]["name"], "result")
    _, watcher = forked(tmp_path, keep__particles="none")
    assert watcher.trained_trunks == [trunk_of(2)]
    assert any("round 2, trunk is trained again, because its state was not kept" in text for text in watcher.warnings)
    assert ticket_digests(tmp_path) == before


def test_a_trunk_that_diverges_takes_another_seed_and_so_do_its_particles(tmp_path: Path) -> None:
    given: dict[str, Any] = {"training__lr": 1e9, "averaging__lr": 1e9, "particles__on_failure": "retry",
                             "particles__max_reseeds": 1}
    watcher = Watcher()
    with pytest.raises(Exception, match="diverged with each of 2 seeds"):
        forked(tmp_path, watcher, dense__length=0, **given)
    decisions = [json.loads(line) for line in (tmp_path / "runs/tiny/decisions.jsonl").read_text().splitlines()]
    assert [(one["round"], one["particle"], one["what"]) for one in decisions] == [(0, -1, "reseed")]
    with pytest.raises(Exception, match="diverged with each of 2 seeds"):
        forked(tmp_path, dense__length=0, **given)


@pytest.mark.parametrize("given", [
    {"averaging__within": "ema", "averaging__ema_decay": 0.9},
    {"averaging__within": "none", "training__optimizer": "adamw", "training__lr": 0.003},
    {"rewind__weights": "none"}, {"rewind__weights": "init"}, {"particles__combine": "best"},
    {"execution__particles_per_worker": 2}, {"averaging__num_shards": 2},
    {"averaging__lr": [{"sparsity": 0.5, "lr": 0.01}]}])
def test_works_with(tmp_path: Path, given: dict[str, Any]) -> None:
    done, watcher = forked(tmp_path, **given)
    assert watcher.trained_trunks == TRUNKS
    assert done.records[-1].average["test"]["accuracy"] > 0.6
    _, again = forked(tmp_path, **given)
    assert not again.trained


def test_the_estimate_of_space_counts_trunks(tmp_path: Path) -> None:
    without = estimate(prepare(tiny(tmp_path, **{**FORKED, "particles__fork_at": 0.0})))
    config = tiny(tmp_path, **FORKED)
    planned = estimate(prepare(config))
    assert planned.kept_bytes > without.kept_bytes
    run(config)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert planned.kept_bytes == pytest.approx(written, rel=0.25)
    assert estimate(prepare(config)).present_bytes > 0.5 * planned.kept_bytes


def test_a_stage_begins_in_the_round_of_its_own_sparsity(tmp_path: Path) -> None:
    """A round keeps a whole number of weights, and may be half a weight less sparse than the stage says."""
    plain = prepare(tiny(tmp_path, pruning__target=0.9, pruning__rate=0.9))
    stage = plain.plan[-1].sparsity + 0.4 / plain.layout.num_prunable
    prepared = prepare(tiny(tmp_path, averaging__lr=[{"sparsity": stage, "lr": 0.01}], pruning__target=0.9,
                            pruning__rate=0.9, particles__schedule=[{"sparsity": stage, "count": 2}]))
    assert [prepared.program(plan.index, 0).rate.final for plan in prepared.plan] == [0.025, 0.01]
    assert [plan.num_particles for plan in prepared.plan] == [3, 2]
    assert prepared.unreached_stages == []
    beyond = prepare(tiny(tmp_path, averaging__lr=[{"sparsity": 0.95, "lr": 0.01}], pruning__target=0.9))
    assert beyond.unreached_stages == [
        "no round reaches the stage of averaging.lr that begins at 0.95: the sparsest has 0.9"]
