"""Runs of the study, those that diverged included: their missing rounds count as guessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import DivergedError, RunError
from swamp_ray.launch import device_of, run
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir

Row = dict[str, Any]
DIVERGED = "diverged"


@dataclass(frozen=True)
class Attempt:
    """A run: complete, or as far as it came before it diverged for good.

    Attributes:
        rundir: Where it lies.
        prepared: Its plan and data.
        records: Its finished rounds in order.
    """

    rundir: RunDir
    prepared: Prepared
    records: Sequence[Mapping[str, Any]]

    @property
    def is_complete(self) -> bool:
        """Whether every round is there."""
        return len(self.records) == len(self.prepared.plan)


def attempt(config: SwampConfig) -> Attempt:
    """Carry a run to its end, or to where it diverges; what the storage has of it is not trained again.

    Raises:
        RunError: It failed of anything else.
    """
    try:
        done = run(config)
        return Attempt(done.rundir, done.prepared, done.rundir.read_rounds())
    except RunError as error:
        if not isinstance(error.__cause__, DivergedError):
            raise
        assert config.name is not None
        rundir = RunDir(open_place(config.storage, config.execution.storage_patience_s), config.name)
        return Attempt(rundir, prepare(config, device_of(config)), rundir.read_rounds())


def row(index: int, sparsity: float, what: str, split: str, metric: str, value: float) -> Row:
    """One value of the results."""
    return {"round": index, "sparsity": sparsity, "what": what, "split": split, "metric": metric, "value": value}


def round_rows(done: Attempt) -> list[Row]:
    """Metrics of the average and of the particles' mean, by round, split and metric."""
    rows = [row(record["round"], record["sparsity"], network, split, metric, value)
            for record in done.records
            for network, metrics in (("average", record["average"]), ("particles", record["mean"]))
            for split, found in metrics.items() for metric, value in found.items()]
    return [*rows, *missing_rows(done, ("average", "particles"))]


def missing_rows(done: Attempt, networks: Sequence[str]) -> list[Row]:
    """The rounds that a diverged run has not come to: each is marked, and its networks guess among the classes."""
    num_classes = done.prepared.data.num_classes or 1
    guessing = {"accuracy": 1 / num_classes, "loss": math.log(num_classes)}
    missing = [plan for plan in done.prepared.plan if plan.index not in {record["round"] for record in done.records}]
    return [*(row(plan.index, plan.sparsity, network, split, metric, value)
              for plan in missing for network in networks for split in ("validation", "test")
              for metric, value in guessing.items()),
            *(row(plan.index, plan.sparsity, DIVERGED, "train", DIVERGED, 1.0) for plan in missing)]


def ensemble_rows(one: Attempt, other: Attempt) -> list[Row]:
    """Two runs' averaged predictions, by round; from where one of them diverged the two guess."""
    shorter = min(one, other, key=lambda done: len(done.records))
    levels = evaluate_runs([one.rundir, other.rundir])[0] if shorter.records else []
    rows = [row(index, level.sparsity, "ensemble", split, metric, value)
            for index, level in enumerate(levels) for split, found in (level.ensemble or {}).items()
            for metric, value in found.items()]
    return [*rows, *missing_rows(shorter, ("ensemble",))]
