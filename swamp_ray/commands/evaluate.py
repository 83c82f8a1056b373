"""``swamp evaluate``: stored tickets on validation and test, and ensembles of several runs at equal sparsity."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.data.trees import tree_map
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.process_state import computing
from swamp_ray.run.prepare import device_kind
from swamp_ray.run.shared_code import import_paths, take_up
from swamp_ray.storage.find import config_of, edit_in_words, find_run
from swamp_ray.storage.kept_sources import changes_in_words
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_round_ticket
from swamp_ray.text.metric_names import is_percent, short, shown_primary
from swamp_ray.text.output import Output
from swamp_ray.text.tables import NAME_WIDTH, bounded, percent, told_apart
from swamp_ray.training.arithmetic import applied, resolve_arithmetic
from swamp_ray.training.evaluation_loss import LOSS, evaluation_loss
from swamp_ray.training.normalisation import without_single
from swamp_ray.training.tasks import Task
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.user_code.blaming import blamed

SPLITS = ("validation", "test")
PREDICTION_BATCH = 128
EQUAL = 1e-9
SHOWN_LEFT_OUT = 4
Metrics = dict[str, dict[str, float]]
Record = dict[str, Any]


@dataclass(frozen=True)
class SparsityLevel:
    """What was measured at one sparsity.

    Attributes:
        sparsity: In [0, 1).
        members: Metrics of each run's averaged network, by split; in the order of the runs.
        ensemble: Metrics of the ensemble of all of them; None for a single run.
    """

    sparsity: float
    members: list[Metrics]
    ensemble: Metrics | None


@computing()
def evaluate_runs(runs: Sequence[RunDir]) -> tuple[list[SparsityLevel], Task]:
    """Evaluate the tickets of runs at every sparsity that all of them have.

    Args:
        runs: Their configs may differ in everything but data and task.

    Returns:
        One entry a sparsity, in increasing order, and the task.

    Raises:
        UserError: The runs were trained on other data or tasks than each other, or share no sparsity; a ticket is not
            the one that its run recorded.
    """
    configs = [config_of(rundir) for rundir in runs]
    for config in configs:
        take_up(import_paths(config))
    data = load_data(configs[0].data, configs[0].task)
    _same_data(runs, configs, data)
    common = _common_sparsities(runs)
    members = [_Member(rundir, config, data) for rundir, config in zip(runs, configs, strict=True)]
    _share_batches(members)
    task = members[0].trainer.task
    return [_level(sparsity, records, members, task) for sparsity, records in common], task


def _level(sparsity: float, records: list[Record], members: list[_Member], task: Task) -> SparsityLevel:
    for member, record in zip(members, records, strict=True):
        member.take(record)
    found = [_Means() for _ in members]
    ensemble = _Means()
    for split in SPLITS:
        for batches in _same_batches(members, split):
            predictions = [member.predict(batch) for member, batch in zip(members, batches, strict=True)]
            with blamed("the task failed in evaluation", "task.name"):
                values = [task.metrics(prediction, batches[0]) for prediction in predictions]
                together = task.metrics(task.combine(predictions), batches[0]) if len(members) > 1 else None
            for means, measured, member, batch in zip(found, values, members, batches, strict=True):
                means.add(split, measured, member.loss(batch))
            if together is not None:
                ensemble.add(split, together)
    together = ensemble.metrics() if len(members) > 1 else None
    return SparsityLevel(sparsity, [means.metrics() for means in found], together)


def _same_batches(members: list[_Member], split: str) -> Iterator[list[Any]]:
    """Each batch of a split as every member wants it; members of one arithmetic share what is read once."""
    passes = {member.arithmetic: member.batches(split) for member in reversed(members)}
    for batches in zip(*passes.values(), strict=True):
        found = dict(zip(passes, batches, strict=True))
        yield [found[member.arithmetic] for member in members]


def _share_batches(members: list[_Member]) -> None:
    """Let all members read the batches of those whose predictions depend on them.

    Raises:
        UserError: Two of these were evaluated in other batches by their own runs.
    """
    choosy = [member for member in members if member.trainer.uses_batch_statistics]
    sizes = {member.trainer.forward_batch: member.name for member in choosy}
    if len(sizes) > 1:
        names = " and ".join(sizes.values())
        raise UserError(f"the networks of {names} normalise by the batch at hand, and were trained with different "
                        "batches, so that they cannot be evaluated together", where="RUN",
                        got=" and ".join(f"{size} samples" for size in sizes), do="Evaluate them one at a time.")
    for member in members:
        member.like = choosy[0].trainer if choosy else None


class _Member:
    """One run's network, ready to take its tickets.

    Attributes:
        like: Whose batches are read; None: as large ones as are quick.
    """

    def __init__(self, rundir: RunDir, config: SwampConfig, data: Data) -> None:
        self._rundir = rundir
        self.like = None
        self.like: ParticleTrainer | None
        self.arithmetic = resolve_arithmetic(config.execution, device_kind(config), initial_model(config, data),
                                             config.particle.num_workers)
        self.trainer = ParticleTrainer(config, data, self.arithmetic)

    @property
    def name(self) -> str:
        """Of the run."""
        return self._rundir.name

    def take(self, record: Record) -> None:
        """Load the ticket of a finished round."""
        load_round_ticket(self._rundir, record).load_into(self.trainer.model)
        self.trainer.model.eval()

    def batches(self, split: str) -> Iterator[Any]:
        """The batches of a split in fixed order, on the device, one at a time: all of them may not fit into memory."""
        if self.like is None:
            return self.trainer.evaluation_batches(split, PREDICTION_BATCH)
        batches = self.trainer.batches(split).one_pass(self.like.forward_batch, seed=None, drop_last=False)
        return without_single(batches)

    def predict(self, batch: Any) -> Tensor:
        """The prediction of the ticket that was taken last; the batch stays as it is for others."""
        own = tree_map(torch.clone, batch)  # a network may overwrite what it is given
        with (applied(self.arithmetic), torch.no_grad(), self.trainer.autocast(),
              blamed("the model or the task failed in evaluation")):
            return self.trainer.task.predict(self.trainer.model, own)

    def loss(self, batch: Any) -> Tensor | None:
        """The task's own loss of a batch, where its metrics have none and it can be measured."""
        if not self.trainer.measures_loss:
            return None
        own = tree_map(torch.clone, batch)
        with applied(self.arithmetic), self.trainer.autocast(), blamed("the task's loss failed in evaluation"):
            return evaluation_loss(self.trainer.task, self.trainer.model, own, 0)


