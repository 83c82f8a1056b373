"""How far an analysis is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from swamp_ray.text.output import is_live

EVERY_S = 5.0


class Progress:
    """Tells how many pieces of an analysis are done; made to be derived from, silent itself."""

    @contextlib.contextmanager
    def of(self, run: str, total: int, found: int) -> Iterator[None]:
        """For as long as a run is analysed: its pieces, and those of them that were measured before."""
        yield

    def begins(self, text: str) -> None:
        """A piece is begun in this process."""

    def done(self, text: str) -> None:
        """A piece is measured and kept."""

    def note(self, text: str) -> None:
        """Something about the machines."""


class Lines(Progress):
    """Plain lines, one every few seconds.

    Args:
        console: Where they go.
        every_s: Seconds between two of them.
    """

    def __init__(self, console: Console, every_s: float = EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._run = ""
        self._total = 0
        self._done = 0
        self._last = -math.inf

    @contextlib.contextmanager
    def of(self, run: str, total: int, found: int) -> Iterator[None]:
        """A line at the beginning."""
        self._run = run
        self._total = total
        self._done = found
        self._last = -math.inf
        self._say(_beginning(total, found))
        yield

    def done(self, text: str) -> None:
        """A line, unless there has just been one."""
        self._done += 1
        if self._done == self._total or time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            self._say(f"{self._done}/{self._total}  {text}")

    def note(self, text: str) -> None:
        """A line."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(f"{self._run}: {text}", style="dim", soft_wrap=True, markup=False)


class Live(Progress):
    """A bar, which goes away at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None

    @contextlib.contextmanager
    def of(self, run: str, total: int, found: int) -> Iterator[None]:
        """The bar."""
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        width = len(f"{total}/{total}")
        columns = (BarColumn(bar_width=20, table_column=Column(min_width=20)),
                   MofNCompleteColumn(table_column=Column(min_width=width, no_wrap=True)),
                   TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
                   TextColumn("{task.description}", style="dim", markup=False, table_column=rest))
        with Bar(*columns, console=self._console, transient=True, expand=True) as bar:
            self._bar = bar
            bar.add_task("", total=total, completed=found)
            try:
                yield
            finally:
                self._bar = None
        self._console.print(f"{run}: {_beginning(total, found)}", style="dim", soft_wrap=True, markup=False)

    def begins(self, text: str) -> None:
        """Beside the bar."""
        self._update(text, 0)

    def done(self, text: str) -> None:
        """Move the bar."""
        self._update(text, 1)

    def note(self, text: str) -> None:
        """Above the bar."""
        self._console.print(text, style="dim", soft_wrap=True, markup=False)

    def _update(self, text: str, advance: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=advance, description=text)


def _beginning(total: int, found: int) -> str:
    pieces = f"{total} piece{'' if total == 1 else 's'} of work"
    return f"{pieces}, {found if found < total else 'all'} of them measured before" if found else pieces


def make_progress(console: Console) -> Progress:
    """What fits a console."""
    return Live(console) if is_live(console) else Lines(console)
