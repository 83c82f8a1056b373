"""Submission as its user sees it, on a real cluster that asks for a token.

What is submitted first, what is followed, and what is refused for its token, comes from processes of their own; the
other commands are given in this one, which has imported Ray already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.on_ray.access import find_access
from swamp_ray.submit.jobs import Jobs
from tests.helpers import ticket_digests
from tests.ray_head import LABEL, Head, ray_head

NEVER_BY_ITSELF = 0
CONFIG: dict[str, Any] = {
    "data": {"name": "digits", "limit_train": 700},
    "model": {"name": "own.nets:network"},
    "training": {"batch_size": 64},
    "dense": {"length": 1},
    "round": {"length": 400},
    "averaging": {"within": "swa", "start": 0.9},
    "particles": {"count": 2},
    "pruning": {"target": 0.5, "rate": 0.5},
    "execution": {"device": "cpu", "checkpoint_every": NEVER_BY_ITSELF, "stable_labels": dict([LABEL])},
}
NETS = """from torch import nn


def network(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a config, a network of their own, and what must not be uploaded."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").write_text("")
    (folder / "own" / "nets.py").write_text(NETS)
    (folder / "digits.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / ".gitignore").write_text("*.yaml\nlarge/\n")
    (folder / "large").mkdir()
    with (folder / "large" / "data.bin").open("wb") as file:
        file.truncate(1 << 30)
    return folder


class User:
    """Somebody in the folder of their project, with a home and the cluster's token."""

    def __init__(self, head: Head, project: Path, home: Path) -> None:
        self.project = project
        self.variables = {"HOME": str(home), "RAY_API_SERVER_ADDRESS": head.url,
                          "RAY_AUTH_TOKEN_PATH": str(head.token_file)}

    def swamp(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Runs a command in a process of its own; its exit code and what it printed."""
        environment = {**{key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")},
                       "PYTHONPATH": os.pathsep.join(sys.path), **self.variables, **variables}
        done = subprocess.run([sys.executable, "-m", "swamp_ray", *arguments], cwd=self.project, text=True, timeout=200,
                              env={key: value for key, value in environment.items() if value}, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    def here(self, *arguments: str) -> tuple[int, str]:
        """Runs a command in this process."""
        unset = dict.fromkeys(key for key in os.environ if key.startswith("RAY_AUTH"))
        with contextlib.chdir(self.project):
            done = CliRunner().invoke(main, arguments, env={**unset, **self.variables})
        return done.exit_code, done.output


@pytest.fixture(scope="module")
def user(head: Head, project: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(head, project, tmp_path_factory.mktemp("home"))


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def training(storage: Path) -> bool:
    logs = (storage / "runs/digits/logs/attempt-1").glob("round-0-particle-*.log")
    return any("epoch" in path.read_text() for path in logs)


def test_a_run_that_is_stopped_and_submitted_again_ends_with_the_bytes_of_an_undisturbed_one(
    head: Head, user: User, tmp_path: Path
) -> None:
    storage, alone = tmp_path / "shared", tmp_path / "alone"
    code, undisturbed = user.here("run", "digits.yaml", "--executor", "inline", "--storage", str(alone), "--quiet")
    assert code == 0, undisturbed

    submission = ("submit", "digits.yaml", "--storage", str(storage))
    code, first = user.swamp(*submission)
    assert code == 0, first
    assert "uploading 2 files" in first
    code, attached = user.here(*submission)
    assert code == 0, attached
    assert "already: nothing was submitted" in attached
    wait_for(lambda: training(storage))
    code, stopped = user.here("stop", "digits")
    assert code == 0, stopped
    assert "was stopped: submit it again to go on" in stopped
    assert list((storage / "artifacts").glob("*/*/checkpoint.json")), "it was not given the time to write one"
    code, log = user.here("logs", "digits")
    assert "what is finished is in" in log
    assert not list(storage.rglob(".lease.json")), "others would have to wait for what nobody does"

    code, followed = user.swamp(*submission, "--follow")
    assert code == 0, followed
    assert "goes on where it stopped" in followed
    assert "is complete after" in followed
    logs = (storage / "runs/digits/logs/attempt-2").glob("round-*-particle-*.log")
    assert any("from step" in path.read_text() for path in logs)
    assert ticket_digests(storage, "digits") == ticket_digests(alone, "digits")

    jobs = Jobs(find_access(head.url, environment={"RAY_AUTH_TOKEN_PATH": str(head.token_file)}))
    assert [(job.attempt, job.status) for job in jobs.all()] == [(2, "SUCCEEDED"), (1, "STOPPED")]
    details = "".join(str(job) for job in jobs._client.list_jobs())
    everything = "".join([first, attached, stopped, followed, log, details])
    assert head.token not in everything
    # What the run leaves in its storage says nothing either.
    assert not [path for path in storage.rglob("*") if path.is_file() and head.token.encode() in path.read_bytes()]

    # The same name with another recipe: only the cluster can know, and its exit code comes through.
    code, refused = user.swamp(*submission, "--set", "seed=1", "--follow")
    assert code == 2, refused
    assert "exists already with another recipe" in refused
    code, table = user.here("jobs")
    assert code == 0
    assert [words in table for words in ("complete", "stopped", "failed (2)")] == [True] * 3


@pytest.mark.parametrize(("variables", "words"), [
    ({"RAY_AUTH_TOKEN": "of-another-cluster"}, "refuses the token that was found here"),
    ({"RAY_AUTH_TOKEN_PATH": ""}, "asks for a token, and none was sent"),
])
def test_a_wrong_token_and_none_are_told_apart(
    user: User, variables: dict[str, str], words: str
) -> None:
    code, text = user.swamp("jobs", **variables)
    assert code == 2
    assert words in text
    assert "of-another-cluster" not in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_sweep_is_submitted_and_a_diverged_run_ends_with_its_own_exit_code(
    project: Path, user: User, tmp_path: Path
) -> None:
    space = {"pruning.target": {"grid": [0.2, 0.5]}}
    (project / "targets.yaml").write_text(yaml.safe_dump({"base": "digits.yaml", "space": space}))
    short = ("--set", "base.round.length=20", "--set", "base.execution.stable_labels={}")
    code, text = user.swamp("submit", "targets.yaml", "--storage", str(tmp_path), *short, "--follow")
    assert code == 0, text
    assert "complete, 2 of 2 settings" in text
    assert (tmp_path / "sweeps/targets/results.csv").is_file()
    code, text = user.swamp("submit", "digits.yaml", "--storage", str(tmp_path), "--name", "high", "--set",
                       "training.lr=1e9", "--follow")
    assert code == 1, text
    assert "diverged" in text
    assert "failed with exit code 1" in text
