"""Runs as a report sees them: what they have written, read once, and grouped into arms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, SwampError, UserError
from swamp_ray.report.load.salvage import Losses, analyses_of, jobs_of_workers, metrics_of, results_of, rounds_of
from swamp_ray.storage.find import config_of, edit_in_words, find_run
from swamp_ray.storage.records import JobEnded, JobEpoch, JobStarted
from swamp_ray.storage.run_folder import RunDir, check_run_record
from swamp_ray.storage.tickets import Ticket, load_round_ticket
from swamp_ray.text.metric_names import Metric


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
        jobs: What workers did, as in ``jobs.jsonl``: the jobs that have ended.
        results: The artifacts that it has noted, as in ``results.jsonl``.
        losses: What of all this could not be read.
        progress: What else ``jobs.jsonl`` tells, in order: which jobs workers were given, and finished epochs.
    """

    rundir: RunDir
    arm: str
    config: SwampConfig
    about: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    metrics: pd.DataFrame
    analyses: Mapping[str, Mapping[str, Any]]
    jobs: Sequence[JobEnded] = ()
    results: Sequence[Mapping[str, Any]] = ()
    losses: Losses = field(default_factory=Losses, compare=False)
    progress: Sequence[JobStarted | JobEpoch] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.rundir.name

    @property
    def seed(self) -> int:
        """Its run seed."""
        return self.config.seed

    @property
    def primary(self) -> Metric:
        """The metric that decides, and how it is written."""
        return self.metric(str(self.about.get("primary", "loss")))

    def metric(self, name: str) -> Metric:
        """A metric of this name, and how it is written."""
        return Metric(name, self.about.get("shown_as"))

    def ticket(self, record: Mapping[str, Any]) -> Ticket | None:
        """A round's network and mask; where they cannot be read, that is noted."""
        try:
            return load_round_ticket(self.rundir, record)
        except (SwampError, OSError):
            self.losses.ticket(record["round"])
            return None


def read_runs(names: Sequence[str], storage: str | None = None) -> list[ReportRun]:
    """The runs of these names or paths, in this order.

    Raises:
        UserError: There is no such run, one is named twice or has no finished round, or they cannot be shown together.
        CorruptArtifactError: A file of a run is not what was written.
    """
    found = [find_run(name, storage) for name in names]
    spots = [str(rundir.spot()) for rundir in found]
    twice = [spot for spot in spots if spots.count(spot) > 1]
    if twice:
        raise UserError("a run must be named once", got=twice[0], where="RUN...")
    configs = [config_of(rundir) for rundir in found]
    arms = arms_of([rundir.name for rundir in found], configs)
    runs = [_read(rundir, config, arm) for rundir, config, arm in zip(found, configs, arms, strict=True)]
    _check_together(runs)
    return runs


def _check_together(runs: Sequence[ReportRun]) -> None:
    """Refuse runs that one page cannot tell apart, or cannot measure by one metric."""
    names = [run.name for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError("runs of one report must have different names", got=twice[0], where="RUN...",
                        do="Rename the folder of one of them.")
    first: dict[tuple[str, int, str], str] = {}
    for run in runs:
        same = first.setdefault((run.arm, run.seed, json.dumps(run.about.get("arithmetic"), sort_keys=True)), run.name)
        if same != run.name:
            raise UserError("two runs of one recipe and seed are the same run, and no spread can be seen from them",
                            got=f"{same} and {run.name}", where="RUN...", do="Leave one of them out.")
    metrics = list(dict.fromkeys(run.primary for run in runs))
    if len(metrics) > 1:
        raise UserError("runs of one report must be judged by the same metric", got=" and ".join(metrics),
                        where="RUN...", do="Write a report of each kind.")


def _read(rundir: RunDir, config: SwampConfig, arm: str) -> ReportRun:
    losses = Losses()
    about = rundir.read_run()
    if about is None:
        losses.note("run.json", "run.json is not there: by which metric the run is judged, what it was trained on and "
                    "with, how it ended and what it cost are not known.")
    check_run_record(about or {}, rundir.run_json)
    edited = edit_in_words(rundir, about or {})
    if edited:
        losses.note("config.yaml", f"{edited}.")
    losses.unverified(*rundir.unverified())
    records = rounds_of(rundir, losses)
    if not records:
        raise _nothing_to_show(rundir, losses)
    lines = jobs_of_workers(rundir, losses)
    jobs = [line for line in lines if isinstance(line, JobEnded)]
    progress = [line for line in lines if not isinstance(line, JobEnded)]
    return ReportRun(rundir, arm, config, about or {}, records, pd.DataFrame(metrics_of(rundir, losses)),
                     analyses_of(rundir, losses), jobs, results_of(rundir, losses), losses, progress)


def _nothing_to_show(rundir: RunDir, losses: Losses) -> SwampError:
    lost = losses.of(rundir.rounds.key)
    if lost:
        return CorruptArtifactError(f"{rundir.rounds}: no round can be read ({lost.rstrip('.')}). Restore the file; or "
                                    "delete it and run the same command as before, which writes it anew from the "
                                    "stored results.")
    return UserError(f"the run {rundir.name!r} has no finished round yet", where="RUN",
                     do=f"See how far it is with: swamp status {rundir.name}")


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

