"""Runs as a report sees them: what they have written, read once, and grouped into arms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from swamp_ray.config import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.locating import config_of, find_run
from swamp_ray.storage.metrics import read_jsonl
from swamp_ray.storage.rundir import RunDir, check_run_record

ANALYSES = ("calibration", "connectivity", "curvature", "landscape", "masks", "particles")


@dataclass(frozen=True)
class ReportRun:
    """One run.

    Attributes:
        rundir: Where it lies.
        arm: Name of the recipe that it shares with runs that differ in their seed alone.
        config: As resolved.
        about: ``run.json``: status, arithmetic, data, attempts with their incidents.
        records: Its finished rounds in order, as in ``rounds.jsonl``.
        metrics: Every scalar, one row a line of ``metrics.jsonl``.
        analyses: What ``swamp analyze`` has written, by analysis.
    """

    rundir: RunDir
    arm: str
    config: SwampConfig
    about: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    metrics: pd.DataFrame
    analyses: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.rundir.name

    @property
    def seed(self) -> int:
        """Its run seed."""
        return self.config.seed

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return str(self.about.get("primary", "loss"))


def read_runs(names: Sequence[str], storage: str | None = None) -> list[ReportRun]:
    """The runs of these names or paths, in this order.

    Raises:
        UserError: There is no such run, one is named twice or has no finished round, or they cannot be shown together.
        CorruptArtifactError: A file of a run is not what was written.
    """
    found = [find_run(name, storage) for name in names]
    spots = [str(rundir.spot()) for rundir in found]
    if twice := [spot for spot in spots if spots.count(spot) > 1]:
        raise UserError("a run must be named once", got=twice[0], where="RUN...")
    configs = [config_of(rundir) for rundir in found]
    arms = arms_of([rundir.name for rundir in found], configs)
    runs = [_read(rundir, config, arm) for rundir, config, arm in zip(found, configs, arms, strict=True)]
    _check_together(runs)
    return runs


def _check_together(runs: Sequence[ReportRun]) -> None:
    """Refuse runs that one page cannot tell apart, or cannot measure by one metric."""
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError("runs of one report must have different names", got=twice[0], where="RUN...",
                        do="Rename the folder of one of them.")
    first: dict[tuple[str, int, str], str] = {}
    for run in runs:
        same = first.setdefault((run.arm, run.seed, json.dumps(run.about.get("arithmetic"), sort_keys=True)), run.name)
        if same != run.name:
            raise UserError("two runs of one recipe and seed are the same run, and no spread can be seen from them",
                            got=f"{same} and {run.name}", where="RUN...", do="Leave one of them out.")
    if len(metrics := list(dict.fromkeys(run.primary for run in runs))) > 1:
        raise UserError("runs of one report must be judged by the same metric", got=" and ".join(metrics),
                        where="RUN...", do="Write a report of each kind.")


def _read(rundir: RunDir, config: SwampConfig, arm: str) -> ReportRun:
    about = rundir.read_run() or {}
    check_run_record(about, rundir.run_json)
    records = rundir.read_rounds()
    if not records:
        raise UserError(f"the run {rundir.name!r} has no finished round yet", where="RUN",
                        do=f"See how far it is with: swamp status {rundir.name}")
    return ReportRun(rundir, arm, config, about, records, pd.DataFrame(read_jsonl(rundir.metrics)),
                     _analyses(rundir))


def arms_of(names: Sequence[str], configs: Sequence[SwampConfig]) -> list[str]:
    """The arm of each run: its name without its seed, where runs of other seeds have the same recipe.

    Runs that start from different files are different arms. Two arms never get one name: where names without seeds are
    equal and recipes are not, the names stay whole.
    """
    recipes = [json.dumps([config.recipe() | {"seed": None}, config.start_from and config.start_from.path],
                          sort_keys=True) for config in configs]
    stems = [re.sub(r"[-_.]?(seed|s)?[-_.]?\d+$", "", name) or name for name in names]
    labels: dict[str, str] = {}
    for recipe, name, stem in zip(recipes, names, stems, strict=True):
        own = [other for other, same in zip(names, recipes, strict=True) if same == recipe]
        clashes = any(other == stem and same != recipe for other, same in zip(stems, recipes, strict=True))
        labels.setdefault(recipe, stem if len(own) > 1 and not clashes else name)
    return [labels[recipe] for recipe in recipes]


def _analyses(rundir: RunDir) -> dict[str, dict[str, Any]]:
    """What analyses have written; a damaged file is measured anew by its command, and left out here."""
    found = {}
    for what in ANALYSES:
        data = rundir.analysis(what).read()
        try:
            value = json.loads(data) if data is not None else None
        except ValueError:
            continue
        if isinstance(value, dict):
            found[what] = value
    return found
