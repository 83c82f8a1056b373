"""Particles of several ranks on a real local Ray: gloo between processes on the CPU."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.errors import Interrupted, UserError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.training.results import Progress
from tests.faults import epoch_seed
from tests.helpers import folder_of, ticket_digests, tiny


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def ranked(
    storage: Path, options: dict[str, Any] | None = None, reporter: Reporter | None = None, **values: Any
) -> Run:
    config = tiny(storage, execution__executor="ray", particle__num_workers=2, task__name="tests.faults:Faulty",
                  task__options=options or {}, **{"particles__count": 2, "pruning__target": 0.5, **values})
    return run(config, reporter)


def incidents(done: Run) -> list[tuple[str, str, str]]:
    attempt = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]
    return [(one["who"], one["kind"], one["reason"]) for one in attempt["incidents"]]


@pytest.mark.usefixtures("cluster")
def test_a_rank_that_is_killed_changes_no_byte(tmp_path: Path) -> None:
    """Another particle diverges on one rank: warm ranks go on with the next job."""
    marker = tmp_path / "marker"
    options = {"nan": [epoch_seed(0, 1, rank=1)], "kills": [epoch_seed(0, 0, epoch=1, rank=1)], "marker": str(marker)}
    marker.touch()
    undisturbed = ranked(tmp_path / "a", options, particles__on_failure="retry")
    marker.unlink()
    killed = ranked(tmp_path / "b", options, particles__on_failure="retry")
    diverged = "the loss was nan at step 0 (epoch 0, learning rate 0.05)"
    decisions = [("round 0, particle 1", "diverged", diverged), ("round 0, particle 1", "reseed", diverged)]
    assert incidents(undisturbed) == decisions
    lost = ("round 0, particle 0", "machine", "rank 1 of 2 was lost: its process or its node has gone")
    assert incidents(killed) == [lost, *decisions]
    log = next((folder_of(killed.rundir) / "logs/attempt-1").glob("round-0-particle-0.log")).read_text()
    assert "attempt 1, from step 5," in log, "from the checkpoint of its first epoch"
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


class Interrupts(Reporter):
    """Asks a run to stop once a particle of round 0 has trained some epochs."""

    def job_advanced(self, job: Job, progress: Progress) -> None:
        if job.round == 0 and progress.epoch > 3:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ranks_that_are_asked_to_stop_write_a_checkpoint_together(tmp_path: Path) -> None:
    long: dict[str, Any] = {"round__length": 400, "pruning__target": 0.0, "particles__count": 1,
                            "execution__checkpoint_every": 0}
    with pytest.raises(Interrupted):
        ranked(tmp_path / "a", reporter=Interrupts(), **long)
    done = ranked(tmp_path / "a", **long)
    log = next((folder_of(done.rundir) / "logs/attempt-2").glob("round-0-particle-0.log")).read_text()
    assert 0 < int(re.findall(r"from step (\d+),", log)[0]) < 400 * 5
    ranked(tmp_path / "b", **long)
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_errors_of_one_rank_reach_the_driver_as_they_are(tmp_path: Path) -> None:
    seed = [epoch_seed(0, 0, rank=1)]
    text = r"(?s)^round 0, particle 0: .*KeyError: 'a layer that is not there'$"
    with pytest.raises(UserError, match=text) as caught:
        ranked(tmp_path / "broken", {"broken": seed}, dense__length=0, particles__count=1)
    own = 'raise KeyError("a layer that is not there")'
    assert own in str(caught.value), "of a rank that does not write the log itself"
    memory = ranked(tmp_path / "memory", {"memory": seed, "marker": str(tmp_path / "marker")}, dense__length=0,
                    particles__count=1)
    [(who, kind, reason)] = incidents(memory)
    assert (who, kind) == ("round 0, particle 0", "machine")
    assert reason.startswith("out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_compiled_networks_and_other_parts_train_on_ranks_too(tmp_path: Path) -> None:
    for name, values in {
        "compiled": {"execution__compile": True, "model__name": "mlp"},
        "resnet": {"model__name": "resnet8", "training__micro_batch": 4, "averaging__within": "ema"},
        "adamw": {"training__optimizer": "adamw", "training__lr": 0.001, "data__augment": "crop_flip",
                  "data__crop_padding": 1, "rewind__weights": "none"},
    }.items():
        done = ranked(tmp_path / name, **{"dense__length": 0, "pruning__target": 0.5, **values})
        assert len(done.records) == 2
