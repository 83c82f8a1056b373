"""``swamp report``: from names of runs to the page and the files beside it."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from swamp_ray.errors import CorruptArtifactError, RunError, SwampError, UserError
from swamp_ray.locating import DEFAULT_STORAGE, find_either, find_run
from swamp_ray.report.building import DAMAGED, build
from swamp_ray.report.drawing import png_of
from swamp_ray.report.measuring import measured, without_calibration
from swamp_ray.report.page import Drawn, Page, csv_of, render
from swamp_ray.report.reading import read_runs
from swamp_ray.storage.files import write_atomic
from swamp_ray.storage.places import Place, is_url, open_place
from swamp_ray.storage.rundir import RunDir
from swamp_ray.storage.sweepdir import SweepDir
from swamp_ray.tables import display_path

DEFAULT_OUTPUT = "report.html"


@dataclass(frozen=True)
class Written:
    """What a report consists of.

    Attributes:
        page: The HTML file: a path, or a URL in an object store.
        files: The figures and their data beside it.
    """

    page: Path | str
    files: tuple[Path | str, ...]


@dataclass(frozen=True)
class Target:
    """Where a report goes: a page, and a folder of files beside it.

    Attributes:
        place: A storage root, or None for plain files.
        root: Folder of the page: a key in the place, or a path.
        page: Name of the page.
    """

    place: Place | None
    root: str
    page: str

    @property
    def folder(self) -> str:
        """Name of the folder beside the page."""
        return self.page.rpartition(".")[0]

    def locate(self, name: str) -> Path | str:
        """Where a file of the report lies; ``name`` is relative to the page."""
        return Path(self.root, name) if self.place is None else self.place.locate(f"{self.root}/{name}".lstrip("/"))

    def write(self, name: str, data: bytes) -> Path | str:
        """Write a file of the report."""
        if self.place is None:
            write_atomic(Path(self.root, name), data)
        else:
            self.place.write(f"{self.root}/{name}".lstrip("/"), data)
        return self.locate(name)

    def check_writable(self) -> None:
        """Try it, before any work is done.

        Raises:
            UserError: Nothing can be written there.
        """
        probe = f"{self.folder}/.probe-{uuid.uuid4().hex[:12]}"
        try:
            if Path(str(self.locate(self.page))).is_dir():
                raise UserError("the report must be a file", got=str(self.locate(self.page)), where="--output",
                                do="Name an HTML file, e.g. report.html.")
            self.write(probe, b"")
            self._remove(probe)
        except (RunError, OSError) as error:
            raise UserError(f"the report cannot be written ({error})", where="--output",
                            do="Choose another file with --output.") from error

    def _remove(self, name: str) -> None:
        if self.place is None:
            Path(self.root, name).unlink()
        else:
            self.place.remove(f"{self.root}/{name}".lstrip("/"), durable=False)


def write_report(names: Sequence[str], storage: str | None = None, output: str | Path | None = None, *,
                 measure: bool = True, say: Callable[[str], None] = lambda _: None) -> Written:
    """Write the report of one or several runs. Nothing is trained; what is measured is kept beside the runs.

    Args:
        names: Names of runs in the storage, patterns of names such as ``imp-*``, or paths or URLs of their folders. The
            first one's arm is the baseline that others are compared with.
        storage: Storage root; default ``./results``.
        output: The HTML file. Default: of one run ``report.html`` in its folder, of several ``./report.html``. Figures
            and their data go into a folder of the same name beside it.
        measure: Measure the calibration of runs that lack it.
        say: Told what is being done.

    Raises:
        UserError: There is no such run, one has no finished round, the runs cannot be shown together, or the file
            cannot be written.
        CorruptArtifactError: A file of a run is not what was written.
    """
    names = list(_expanded(names, storage, say))
    found = [_find(name, storage) for name in names]
    target = _target(found, output)
    runs = read_runs(names, storage)
    target.check_writable()
    try:
        runs, notes = measured(runs, say) if measure else (runs, without_calibration(runs))
        say(f"drawing the figures of {len(runs)} run{'s' if len(runs) > 1 else ''} ...")
        page = build(runs, _command(names, storage, output, measure), target.folder, notes)
    except SwampError:
        raise
    except DAMAGED as error:
        where = ", ".join(str(rundir.spot()) for rundir in found)
        raise CorruptArtifactError(f"{where}: the records are not what was written ({type(error).__name__}: {error}). "
                                   "Run the run again, which writes them anew, or restore them.") from error
    return _write(page, target)


def report(names: Sequence[str], storage: str | None, output: str | None, measure: bool) -> None:
    """Write a report, and print where it is."""
    console = Console(highlight=False)
    written = write_report(names, storage, output, measure=measure,
                           say=lambda text: console.print(text, style="dim", soft_wrap=True))
    console.print(f"report: {display_path(written.page)}", style="bold", soft_wrap=True)
    figures = len(written.files) // 3
    folder = str(display_path(written.files[0])).rpartition("/")[0]
    console.print(f"{figures} figures as SVG and PNG, with their data as CSV: {folder}/", soft_wrap=True)


def _expanded(names: Sequence[str], storage: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """Names as they are, and in place of a pattern the runs in the storage that it fits, in order.

    Of these, runs without a finished round are left out: a study that is going on can be looked at. So are those of
    swapped masks, which have a table of their own.
    """
    for name in names:
        if is_url(name) or os.sep in name or not set("*?[") & set(name):
            yield name
            continue
        place = open_place(storage or DEFAULT_STORAGE)
        fitting = [run for run in place.folders("runs") if fnmatchcase(run, name) and run not in names]
        cells = [run for run in fitting if RunDir(place, run).start.read() is not None]
        begun = [run for run in fitting if run not in cells and RunDir(place, run).read_rounds()]
        for run in sorted(set(fitting) - set(begun)):
            say(f"{run}: left out, it " + ("is of swapped masks" if run in cells else "has no finished round yet"))
        if not begun and not any(fnmatchcase(other, name) for other in names if other != name):
            raise UserError("no run with a finished round fits this pattern", got=name, where="RUN...",
                            do=f"See which there are in {place.locate('runs')}.")
        yield from begun


def _find(name: str, storage: str | None) -> RunDir:
    found = find_either(name, storage)
    if isinstance(found, SweepDir):
        raise UserError("this is a sweep, and a report is about runs", got=name, where="RUN...",
                        do=f"Its own figures and tables are in {display_path(str(found.spot()))}; to see some of its "
                        f"runs in full, name these: swamp status {name} lists its settings.")
    return find_run(name, storage)


def _target(found: Sequence[RunDir], output: str | Path | None) -> Target:
    if output is None and len(found) == 1:
        folder, _, page = found[0].report.key.rpartition("/")
        return Target(found[0].place, folder, page)
    text = DEFAULT_OUTPUT if output is None else str(output)
    if not text.lower().endswith((".html", ".htm")):
        raise UserError("the report is an HTML file", got=text, where="--output", do="Let its name end in .html.")
    if is_url(text):
        folder, _, page = text.rpartition("/")
        return Target(open_place(folder), "", page)
    path = Path(text).expanduser().absolute()
    return Target(None, str(path.parent), path.name)


def _write(page: Page, target: Target) -> Written:
    """Files first, so that a page never points at what is not there."""
    files: list[Path | str] = []
    for drawn in (drawn for part in page.parts for drawn in part.charts):
        for kind, data in _payloads(drawn).items():
            files.append(target.write(drawn.files[kind], data))
    return Written(target.write(target.page, render(page)), tuple(files))


def _payloads(drawn: Drawn) -> dict[str, bytes]:
    return {"CSV": csv_of(drawn.chart), "SVG": drawn.svg.encode(), "PNG": png_of(drawn.chart.figure)}


def _command(names: Sequence[str], storage: str | None, output: str | Path | None, measure: bool) -> str:
    words = ["swamp", "report", *names]
    words += ["--storage", storage] if storage is not None else []
    words += ["--output", str(output)] if output is not None else []
    return shlex.join([*words, *([] if measure else ["--no-measure"])])
