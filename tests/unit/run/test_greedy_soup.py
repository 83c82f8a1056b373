"""Runs with a greedy soup: who enters, as an obvious loop over the stored particles finds; through every trouble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.analysis.bench import Bench, mean_point
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import Interrupted
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.cleanup import survey
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import artifacts_of, ticket_digests, tiny

VARIED = {"particles__combine": "greedy", "particles__count": 4, "averaging__within": "none",
          "particles__vary": {"lr": [0.05, 0.3, 0.02, 0.1], "length": ["2", "1", "3", "2"]}, "data__validation": 0.3}


def greedy(storage: Path, **values: Any) -> SwampConfig:
    return tiny(storage, **{**VARIED, **values})


class Watcher(Reporter):
    def __init__(self, stop_at: Job | None = None) -> None:
        self.trained: list[Job] = []
        self.found: list[Job] = []
        self.warnings: list[str] = []
        self._stop_at = stop_at

    def job_finished(self, job: Job, found: bool) -> None:
        (self.found if found else self.trained).append(job)
        if job == self._stop_at:
            raise KeyboardInterrupt

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Watcher]:
    storage = tmp_path_factory.mktemp("greedy")
    watcher = Watcher()
    return storage, run(greedy(storage), watcher), watcher


def scores_of(record: Any) -> list[float]:
    return [metrics["validation"]["accuracy"] for metrics in record.particles]


def test_the_particles_that_enter_are_those_of_the_obvious_loop(complete: tuple[Path, Run, Watcher]) -> None:
    storage, done, watcher = complete
    sizes = set()
    store = ArtifactStore(storage)
    bench = Bench(RunDir(storage, "tiny"))
    for record in done.records:
        names = [entry["name"] for entry in record.artifacts["particles"]]
        points = [bench._point(bench._manifest(name, record.round), record.round) for name in names]

        def accuracy(members: list[int], points: list[np.ndarray] = points) -> float:
            point = mean_point([points[n] for n in sorted(members)])
            return bench.measure(point, ("validation",))["validation"]["accuracy"]

        order = sorted(range(4), key=lambda n: (-scores_of(record)[n], n))
        kept, best = order[:1], scores_of(record)[order[0]]
        for n in order[1:]:
            if accuracy([*kept, n]) >= best:
                kept.append(n)
                best = accuracy(kept)
        assert record.combined == sorted(kept)
        assert record.average["validation"]["accuracy"] == pytest.approx(best)
        assert np.array_equal(bench.average(record.round), mean_point([points[n] for n in sorted(kept)]))
        sizes.add(len(kept))
        assert store.find(record.artifacts["average"]["name"]) is not None
    assert sizes - {4}, "not always all of them: else this test could not fail"
    assert sum(job.kind == "soup" for job in watcher.trained) == 3 * len(done.records)


def test_nothing_of_it_is_taken_for_unused(complete: tuple[Path, Run, Watcher]) -> None:
    storage, _, _ = complete
    kinds = [line["kind"] for line in RunDir(storage, "tiny").read_results()]
    assert kinds.count("soup") == 3 * kinds.count("average")
    assert not survey(ArtifactStore(storage).place, 0.0).removals


def test_the_same_run_again_measures_nothing(complete: tuple[Path, Run, Watcher]) -> None:
    storage, _, _ = complete
    watcher = Watcher()
    run(greedy(storage), watcher)
    assert watcher.trained == []


@pytest.mark.parametrize("moment", [Job("soup", 0, 1), Job("particle", 1, 3), Job("evaluation", 0)])
def test_interrupted_it_ends_with_the_same_tickets(
    complete: tuple[Path, Run, Watcher], tmp_path: Path, moment: Job
) -> None:
    storage, _, watcher = complete
    if moment.kind == "soup":
        moment = next(job for job in watcher.trained if job.kind == "soup" and job.round == 1)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(greedy(tmp_path), Watcher(moment))
    again = Watcher()
    run(greedy(tmp_path), again)
    assert moment in again.found, "what was finished is found"
    assert ticket_digests(tmp_path) == ticket_digests(storage)


def _break(storage: Path, name: str) -> None:
    store = ArtifactStore(storage)
    found = store.find(name)
    assert found is not None
    entry = found.files["state.safetensors"]
    (artifacts_of(store) / name[:2] / name / f"{entry.sha256}.safetensors").write_bytes(b"damaged")


def test_a_damaged_particle_of_a_soup_is_trained_again(tmp_path: Path) -> None:
    done = run(greedy(tmp_path))
    before = ticket_digests(tmp_path)
    record = done.records[1]
    store = ArtifactStore(tmp_path)
    for line in RunDir(tmp_path, "tiny").read_results():
        if line["kind"] in ("soup", "average") and line["round"] == 1:
            store.discard(line["name"], "result")
    best = max(range(4), key=lambda n: (scores_of(record)[n], -n))
    _break(tmp_path, record.artifacts["particles"][best]["name"])
    watcher = Watcher()
    run(greedy(tmp_path), watcher)
    assert [job for job in watcher.trained if job.kind == "particle"] == [Job("particle", 1, best)]
    assert any("its stored state is damaged" in text for text in watcher.warnings)
    assert ticket_digests(tmp_path) == before


def test_states_that_were_not_kept_are_trained_again_where_a_soup_needs_them(tmp_path: Path) -> None:
    run(greedy(tmp_path, keep__particles="none"))
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    for line in RunDir(tmp_path, "tiny").read_results():
        if line["kind"] in ("soup", "average") and line["round"] == 1:
            store.discard(line["name"], "result")
    watcher = Watcher()
    run(greedy(tmp_path, keep__particles="none"), watcher)
    assert {job.particle for job in watcher.trained if job.kind == "particle"} >= {0, 1}
    assert all(job.round == 1 for job in watcher.trained)
    assert ticket_digests(tmp_path) == before
