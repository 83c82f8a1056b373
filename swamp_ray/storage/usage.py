"""Which artifacts a run has noted: what nobody may remove as unused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import as_place
from swamp_ray.storage.run_folder import RunDir

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Use:
    """One artifact of a run: ``kind`` is dense, trunk, particle, average or evaluation."""

    kind: str
    round: int
    particle: int
    name: str


@dataclass(frozen=True)
class Usage:
    """All that a run has noted, and the rounds that it has recorded."""

    run: str
    status: str
    uses: tuple[Use, ...]
    recorded: frozenset[int]

    @property
    def names(self) -> frozenset[str]:
        """Names of its artifacts."""
        return frozenset(use.name for use in self.uses)


def run_dirs(storage: str | Place) -> list[RunDir]:
    """All runs of a storage root, by name.

    Raises:
        UserError: Something else lies among them, or a link that leads nowhere, so that nobody knows what it needs.
    """
    found = []
    place = as_place(storage)
    names = place.folders("runs")
    _check_links(place, names)
    for name in names:
        try:
            found.append(RunDir(place, name))
        except UserError as error:
            raise UserError("this folder lies among the runs, but its name is none of a run", got=name,
                            where=str(place.locate("runs")), do="Move it away or rename it.") from error
    return found


def _check_links(place: Place, names: Sequence[str]) -> None:
    """Refuse what may be a run that cannot be seen: a link that leads nowhere, as to a disk that is not mounted."""
    broken = [f"runs/{name}" for name, kind in place.others("runs").items() if kind == "a link" and name not in names]
    if place.others("").get("runs") is not None and "runs" not in place.folders(""):
        broken.insert(0, "runs")
    if broken:
        raise UserError("this is a link that leads to no folder, so nobody knows which results are needed",
                        got=broken[0], where=str(place.locate("")),
                        do="Restore what it leads to, or remove the link.")


def other_runs(rundir: RunDir) -> list[RunDir]:
    """The other runs of a run's storage root."""
    return [other for other in run_dirs(rundir.place) if other.name != rundir.name]


def read_usage(rundir: RunDir) -> Usage:
    """What a run has noted.

    Raises:
        CorruptArtifactError: Its files are damaged, or contradict each other.
    """
    try:
        uses = tuple(_use(record) for record in rundir.read_results())
        rounds = rundir.read_rounds()
        recorded = frozenset(int(record["round"]) for record in rounds)
        named = {name for record in rounds for name in _names_in(record["artifacts"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{rundir.spot()}: its records are not what was written "
                                   f"({type(error).__name__}: {error}). Restore them, or remove the run.") from error
    if named - {use.name for use in uses}:
        raise CorruptArtifactError(f"{rundir.spot()}: results.jsonl lacks artifacts that rounds.jsonl names. Run it "
                                   "again, which writes them anew, or remove the run.")
    return Usage(rundir.name, str((rundir.read_run() or {}).get("status", "not started")), uses, recorded)


def _use(record: dict[str, Any]) -> Use:
    if not _NAME.fullmatch(record["name"]):
        raise ValueError(f"{record['name']!r} is no name of an artifact")
    return Use(str(record["kind"]), int(record["round"]), int(record["particle"]), record["name"])


def _names_in(artifacts: dict[str, Any]) -> list[str]:
    entries = [*artifacts["particles"], artifacts["average"], artifacts["evaluation"], artifacts.get("trunk")]
    return [entry["name"] for entry in entries if entry is not None]
