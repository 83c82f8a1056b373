"""What may be removed from a storage root, and removing it.

Removable is what no run has noted and nobody has touched for a while, the checkpoints of finished results, and what
writers that died have left behind. Manifests go first: at any moment an artifact is all there or does not exist.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.storage.artifacts import CHECKPOINT, DIVERGED, RESULT, STALE_S, Manifest, parse_manifest, payload_name
from swamp_ray.storage.place import Entry, Place, is_key
from swamp_ray.storage.usage import Usage, read_usage, run_dirs

UNUSED = "artifacts that no run names"
CHECKPOINTS = "checkpoints of finished results"
LEFTOVERS = "leftovers of interrupted writers"
KINDS = (UNUSED, CHECKPOINTS, LEFTOVERS)

_NAME = re.compile(r"[0-9a-f]{64}")
_MANIFEST = re.compile(r"[a-z][a-z0-9-]{0,31}\.json")
_PROBE = ".probe-"
_LOOK_AGAIN_EVERY = 50


@dataclass(frozen=True)
class Removal:
    """Objects that go together, in this order.

    Attributes:
        kind: One of `KINDS`.
        name: The artifact that they belong to.
        keys: Objects, manifests first.
        num_bytes: Their size.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True)
class RunSpace:
    """Bytes of a run: ``own``: its folder and the artifacts that it alone names; ``shared``: with other runs."""

    name: str
    status: str
    num_artifacts: int
    own_bytes: int
    shared_bytes: int


@dataclass
class Survey:
    """A storage root as it was found.

    Attributes:
        removals: What may be removed.
        runs: Its runs by name.
        num_young: Artifacts that no run names, but that are too young to be removed.
        young_bytes: Their size.
        strange: Links, named pipes, sockets and devices, by where they lie: they and what is behind them stay.
    """

    removals: list[Removal] = field(default_factory=list)
    runs: list[RunSpace] = field(default_factory=list)
    num_young: int = 0
    young_bytes: int = 0
    strange: dict[str, str] = field(default_factory=dict)


def survey(place: Place, older_than_s: float) -> Survey:
    """Look through a storage root; nothing in it is changed but for a small file that tells the place's time.

    What lies behind a link is neither looked at nor removed. The records of a run that is a link do count.

    Args:
        place: The storage root.
        older_than_s: What was written within so many seconds is left alone.

    Raises:
        CorruptArtifactError: The records of a run cannot be read: what it needs is not known.
        UserError: Something that is no run lies among the runs, or one of them is a link that leads nowhere.
    """
    usages = [read_usage(rundir) for rundir in run_dirs(place.uri)]
    named = _named(usages)
    strange: dict[str, str] = {}
    contents = {name: place.entries(_folder(name)) for name in _artifacts(place, strange)}
    loose = place.entries("artifacts") if "artifacts" not in strange else []
    now_s = _now_s(place, [entry for entries in contents.values() for entry in entries])
    found = Survey(runs=_run_spaces(place, usages, contents, strange), strange=strange)
    for name, entries in contents.items():
        if name in named:
            found.removals += _inside(place, name, entries, now_s, older_than_s)
        elif entries and max(entry.modified_s for entry in entries) > now_s - older_than_s:
            found.num_young += 1
            found.young_bytes += _size(entries)
        elif entries:
            found.removals.append(_removal(UNUSED, name, entries))
    stale = [entry for entry in loose if entry.name.startswith(_PROBE) and entry.modified_s <= now_s - older_than_s]
    if stale:
        keys = tuple(f"artifacts/{entry.name}" for entry in stale)
        found.removals.append(Removal(LEFTOVERS, "", keys, _size(stale)))
    return found


def remove(place: Place, removals: Sequence[Removal], removed: Callable[[Removal], None] | None = None) -> None:
    """Remove what a survey has found, unless a run has noted it since.

    Being stopped in between leaves a sound storage, and the next call does the rest.

    Args:
        place: The storage root.
        removals: From `survey`.
        removed: Told of each that is gone.

    Raises:
        RunError: An object could not be removed, or the records of a run cannot be read any more.
    """
    named: set[str] = set()
    for index, removal in enumerate(removals):
        if index % _LOOK_AGAIN_EVERY == 0:
            named = _named([read_usage(rundir) for rundir in run_dirs(place.uri)])
        if removal.kind == UNUSED and removal.name in named:
            continue
        for key in removal.keys:
            place.remove(key)
        if removed is not None:
            removed(removal)


def _named(usages: Sequence[Usage]) -> set[str]:
    return {name for usage in usages for name in usage.names}


def _folder(name: str) -> str:
    return f"artifacts/{name[:2]}/{name}"


