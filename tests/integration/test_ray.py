"""The same runs on a real local Ray: the same bytes, in waves, through crashes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import yaml

from swamp_ray.errors import RunError, UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.json_lines import read_lines
from swamp_ray.storage.leases import Lease, Leases, artifact_lease
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.members import Team
from tests.helpers import TINY, command_line, descendants, folder_of, ticket_digests, tiny


class Killer(Reporter):
    """Remembers failures and warnings."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.warnings: list[str] = []

    def job_failed(self, job: Any, reason: str, retry: bool) -> None:
        self.failures.append(f"{job}: {reason}")

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the tiny run gives without Ray."""
    storage = tmp_path_factory.mktemp("inline")
    run(tiny(storage))
    return ticket_digests(storage)


def _broken_and_others(rundir: RunDir) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Jobs that a machine's failure ended, and all others, as recorded."""
    lines = [line for line in read_lines(rundir.jobs) if "what" not in line]
    assert {line["how"] for line in lines} == {"done", "machine"}
    return ([line for line in lines if line["how"] == "machine"], [line for line in lines if line["how"] == "done"])


def on_ray(storage: Path | str, reporter: Reporter | None = None, **values: Any) -> Any:
    return run(tiny(storage, execution__executor="ray", **values), reporter)


@pytest.mark.usefixtures("cluster")
def test_workers_on_gpus_give_the_bytes_of_the_inline_executor(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """Two workers have a GPU each, which exists in Ray's books only."""

    class Counter(Reporter):
        used = 0.0

        def job_submitted(self, spec: JobSpec) -> None:
            free = ray.available_resources().get("GPU", 0.0)
            self.used = max(self.used, 2 - free)

    counter = Counter()
    done = on_ray(tmp_path, counter, execution__num_gpus=1, execution__num_cpus=0.5)
    assert ticket_digests(tmp_path) == undisturbed
    record = json.loads(Path(done.rundir.run_json.location).read_text())
    assert record["attempts"][0]["workers"] == counter.used == 2
    logs = sorted(path.name for path in (folder_of(done.rundir) / "logs" / "attempt-1").iterdir())
    assert logs == sorted(["dense-phase.log", *(f"round-{r}-particle-{n}.log" for r in range(3) for n in range(3)),
                           *(f"round-{r}-evaluation.log" for r in range(3))])


@pytest.mark.usefixtures("cluster")
def test_workers_read_and_write_a_bucket_and_states_beyond_the_bound_are_read_from_there(
    remote: str, undisturbed: dict[str, str]
) -> None:
    on_ray(remote, execution__max_waiting_states=0, execution__num_workers=1)
    assert ticket_digests(remote) == undisturbed


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_is_replaced_and_its_particle_goes_on(tmp_path: Path) -> None:
    run(tiny(tmp_path / "undisturbed", round__length=12))

    earlier = _actors("ParticleActor")

    class KillsOne(Killer):
        """Not before both workers are at work: one that idles, or has not started yet, costs no attempt."""

        killed = False
        running: ClassVar[set[Any]] = set()

        def job_advanced(self, job: Any, progress: Any) -> None:
            self.running.add(job)
            if not self.killed and job.kind == "particle" and job.round >= 1 and len(self.running) == 2:
                self.killed = _kill_actor("ParticleActor", earlier)

        def job_finished(self, job: Any, found: bool) -> None:
            self.running.discard(job)

    reporter = KillsOne()
    done = on_ray(tmp_path / "killed", reporter, round__length=12)
    assert reporter.killed
    assert ticket_digests(tmp_path / "killed") == ticket_digests(tmp_path / "undisturbed")
    incidents = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]["incidents"]
    assert len(incidents) == len(reporter.failures) == 1
    assert "round" in incidents[0]["who"]
    [broken], others = _broken_and_others(done.rundir)
    assert f"round {broken['round']}, particle {broken['particle']}" == incidents[0]["who"]
    again = [line for line in others if (line["round"], line["particle"]) == (broken["round"], broken["particle"])]
    assert [(line["retry"], line["how"], line["began"] >= broken["ended"]) for line in again] == [(1, "done", True)]
    assert {line["worker"] for line in others} == {0, 1, None}, "who stands in for the lost one takes its number"
    assert {line["host"] for line in others if line["kind"] == "particle"} == {socket.gethostname()}


