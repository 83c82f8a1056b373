"""What ``swamp status`` says of a run that works, was killed, or is somewhere else."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.commands.status import describe
from swamp_ray.config.reading import dump_config
from swamp_ray.method.events import DENSE, Job
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore
from swamp_ray.storage.holders import Holder, this_process
from swamp_ray.storage.json_lines import Lines, sealed
from swamp_ray.storage.leases import Watch, artifact_lease
from swamp_ray.storage.liveness import life_of
from swamp_ray.storage.records import JobEpoch, JobStarted
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import root_of, tiny

HERE = this_process("tiny")
DEAD = replace(HERE, pid=2**22 + 1)
AWAY = replace(HERE, host="elsewhere.example", boot="another machine")
KILLED = "tiny: stopped without a word (killed?); the same command goes on, 0 of 2 rounds"
NAMES = [f"{number:064x}" for number in range(5)]


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    """A run of two rounds of four particles whose process said that it works and then nothing more."""
    rundir = RunDir(tmp_path, "tiny")
    rundir.write_config(dump_config(tiny(tmp_path)))
    write(rundir)
    return rundir


def write(rundir: RunDir, status: str = "running", names: Mapping[Job, str] | None = None) -> None:
    plans = [{"index": index, "sparsity": index / 2, "num_particles": 4} for index in range(2)]
    attempt = {"started": "today", "host": "h", "executor": "ray", "trained": 0, "found": 0, "incidents": []}
    rundir.write_run({"status": status, "rounds": plans, "attempts": [attempt]})
    for job, name in (names or {}).items():
        rundir.append_result({"kind": job.kind, "round": job.round, "particle": job.particle, "name": name})


def hold(rundir: RunDir, holder: Holder, key: str = "") -> Any:
    return rundir.leases(3600.0).acquire(key or rundir.lease_key, holder)


def said(rundir: RunDir, watch: Watch | None = None) -> list[str]:
    return [str(line) for line in describe(rundir, watch)]


def test_without_a_process_it_is_not_running_whatever_it_said_last(rundir: RunDir) -> None:
    assert said(rundir)[0] == KILLED
    hold(rundir, DEAD)
    assert said(rundir)[0] == KILLED


def test_with_a_living_process_it_is_running(rundir: RunDir) -> None:
    with hold(rundir, HERE):
        assert said(rundir)[0] == "tiny: running, 0 of 2 rounds"
    write(rundir, status="interrupted")
    assert said(rundir)[0] == "tiny: interrupted, 0 of 2 rounds"


def test_a_process_elsewhere_is_named_with_its_last_sign_of_life(rundir: RunDir) -> None:
    lease = hold(rundir, AWAY)
    assert said(rundir)[0].startswith("tiny: running on elsewhere.example, last seen ")
    past = time.time() - 3 * 3600
    os.utime(root_of(rundir) / rundir.lease_key, (past, past))
    assert said(rundir)[0].startswith("tiny: not heard of for 3")
    assert "on elsewhere.example (killed?); the same command goes on" in said(rundir)[0]
    lease.beat()
    assert said(rundir)[0].startswith("tiny: running on elsewhere.example, last seen ")


def test_watching_ends_when_a_process_elsewhere_falls_silent(rundir: RunDir) -> None:
    now = 0.0
    watch = Watch(30.0, lambda: now)
    lease = hold(rundir, AWAY)
    record = json.loads(Path(rundir.run_json.location).read_text())
    for _ in range(3):
        assert life_of(rundir, record, watch).running
        now += 3599.0
        lease.beat()
    assert life_of(rundir, record, watch).running
    now += 3600.0
    assert not life_of(rundir, record, watch).running
    assert said(rundir, watch)[0] == KILLED


def epoch_lines(rundir: RunDir, particle: int, epochs: int, attempt: int = 1, begins: bool = True) -> None:
    """What a driver notes of a particle that was given out, and has trained so many epochs of ten."""
    about: dict[str, Any] = {"kind": "particle", "round": 0, "particle": particle, "attempt": attempt}
    with contextlib.closing(Lines(rundir.jobs)) as lines:
        if begins:
            lines.append(sealed(JobStarted(**about, worker=0, host="h", device="cpu", retry=0, reseed=0,
                                           began=1e9).line()))
        for epoch in range(1, epochs + 1):
            lines.append(sealed(JobEpoch(**about, time=1e9, epoch=epoch, num_epochs=10, loss=0.1, metrics={}, lr=0.1,
                                         samples_per_s=9.0).line()))


def test_epochs_of_open_particles_are_those_of_this_attempts_last_try(rundir: RunDir) -> None:
    write(rundir, names={Job("particle", 0, number): NAMES[number] for number in range(3)})
    for number in range(3):
        hold(rundir, HERE, artifact_lease(NAMES[number]))
    epoch_lines(rundir, 0, 7)
    epoch_lines(rundir, 1, 5)
    epoch_lines(rundir, 1, 0)
    epoch_lines(rundir, 2, 9, attempt=2)
    with hold(rundir, HERE):
        assert said(rundir)[3] == ("round 0: 0 of 4 particles done; training, epoch 7/10: particle 0; "
                                   "training: particles 1, 2; missing: particle 3")
        with Path(str(rundir.jobs)).open("ab") as file:
            file.write(b"no line of ours\n")
        assert "training, epoch 7/10: particle 0" in said(rundir)[3], "a damaged line hides no other"


def test_of_an_earlier_versions_run_epochs_are_those_of_the_logs(rundir: RunDir) -> None:
    names = {DENSE: NAMES[4]} | {Job("particle", 0, number): NAMES[number] for number in range(4)}
    write(rundir, names=names)
    store = ArtifactStore(root_of(rundir))
    store.put(NAMES[4], {}, {})
    store.put(NAMES[0], {}, {})
    store.put(NAMES[1], {}, {"epoch": 3}, CHECKPOINT)
    store.put(NAMES[2], {}, {"epoch": 5}, CHECKPOINT)
    log = Path(rundir.log(1, "round-0-particle-1").location)
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01 00:00:00 epoch 4/10: loss 0.1\n")
    hold(rundir, AWAY, artifact_lease(NAMES[1]))
    hold(rundir, replace(AWAY, run="other"), artifact_lease(NAMES[3]))
    with hold(rundir, HERE):
        assert said(rundir)[3] == (
            "round 0: 1 of 4 particles done; training, epoch 4/10: particle 1; queued, epoch 5: particle 2; "
            "training by run other on elsewhere.example: particle 3")
    assert said(rundir)[3] == (
        "round 0: 1 of 4 particles done; missing, epoch 3: particle 1; missing, epoch 5: particle 2; "
        "training by run other on elsewhere.example: particle 3")


def test_the_dense_phase_is_accounted_for_until_it_is_done(rundir: RunDir) -> None:
    write(rundir, names={DENSE: NAMES[4]})
    with hold(rundir, HERE):
        assert "dense phase: queued" in said(rundir)
    assert "dense phase: missing" in said(rundir)
    ArtifactStore(root_of(rundir)).put(NAMES[4], {}, {})
    assert not any(line.startswith("dense phase") for line in said(rundir))


def test_an_attempt_that_was_killed_is_called_so(rundir: RunDir) -> None:
    assert said(rundir)[1].startswith("attempt 1: killed; 0 trained")
    with hold(rundir, HERE):
        assert said(rundir)[1].startswith("attempt 1: running; 0 trained")