def _artifacts(place: Place, strange: dict[str, str]) -> Iterator[str]:
    """The names of artifacts; what is neither a file nor a folder is added to `strange` on the way."""
    if "artifacts" not in own_folders(place, "", strange):
        return
    for prefix in own_folders(place, "artifacts", strange):
        for name in own_folders(place, f"artifacts/{prefix}", strange):
            # Whatever else lies there is not this project's.
            if _NAME.fullmatch(name) and name.startswith(prefix):
                _note_others(place, _folder(name), strange)
                yield name


def own_folders(place: Place, folder: str, strange: dict[str, str]) -> list[str]:
    """The folders in a folder that are not links; links and the like are added to `strange`."""
    others = _note_others(place, folder, strange)
    return [name for name in place.folders(folder) if name not in others and is_key(name)]


def _note_others(place: Place, folder: str, strange: dict[str, str]) -> dict[str, str]:
    others = place.others(folder)
    strange.update({f"{folder}/{name}".lstrip("/"): kind for name, kind in others.items()})
    return others


def _inside(place: Place, name: str, entries: Sequence[Entry], now_s: float, older_than_s: float) -> list[Removal]:
    """What may go of an artifact that stays; nothing while a manifest is damaged or unknown: it could name anything."""
    slots = {entry.name.removesuffix(".json") for entry in entries if _MANIFEST.fullmatch(entry.name)}
    if slots - {RESULT, CHECKPOINT, DIVERGED}:
        return []
    try:
        manifests = {slot: _manifest(place, name, slot) for slot in (RESULT, CHECKPOINT) if slot in slots}
    except (CorruptArtifactError, FileNotFoundError):
        return []
    found: list[Removal] = []
    named = {payload_name(*item) for manifest in manifests.values() for item in manifest.files.items()}
    if RESULT in manifests and CHECKPOINT in manifests:
        result = {payload_name(*item) for item in manifests[RESULT].files.items()}
        over = {f"{CHECKPOINT}.json", *(payload_name(*item) for item in manifests[CHECKPOINT].files.items())} - result
        parts = [entry for entry in entries if entry.name in over]
        if all(entry.modified_s <= now_s - older_than_s for entry in parts):
            found.append(_removal(CHECKPOINTS, name, parts))
    # What is written just now is not named yet, whatever age was asked for.
    left = [entry for entry in entries if entry.name not in named
            and entry.modified_s <= now_s - max(older_than_s, STALE_S)
            and (_NAME.fullmatch(entry.name[:64]) or entry.name.endswith(".tmp"))]
    if left:
        found.append(_removal(LEFTOVERS, name, left))
    return found


def _manifest(place: Place, name: str, slot: str) -> Manifest:
    return parse_manifest(place.read(f"{_folder(name)}/{slot}.json"), name, slot)


def _removal(kind: str, name: str, entries: Sequence[Entry]) -> Removal:
    # The result's manifest first: without it there is no result that anyone could find half removed.
    order = sorted(entries, key=lambda entry: (entry.name != f"{RESULT}.json", not entry.name.endswith(".json"),
                                               entry.name))
    return Removal(kind, name, tuple(f"{_folder(name)}/{entry.name}" for entry in order), _size(order))


def _size(entries: Sequence[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _now_s(place: Place, entries: Sequence[Entry]) -> float:
    """The place's own clock, which dates its objects; where nothing can be written, when it was written to last."""
    name = f"{_PROBE}{uuid.uuid4().hex[:12]}"
    try:
        place.write(f"artifacts/{name}", b"")
        now = next((entry.modified_s for entry in place.entries("artifacts") if entry.name == name), None)
        place.remove(f"artifacts/{name}")
    except RunError:
        now = None
    # The last write lies in the past, so that everything counts as younger than it is.
    return now if now is not None else max((entry.modified_s for entry in entries), default=0.0)


def _run_spaces(place: Place, usages: Sequence[Usage], contents: dict[str, list[Entry]],
                strange: dict[str, str]) -> list[RunSpace]:
    users: dict[str, int] = {}
    if "runs" not in strange:
        _note_others(place, "runs", strange)
    for usage in usages:
        for name in usage.names:
            users[name] = users.get(name, 0) + 1
    spaces = []
    for usage in usages:
        sizes = {name: _size(contents.get(name, [])) for name in usage.names}
        own = sum(size for name, size in sizes.items() if users[name] == 1) + (
            _tree_bytes(place, f"runs/{usage.run}", strange) if f"runs/{usage.run}" not in strange else 0)
        shared = sum(size for name, size in sizes.items() if users[name] > 1)
        spaces.append(RunSpace(usage.run, usage.status, sum(size > 0 for size in sizes.values()), own, shared))
    return spaces


def _tree_bytes(place: Place, folder: str, strange: dict[str, str]) -> int:
    inner = sum(_tree_bytes(place, f"{folder}/{name}", strange) for name in own_folders(place, folder, strange))
    return inner + _size(place.entries(folder))
