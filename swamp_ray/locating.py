"""Runs by the name or path that a user types."""

from __future__ import annotations

import os
from pathlib import Path

from swamp_ray.config import SwampConfig, parse_config
from swamp_ray.errors import UserError, nearest
from swamp_ray.storage.places import is_url
from swamp_ray.storage.rundir import RunDir

DEFAULT_STORAGE = "results"


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
    path = Path(run).expanduser()
    if os.sep in run and not path.is_dir():
        raise UserError("there is no such folder", got=run, where="RUN",
                        do="Give the folder of a run, or its name and --storage.")
    if os.sep in run or (storage is None and (path / "config.yaml").is_file()):
        path = path.absolute()
        return RunDir(path.parent.parent, path.name)
    return RunDir(storage or DEFAULT_STORAGE, run)


def config_of(rundir: RunDir) -> SwampConfig:
    """The resolved config of a run."""
    text = rundir.read_config()
    if text is None:
        raise UserError("the run has no config", where=str(rundir.config))
    return parse_config(text, source=str(rundir.config))
