"""Submit a run or a sweep to a cluster through Ray Jobs: check first, upload then."""

from __future__ import annotations

import hashlib
import platform
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from swamp_ray.errors import RunError, UserError
from swamp_ray.on_ray.access import token_file
from swamp_ray.run.placement import Node
from swamp_ray.run.provenance import version
from swamp_ray.storage.places import is_url
from swamp_ray.submit.fitting import check_nodes, check_packages, check_paths, check_storage, check_versions, room
from swamp_ray.submit.jobs import Job, Jobs
from swamp_ray.submit.probe import VERSIONS, question, read_answer
from swamp_ray.submit.submission import Submission, check_here, check_upload
from swamp_ray.submit.upload import CONFIG_NAME, Upload, check_size, select_files, stage, stage_package, stage_version

PROBE_S = 240.0
SHOWN_PRIVATE = 20
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"

Tell = Callable[[str, str], None]
"""Takes a kind, ``"step"``, ``"fact"`` or ``"warning"``, and a sentence for the user."""


@dataclass(frozen=True)
class Submitted:
    """A job that runs.

    Attributes:
        job: The job.
        is_new: Whether this call started it.
        resumes: Whether an earlier attempt has ended before the run was complete.
    """

    job: Job
    is_new: bool
    resumes: bool = False


def submit(submission: Submission, jobs: Jobs, folder: Path, tell: Tell,
           environment: Mapping[str, str] | None = None) -> Submitted:
    """Start a run or a sweep on a cluster, or find the job that is at it already.

    Args:
        submission: What runs.
        jobs: The cluster's Jobs server.
        folder: The folder of the user's code.
        tell: Who hears what is done and found.
        environment: Where the token's file may be named.

    Raises:
        UserError: Something has to be changed first; nothing of the user's has been uploaded.
        RunError: The server failed.
    """
    upload = select_files(folder, _excluded(submission, environment or {}))
    facts = _facts(submission, upload)
    earlier = [job for job in jobs.all() if job.base == submission.base_id]
    running = next((job for job in earlier if not job.has_ended), None)
    if running is not None:
        return _attach(running, facts, tell)
    needed = check_upload(submission, upload)
    check_size(upload)
    for text in left_behind(upload):
        tell("warning", text)
    for text in check_here(submission, folder):
        tell("warning", text)
    with tempfile.TemporaryDirectory(prefix="swamp-submit-") as scratch:
        package = stage_package(Path(scratch))
        tell("step", "asking the cluster what it has")
        _check_cluster(submission, ask_cluster(submission, jobs, package, needed), tell)
        staged = Path(scratch) / "code"
        stage(upload, submission.text, staged)
        stage_version(staged, version("swamp_ray") or "0")
        tell("step", f"uploading {upload}")
        attempt = 1 + max((job.attempt for job in earlier), default=0)
        return _start(submission, jobs, attempt, _runtime_env(submission, staged, package), facts, earlier, tell)


