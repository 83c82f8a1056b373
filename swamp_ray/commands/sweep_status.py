"""``swamp status SWEEP``: what is done of a sweep, from the storage alone."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swamp_ray.commands.status import REFRESH_S
from swamp_ray.errors import CorruptArtifactError
from swamp_ray.storage.find import find_sweep
from swamp_ray.storage.leases import Watch
from swamp_ray.storage.liveness import Life, life_by_lease
from swamp_ray.storage.run_folder import RunDir, check_run_record
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import NETWORKS, Settings, Trial, read_record, read_sweep
from swamp_ray.text.metric_names import Metric, is_percent, short
from swamp_ray.text.output import Output, is_live
from swamp_ray.text.tables import duration, percent

STYLES = {"running": "cyan", "failed": "red", "unreadable": "red", "stopped": "yellow", "interrupted": "yellow",
          "waiting": "dim", "complete": "green"}
URGENT = ("failed", "unreadable", "running", "interrupted")
"""Shown first where not all settings fit."""
RESERVED_LINES = 9
"""Of a terminal: headline, heading, notes, prompt."""
SHOWN_REASONS = 6
GAP = 2  # columns between two of a table
ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b|\[[0-9a-fA-F:]*:[0-9a-fA-F:]+\](?::\d+)?")


def show_sweep_status(name: str | SweepDir, storage: str | None = None, watch: bool = False) -> None:
    """Print the state of a sweep; with ``watch`` until it is over, or nobody works on it any more.

    Args:
        name: Its name in the storage, the path or URL of its folder, or the folder itself.
        storage: Storage root; default ``./results``.
        watch: Refresh; without effect where the output is no terminal.

    Raises:
        UserError: There is no such sweep.
        CorruptArtifactError: ``sweep.yaml`` is not what was written; of its other files it is said in a note.
    """
    sweepdir = name if isinstance(name, SweepDir) else find_sweep(name, storage)
    console = Output(highlight=False)
    if not (watch and is_live(console)):
        view = SweepView(sweepdir)
        view.refresh()
        shown = view.render(console.width, console.height if console.is_terminal else None)
        for part in shown.renderables:
            console.print(part, soft_wrap=isinstance(part, Text))
        return
    view = SweepView(sweepdir, Watch())
    with Live(console=console, auto_refresh=False) as live:
        while True:
            view.refresh()
            live.update(view.render(console.width, console.height), refresh=True)
            if not view.life.running:
                return
            time.sleep(REFRESH_S)


@dataclass(frozen=True)
class Row:
    """What a setting has come to, over its seeds.

    Attributes:
        trial: The setting.
        status: As recorded; a setting that nobody works on any more is interrupted.
        seeds_done: Seeds that have finished all their rounds, of ``num_seeds``.
        rounds_done: Finished rounds of all seeds, of ``num_rounds`` (None where no plan is known yet).
        sparsity: Of the last round that all seeds which have begun have finished; None before.
        values: Metric of each of those seeds in that round, by metric.
        reason: Why it failed, was stopped, or cannot be read.
    """

    trial: Trial
    status: str
    seeds_done: int = 0
    num_seeds: int = 0
    rounds_done: int = 0
    num_rounds: int | None = None
    sparsity: float | None = None
    values: Mapping[str, tuple[float, ...]] | None = None
    reason: str = ""

    def mean(self, metric: str) -> float | None:
        """Over seeds; None before the first round."""
        found = (self.values or {}).get(metric)
        return statistics.fmean(found) if found else None

    def standard_error(self, metric: str) -> float | None:
        """Of that mean; None for a single seed."""
        found = (self.values or {}).get(metric, ())
        return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


class SweepView:
    """A sweep as its storage shows it; kept from refresh to refresh, only settings that still run are read again.

    Args:
        sweepdir: The sweep's folder.
        watch: Kept from call to call it sees whether a process on another machine still works.
        now: The time in seconds since 1970.

    Raises:
        UserError: The sweep has not been started.
        CorruptArtifactError: ``sweep.yaml`` is not what was written.
    """

    def __init__(self, sweepdir: SweepDir, watch: Watch | None = None, now: Callable[[], float] = time.time) -> None:
        self._sweepdir = sweepdir
        self._watch = watch
        self._now = now
        self._sweep = read_sweep(sweepdir)
        self._settings = Settings(sweepdir, self._sweep)
        self._known: dict[str, Row] = {}
        self._plans: dict[str, int] = {}
        self._record: dict[str, Any] = {}
        self._damage: list[str] = []
        self.rows: list[Row] = []
        self.life = Life(False, "not started")

    @property
    def metrics(self) -> list[str]:
        """What the sweep compares, and the same on test."""
        metric = self._sweep.config.metric
        return list(dict.fromkeys([metric, metric.replace("/validation/", "/test/")]))

    def refresh(self) -> None:
        """Read what may have changed; records that are damaged are said in notes, those of a member in its row."""
        try:
            self._record = read_record(self._sweepdir)
            lost = ""
        except CorruptArtifactError as error:
            self._record = {}
            lost = (f"{error} Left out here: how the last attempt ended, and what was trained. The "
                                      "same sweep command begins it anew.")
        trials, damage = self._settings.salvage()
        self._damage = [*([lost] if lost else []), *damage]
        self.life = life_by_lease(self._sweepdir.leases(), self._sweepdir.lease_key,
                                  str(self._record.get("status", "running")), self._watch)
        if lost and not self.life.running:
            self.life = Life(False, "its state is not known")
        self.rows = [self._row(trial) for trial in trials]

    def render(self, width: int, height: int | None = None) -> Group:
        """The state as last read.

        Args:
            width: Columns.
            height: Lines; where not all settings fit, those that run or failed come first, then the best. None: all.
        """
        rows = self._chosen(None if height is None else max(3, height - RESERVED_LINES))
        work = ", ".join(filter(None, [self._trained(), self._left()]))
        return Group(Text(self._headline(), style="bold"), *([Text(work)] if work else []),
                     *([self._table(rows, width)] if rows else []), *self._notes(rows))

    def _row(self, trial: Trial) -> Row:
        known = self._known.get(trial.label)
        if known is not None and known.trial == trial and trial.status != "running":
            return known
        try:
            row = self._read(trial)
        except CorruptArtifactError as error:
            row = Row(trial, "unreadable", num_seeds=len(trial.members), reason=str(error))
        self._known[trial.label] = row
        return row

    def _read(self, trial: Trial) -> Row:
        status = "interrupted" if trial.status == "running" and not self.life.running else trial.status
        begun = trial.status != "waiting"
        runs = [member.rundir.read_rounds() if begun else [] for member in trial.members]
        planned = [self._planned_rounds(member.rundir) if rounds else None
                   for member, rounds in zip(trial.members, runs, strict=True)]
        # All seeds of a setting have the same rounds, so that one plan stands for those that have not begun.
        each = max((count for count in planned if count is not None), default=None)
        done = sum(1 for rounds in runs if each is not None and len(rounds) >= each)
        sparsity, values = _last_shared([rounds for rounds in runs if rounds], self.metrics, trial.members[0].rundir)
        return Row(trial, status, done, len(runs), sum(map(len, runs)), None if each is None else each * len(runs),
                   sparsity, values, trial.reason)

    def _planned_rounds(self, rundir: RunDir) -> int | None:
        if rundir.name not in self._plans:
            record = rundir.read_run() or {}
            check_run_record(record, rundir.run_json)
            if "rounds" not in record:
                return None
            self._plans[rundir.name] = len(record["rounds"])
        return self._plans[rundir.name]

    def _headline(self) -> str:
        counts = Counter(row.status for row in self.rows)
        planned = self._sweep.config.num_samples if self._sweep.config.is_adaptive else 0
        num = max(len(self.rows), int(self._record.get("num_settings", planned)))
        parts = [f"{self._sweepdir.name}: {without_addresses(self.life.text)}",
                 f"{counts['complete'] + counts['stopped']} of {num} settings"]
        parts += [f"{counts[status]} {status}" for status in ("stopped", "failed", "unreadable") if counts[status]]
        return ", ".join(parts)

    def _trained(self) -> str:
        attempts = self._record.get("attempts", [])
        plan = self._record.get("plan") or {}
        counted = sum(attempt.get("trained", 0) for attempt in attempts)
        trained = counted if self.life.running else self._record.get("trained", counted)
        if not attempts:
            return ""
        distinct = plan.get("distinct", 0) + plan.get("trunks_distinct", 0) + plan.get("dense_distinct", 0)
        trunks = ", trunks" if plan.get("trunks_named") else ""
        of = f" of {distinct:,}" if self.life.running and distinct >= trained else ""
        return f"{trained:,}{of} particles{trunks} and dense phases trained"

    def _left(self) -> str:
        """Time left: the epochs that nobody has trained yet, at the pace of the current attempt."""
        plan = self._record.get("plan") or {}
        attempts = self._record.get("attempts", [])
        if not (self.life.running and attempts and "distinct_epochs" in plan):
            return ""
        current = attempts[-1]
        left = plan["distinct_epochs"] - sum(attempt.get("trained_epochs", 0.0) for attempt in attempts)
        trained = current.get("trained_epochs", 0.0)
        since = _seconds(current.get("started"))
        elapsed = 0.0 if since is None else self._now() - since
        if left <= 0 or trained <= 0 or elapsed <= 0:
            return ""
        return f"{'' if plan.get('exact', True) else 'about '}{duration(elapsed * left / trained)} left"

    def _chosen(self, most: int | None) -> list[Row]:
        """The settings to show: all in the order of the plan, or the most interesting ones."""
        if most is None or len(self.rows) <= most:
            return self.rows
        metric = self.metrics[0]
        sign = -1 if self._sweep.config.mode == "max" else 1

        def interest(row: Row) -> tuple[int, float]:
            if row.status in URGENT:
                return URGENT.index(row.status), 0.0
            mean = row.mean(metric)
            if mean is None or math.isnan(mean):
                return len(URGENT) + 1, 0.0
            return len(URGENT), sign * mean

        return sorted(self.rows, key=interest)[:most]

    def _table(self, rows: Sequence[Row], width: int) -> Table:
        """With as many columns as the width has room for."""
        columns = self._columns(rows)
        for rank in (None, *sorted({column.rank for column in columns if column.rank}, reverse=True)):
            columns = [column for column in columns if column.rank != rank or rank is None]
            if sum(column.width + GAP for column in columns) - GAP <= width:
                break
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0),
                      show_edge=False)
        for column in columns:
            table.add_column(Text(column.heading), justify=column.justify, no_wrap=True, overflow="ellipsis",
                             min_width=min(6, column.width))
        for cells in zip(*(column.cells for column in columns), strict=True):
            # A text of the user's is no markup.
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
        return table

    def _columns(self, rows: Sequence[Row]) -> list[_Column]:
        """All columns; of two metrics the first can be done without."""
        entries = list(self._sweep.config.space)
        leaves = [entry.rpartition(".")[2] for entry in entries]
        columns = [_Column(f"\n{leaf if leaves.count(leaf) == 1 else entry}",
                           [_value(entry, row.trial.setting[entry]) for row in rows])
                   for entry, leaf in zip(entries, leaves, strict=True)]
        columns += [
            _Column("seeds\ndone", [f"{row.seeds_done}/{row.num_seeds}" for row in rows], rank=5),
            _Column("rounds\ndone", [_rounds(row) for row in rows], rank=2),
            _Column("\nsparsity", ["-" if row.sparsity is None else percent(row.sparsity) for row in rows],
                    rank=0 if _differ(rows) else 4)]
        for metric in self.metrics:
            _, split, plain = metric.split("/", 2)
            name = Metric(plain, self._record.get("shown_as"))
            columns.append(_Column(f"{split}\n{name}" + (" %" if is_percent(name) else ""),
                                   [_metric(row, metric, name) for row in rows],
                                   rank=0 if metric == self.metrics[0] else 3))
        states = [Text(" ".join(filter(None, [row.status, _stopped_at(row)])),
                       style=STYLES.get(row.status, "")) for row in rows]
        return [*columns, _Column("\nstatus", states, justify="left")]

    def _notes(self, rows: Sequence[Row]) -> list[Text]:
        """What is damaged, why settings failed, and how many are not shown."""
        lines = [Text(f"damaged: {text}", style="red") for text in self._damage[:SHOWN_REASONS]]
        if len(self._damage) > SHOWN_REASONS:
            lines.append(Text(f"and {len(self._damage) - SHOWN_REASONS} more", style="red"))
        hidden = len(self.rows) - len(rows)
        if hidden > 0:
            shown = {row.trial.label for row in rows}
            states = Counter(row.status for row in self.rows if row.trial.label not in shown)
            lines.append(Text(f"{hidden} more settings are not shown: "
                              + ", ".join(f"{count} {status}" for status, count in states.most_common()), style="dim"))
        bad = [row for row in rows if row.status in ("failed", "unreadable")]
        for row in bad[:SHOWN_REASONS]:
            reason = without_addresses((row.reason.splitlines() or ["no reason was recorded"])[0])
            lines.append(Text(f"{row.trial.label} {row.status}: {reason}", style="red"))
        if len(bad) > SHOWN_REASONS:
            lines.append(Text(f"and {len(bad) - SHOWN_REASONS} more", style="red"))
        return lines

@dataclass(frozen=True)
class _Column:
    """A column; those with a larger ``rank`` are left out first where there is no room, those of rank 0 never."""

    heading: str
    cells: Sequence[str | Text]
    rank: int = 0
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in (self.heading, *map(str, self.cells)) for line in text.split("\n"))


def without_addresses(text: str) -> str:
    """A text in which the addresses of nodes are not told."""
    return ADDRESS.sub("a node", text)


def _value(entry: str, value: Any) -> str:
    if isinstance(value, float):
        return percent(value) if entry == "pruning.target" else f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _differ(rows: Sequence[Row]) -> bool:
    """Whether figures stand side by side that belong to different sparsities."""
    return len({row.sparsity for row in rows if row.sparsity is not None}) > 1


def _stopped_at(row: Row) -> str:
    return f"at {percent(row.sparsity)}" if row.status == "stopped" and row.sparsity is not None else ""


def _rounds(row: Row) -> str:
    return "-" if row.num_rounds is None else f"{row.rounds_done}/{row.num_rounds}"


def _metric(row: Row, metric: str, name: str) -> str:
    mean = row.mean(metric)
    error = row.standard_error(metric)
    if mean is None:
        return "-"
    return short(mean, name) + ("" if error is None else f" ± {short(error, name)}")


def _last_shared(runs: Sequence[Sequence[Mapping[str, Any]]], metrics: Sequence[str],
                 rundir: RunDir) -> tuple[float | None, dict[str, tuple[float, ...]]]:
    """Sparsity and metrics of the last round that all runs have finished."""
    shared = set.intersection(*({record["round"] for record in records} for records in runs)) if runs else set()
    if not shared:
        return None, {}
    last = [next(record for record in records if record["round"] == max(shared)) for records in runs]
    try:
        values = {metric: tuple(_number(record, metric) for record in last) for metric in metrics}
        return float(last[0]["sparsity"]), values
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{rundir.rounds}: the rounds of this setting are not what was written "
                                   f"({type(error).__name__}: {error}). Run the sweep again, which writes them anew, "
                                   "or restore the files.") from error


def _number(record: Mapping[str, Any], metric: str) -> float:
    network, split, name = metric.split("/", 2)
    return float(record[NETWORKS[network]][split][name])


def _seconds(time_: Any) -> float | None:
    """Seconds since 1970 of an ISO time; one without a zone is UTC."""
    try:
        found = datetime.fromisoformat(str(time_))
    except ValueError:
        return None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
