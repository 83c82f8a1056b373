"""Failures on a real local Ray: memory that is used up, stragglers, states that are lost."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError

from swamp_ray.errors import RunError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.on_ray import executor as ray_executor
from swamp_ray.on_ray.executor import RayExecutor
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from tests.faults import epoch_seed, uneven
from tests.helpers import folder_of, ticket_digests, tiny

pytestmark = pytest.mark.chaos


def faulty(storage: Path, reporter: Reporter | None = None, *, executor: str = "ray", **values: Any) -> Run:
    options = {key: values.pop(key) for key in ("nan", "memory", "slow", "stillborn", "marker") if key in values}
    return run(tiny(storage, execution__executor=executor, task__name="tests.faults:Faulty", task__options=options,
                    **{"pruning__target": 0.5, **values}), reporter)


def incidents(done: Run) -> list[dict[str, Any]]:
    return json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]["incidents"]


@pytest.mark.usefixtures("cluster")
def test_a_particle_whose_worker_runs_out_of_memory_goes_on_in_another(tmp_path: Path) -> None:
    fault: dict[str, Any] = {"memory": [epoch_seed(0, 1, epoch=1)], "marker": str(tmp_path / "marker")}
    done = faulty(tmp_path / "a", **fault)
    [incident] = incidents(done)
    assert (incident["who"], incident["kind"], incident["attempt"]) == ("round 0, particle 1", "machine", 0)
    assert incident["reason"].startswith("out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.\n")
    log = next((folder_of(done.rundir) / "logs/attempt-1").glob("round-0-particle-1.log")).read_text()
    assert "attempt 1, from step 5," in log
    faulty(tmp_path / "b", executor="inline", **fault)
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_memory_that_is_never_enough_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)round 0, particle 0 failed after 2 attempts: out of memory: .*num_gpus"):
        faulty(tmp_path, memory=[epoch_seed(0, 0)], dense__length=0, execution__max_retries=1,
               particles__count=1)


@pytest.mark.usefixtures("cluster")
def test_a_straggler_is_left_out_and_its_worker_is_free_again(tmp_path: Path) -> None:
    fault: dict[str, Any] = {"slow": [epoch_seed(0, 0)]}
    done = faulty(tmp_path, particles__quorum=2, particles__deadline_s=0.2, pruning__target=0.0, **fault)
    [record] = done.records
    assert record.combined == [1, 2]
    assert [(one["particle"], one["what"]) for one in record.dropped] == [(0, "quorum")]
    before = ticket_digests(tmp_path)
    shutil.rmtree(tmp_path / "artifacts")
    faulty(tmp_path, executor="inline", pruning__target=0.0, **fault)
    assert ticket_digests(tmp_path) == before, "the straggler stays out, and the bytes are the same"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_cannot_be_started_is_done_without(tmp_path: Path) -> None:
    class Warned(Reporter):
        warnings: ClassVar[list[str]] = []

        def warning(self, text: str) -> None:
            self.warnings.append(text)

    fault: dict[str, Any] = {"stillborn": True, "marker": str(tmp_path / "marker")}
    done = faulty(tmp_path / "a", Warned(), **fault)
    [warning] = Warned.warnings
    assert warning.startswith("workers: one could not be started")
    assert "no licence for this process" in warning
    assert [(one["who"], one["kind"]) for one in incidents(done)] == [("workers", "machine")]
    faulty(tmp_path / "b", executor="inline", **fault)
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_that_can_never_be_started_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)dense phase failed after 2 attempts: .*no licence for this process"):
        faulty(tmp_path, stillborn=True, execution__max_retries=1, execution__num_workers=1)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_divergence_is_decided_on_as_it_is_inline(tmp_path: Path) -> None:
    for executor in ("ray", "inline"):
        done = faulty(tmp_path / executor, executor=executor, nan=[epoch_seed(0, 1)], particles__on_failure="drop",
                      pruning__target=0.0)
        assert done.records[0].combined == [0, 2]
    assert ticket_digests(tmp_path / "ray") == ticket_digests(tmp_path / "inline")


class Owner:
    """What an actor puts into the object store is lost with it."""

    def put(self) -> list[Any]:
        return [ray.put(np.zeros(1_000_000))]


def lost_object() -> Any:
    owner: Any = ray.remote(Owner).options(num_cpus=0).remote()
    [reference] = ray.get(owner.put.remote())
    ray.kill(owner)
    for _ in range(2400):  # until Ray has noticed
        try:
            ray.get(reference)
        except ObjectLostError:
            return reference
        time.sleep(0.05)
    raise AssertionError("the object outlives its owner")


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_states_that_are_lost_while_they_wait_are_read_from_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    run(tiny(tmp_path / "undisturbed", **uneven(marker)))
    marker.unlink()
    executors: list[RayExecutor] = []

    class Known(RayExecutor):
        def __init__(self, prepared: Prepared, storage: str) -> None:
            super().__init__(prepared, storage)
            executors.append(self)

    class LosesStates(Reporter):
        warnings: ClassVar[list[str]] = []

        def job_finished(self, job: Job, found: bool) -> None:
            if job == Job("particle", 0, 2):
                held = executors[0]._states
                assert sorted(job.particle for job in held) == [1, 2]
                held.update({job: [lost_object()] for job in held})
                marker.touch()

        def warning(self, text: str) -> None:
            self.warnings.append(text)

    monkeypatch.setattr(ray_executor, "RayExecutor", Known)
    reporter = LosesStates()
    run(tiny(tmp_path / "lost", execution__executor="ray", **uneven(marker)), reporter)
    assert [text.partition(";")[0] for text in reporter.warnings] == ["a state was lost on its way"]
    assert ticket_digests(tmp_path / "lost") == ticket_digests(tmp_path / "undisturbed")
