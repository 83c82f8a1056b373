"""``swamp status``: what is done of a run, from its files alone."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swamp_ray.errors import UserError
from swamp_ray.locating import find_run
from swamp_ray.storage.rundir import RunDir
from swamp_ray.tables import display_path, duration, percent, results_table

REFRESH_S = 2.0


def show_status(run: str, storage: str | None = None, watch: bool = False) -> None:
    """Print the state of a run; with ``watch`` until it is over.

    Raises:
        UserError: There is no such run.
    """
    rundir = find_run(run, storage)
    console = Console(highlight=False)
    if not (watch and console.is_terminal):
        for part in describe(rundir):
            console.print(part, soft_wrap=isinstance(part, Text))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(*describe(rundir)), refresh=True)
            if (rundir.read_run() or {}).get("status") != "running":
                return
            time.sleep(REFRESH_S)


def describe(rundir: RunDir) -> list[Text | Table]:
    """Status, what is missing, failures that were met, and the table of finished rounds."""
    record = rundir.read_run()
    if record is None:
        raise UserError("the run has not started yet", where=str(rundir.path))
    rounds, planned = rundir.read_rounds(), record.get("rounds", [])
    lines: list[Text | Table] = [Text(f"{rundir.name}: {record.get('status')}, {len(rounds)} of {len(planned)} rounds",
                             style="bold")]
    lines += [Text(line) for line in _attempts(record)]
    done = {entry["round"] for entry in rounds}
    missing = [plan for plan in planned if plan["index"] not in done]
    if missing:
        shown = ", ".join(f"{plan['index']} ({percent(plan['sparsity'])})" for plan in missing[:8])
        lines.append(Text(f"missing: rounds {shown}{' ...' if len(missing) > 8 else ''}"))
        lines += [Text(line) for line in _logs(rundir)]
    if rounds:
        lines.append(results_table(rounds, record.get("primary", "accuracy")))
    return lines


def _attempts(record: dict[str, Any]) -> list[str]:
    lines = []
    for number, attempt in enumerate(record.get("attempts", []), start=1):
        spent = f", {duration(attempt['seconds'])}" if "seconds" in attempt else ""
        lines.append(f"attempt {number}: {attempt.get('status', 'not ended')}{spent}; {attempt['trained']} trained, "
                     f"{attempt['found']} found; started {attempt['started']} on {attempt['host']} with "
                     f"{attempt['executor']}")
        lines += [_incident(one) for one in attempt["incidents"]]
    return lines


def _incident(one: dict[str, Any]) -> str:
    kind = f" ({one['kind']})" if "kind" in one else ""
    return f"  {one['time']} {one['who']}{kind}: {one['reason'].splitlines()[0]}"


def _logs(rundir: RunDir) -> list[str]:
    """The last line of the logs that were written last."""
    logs = sorted(rundir.path.glob("logs/*/*.log"), key=lambda path: path.stat().st_mtime)[-3:]
    lines = []
    for path in logs:
        text = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if text:
            lines.append(f"  {display_path(path)}: {text[-1]}")
    return lines