@pytest.mark.usefixtures("cluster")
def test_packed_on_ray_it_is_the_same(tmp_path: Path) -> None:
    values: dict[str, Any] = {"execution__particles_per_worker": 2, "pruning__target": 0.5}
    run(tiny(tmp_path / "inline", **values))
    on_ray(tmp_path / "ray", **values, execution__num_workers=1)
    assert ticket_digests(tmp_path / "ray") == ticket_digests(tmp_path / "inline")


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_packed_on_ray_it_is_the_same_even_if_a_worker_with_a_pack_is_killed(tmp_path: Path) -> None:
    values: dict[str, Any] = {"execution__particles_per_worker": 2, "pruning__target": 0.5, "round__length": 12}
    run(tiny(tmp_path / "inline", **values))
    earlier = _actors("ParticleActor")

    class KillsPack(Killer):
        """Once both particles of the full pack are at work; the third one has a pack to itself."""

        killed = False
        seen: ClassVar[set[int]] = set()

        def job_advanced(self, job: Any, progress: Any) -> None:
            if job.kind == "particle" and job.round == 0 and job.particle < 2:
                self.seen.add(job.particle)
            if not self.killed and len(self.seen) == 2:
                self.killed = _kill_actor("ParticleActor", earlier)

    reporter = KillsPack()
    done = on_ray(tmp_path / "ray", reporter, **values, execution__num_workers=1)
    assert reporter.killed
    assert ticket_digests(tmp_path / "ray") == ticket_digests(tmp_path / "inline")
    incidents = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]["incidents"]
    assert {one["who"] for one in incidents} == {"round 0, particle 0", "round 0, particle 1"}
    [one, two], _ = _broken_and_others(done.rundir)
    assert one | {"particle": two["particle"], "ended": two["ended"]} == two, "they shared a worker, and its end"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_seeds_of_a_setting_are_packed_together(tmp_path: Path) -> None:
    """One particle a round and seed: both seeds' particles are one pack, and what they would be alone."""
    values: dict[str, Any] = {"execution__executor": "ray", "particles__count": 1, "pruning__target": 0.5}
    configs = [tiny(tmp_path, name=f"seed{seed}", seed=seed, execution__particles_per_worker=2, **values)
               for seed in (0, 1)]
    milestones = list(Team(configs, "cpu", num_workers=1).milestones())
    assert [one.round for one in milestones] == [0, 1]
    for seed in (0, 1):
        alone = run(tiny(tmp_path / "alone", name=f"seed{seed}", seed=seed, **values)).records[0]
        packed = milestones[0].records[seed]
        assert packed.average["test"]["loss"] == pytest.approx(alone.average["test"]["loss"], abs=1e-3)
    logs = [(tmp_path / f"runs/seed{seed}/logs/attempt-1/round-1-particle-0.log").read_text() for seed in (0, 1)]
    assert all("stacked:2" in log for log in logs)
    began = [log.splitlines()[0][:19] for log in logs]
    finished = [log.splitlines()[-1][:19] for log in logs]
    assert max(began) <= min(finished), "one after the other they were not packed"