def left_behind(upload: Upload) -> list[str]:
    """What stays on this machine because it may be a secret: a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for path, why in upload.private():
        reasons.setdefault(why, []).append(path)
    return [f"not uploaded ({why}): {', '.join(paths[:SHOWN_PRIVATE])}"
            + (f" and {len(paths) - SHOWN_PRIVATE} more" if len(paths) > SHOWN_PRIVATE else "")
            for why, paths in reasons.items()]


def _attach(running: Job, facts: Mapping[str, str], tell: Tell) -> Submitted:
    if running.facts.get("config") != facts["config"]:
        raise UserError(f"the job {running.id} is running with another config of this name", where="name",
                        do=f"Stop it first (swamp stop {running.id}), or give this one another --name.")
    if running.facts.get("code") != facts["code"]:
        tell("warning", "it runs the code as it was when it was submitted; what you have here has changed since")
    return Submitted(running, is_new=False)


def _start(submission: Submission, jobs: Jobs, attempt: int, runtime_env: Mapping[str, Any],
           facts: Mapping[str, str], earlier: Sequence[Job], tell: Tell) -> Submitted:
    job_id = submission.base_id if attempt == 1 else f"{submission.base_id}-{attempt}"
    # The shell gives way to Python, so that the exit code and the signal to stop are the run's own.
    entrypoint = f"exec python -m swamp_ray {submission.kind} {CONFIG_NAME} --address auto"
    if submission.code_changed != "refuse":
        entrypoint += f" --code-changed {submission.code_changed}"
    if not jobs.submit(job_id, entrypoint, runtime_env, facts, submission.run.execution.stable_labels):
        return _attach(jobs.get(job_id), facts, tell)
    last = max(earlier, key=lambda job: job.attempt, default=None)
    return Submitted(jobs.get(job_id), True, last is not None and last.status != "SUCCEEDED")


def _runtime_env(submission: Submission, staged: Path, package: Path) -> dict[str, Any]:
    return {"working_dir": str(staged), "py_modules": [str(package)],
            "env_vars": {STOP_VARIABLE: str(submission.stop_s)}}


def _facts(submission: Submission, upload: Upload) -> dict[str, str]:
    return {"name": submission.name, "kind": submission.kind, "storage": submission.run.storage,
            "config": hashlib.sha256(submission.text.encode()).hexdigest()[:16], "code": upload.digest()[:16],
            "stop_s": str(submission.stop_s)}


def _excluded(submission: Submission, environment: Mapping[str, str]) -> dict[Path, str]:
    """What is never uploaded wherever it lies."""
    found = {token_file(environment): "the token"}
    for root in (submission.run.data.root, environment.get("SWAMP_DATA")):
        if root:
            found[Path(root).expanduser()] = "data"
    if not is_url(submission.run.storage):
        found[Path(submission.run.storage)] = "the storage root"
    return found


def versions_here() -> dict[str, str | None]:
    """The versions that have to agree."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def ask_cluster(submission: Submission, jobs: Jobs, package: Path, modules: Sequence[str]) -> dict[str, Any]:
    """The answer of `probe`, from a job of its own that takes nothing along but swamp_ray.

    Raises:
        RunError: The cluster did not answer.
    """
    job_id = f"swamp-probe-{uuid4().hex[:12]}"
    asked = question(submission.run.storage, list(submission.paths().values()), [*submission.modules(), *modules])
    entrypoint = f"exec python -m swamp_ray.submit.probe {shlex.quote(asked)}"
    jobs.submit(job_id, entrypoint, {"py_modules": [str(package)]}, {}, {})
    try:
        job = jobs.wait(job_id, PROBE_S)
        said = read_answer(jobs.logs(job_id)) if job.has_ended else None
        if said is None:
            raise RunError(_no_answer(job, jobs))
    except BaseException:
        with suppress(RunError, UserError):
            jobs.stop(job_id)
        raise
    jobs.remove(job_id)
    return said


def _no_answer(job: Job, jobs: Jobs) -> str:
    if not job.has_ended:
        return (f"the cluster did not answer within {PROBE_S:.0f} s: the job {job.id} is "
                f"{job.status.lower()}. Look at its dashboard, {jobs.access.url}.")
    try:
        last = jobs.logs(job.id).strip().splitlines()[-5:]
    except RunError:
        last = []
    reason = "\n  ".join(last or (job.message.strip().splitlines()[-1:]) or ["it printed nothing"])
    return (f"the job that asks the cluster what it has failed (exit code {job.exit_code}):\n  {reason}\n"
            "'python' on the head node's PATH must be the Python that Ray runs in: activate the environment before "
            "'ray start'.")


def _check_cluster(submission: Submission, said: Mapping[str, Any], tell: Tell) -> None:
    for text in check_versions(versions_here(), said["versions"]):
        tell("warning", text)
    check_packages(said["missing"])
    nodes = [Node(node["id"], node["resources"], node["labels"]) for node in said["nodes"]]
    workers = check_nodes(submission, nodes)
    reach = check_storage(submission, said["storage"], len(nodes))
    check_paths(submission, said["paths"])
    there = said["versions"]
    tell("fact", f"Python {there['python']}, Ray {there['ray']} and torch {there['torch']}, as here")
    tell("fact", room(submission, nodes, workers))
    tell("fact", f"results go to {submission.run.storage}, {reach}")