class _Means:
    """Means of metrics over the samples of splits, added up batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._counts: dict[str, int] = {}

    def add(self, split: str, values: Mapping[str, Tensor], loss: Tensor | None = None) -> None:
        """Add a batch's metrics, one value a sample, and the mean loss of the batch."""
        sums = self._sums.setdefault(split, {})
        if loss is not None:
            sums[LOSS] = sums.get(LOSS, 0.0) + float(loss) * len(next(iter(values.values())))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.double().sum())
        self._counts[split] = self._counts.get(split, 0) + len(next(iter(values.values())))

    def metrics(self) -> Metrics:
        """Means by split and name."""
        return {split: {name: total / self._counts[split] for name, total in sums.items()}
                for split, sums in self._sums.items()}


def _same_data(runs: Sequence[RunDir], configs: Sequence[SwampConfig], data: Data) -> None:
    for rundir, config in zip(runs, configs, strict=True):
        stored = (rundir.read_run() or {}).get("data", {}).get("digest")
        if stored is not None and stored != data.digest:
            raise UserError(f"the run {rundir.name!r} was trained on other data or another split than {runs[0].name!r} "
                            "has now", where="RUN", do="Compare runs with the same data section and split_seed.")
        if config.task != configs[0].task:
            raise UserError(f"the runs {runs[0].name!r} and {rundir.name!r} have different tasks", where="RUN")


