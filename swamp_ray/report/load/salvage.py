"""What a report can still read of a run whose files were cut short or damaged, and what it has to do without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from swamp_ray.errors import SwampError, first_line
from swamp_ray.storage.json_lines import Salvaged, salvage_lines
from swamp_ray.storage.metrics import since_afresh
from swamp_ray.storage.places import Spot
from swamp_ray.storage.records import JobLine, ResultRecord, ScalarsRecord, fits, is_job_line, parse_job_lines
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.tables import ranges

ANALYSES = ("calibration", "connectivity", "curvature", "landscape", "masks", "particles")


class Losses:
    """What of a run could not be read. Whoever finds it out notes it, and the page tells it."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._unverified: list[str] = []
        self._tickets: set[int] = set()

    def note(self, what: str, text: str) -> None:
        """Something is lost; of one and the same thing the last word counts."""
        self._notes[what] = text

    def of(self, what: str) -> str:
        """What is noted of a thing, or nothing."""
        return self._notes.get(what, "")

    def forget(self, what: str) -> None:
        """It has been made anew."""
        self._notes.pop(what, None)

    def unverified(self, *files: str) -> None:
        """Files hold something without a checksum, as older versions wrote it."""
        self._unverified += [file for file in files if file not in self._unverified]

    def ticket(self, index: int) -> None:
        """A round's ticket was needed, and is damaged or not there."""
        self._tickets.add(index)

    def sentences(self) -> Iterator[str]:
        """One a thing."""
        yield from self._notes.values()
        if self._unverified:
            yield (f"Not verified, since an older version wrote them without checksums: {', '.join(self._unverified)}.")
        if self._tickets:
            several = len(self._tickets) > 1
            yield (f"The ticket{'s' * several} of round{'s' * several} {ranges(self._tickets)} cannot be read or "
                   f"trusted: figures that are drawn from the networks lack {'them' if several else 'it'}.")


def rounds_of(rundir: RunDir, losses: Losses) -> list[dict[str, Any]]:
    """The finished rounds whose records hold."""
    found = _attempted(rundir.salvage_rounds, rundir.rounds, losses)
    return list(_told(found, rundir.rounds, losses, "tables and figures do without"))


def metrics_of(rundir: RunDir, losses: Losses) -> list[dict[str, Any]]:
    """Every scalar, an epoch once: a killed attempt may have begun to write what a later one wrote in full."""
    found = _attempted(lambda: salvage_lines(rundir.metrics, _is_scalars), rundir.metrics, losses)
    lines = since_afresh(_told(found, rundir.metrics, losses, "curves and epochs do without"))
    last = {_about(line) if str(line["kind"]).endswith("_epoch") else number: line
            for number, line in enumerate(lines)}
    return list(last.values())


def jobs_of_workers(rundir: RunDir, losses: Losses) -> list[JobLine]:
    """What workers began and did."""
    found = _attempted(lambda: salvage_lines(rundir.jobs, is_job_line), rundir.jobs, losses)
    lines = _told(found, rundir.jobs, losses, "the figure of the workers does without")
    return parse_job_lines(lines)


def results_of(rundir: RunDir, losses: Losses) -> list[dict[str, Any]]:
    """The artifacts that the run has noted."""
    found = _attempted(lambda: salvage_lines(rundir.results, lambda line: fits(ResultRecord, line)), rundir.results,
                       losses)
    return list(_told(found, rundir.results, losses, "costs do without"))


def analyses_of(rundir: RunDir, losses: Losses) -> dict[str, dict[str, Any]]:
    """What analyses have written, without files that are damaged."""
    found = {}
    for what in ANALYSES:
        spot = rundir.analysis(what)
        try:
            data = spot.read()
            value = None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            value = ()
        except (SwampError, OSError) as error:
            losses.note(what, f"{_name(spot)} cannot be read ({first_line(error)}).")
            continue
        if _is_analysis(value):
            found[what] = value
        elif value is not None:
            losses.note(what, f"{_name(spot)} is damaged: its figures are missing. {remeasure(what, rundir.name)}")
    return found


def remeasure(what: str, name: str) -> str:
    """How a damaged file of an analysis is replaced."""
    return f"Measure anew with: swamp analyze {what} {name}"


def _attempted(read: Callable[[], Salvaged], spot: Spot, losses: Losses) -> Salvaged:
    try:
        return read()
    except (SwampError, OSError) as error:
        losses.note(spot.key, f"{_name(spot)} cannot be read ({first_line(error)}).")
        return Salvaged(())


def _told(found: Salvaged, spot: Spot, losses: Losses, so: str) -> tuple[dict[str, Any], ...]:
    """The records; which lines are damaged is noted."""
    parts = []
    if found.unverified:
        losses.unverified(_name(spot))
    if found.damaged:
        several = len(found.damaged) > 1
        parts.append(f"line{'s' * several} {ranges(found.damaged)} of {found.num_lines} "
                     f"{'are' if several else 'is'} damaged")
    if found.is_cut_off:
        parts.append("its last line is cut off")
    if parts:
        losses.note(spot.key, f"{_name(spot)}: {' and '.join(parts)}; {so}.")
    return found.records


def _name(spot: Spot) -> str:
    """A file as it is called in its run's folder."""
    return spot.key.split("/", 2)[-1]


def _about(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("kind", "round", "particle", "epoch"))


def _is_scalars(line: Mapping[str, Any]) -> bool:
    return "kind" in line and fits(ScalarsRecord, line)


def _is_analysis(value: Any) -> bool:
    """Whether a file holds rows, or, of masks that were only compared with other runs', none."""
    if not isinstance(value, dict):
        return False
    rows = value.get("rows", value.get("between_runs"))
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
