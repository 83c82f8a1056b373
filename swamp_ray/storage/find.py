"""Runs and sweeps by the name or path that a user types."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from swamp_ray.config.paths import expanded
from swamp_ray.config.reading import parse_stored_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, SwampError, UserError, nearest
from swamp_ray.storage.names import canonical_json, digest_bytes
from swamp_ray.storage.places import is_url
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir

DEFAULT_STORAGE = "results"
CONFIG_DIGEST = "config_digest"
"""Where ``run.json`` keeps the digest of ``config.yaml`` as the run wrote it; older runs have none."""


def find_run(run: str, storage: str | None = None) -> RunDir:
    """The folder of a run that exists.

    Args:
        run: Its name in the storage, or the path or URL of its folder.
        storage: Storage root; default ``./results``.

    Raises:
        UserError: There is no such run; similar names are suggested.
    """
    found = _named(run, storage)
    if found.read_config() is None:
        names = found.place.folders("runs")
        if found.name in names:
            raise UserError(f"the folder of the run {found.name!r} has no config.yaml", where=str(found.config),
                            do="Restore the file, or run the same config under this name again, which writes it anew.")
        hint = nearest(found.name, names) or (f"There are: {', '.join(names[:10])}." if names else
                                              "Name its storage with --storage.")
        raise UserError(f"there is no run {found.name!r} in {found.place.locate('runs')}", where="RUN", do=hint)
    return found


def _named(run: str, storage: str | None) -> RunDir:
    """The folder that a name, a path or a URL stands for, whether or not it exists."""
    if is_url(run):
        root, runs, name = run.rstrip("/").rpartition("/runs/")
        if not runs:
            raise UserError("a run's URL must be like s3://bucket/folder/runs/NAME", got=run, where="RUN")
        return RunDir(root, name)
    path = Path(expanded(run, "RUN"))
    if os.sep in run and not _is_there(path, Path.is_dir):
        raise UserError("there is no such folder", got=run, where="RUN",
                        do="Give the folder of a run, or its name and --storage.")
    if os.sep in run or (storage is None and _is_there(path / "config.yaml", Path.is_file)):
        path = path.absolute()
        return RunDir(path.parent.parent, path.name)
    return RunDir(storage or DEFAULT_STORAGE, run)


def _is_there(path: Path, look: Callable[[Path], bool]) -> bool:
    """Whether there is a file or a folder; nothing can be under a name that no file can have."""
    try:
        return look(path)
    except (OSError, ValueError):
        return False


def find_sweep(sweep: str, storage: str | None = None) -> SweepDir:
    """The folder of a sweep that exists.

    Args:
        sweep: Its name in the storage, or the path or URL of its folder.
        storage: Storage root; default ``./results``.

    Raises:
        UserError: There is no such sweep; similar names are suggested.
    """
    found = _named_sweep(sweep, storage)
    if found.read_config() is None:
        names = found.place.folders("sweeps")
        if found.name in names:
            raise UserError(f"the folder of the sweep {found.name!r} has no sweep.yaml", where=str(found.config),
                            do="Restore the file, or run the same sweep under this name again, which writes it anew.")
        hint = nearest(found.name, names) or (f"There are: {', '.join(names[:10])}." if names else
                                              "Name its storage with --storage.")
        raise UserError(f"there is no sweep {found.name!r} in {found.place.locate('sweeps')}", where="SWEEP", do=hint)
    return found


def find_either(name: str, storage: str | None = None) -> RunDir | SweepDir:
    """The folder of the run or the sweep that a name, a path or a URL stands for.

    Raises:
        UserError: There is none, or a run and a sweep of this name.
    """
    if is_url(name) or os.sep in name:
        path = name.rstrip("/") if is_url(name) else str(Path(expanded(name, "NAME")).absolute())
        return (find_sweep if path.split("/")[-2] == "sweeps" else find_run)(name, storage)
    run = _if_there(_named, name, storage)
    sweep = _if_there(_named_sweep, name, storage)
    if run is not None and sweep is not None:
        raise UserError("there is a run and a sweep of this name", got=name, where="NAME",
                        do=f"Give the path: {run.spot()} or {sweep.spot()}.")
    if sweep is not None:
        return sweep
    place = _named(name, storage).place
    sweeps = place.folders("sweeps")
    if run is None and nearest(name, sweeps):
        raise UserError(f"there is no run and no sweep {name!r} in {place.locate('')}", where="NAME",
                        do=nearest(name, [*place.folders("runs"), *sweeps]))
    return find_run(name, storage)


Folder = TypeVar("Folder", RunDir, SweepDir)


def _if_there(named: Callable[[str, str | None], Folder], name: str, storage: str | None) -> Folder | None:
    """The folder of a name; None if nothing was started there, or it cannot be such a name."""
    try:
        found = named(name, storage)
    except UserError:
        return None
    return found if found.read_config() is not None else None


def _named_sweep(sweep: str, storage: str | None) -> SweepDir:
    """The folder that a name, a path or a URL of a sweep stands for, whether or not it exists."""
    if is_url(sweep):
        root, sweeps, name = sweep.rstrip("/").rpartition("/sweeps/")
        if not sweeps:
            raise UserError("a sweep's URL must be like s3://bucket/folder/sweeps/NAME", got=sweep, where="SWEEP")
        return SweepDir(root, name)
    path = Path(expanded(sweep, "SWEEP"))
    if os.sep in sweep and not _is_there(path, Path.is_dir):
        raise UserError("there is no such folder", got=sweep, where="SWEEP",
                        do="Give the folder of a sweep, or its name and --storage.")
    if os.sep in sweep or (storage is None and _is_there(path / "sweep.yaml", Path.is_file)):
        path = path.absolute()
        return SweepDir(path.parent.parent, path.name)
    return SweepDir(storage or DEFAULT_STORAGE, sweep)


def config_of(rundir: RunDir) -> SwampConfig:
    """The resolved config of a run."""
    text = rundir.read_config()
    if text is None:
        raise UserError("the run has no config", where=str(rundir.config))
    if not text.strip():
        raise CorruptArtifactError(f"{rundir.config}: the file is empty. Restore it, or run the same config under this "
                                   "name again, which writes it anew.")
    return parse_stored_config(text, source=str(rundir.config))


def is_edited(rundir: RunDir, run: Mapping[str, Any]) -> bool:
    """Whether a run's ``config.yaml`` was edited so that it says another recipe than the run had.

    Args:
        rundir: The run.
        run: Its ``run.json``.
    """
    text = rundir.read_config()
    written = run.get(CONFIG_DIGEST)
    # The text comes first: a version with more options makes another recipe of a text that nobody has touched.
    if text is None or written is None or digest_bytes(text.encode()) == written:
        return False
    try:
        recipe = config_of(rundir).recipe()
    except SwampError:
        return True
    return digest_bytes(canonical_json(recipe)) != run.get("recipe")


def edit_in_words(rundir: RunDir, run: Mapping[str, Any]) -> str:
    """A sentence that says that the run's config was edited; empty where it was not, or if nobody knows."""
    if not is_edited(rundir, run):
        return ""
    return f"config.yaml of the run {rundir.name} was changed after the run (recipe differs)"
