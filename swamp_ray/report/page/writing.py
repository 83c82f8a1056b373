"""``swamp report``: from names of runs to the page and the files beside it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from swamp_ray.errors import CorruptArtifactError, SwampError, UserError
from swamp_ray.process_state import computing
from swamp_ray.report.charts.drawing import png_of
from swamp_ray.report.load.runs import read_runs
from swamp_ray.report.page.building import DAMAGED, build
from swamp_ray.report.page.html import Drawn, Page, csv_of, render
from swamp_ray.report.page.measuring import measured, without_calibration
from swamp_ray.report.page.sweep_page import build_sweep
from swamp_ray.report.page.target import Target, target_of, target_of_sweep
from swamp_ray.storage.find import DEFAULT_STORAGE, find_either, find_run
from swamp_ray.storage.places import is_url, open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.text.output import Output
from swamp_ray.text.tables import counted, display_path


@dataclass(frozen=True)
class Written:
    """What a report consists of.

    Attributes:
        page: The HTML file: a path, or a URL in an object store.
        files: The figures and their data beside it.
        missing: By run, what of it could not be read or is not there, and what could not be measured.
    """

    page: Path | str
    files: tuple[Path | str, ...]
    missing: tuple[str, ...] = ()


@computing()
def write_report(names: Sequence[str], storage: str | None = None, output: str | Path | None = None, *,
                 measure: bool = True, page_only: bool = False,
                 say: Callable[[str], None] = lambda _: None) -> Written:
    """Write the report of one or several runs, or of a sweep. Nothing is trained; what is measured is kept with runs.

    Args:
        names: Names of runs in the storage, patterns of names such as ``imp-*``, or paths or URLs of their folders. The
            first one's arm is the baseline that others are compared with. Or one sweep, whose page has its arms beside
            each other at each sparsity.
        storage: Storage root; default ``./results``.
        output: The HTML file. Default: of one run ``report.html`` in its folder, of several ``./report.html``. Figures
            and their data go into a folder of the same name beside it.
        measure: Measure the calibration of runs that lack it.
        page_only: Write no files beside the page, which carries figures and data itself.
        say: Told what is being done.

    Raises:
        UserError: There is no such run, one has no finished round, the runs cannot be shown together, or the file
            cannot be written.
        CorruptArtifactError: A file of a run is not what was written.
    """
    names = list(_expanded(names, storage, say))
    sweepdir = _sweep_among(names, storage)
    if sweepdir is not None:
        return _write_sweep(sweepdir, _command(names, storage, output, measure, page_only), output, page_only, say)
    found = [find_run(name, storage) for name in names]
    target = target_of(found, output)
    runs = read_runs(names, storage)
    target.check_writable()
    try:
        runs, unmeasured = measured(runs, say) if measure else (runs, [])
        say(f"drawing the figures of {len(runs)} run{'s' if len(runs) > 1 else ''} ...")
        notes = unmeasured if measure else without_calibration(runs)
        page = build(runs, _command(names, storage, output, measure, page_only),
                     None if page_only else target.folder, notes)
    except SwampError:
        raise
    except DAMAGED as error:
        where = ", ".join(str(rundir.spot()) for rundir in found)
        raise CorruptArtifactError(f"{where}: the records are not what was written ({type(error).__name__}: {error}). "
                                   "Run the run again, which writes them anew, or restore them.") from error
    written, files = _write(page, target)
    lacking = [f"{name}: {sentence}" for name, sentences in page.missing for sentence in sentences]
    return Written(written, tuple(files), (*lacking, *unmeasured))


def report(names: Sequence[str], storage: str | None, output: str | None, measure: bool, page_only: bool) -> None:
    """Write a report, and print where it is."""
    console = Output(highlight=False)
    written = write_report(names, storage, output, measure=measure, page_only=page_only,
                           say=lambda text: console.print(text, style="dim", soft_wrap=True))
    for text in written.missing:
        console.print(text, style="yellow", soft_wrap=True, markup=False)
    console.print(f"report: {display_path(written.page)}", style="bold", soft_wrap=True)
    if page_only:
        return
    figures = sum(str(file).endswith(".svg") for file in written.files)
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
        rounds = {run: RunDir(place, run).salvage_rounds() for run in fitting if run not in cells}
        begun = [run for run, found in rounds.items() if found.records]
        if cells:
            say(f"{counted(len(cells), 'run')} of swapped masks {'are' if len(cells) > 1 else 'is'} left out")
        for run in sorted(set(rounds) - set(begun)):
            say(f"{run}: left out, it has " + ("rounds of which none can be read" if rounds[run].num_lines else
                                               "no finished round yet"))
        if not begun and not any(fnmatchcase(other, name) for other in names if other != name):
            raise UserError("no run with a finished round fits this pattern", got=name, where="RUN...",
                            do=f"See which there are in {place.locate('runs')}.")
        yield from begun


def _sweep_among(names: Sequence[str], storage: str | None) -> SweepDir | None:
    """The sweep that is named; None where all names are those of runs.

    Raises:
        UserError: There are other names beside a sweep's.
    """
    for name in names:
        found = find_either(name, storage)
        if not isinstance(found, SweepDir):
            continue
        if len(names) > 1:
            raise UserError("the report of a sweep is about that sweep alone", got=" ".join(names), where="RUN...",
                            do=f"Write it with: swamp report {name}. To see some of its runs in full, name these: "
                            f"swamp status {name} lists its settings.")
        return found
    return None


def _write_sweep(sweepdir: SweepDir, command: str, output: str | Path | None, page_only: bool,
                 say: Callable[[str], None]) -> Written:
    """The page of a sweep, beside its own tables by default."""
    target = target_of_sweep(sweepdir, output)
    target.check_writable()
    say(f"drawing the figures of the sweep {sweepdir.name} ...")
    made = build_sweep(sweepdir, command, None if page_only else target.folder)
    *files, page = target.write_all(chain(made.files.items(), _files_of(made.page), [(target.page, render(made.page))]))
    return Written(page, tuple(files))


def _write(page: Page, target: Target) -> tuple[Path | str, list[Path | str]]:
    """The page and the figures beside it: both, or nothing of either."""
    *figures, last = target.write_all(chain(_files_of(page), [(target.page, render(page))]))
    return last, figures


def _files_of(page: Page) -> Iterator[tuple[str, bytes]]:
    """The figures beside a page, with their data."""
    for part in page.parts:
        for drawn in part.charts:
            if drawn.files:
                yield from ((drawn.files[kind], data) for kind, data in _payloads(drawn).items())


def _payloads(drawn: Drawn) -> dict[str, bytes]:
    return {"CSV": csv_of(drawn.chart), "SVG": drawn.svg.encode(), "PNG": png_of(drawn.chart.figure)}


def _command(names: Sequence[str], storage: str | None, output: str | Path | None, measure: bool,
             page_only: bool) -> str:
    words = ["swamp", "report", *names]
    words += ["--storage", storage] if storage is not None else []
    words += ["--output", str(output)] if output is not None else []
    flags = {"--no-measure": not measure, "--page-only": page_only}
    return shlex.join([*words, *(flag for flag, given in flags.items() if given)])
