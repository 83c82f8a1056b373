"""``swamp submit``, ``jobs``, ``logs`` and ``stop``: what they print, and how they end."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from swamp_ray.errors import EXIT_DONE, Interrupted, RunError
from swamp_ray.on_ray.access import find_access
from swamp_ray.submit.jobs import Job, Jobs
from swamp_ray.text.output import Output, visible
from swamp_ray.text.tables import duration

if TYPE_CHECKING:
    from swamp_ray.submit.submission import Submission
    from swamp_ray.submit.submit import Submitted

STATUS = {"SUCCEEDED": "complete", "FAILED": "failed", "STOPPED": "stopped", "RUNNING": "running", "PENDING": "waiting"}
COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}
EXTRA_STOP_S = 30
DEFAULT_STOP_S = 60


def connect(address: str | None, insecure: bool) -> Jobs:
    """The Jobs server that is meant; a warning about the way there goes to standard error.

    Raises:
        UserError: It does not answer, or may not be spoken to.
    """
    access = find_access(address, insecure)
    if access.warning is not None:
        Output(stderr=True, highlight=False).print(f"[yellow]warning: {escape(access.warning)}[/yellow]",
                                                    soft_wrap=True)
    return Jobs(access)


def submit_and_print(submission: Submission, folder: Path, address: str | None, insecure: bool, follow: bool) -> int:
    """Submit, say what was found and how to go on; the exit code of the job, if it is followed."""
    from swamp_ray.submit.submit import submit  # torch, which jobs, logs and stop do without

    console = Output(highlight=False)
    jobs = connect(address, insecure)

    def tell(kind: str, text: str) -> None:
        colours = {"step": ("[dim]", " ...[/dim]"), "warning": ("[yellow]warning: ", "[/yellow]"), "fact": ("  ", "")}
        before, after = colours[kind]
        console.print(f"{before}{escape(text)}{after}", soft_wrap=True)

    done = submit(submission, jobs, folder, tell, os.environ)
    console.print(_what_happened(done), soft_wrap=True)
    options = _options(address, insecure)
    if follow:
        return follow_job(jobs, done.job, options)
    for line in _commands({f"logs {done.job.id} --follow": "what it prints, until it ends",
                           f"stop {done.job.id}": "stop it; submit again to go on", "jobs": "all jobs"}, options):
        console.print(line, soft_wrap=True)
    return EXIT_DONE


def _what_happened(done: Submitted) -> str:
    if not done.is_new:
        return f"[bold]{escape(done.job.id)}[/bold] is {STATUS[done.job.status]} already: nothing was submitted"
    again = " and goes on where it stopped" if done.resumes else ""
    return f"submitted as [bold]{escape(done.job.id)}[/bold]{again}"


def follow_job(jobs: Jobs, job: Job, options: str = "") -> int:
    """Print a job's lines until it has ended; its exit code.

    Raises:
        Interrupted: The user has seen enough; the job goes on.
    """
    errors = Output(highlight=False, stderr=True)
    errors.print("[dim]following it; Ctrl-C leaves it running[/dim]")
    try:
        ended = jobs.follow(job.id, lambda line: print(visible(line), flush=True))
    except KeyboardInterrupt:
        lines = _commands({f"logs {job.id} --follow": "to come back", f"stop {job.id}": "to stop it"}, options)
        raise Interrupted("\n".join([f"the job {job.id} goes on by itself.", *lines])) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    code = ended.outcome()
    took = "" if ended.started_s is None or ended.ended_s is None else (
        f" after {duration(ended.ended_s - ended.started_s)}")
    colour = COLOURS.get(ended.status, "bold")
    errors.print(f"[{colour}]{escape(job.id)} {_ended(ended)}{took}{_again(ended)}[/{colour}]", soft_wrap=True)
    if ended.status == "FAILED" and ended.exit_code is None and ended.message:
        errors.print(escape(ended.message.strip().splitlines()[-1]), soft_wrap=True)
    return code


def _ended(job: Job) -> str:
    if job.status == "FAILED" and job.exit_code is not None:
        return f"failed with exit code {job.exit_code}"
    return {"SUCCEEDED": "is complete", "STOPPED": "was stopped"}.get(job.status, "failed")


def _again(job: Job) -> str:
    return ": submit it again to go on" if job.status == "STOPPED" else ""


def print_jobs(address: str | None, insecure: bool) -> None:
    """A table of swamp's jobs, the newest first."""
    jobs = connect(address, insecure)
    console = Output(highlight=False)
    found = jobs.all()
    if not found:
        console.print(f"no jobs of swamp at {jobs.access.url}")
        return
    console.print(jobs_table(found, time.time()))


def jobs_table(jobs: Sequence[Job], now_s: float) -> Table:
    """One row a job.

    Args:
        jobs: The jobs.
        now_s: Unix time, up to which a running job has taken.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("job", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    for job in jobs:
        colour = COLOURS.get(job.status)
        status = STATUS.get(job.status, job.status) + (f" ({job.exit_code})" if job.exit_code else "")
        started = "" if job.started_s is None else time.strftime("%m-%d %H:%M", time.localtime(job.started_s))
        took = "" if job.started_s is None else duration(max(0.0, (job.ended_s or now_s) - job.started_s))
        kind = " (sweep)" if job.facts.get("kind") == "sweep" else ""
        table.add_row(escape(job.id), escape(job.name) + kind, f"[{colour}]{status}[/{colour}]" if colour else status,
                      started, took)
    return table


def print_logs(name: str, address: str | None, insecure: bool, follow: bool) -> int:
    """What a job has printed so far; followed, until it ends and with its exit code."""
    jobs = connect(address, insecure)
    job = jobs.find(name)
    if follow:
        return follow_job(jobs, job, _options(address, insecure))
    print(visible(jobs.logs(job.id)), end="", flush=True)
    return EXIT_DONE


def stop_job(name: str, address: str | None, insecure: bool) -> None:
    """Ask a job to stop, and wait until it has written its checkpoints.

    Raises:
        RunError: It has not ended in time.
        Interrupted: The user does not wait for it.
    """
    jobs = connect(address, insecure)
    console = Output(highlight=False)
    job = jobs.find(name)
    if job.has_ended:
        console.print(f"{escape(job.id)} {_ended(job)} already", soft_wrap=True)
        return
    seconds = int(job.facts.get("stop_s", DEFAULT_STOP_S))
    jobs.stop(job.id)
    console.print(f"[dim]{escape(job.id)} is stopping: running particles write a checkpoint, for at most {seconds} s "
                  "...[/dim]", soft_wrap=True)
    try:
        ended = jobs.wait(job.id, seconds + EXTRA_STOP_S)
    except KeyboardInterrupt:
        raise Interrupted(f"the job {job.id} is stopping all the same") from None
    if not ended.has_ended:
        raise RunError(f"the job {job.id} has not ended {seconds + EXTRA_STOP_S} s after it was asked to. "
                       f"Look at the dashboard, {jobs.access.url}.")
    console.print(f"{escape(job.id)} {_ended(ended)}{_again(ended)}", soft_wrap=True)


def _commands(commands: Mapping[str, str], options: str) -> list[str]:
    """Lines with what a user may type next, and what it is for."""
    typed = {f"swamp {command}{options}": what for command, what in commands.items()}
    width = max(map(len, typed))
    return [f"  {command:<{width}}   {what}" for command, what in typed.items()]


def _options(address: str | None, insecure: bool) -> str:
    """The options that further commands need to find the same server."""
    given = "" if address is None else f" --address {shlex.quote(address)}"
    return given + (" --insecure" if insecure else "")

