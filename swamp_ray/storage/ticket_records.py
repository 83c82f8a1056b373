"""Tickets of runs: where they lie, what their runs recorded of them, and what is said where nothing was recorded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp_ray.errors import SwampError, UserError
from swamp_ray.storage.local import check_is_file
from swamp_ray.storage.places import is_url
from swamp_ray.storage.run_folder import RunDir

TICKET_FILE = "model.safetensors"

_logger = logging.getLogger(__name__)
_told: set[str] = set()
_INSIDE = re.compile(r"(?P<root>.+)/runs/(?P<run>[^/]+)/(?P<file>tickets/[^/]+/[^/]+)")


def recorded_digest(path: str | Path) -> str:
    """SHA-256 of a ticket's file as its run recorded it; "" where it lies in no run's folder, or nothing is recorded.

    Args:
        path: Of the file, or its URL.
    """
    inside = _inside(path)
    if inside is None:
        return ""
    rundir, file = inside
    try:
        records = rundir.salvage_rounds().records
    except (SwampError, OSError):
        return ""
    for record in records:
        if str(record.get("ticket", "")).endswith(f"/{file}"):
            return str(record.get("ticket_sha256") or "")
    return ""


def check_is_of_round(meta: Mapping[str, Any], record: Mapping[str, Any], where: str) -> None:
    """Refuse a ticket whose own words are those of another round than the one that it is recorded for.

    Args:
        meta: What the ticket says of itself.
        record: The round's.
        where: The file.
    """
    for key in ("round", "survivors"):
        if meta.get(key) not in (None, record.get(key)):
            raise UserError(f"this is a ticket of another round: its {key} is {meta[key]} instead of {record.get(key)}",
                            where=where, do="Run the same command as before: it writes the ticket anew from the stored "
                            "results.")


def refuse_no_file(path: Path) -> None:
    """Refuse a folder, and what would be waited for; that there is nothing at all is for others to say.

    Raises:
        UserError: It says which files the folder has.
        RunError: It is a pipe or a device.
    """
    if path.is_dir():
        found = [one for pattern in (TICKET_FILE, f"*/{TICKET_FILE}", f"tickets/*/{TICKET_FILE}")
                 for one in sorted(path.glob(pattern))]
        do = f"Name a file in it: {found[0]}." if len(found) == 1 else \
            f"Name one of the {len(found)} files in it, e.g. {found[-1]}." if found else \
            f"Tickets are files: STORAGE/runs/NAME/tickets/SPARSITY/{TICKET_FILE}."
        raise UserError("this is a folder, and a ticket is a file", where=str(path), do=do)
    check_is_file(path)


def tell_unverified(path: str | Path) -> None:
    """Say once for each run, or each file elsewhere, that its tickets cannot be verified."""
    inside = _inside(path)
    what = f"the tickets of the run {inside[0].name!r}" if inside else f"the ticket {path}"
    if what not in _told:
        _told.add(what)
        _logger.warning("%s cannot be verified: they are older than digests of tickets. The same run again adds them."
                        if inside else "%s cannot be verified: it is older than digests of tickets.", what)


def _inside(path: str | Path) -> tuple[RunDir, str] | None:
    """The run in whose folder a ticket lies, and its name there."""
    text = str(path) if is_url(path) else Path(path).absolute().as_posix()
    found = _INSIDE.fullmatch(text)
    if found is None:
        return None
    try:
        return RunDir(found["root"], found["run"]), found["file"]
    except UserError:
        return None
