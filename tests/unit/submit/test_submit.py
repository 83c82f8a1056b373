"""What happens in which order on the way to a cluster, against a Jobs server in memory."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from swamp_ray.config.reading import build_config, parse_config, with_values
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.errors import RunError, UserError
from swamp_ray.on_ray.access import Access
from swamp_ray.run.provenance import version
from swamp_ray.submit.job import Job
from swamp_ray.submit.jobs import Jobs
from swamp_ray.submit.probe import MARK
from swamp_ray.submit.submission import Submission
from swamp_ray.submit.submit import STOP_VARIABLE, Submitted, submit
from swamp_ray.submit.upload import CONFIG_NAME
from tests.helpers import TINY

ANSWER: dict[str, Any] = {
    "versions": {"python": platform.python_version(), "ray": version("ray"), "torch": version("torch")}, "missing": [],
    "nodes": [{"id": "a", "resources": {"CPU": 4.0}, "labels": {}}], "storage": None, "paths": {},
}


class Server:
    """A Jobs server that notes what it is sent; it answers the probe."""

    def __init__(self, answer: Mapping[str, Any] | None = ANSWER) -> None:
        self.access = Access("http://127.0.0.1:1")
        self.answer = answer
        self.jobs: list[Job] = []
        self.uploaded: list[dict[str, str]] = []
        self.entrypoints: list[str] = []
        self.labels: Mapping[str, str] = {}
        self.variables: Mapping[str, str] = {}

    def all(self) -> list[Job]:
        return [job for job in self.jobs if job.facts]

    def get(self, job_id: str) -> Job:
        return next(job for job in self.jobs if job.id == job_id)

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], facts: Mapping[str, str],
               labels: Mapping[str, str]) -> bool:
        if any(job.id == job_id for job in self.jobs):
            return False
        self.entrypoints.append(entrypoint)
        if facts:
            folder = Path(runtime_env["working_dir"])
            self.uploaded.append({str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*")
                                  if path.is_file()})
            self.labels, self.variables = labels, runtime_env["env_vars"]
        assert (Path(runtime_env["py_modules"][0]) / "__main__.py").is_file()
        self.jobs.append(Job(job_id, "PENDING" if facts else "SUCCEEDED", facts, exit_code=None if facts else 0))
        return True

    def wait(self, job_id: str, seconds: float) -> Job:
        return self.get(job_id)

    def logs(self, job_id: str) -> str:
        return "noise\n" + ("no module named ray\n" if self.answer is None else MARK + json.dumps(self.answer) + "\n")

    def remove(self, job_id: str) -> None:
        self.jobs = [job for job in self.jobs if job.id != job_id]

    def stop(self, job_id: str) -> None:
        pass

    def end(self, status: str) -> None:
        last = self.jobs[-1]
        self.jobs[-1] = Job(last.id, status, last.facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    (tmp_path / "code" / "pkg" / "train.py").write_text("x = 1\n")
    return tmp_path / "code"


def tiny(**values: Any) -> Submission:
    changed = {key.replace("__", "."): value for key, value in values.items()}
    return Submission(with_values(build_config(TINY), {"execution.executor": "ray", "storage": "/mnt/s", **changed}))


def go(server: Server, folder: Path, submission: Submission | None = None,
       said: list[tuple[str, str]] | None = None) -> Submitted:
    said = [] if said is None else said
    return submit(submission or tiny(), cast(Jobs, server), folder, lambda kind, text: said.append((kind, text)), {})


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_what_becomes_of_other_code_is_said_to_the_command(folder: Path, kind: str) -> None:
    submission = tiny()
    if kind == "sweep":
        sweep = build_sweep({"name": "s", "base": submission.run, "space": {"pruning.target": {"grid": [0.5]}}})
        submission = Submission(sweep.base, sweep)
    server = Server()
    go(server, folder, replace(submission, code_changed="retrain"))
    expected = f"exec python -m swamp_ray {kind} {CONFIG_NAME} --address auto --code-changed retrain"
    assert server.entrypoints[-1] == expected


def test_code_and_config_are_uploaded_and_run(folder: Path) -> None:
    server, submission = Server(), tiny(execution__stable_labels={"role": "stable"})
    server.answer = {**ANSWER, "nodes": [{**ANSWER["nodes"][0], "labels": {"role": "stable"}}]}
    done = go(server, folder, submission)
    assert done.is_new
    assert not done.resumes
    [uploaded] = server.uploaded
    facts = [name for name in uploaded if ".dist-info/" in name]
    assert set(uploaded) - set(facts) == {"pkg/train.py", CONFIG_NAME}
    assert parse_config(uploaded[CONFIG_NAME]) == submission.run
    assert server.entrypoints[-1] == f"exec python -m swamp_ray run {CONFIG_NAME} --address auto"
    assert server.labels == {"role": "stable"}
    assert int(server.variables[STOP_VARIABLE]) > submission.run.execution.grace_s


def test_while_it_runs_the_same_submission_finds_it(folder: Path) -> None:
    server, said = Server(), []
    first = go(server, folder)
    second = go(server, folder)
    assert not second.is_new
    assert second.job.id == first.job.id
    assert len(server.uploaded) == 1
    with pytest.raises(UserError, match=f"swamp stop {first.job.id}"):
        go(server, folder, tiny(seed=1))
    (folder / "pkg" / "train.py").write_text("x = 2\n")
    assert not go(server, folder, said=said).is_new
    assert any(kind == "warning" and "changed since" in text for kind, text in said)
    assert go(server, folder, tiny(name="other")).is_new


def test_after_its_end_the_same_submission_is_a_further_attempt(folder: Path) -> None:
    server = Server()
    base = go(server, folder).job.id
    for status, resumes in (("STOPPED", True), ("FAILED", True), ("SUCCEEDED", False)):
        server.end(status)
        done = go(server, folder)
        assert (done.is_new, done.resumes) == (True, resumes)
    assert [job.id for job in server.jobs] == [base, f"{base}-2", f"{base}-3", f"{base}-4"]


@pytest.mark.parametrize(("answer", "words"), [
    ({"versions": {"python": "2.7.18", "ray": "1.0.0", "torch": None}}, "different versions"),
    ({"missing": ["obstore"]}, "lacks the module obstore"),
    ({"storage": "storage: all nodes must see the storage root"}, "all nodes must see"),
    ({"nodes": [{"id": "a", "resources": {"CPU": 0.5}, "labels": {}}]}, "single worker"),
    ({"paths": {"the head node": "/data"}}, "does not exist on the head node"),
])
def test_nothing_is_uploaded_to_a_cluster_that_does_not_fit(
    folder: Path, answer: Mapping[str, Any], words: str
) -> None:
    server = Server({**ANSWER, **answer})
    with pytest.raises(UserError, match=words):
        go(server, folder, tiny(data__root="/data"))
    assert server.uploaded == []
    assert server.jobs == [], "no job is left behind"


def test_a_probe_without_an_answer_shows_what_it_printed(folder: Path) -> None:
    server = Server(None)
    with pytest.raises(RunError, match="no module named ray"):
        go(server, folder)
    assert server.uploaded == []


def test_local_mistakes_are_found_before_the_cluster_is_asked(folder: Path) -> None:
    server = Server()
    with pytest.raises(UserError, match="no such dataset"):
        go(server, folder, tiny(data__name="digitz"))
    assert server.entrypoints == []
