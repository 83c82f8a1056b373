"""What a run shows: a live display on a terminal, a few plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swamp_ray.method.events import Job, trunk_of
from swamp_ray.run.messages import RoundRecord
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.metric_names import number, shown_primary
from swamp_ray.text.output import Output, is_live
from swamp_ray.text.tables import bounded, counted, display_path, duration, percent, results_table
from swamp_ray.training.results import Progress

WIDE = 100  # columns that a particle's whole line needs


class PlainReporter(Reporter):
    """Lines for files and pipes: a header, one line a round, and a heartbeat in long rounds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._budget = _Budget()
        self._heartbeat = time.monotonic()

    def run_started(self, prepared: Prepared, path: str) -> None:
        """Print the header."""
        self._budget.plan(prepared)
        self._prepared = prepared
        self._interval = prepared.config.execution.log_every_s
        for line in header(prepared, path):
            self._console.print(line, soft_wrap=True)

    def executor_starting(self, executor: str) -> None:
        """Say why nothing happens for some seconds."""
        if executor == "ray":
            self._console.print("starting Ray ...")

    def executor_started(self, num_workers: int) -> None:
        """Say how many workers there are."""
        self._console.print(f"training on {counted(num_workers, 'worker')}")

    def workers_changed(self, num_workers: int) -> None:
        """Say how many workers there are from now on."""
        self._console.print(f"nodes have come or gone: {counted(num_workers, 'worker')} from now on")

    def job_advanced(self, job: Job, progress: Progress) -> None:
        """A heartbeat now and then."""
        self._budget.advanced(job, progress)
        if time.monotonic() - self._heartbeat > self._interval:
            self._heartbeat = time.monotonic()
            self._console.print(f"{job}: epoch {progress.epoch}/{progress.num_epochs}, loss {progress.loss:.4f}, "
                                f"{self._budget.text()}", soft_wrap=True)

    def job_finished(self, job: Job, found: bool) -> None:
        """Count."""
        self._budget.finished(job, found)

    def job_blocked(self, job: Job, who: str) -> None:
        """Say for whom it waits."""
        self._console.print(f"{job} is being trained by {who}", soft_wrap=True, markup=False)

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        """Failures are never silent."""
        self._console.print(_failure(job, reason, retry), soft_wrap=True, markup=False)

    def particle_dropped(self, job: Job, reason: str) -> None:
        """A round that is smaller than planned is never silent."""
        self._budget.dropped(job)
        self._console.print(_dropped(job, reason), soft_wrap=True, markup=False)

    def round_finished(self, record: RoundRecord) -> None:
        """One line."""
        self._heartbeat = time.monotonic()
        self._console.print(round_line(record, self._prepared, self._budget), soft_wrap=True, markup=False)

    def stopping(self, grace_s: float) -> None:
        """Say what is waited for."""
        self._console.print(stopping_text(grace_s), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print it."""
        self._console.print(f"warning: {text}", soft_wrap=True, markup=False)

    def notice(self, text: str) -> None:
        """Print it."""
        self._console.print(text, soft_wrap=True, markup=False)


class LiveReporter(Reporter):
    """A live display: an overall bar and one line a running particle; finished rounds scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._budget = _Budget()
        self._running: dict[Job, Progress | None] = {}
        self._live: Live | None = None
        self._note = ""

    def run_started(self, prepared: Prepared, path: str) -> None:
        """Print the header and start the display."""
        self._prepared = prepared
        self._budget.plan(prepared)
        about, place = header(prepared, path)
        self._console.print(about)
        self._console.print(place, soft_wrap=True)  # a path that can be copied
        self._live = Live(console=self._console, refresh_per_second=8, transient=True, get_renderable=self._render)
        self._live.start()

    def executor_starting(self, executor: str) -> None:
        """Say why nothing happens for some seconds."""
        self._note = "starting Ray ..." if executor == "ray" else ""
        self._refresh()

    def executor_started(self, num_workers: int) -> None:
        """Say how many workers there are."""
        self._note = f"{counted(num_workers, 'worker')} starting ..."
        self._refresh()

    def workers_changed(self, num_workers: int) -> None:
        """Say how many workers there are from now on."""
        self._console.print(f"nodes have come or gone: {counted(num_workers, 'worker')} from now on")

    def job_advanced(self, job: Job, progress: Progress) -> None:
        """Move the particle's line."""
        self._note = ""
        self._running[job] = progress
        self._budget.advanced(job, progress)

    def job_finished(self, job: Job, found: bool) -> None:
        """Remove the particle's line."""
        self._running.pop(job, None)
        self._budget.finished(job, found)

    def job_blocked(self, job: Job, who: str) -> None:
        """One line above the display."""
        self._running.pop(job, None)
        self._console.print(Text(f"{job} is being trained by {who}"), soft_wrap=True)

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        """Failures scroll by above."""
        self._running.pop(job, None)
        self._console.print(Text(_failure(job, reason, retry), style="red"), soft_wrap=True)

    def particle_dropped(self, job: Job, reason: str) -> None:
        """Remove the particle's line, and say so above."""
        self._running.pop(job, None)
        self._budget.dropped(job)
        self._console.print(Text(_dropped(job, reason), style="yellow"), soft_wrap=True)

    def round_finished(self, record: RoundRecord) -> None:
        """One line above the display."""
        line = round_line(record, self._prepared)
        self._console.print(line if self._console.width >= WIDE else line.replace(": particles", ""), highlight=False)

    def warning(self, text: str) -> None:
        """One line above the display."""
        self._console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

    def notice(self, text: str) -> None:
        """One line above the display."""
        self._console.print(Text(text), soft_wrap=True)

    def stopping(self, grace_s: float) -> None:
        """Say what is waited for."""
        self._note = stopping_text(grace_s)
        self._refresh()

    def run_finished(self, complete: bool) -> None:
        """Take the display away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _render(self) -> Group:
        budget = self._budget
        bar = ProgressBar(total=max(1e-9, budget.total), completed=budget.done, width=30)
        top = Table.grid(padding=(0, 2))
        top.add_row(Text(budget.rounds_text(), style="bold"), bar, f"{budget.share:4.0%}", budget.text())
        lines: list[Any] = [top]
        if self._running:
            lines.append(self._particles())
        if self._note:
            lines.append(Text(self._note, style="dim"))
        return Group(*lines)

    def _particles(self) -> Table:
        wide = self._console.width >= WIDE
        table = Table.grid(padding=(0, 2))
        for _ in range(6 if wide else 5):
            table.add_column(no_wrap=True)
        for job, progress in sorted(self._running.items(), key=lambda entry: (entry[0].round, entry[0].particle)):
            if progress is None:
                continue
            extra = "  ".join(f"{bounded(name, 20)} {value:.3f}" for name, value in progress.metrics.items())
            bar = [ProgressBar(total=progress.num_epochs, completed=progress.epoch, width=12)] if wide else []
            table.add_row(
                Text(f"  {job}", style="cyan"), *bar,
                f"epoch {progress.epoch}/{progress.num_epochs}", f"loss {progress.loss:.3f}", extra,
                f"{progress.samples_per_s:,.0f}{' samples' if wide else ''}/s")
        return table


class _Budget:
    """Epochs to train, trained and found, and what that says about the time left."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0
        self._trained = 0.0
        self._epochs: dict[Job, float] = {}
        self._partial: dict[Job, float] = {}
        self._began: float | None = None
        self._rounds_done = 0
        self._num_rounds = 0
        self._particles_done = 0
        self.num_particles = 0

    def plan(self, prepared: Prepared) -> None:
        """Count the epochs of a run."""
        if prepared.dense is not None:
            self._epochs[Job("dense")] = prepared.dense.num_steps / prepared.steps_per_epoch
        for plan in prepared.plan:
            trunk = prepared.trunk(plan.index)
            if trunk is not None:
                self._epochs[trunk_of(plan.index)] = trunk.num_steps / prepared.steps_per_epoch
            for particle in range(plan.num_particles):
                program = prepared.program(plan.index, particle)
                steps = program.num_replicas * program.num_steps
                self._epochs[Job("particle", plan.index, particle)] = steps / prepared.steps_per_epoch
        self.total = sum(self._epochs.values())
        self._num_rounds = len(prepared.plan)
        self.num_particles = sum(plan.num_particles for plan in prepared.plan)

    def advanced(self, job: Job, progress: Progress) -> None:
        """A job has trained further."""
        if self._began is None:
            self._began = time.monotonic()
        share = progress.epoch / max(1, progress.num_epochs) * self._epochs.get(job, 0.0)
        self._trained += max(0.0, share - self._partial.get(job, 0.0))
        self.done += max(0.0, share - self._partial.get(job, 0.0))
        self._partial[job] = max(share, self._partial.get(job, 0.0))

    def finished(self, job: Job, found: bool) -> None:
        """A job is done, trained or found."""
        if job.kind == "soup":
            return
        if job.kind == "evaluation":
            self._rounds_done += 1
            return
        rest = self._epochs.get(job, 0.0) - self._partial.get(job, 0.0)
        self._partial[job] = self._epochs.get(job, 0.0)
        self.done += rest
        self._trained += 0.0 if found else rest
        self._particles_done += job.kind == "particle"

    def dropped(self, job: Job) -> None:
        """A particle is not waited for any more; what it trained is spent."""
        trained = self._partial.get(job, 0.0)
        self.total -= self._epochs.get(job, trained) - trained
        self._epochs[job] = trained
        self.num_particles -= 1

    @property
    def share(self) -> float:
        """Of the epochs, in [0, 1]."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    def rounds_text(self) -> str:
        """Rounds and particles done."""
        return (f"rounds {self._rounds_done}/{self._num_rounds}  "
                f"particles {self._particles_done}/{self.num_particles}")

    def text(self) -> str:
        """Time left, at the rate so far."""
        if self._began is None or self._trained <= 0:
            return ""
        elapsed = time.monotonic() - self._began
        return f"{duration(elapsed * (self.total - self.done) / self._trained)} left"


def header(prepared: Prepared, path: str) -> list[str]:
    """Two lines that say what runs and where its results go."""
    config = prepared.config
    plan = prepared.plan
    particles = sorted({round_plan.num_particles for round_plan in plan})
    several = f"{particles[0]} to {particles[-1]} particles"
    counts = counted(particles[0], "particle") if len(particles) == 1 else several
    return [
        f"[bold]{escape(str(config.name))}[/bold]: {escape(config.model.name)} on {escape(config.data.name)}, "
        f"{counted(len(plan), 'round')} of {counts} to {percent(plan[-1].sparsity)} sparsity, seed {config.seed}",
        f"{prepared.layout.num_prunable:,} prunable weights of {prepared.layout.num_parameters:,} parameters "
        f"({percent(prepared.layout.sparsity_of_all(plan[-1].survivors))} of all pruned at the end); "
        f"{prepared.arithmetic.device}, "
        f"{prepared.arithmetic.precision}{_packing(prepared)}; results in {escape(display_path(path))}",
    ]


def _packing(prepared: Prepared) -> str:
    """How many particles a worker trains at a time, where it is not one."""
    form = prepared.arithmetic.form
    width = prepared.arithmetic.width
    return "" if form == "single" else f", {width} at a time ({form})"


def round_line(record: RoundRecord, prepared: Prepared, budget: _Budget | None = None) -> str:
    """One line for a finished round, with the time that is left where a budget is given."""
    name = shown_primary(prepared.task)
    mean = record.mean["test"][name]
    std = record.std["test"][name]
    entered = record.num_particles - len(record.dropped)
    spread = f" ± {number(std, name)}" if entered > 1 else ""
    of = f"{entered} of {counted(record.num_particles, 'particle')}" if record.dropped else "particles"
    left = budget.text() if budget is not None and budget.share < 1 else ""
    return (f"round {record.round:>2}  sparsity {percent(record.sparsity):>7}  test {bounded(name)}: {of} "
            f"{number(mean, name)}{spread}, averaged {number(record.average['test'][name], name)}"
            + (f"  ({left})" if left else ""))


def print_results(console: Console, rundir: RunDir, records: Sequence[RoundRecord | Mapping[str, Any]],
                  primary: str) -> None:
    """The table and the paths of what was written."""
    plain = [asdict(record) if isinstance(record, RoundRecord) else record for record in records]
    console.print()
    console.print(results_table(plain, primary))
    console.print("Tickets (safetensors, load with swamp_ray.load_ticket):")
    for record in plain:
        ticket = rundir.ticket_of(record).location
        console.print(f"  {percent(record['sparsity']):>7}  {display_path(ticket)}", soft_wrap=True, highlight=False)
    console.print(f"Metrics: {display_path(rundir.metrics_parquet.location)}", soft_wrap=True, highlight=False)


def _failure(job: Job, reason: str, retry: bool) -> str:
    return f"{job} failed: {reason}" + (" - trying again" if retry else "")


def stopping_text(grace_s: float) -> str:
    """What a run or a sweep that was asked to stop waits for."""
    return f"stopping: running particles write a checkpoint, for at most {grace_s:g} s; Ctrl-C again leaves at once"


def _dropped(job: Job, reason: str) -> str:
    return f"round {job.round} goes on without particle {job.particle}: {reason}"


def make_reporter(quiet: bool) -> tuple[Reporter, Console]:
    """The reporter that fits standard output."""
    console = Output(quiet=quiet, highlight=False)
    if quiet:
        return Reporter(), console
    return (LiveReporter(console) if is_live(console) else PlainReporter(console)), console

