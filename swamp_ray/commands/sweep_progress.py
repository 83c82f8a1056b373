"""What a sweep shows: a live table on a terminal, a line a change elsewhere, and what came out at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from swamp_ray.commands.check import sweep_header, sweep_lines
from swamp_ray.commands.run_progress import Output, stopping_text
from swamp_ray.commands.sweep_status import SweepView
from swamp_ray.config.sweep_settings import Setting, Sweep, describe
from swamp_ray.errors import Interrupted, RunError, SwampError
from swamp_ray.report.charts.sweeps import write_figures
from swamp_ray.run.name_check import CodeChanged
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.places import Spot
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.plan import SweepPlan
from swamp_ray.sweep.reporter import SweepReporter
from swamp_ray.sweep.results import write_results
from swamp_ray.sweep.run import SweepOutcome, run_sweep
from swamp_ray.sweep.trial import FINISHED
from swamp_ray.text.metric_names import Metric, number
from swamp_ray.text.output import is_live
from swamp_ray.text.tables import display_path, duration, percent

REFRESH_S = 1.0


def sweep_to_the_end(sweep: Sweep, quiet: bool = False, stopping: Stopping | None = None,
                     code_changed: CodeChanged = "refuse") -> bool:
    """Run a sweep, show how it goes, and write its results; False if a setting has failed.

    Raises:
        SwampError: As :func:`swamp_ray.sweep.run.run_sweep`.
    """
    console = Output(quiet=quiet, highlight=False)
    reporter = make_sweep_reporter(console, quiet)
    try:
        outcome = run_sweep(sweep, reporter, stopping, code_changed)
    except (Interrupted, RunError):
        with contextlib.suppress(SwampError, OSError):
            write_results(SweepDir(sweep.base.storage, sweep.name))  # of what there is
        raise
    written = write_all(outcome.sweepdir)
    print_outcome(console, outcome, written)
    return not outcome.failed


def write_all(sweepdir: SweepDir) -> list[Spot]:
    """The table of a sweep and its figures; where they lie."""
    frame = write_results(sweepdir)
    if frame.empty:
        return [sweepdir.parquet, sweepdir.csv]
    return [sweepdir.parquet, sweepdir.csv, *write_figures(sweepdir, frame)]


def make_sweep_reporter(console: Console, quiet: bool) -> SweepReporter:
    """The reporter that fits the console."""
    if quiet:
        return SweepReporter()
    return LiveSweepReporter(console) if is_live(console) else PlainSweepReporter(console)


class PlainSweepReporter(SweepReporter):
    """Lines for files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._metric = ""
        self._num_settings = 0
        self._name = Metric("")
        self._ended: set[str] = set()

    def sweep_started(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir) -> None:
        """The header."""
        self._metric = sweep.config.metric
        self._name = Metric(self._metric.rpartition("/")[2], plan.example.task.shown_as)
        self._num_settings = sweep.config.num_samples if sweep.config.is_adaptive else len(sweep.settings())
        self._ended = {key for key, record in sweepdir.read_trials().items() if record["status"] in FINISHED}
        for line in [*sweep_header(sweep), *sweep_lines(sweep, plan)]:
            self._console.print(line, soft_wrap=True)

    def ray_starting(self) -> None:
        """Say why nothing happens for some seconds."""
        self._console.print("starting Ray ...")

    def setting_changed(self, record: Mapping[str, Any]) -> None:
        """One line when a setting begins, and one when it ends."""
        what = describe(record["setting"])
        if record["status"] == "running":
            self._ended.discard(record["label"])  # its process was lost before
            self._line(f"{what}: begins, {record['workers']} worker{'s' * (record['workers'] != 1)}")
            return
        self._ended.add(record["label"])
        spent = f" after {duration(record['seconds'])}" if "seconds" in record else ""
        reason = f": {record['reason']}" if record.get("reason") else ""
        self._line(f"{what}: {record['status']}{spent}{reason} ({len(self._ended)} of {self._num_settings})")

    def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
        """One line."""
        if result.get("complete") or self._metric not in result:
            return
        error = result.get(f"{self._metric}_se", float("nan"))
        spread = "" if error != error else f" ± {number(error, self._name)}"
        self._line(f"{describe(setting)}: sparsity {percent(result['sparsity'])}, {self._metric} "
                   f"{number(result[self._metric], self._name)}{spread}")

    def warning(self, text: str) -> None:
        """Print it."""
        self._line(f"warning: {text}")

    def stopping(self, grace_s: float) -> None:
        """Say what is waited for."""
        self._line(stopping_text(grace_s))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


class LiveSweepReporter(SweepReporter):
    """The table of ``swamp status``, refreshed; failures and warnings scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._view: SweepView | None = None
        self._next = 0.0
        self._note = ""

    def ray_starting(self) -> None:
        """Say why nothing happens for some seconds."""
        self._console.print(Text("starting Ray ...", style="dim"))

    def sweep_started(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir) -> None:
        """Print the header and start the display."""
        for line in [*sweep_header(sweep), *sweep_lines(sweep, plan)]:
            self._console.print(line, soft_wrap=True)
        self._view = SweepView(sweepdir)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def setting_changed(self, record: Mapping[str, Any]) -> None:
        """Failures scroll by above."""
        if record["status"] == "failed":
            self._console.print(Text(f"{describe(record['setting'])} failed: {record.get('reason', '')}", style="red"),
                                soft_wrap=True)

    def warning(self, text: str) -> None:
        """One line above the display."""
        self._console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

    def stopping(self, grace_s: float) -> None:
        """Say what is waited for."""
        self._note = stopping_text(grace_s)
        self._next = 0.0
        self.tick()

    def tick(self) -> None:
        """Read the storage now and then."""
        if self._live is None or self._view is None or time.monotonic() < self._next:
            return
        self._view.refresh()
        shown: RenderableType = self._view.render(self._console.width, self._console.height)
        if self._note:
            shown = _with_note(shown, self._note)
        self._live.update(shown, refresh=True)
        self._next = time.monotonic() + REFRESH_S

    def sweep_finished(self, complete: bool) -> None:
        """Take the display away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _with_note(shown: Any, note: str) -> RenderableType:
    shown.renderables.append(Text(note, style="dim"))
    return shown


def print_outcome(console: Console, outcome: SweepOutcome, written: list[Spot]) -> None:
    """The table of settings, what was shared, and what was written."""
    view = SweepView(outcome.sweepdir)
    view.refresh()
    console.print()
    console.print(view.render(console.width))
    if outcome.plan.trainings:
        console.print(shared_line(outcome), soft_wrap=True)
    for spot in written:
        console.print(f"  {display_path(str(spot.location))}", soft_wrap=True, highlight=False)


def shared_line(outcome: SweepOutcome) -> str:
    """How much was trained, against how much the settings name."""
    plan = outcome.plan
    kinds = ("particle", "trunk", "dense")
    distinct = sum(plan.num_distinct(kind) for kind in kinds)
    named = sum(plan.named(kind) for kind in kinds)
    trunks = ", trunks" if plan.named("trunk") else ""
    at_most = "" if plan.is_exact else "at most "
    return (f"trained: {outcome.trained:,} particles{trunks} and dense phases; the settings name {named:,}, of which "
            f"{at_most}{distinct:,} are distinct")
