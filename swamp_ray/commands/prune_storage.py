"""``swamp prune-storage``: what a storage root holds, and what of it no run needs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from swamp_ray.errors import UserError
from swamp_ray.storage.cleanup import KINDS, Removal, RunSpace, Survey, remove, survey
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place
from swamp_ray.text.output import Output
from swamp_ray.text.tables import size

SHOWN_STRANGE = 10

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def prune_storage(storage: str, delete: bool, older_than: str) -> None:
    """Print what could be removed from a storage root, and remove it if asked to.

    Args:
        storage: The storage root.
        delete: Remove it; otherwise nothing is changed.
        older_than: An age, e.g. ``"24h"``; what is younger is left alone.

    Raises:
        UserError: There is no such storage root, or the age is none.
        RunError: The records of a run are damaged, or something could not be removed.
    """
    age_s = parse_age(older_than)
    place = open_place(storage)
    _check_storage(place)
    console = Output(highlight=False)
    found = survey(place, age_s)
    if found.runs:
        console.print(runs_table(found.runs))
    console.print(removals_table(found.removals))
    if found.num_young:
        console.print(f"left alone: {found.num_young} artifacts that no run names but that are younger than "
                      f"{older_than} ({size(found.young_bytes)})", soft_wrap=True)
    _name_strange(console, place, found)
    if not found.removals:
        console.print("nothing to remove")
    elif delete:
        _delete(console, place, found)
    else:
        console.print("nothing was removed; --delete removes it")


def _name_strange(console: Console, place: Place, found: Survey) -> None:
    for key, kind in list(found.strange.items())[:SHOWN_STRANGE]:
        where = Path(str(place.locate("")), key)
        leads = f" to {os.readlink(where)}" if kind == "a link" and where.is_symlink() else ""
        console.print(f"left alone: {_printable(str(where))} is {kind}{_printable(leads)}", soft_wrap=True,
                      markup=False)
    if len(found.strange) > SHOWN_STRANGE:
        console.print(f"left alone: {len(found.strange) - SHOWN_STRANGE} more links, named pipes, sockets or devices")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _delete(console: Console, place: Place, found: Survey) -> None:
    gone: list[Removal] = []
    try:
        remove(place, found.removals, gone.append)
    finally:
        console.print(f"removed {size(sum(removal.num_bytes for removal in gone))}")
        if len(gone) < len(found.removals):
            console.print(f"not removed: {len(found.removals) - len(gone)} of {len(found.removals)}")


def parse_age(text: str) -> float:
    """Seconds of an age such as ``90m``, ``24h`` or ``7d``.

    Raises:
        UserError: The text is none.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])\s*", text)
    if match is None:
        raise UserError("an age must be a number with s, m, h or d", got=text, where="--older-than",
                        do="For example --older-than 7d.")
    return float(match[1]) * _UNITS_S[match[2]]


def _check_storage(place: Place) -> None:
    if not (place.folders("artifacts") or place.folders("runs")):
        raise UserError("there is no storage root with artifacts or runs", got=place.uri, where="--storage",
                        do="Give the folder that runs were stored in.")


def removals_table(removals: list[Removal]) -> Table:
    """What, how many, bytes."""
    table = _table("can be removed")
    table.add_column("what")
    for heading in ("artifacts", "files", "bytes"):
        table.add_column(heading, justify="right")
    for kind in KINDS:
        _add_removals(table, kind, [removal for removal in removals if removal.kind == kind])
    table.add_section()
    _add_removals(table, "all", removals)
    return table


def _add_removals(table: Table, title: str, removals: list[Removal]) -> None:
    table.add_row(title, f"{len({removal.name for removal in removals}):,}",
                  f"{sum(len(removal.keys) for removal in removals):,}",
                  size(sum(removal.num_bytes for removal in removals)))


def runs_table(runs: list[RunSpace]) -> Table:
    """The runs and their bytes."""
    table = _table("runs")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for heading in ("artifacts", "of its own", "shared"):
        table.add_column(heading, justify="right")
    for run in sorted(runs, key=lambda run: run.name):
        table.add_row(run.name, run.status, f"{run.num_artifacts:,}", size(run.own_bytes), size(run.shared_bytes))
    return table


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", header_style="bold")
