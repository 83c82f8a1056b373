"""A process that carries out runs on request and says what became of them; see test_sharing.py.

Each line on its standard input is a run as JSON: the values of a tiny config, the name of its order, and what it does
at certain moments. Each line on standard output is the answer. Importing torch takes longer than all these runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from swamp_ray.errors import SwampError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.inline_executor import InlineExecutor
from swamp_ray.run.messages import Handle, JobSpec
from swamp_ray.run.reporter import Reporter
from swamp_ray.training.results import Progress
from tests.helpers import tiny

PATIENCE_S = 240.0


class FromTheBack(InlineExecutor):
    """Takes the job that was given out last."""

    def submit(self, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        super().submit(spec, start, mask_bits, values, urgent=True)


class Actor(Reporter):
    """Keeps files that tell of what happened, and waits for those of others where it is told to."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.name, self.folder = request["values"]["name"], Path(request["storage"])
        self.pause_at: str | None = request.get("pause_at")
        self.until: str = request.get("until", "")
        self.kill_at: str | None = request.get("kill_at")
        self.trained: list[str] = []
        self.blocked: list[str] = []

    def job_advanced(self, job: Job, progress: Progress) -> None:
        moment = f"{job}, epoch {progress.epoch}"
        if moment == self.pause_at:
            self.tell("paused")
            self.wait_for(self.until)
        if moment == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def job_blocked(self, job: Job, who: str) -> None:
        self.blocked.append(f"{job} by {who}")
        self.tell("blocked")

    def job_finished(self, job: Job, found: bool) -> None:
        if not found and job.kind != "evaluation":
            self.trained.append(str(job))

    def tell(self, what: str) -> None:
        (self.folder / f"{self.name}-{what}").touch()

    def wait_for(self, what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not (self.folder / what).exists():
            assert time.monotonic() < end, f"{what} never came"
            time.sleep(0.02)


def carry_out(request: dict[str, Any]) -> dict[str, Any]:
    actor = Actor(request)
    if request.get("after"):
        actor.wait_for(request["after"])
    # A machine that is so busy that no beat comes through for half a minute must not decide a test.
    config = tiny(Path(request["storage"]), execution__lease_expiry_s=600.0, **request["values"])
    try:
        done = run(config, actor, executor=FromTheBack if request.get("from_the_back") else None)
    except SwampError as error:
        return {"error": str(error), "pid": os.getpid()}
    attempt = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][-1]
    return {"blocked": actor.blocked, "attempt": attempt, "pid": os.getpid()}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), flush=True)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