def _common_sparsities(runs: Sequence[RunDir]) -> list[tuple[float, list[Record]]]:
    """Sparsities that all runs have finished, with each run's record of the round."""
    tables = []
    for rundir in runs:
        rounds = rundir.read_rounds()
        if any(not isinstance(record.get("sparsity"), int | float) for record in rounds):
            raise CorruptArtifactError(f"{rundir.rounds}: a round has no sparsity. The file was changed after it was "
                                       "written; restore it, or delete that line and run the same command again.")
        if not rounds:
            raise UserError(f"the run {rundir.name!r} has no finished round yet", where="RUN")
        tables.append(rounds)
    common = []
    for first in sorted(tables[0], key=lambda record: record["sparsity"]):
        matches = [next((other for other in table if abs(other["sparsity"] - first["sparsity"]) < EQUAL), None)
                   for table in tables]
        found = [match for match in matches if match is not None]
        if len(found) == len(runs):
            common.append((first["sparsity"], found))
    if not common:
        raise UserError("the runs share no sparsity", where="RUN",
                        do="An ensemble needs networks of equal sparsity: use the same pruning.rate and target.")
    return common


def _left_out(runs: Sequence[RunDir], levels: Sequence[SparsityLevel]) -> list[str]:
    """Of each run that has rounds at sparsities that another run lacks, a sentence: they are in no table."""
    sentences = []
    for rundir in runs:
        own = [record["sparsity"] for record in rundir.read_rounds()]
        missing = [sparsity for sparsity in own if all(abs(sparsity - level.sparsity) >= EQUAL for level in levels)]
        if missing:
            shown = ", ".join(percent(sparsity) for sparsity in missing[:SHOWN_LEFT_OUT])
            more = ", ..." if len(missing) > SHOWN_LEFT_OUT else ""
            sentences.append(f"{rundir.name} has {len(missing)} more round{'s' if len(missing) > 1 else ''} ({shown}"
                             f"{more} sparsity), left out because not every run has these sparsities, or not yet")
    return sentences


def print_evaluation(names: Sequence[str], storage: str | None, as_json: bool) -> None:
    """Evaluate runs and print a table, or JSON."""
    runs = [find_run(name, storage) for name in names]
    levels, task = evaluate_runs(runs)
    for rundir in runs:
        text = changes_in_words(rundir, config_of(rundir))
        if text:
            print(f"warning: {text}", file=sys.stderr)
        text = edit_in_words(rundir, rundir.read_run() or {})
        if text:
            print(f"warning: {text}", file=sys.stderr)
        unverified = rundir.unverified(rundir.rounds)
        if unverified:
            print(f"warning: not verified, since an older version wrote them without checksums: {rundir.name}: "
                  f"{', '.join(unverified)}", file=sys.stderr)
    for text in _left_out(runs, levels):
        print(f"warning: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"sparsity": level.sparsity,
                           "members": {rundir.name: found for rundir, found in zip(runs, level.members, strict=True)},
                           "ensemble": level.ensemble} for level in levels], indent=2))
        return
    Output(highlight=False).print(evaluation_table(levels, [rundir.name for rundir in runs], shown_primary(task)))


def evaluation_table(levels: Sequence[SparsityLevel], names: Sequence[str], primary: str) -> Table:
    """Test and validation metric of each run, and of the ensemble, by sparsity."""
    caption = f"{escape(bounded(primary))} on test (validation)" + (", in percent" if is_percent(primary) else "")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    headings = [escape(name) for name in told_apart(names, NAME_WIDTH)]
    for heading in ("sparsity", *headings, *(["ensemble"] if levels[0].ensemble else [])):
        table.add_column(heading, justify="right")
    for level in levels:
        columns = [*level.members, *([level.ensemble] if level.ensemble else [])]
        table.add_row(percent(level.sparsity), *(_cell(found, primary) for found in columns))
    return table


def _cell(found: Metrics, primary: str) -> str:
    """A metric on test and validation; an ensemble has no loss of its own where the metrics have none."""
    if primary not in found["test"]:
        return "-"
    return f"{short(found['test'][primary], primary)} ({short(found['validation'][primary], primary)})"