@pytest.mark.usefixtures("cluster")
def test_a_killed_averaging_actor_is_replaced_and_fed_from_storage(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    earlier = _actors("AveragingActor")

    class KillsAverager(Killer):
        killed = False

        def job_finished(self, job: Any, found: bool) -> None:
            if not self.killed and job.kind == "particle" and (job.round, job.particle) == (1, 1):
                self.killed = _kill_actor("AveragingActor", earlier)

    reporter = KillsAverager()
    on_ray(tmp_path, reporter, execution__num_workers=1)
    assert reporter.killed
    assert any("averaging actor" in warning for warning in reporter.warnings)
    assert ticket_digests(tmp_path) == undisturbed


@pytest.mark.usefixtures("cluster")
def test_a_worker_does_not_wait_for_what_another_run_trains(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """The only worker does the round's other particles; the one that was held comes when its lease is given back."""

    class Another(Reporter):
        lease: Any = None

        def __init__(self) -> None:
            self.blocked: list[str] = []
            self.finished: list[Job] = []

        def job_submitted(self, spec: JobSpec) -> None:
            if spec.job == Job("particle", 0, 0) and self.lease is None:
                leases = Leases(open_place(tmp_path), 600.0)
                self.lease = leases.acquire(artifact_lease(spec.named.name), this_process("another"))
                assert isinstance(self.lease, Lease)

        def job_blocked(self, job: Job, who: str) -> None:
            self.blocked.append(f"{job} by {who.split()[1]}")

        def job_finished(self, job: Job, found: bool) -> None:
            self.finished.append(job)
            if set(self.finished) >= {Job("particle", 0, 1), Job("particle", 0, 2)}:
                self.lease.release()

    another = Another()
    on_ray(tmp_path, another, execution__num_workers=1)
    assert another.blocked == ["round 0, particle 0 by another"]
    assert another.finished[:4] == [
        Job("dense"), Job("particle", 0, 1), Job("particle", 0, 2), Job("particle", 0, 0)]
    assert ticket_digests(tmp_path) == undisturbed
    assert not list(tmp_path.rglob(".lease.json"))


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_two_drivers_on_one_cluster_train_each_particle_once(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "round": {"length": 12}, "execution": {
        "device": "cpu", "num_workers": 1, "lease_expiry_s": 600.0}}))
    address = ray.get_runtime_context().gcs_address
    second = subprocess.Popen(
        [sys.executable, "-m", "swamp_ray", "run", str(path), "--name", "second", "--address", address,
         "--storage", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    class Waits(Reporter):
        def run_started(self, prepared: Prepared, path: str) -> None:
            while second.poll() is None and not (tmp_path / "runs/second/run.json").exists():
                time.sleep(0.05)

    on_ray(tmp_path, Waits(), round__length=12, execution__num_workers=1, execution__lease_expiry_s=600.0)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output
    records = [json.loads((tmp_path / f"runs/{name}/run.json").read_text()) for name in ("tiny", "second")]
    assert sum(record["attempts"][0]["trained"] for record in records) == 1 + 3 * 3
    assert ticket_digests(tmp_path, "tiny") == ticket_digests(tmp_path, "second")


def _kill_actor(class_name: str, besides: Sequence[int] = ()) -> bool:
    """SIGKILL the process of one living actor of a class that belongs to this test's Ray."""
    for pid in _actors(class_name):
        if pid not in besides:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _actors(class_name: str) -> list[int]:
    """Living actors of a class; those of the test before may still be among them."""
    return [pid for pid in descendants(os.getpid()) if command_line(pid).startswith(f"ray::{class_name}")]


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_several_workers_share_a_gpu(tmp_path: Path) -> None:
    half = on_ray(tmp_path, execution__num_gpus=0.4, execution__num_cpus=0.1, particles__count=5,
                  pruning__target=0.0, averaging__within="none", round__length=1,
                  training__schedule__warmup=0)
    workers = json.loads(Path(half.rundir.run_json.location).read_text())["attempts"][0]["workers"]
    assert workers == 4, "two workers of 0.4 GPUs fit on each of two GPUs"


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("values", "message"), [
    ({"execution__num_gpus": 4}, r"4 GPU \(the largest node has 2\)"),
    ({"execution__num_cpus": 64}, r"64 CPU \(the largest node has 2\)"),
    ({"execution__num_gpus": 1, "execution__num_workers": 5, "execution__num_cpus": 0},
     r"5 workers need .*5 GPU, but there are .*2 GPU: 2 fit at a time"),
])
def test_a_plan_that_can_never_be_scheduled_is_refused_at_once(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        on_ray(tmp_path, **values)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_every_time_ends_the_run_with_particle_and_attempts(tmp_path: Path) -> None:
    class Relentless(Killer):
        def tick(self) -> None:
            _kill_actor("ParticleActor")

    with pytest.raises(RunError, match="dense phase failed after 2 attempts"):
        on_ray(tmp_path, Relentless(), execution__max_retries=1, execution__num_workers=1, dense__length=400)
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["status"] == "failed"


@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_worker_comes_back_as_itself(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 0, particle \d diverged: the loss was"):
        on_ray(tmp_path, training__lr=1e30, averaging__lr=1e30, dense__length=0, execution__num_workers=1)
