"""The results of a sweep as one table: a row for each setting, seed and finished round."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from swamp_ray.config.fields import Length, Section
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import CorruptArtifactError, UserError, nearest
from swamp_ray.storage.find import config_of
from swamp_ray.storage.run_folder import RunDir, check_run_record
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import NETWORKS, Member, Settings, Trial, read_sweep
from swamp_ray.text.csv_text import csv_bytes
from swamp_ray.training.cost import FACES, Cost, Phase, cost_of, dense_phases, round_phases

SPACE = "space/"
CONFIG = "config/"
LEADING: dict[str, str] = {
    "sweep": "str", "setting": "str", "status": "str", "run": "str", "seed": "int64", "num_seeds": "int64",
    "round": "int64", "sparsity": "float64", "survivors": "int64", "num_particles": "int64", "num_dropped": "int64",
}
EPOCHS = ("spread", "training_epochs", "cumulative_training_epochs")
COSTS = tuple(f"{what}/{face}" for what in ("cost", "cost_so_far") for face in FACES)
"""What a round costs, and what all up to its end do, with the dense phase."""


def collect(sweepdir: SweepDir) -> pd.DataFrame:
    """All finished rounds of a sweep, in the order of settings, seeds and rounds.

    Columns, in this order:
        sweep, setting (its label), status, run, seed, num_seeds (of the setting): where a row comes from.
        space/ENTRY: the setting's value of each entry of the space; of named groups the name.
        round, sparsity, survivors, num_particles (planned), num_dropped.
        average/SPLIT/METRIC, particles_mean/..., particles_std/...: as in ``rounds.jsonl``.
        spread; training_epochs: summed over the particles that entered the round; cumulative_training_epochs: with all
        rounds before it and the dense phase, which a run of its own would train. NaN where ``run.json`` is missing.
        cost/FACE, cost_so_far/FACE: what the round costs, and the same with all before it and the dense phase:
        total_epochs, critical_epochs (one after the other), dense_flops, sparse_flops (at the masks' densities). FLOPs
        are NaN in runs of older versions, and where they cannot be counted.
        config/OPTION: the member's whole config. A length has its unit in its name (``config/round.length_epochs``);
        lists are JSON text.

    Raises:
        UserError: The sweep has not been started.
        CorruptArtifactError: A file is not what was written.
    """
    sweep = read_sweep(sweepdir)
    trials = Settings(sweepdir, sweep).read(with_waiting=False)
    rows = [row for trial in trials for member in trial.members for row in _rows(sweepdir.name, trial, member)]
    names = _column_names(rows, sweep)
    return pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in names})


def write_results(sweepdir: SweepDir, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Write the table as Parquet and as CSV, each atomically, and return it.

    Args:
        sweepdir: The sweep's folder.
        frame: What :func:`collect` gave; collected where it is not given.
    """
    frame = collect(sweepdir) if frame is None else frame
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    sweepdir.parquet.write(buffer.getvalue())
    sweepdir.csv.write(csv_bytes(frame))
    return frame


def by_setting(frame: pd.DataFrame, metric: str, at_sparsity: float | None = None) -> pd.DataFrame:
    """One row a setting: the mean of a metric over its seeds, and the standard error of that mean.

    Args:
        frame: What :func:`collect` gave, or some of its settings.
        metric: A column of it, such as ``average/test/accuracy``.
        at_sparsity: The first round that is at least so sparse, to half a weight; by default the setting's last round
            that all its seeds have finished.

    Returns:
        setting, status, space/ENTRY, round, sparsity, survivors, mean, standard_error (std with n - 1 over the root of
        n; NaN for a single seed), n. A setting whose seeds have not all come so far has NaN and n = 0.

    Raises:
        UserError: The frame has no such column.
    """
    _check_metric(frame, metric)
    space = space_columns(frame)
    rows = []
    for name, group in frame.groupby("setting", sort=False):
        row = {"setting": name, **{column: group[column].iloc[0] for column in ("status", *space)}}
        rounds = by_round(group, metric)
        if at_sparsity is not None:
            half_a_weight = 0.5 * (1 - rounds["sparsity"]) / rounds["survivors"] + 1e-12
            rounds = rounds[rounds["sparsity"] >= at_sparsity - half_a_weight].head(1)
        missing = {"round": None, "sparsity": math.nan, "survivors": None, "mean": math.nan, "standard_error": math.nan,
                   "n": 0}
        rows.append(row | (dict(rounds.iloc[-1]) if len(rounds) else missing))
    columns = ["setting", "status", *space, "round", "sparsity", "survivors", "mean", "standard_error", "n"]
    found = pd.DataFrame(rows, columns=columns)
    return found.astype({"round": "Int64", "survivors": "Int64", "n": "int64", "sparsity": "float64", "mean": "float64",
                         "standard_error": "float64"})


def by_round(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rounds of one setting that all its seeds have finished, as :func:`by_setting` describes them."""
    _check_metric(frame, metric)
    grouped = frame.groupby("round", sort=True)
    # A mean that left out a seed whose metric is NaN would look as good as the others.
    values = grouped[metric]
    found = pd.DataFrame({
        "round": grouped["round"].first(), "sparsity": grouped["sparsity"].mean(),
        "survivors": grouped["survivors"].first(), "mean": values.mean(skipna=False),
        "standard_error": values.sem(ddof=1, skipna=False), "n": values.size()})
    complete = grouped["seed"].nunique() == frame["num_seeds"].max()
    return found.loc[complete].reset_index(drop=True)


def space_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of the space's entries, in the order of the sweep's file."""
    return [name for name in frame.columns if name.startswith(SPACE)]


def _check_metric(frame: pd.DataFrame, metric: str) -> None:
    if metric not in frame.columns:
        known = [name for name in frame.columns if name.partition("/")[0] in NETWORKS]
        raise UserError("there is no such metric in the results", got=metric, where="metric",
                        do=nearest(metric, known) or f"There are: {', '.join(known) or 'none yet'}.")


def _rows(sweep: str, trial: Trial, member: Member) -> Iterator[dict[str, Any]]:
    rundir = member.rundir
    records = rundir.read_rounds()
    if not records:
        return
    if rundir.read_config() is None:
        raise CorruptArtifactError(f"{rundir.config}: the run has finished rounds, but its config is missing. Restore "
                                   "the file, or run the same command again, which writes it anew.")
    try:
        config = config_of(rundir)
    except UserError as error:
        raise CorruptArtifactError(f"{error} The file was changed after it was written; restore it.") from error
    budget = _Costs(config, rundir, records)
    head = {"sweep": sweep, "setting": trial.label, "status": trial.status, "run": rundir.name, "seed": member.seed,
            "num_seeds": len(trial.members), **{f"{SPACE}{key}": _plain(value) for key, value in trial.setting.items()}}
    tail = {f"{CONFIG}{key}": value for key, value in flat_config(config)}
    for record in records:
        yield head | _round(rundir, record) | budget.of(record) | tail


def _round(rundir: RunDir, record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        row = {key: record[key] for key in ("round", "sparsity", "survivors", "num_particles", "spread")}
        if not all(isinstance(value, int | float) for value in row.values()):
            raise TypeError("a text where a number belongs")
        row["num_dropped"] = len(record.get("dropped", ()))
        for network, key in NETWORKS.items():
            row |= {f"{network}/{split}/{name}": float(value) for split, values in record[key].items()
                    for name, value in values.items()}
        return row
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{rundir.rounds}: round {record['round']} is not what was written "
                                   f"({type(error).__name__}: {error}). Run the sweep again, which writes it anew, or "
                                   "restore the file.") from error


class _Costs:
    """What the rounds of a run cost: as recorded, else by its config and by the plan that ``run.json`` holds."""

    def __init__(self, config: SwampConfig, rundir: RunDir, records: Sequence[Mapping[str, Any]]) -> None:
        self._config = config
        record = rundir.read_run() or {}
        check_run_record(record, rundir.run_json)
        samples = record.get("data", {}).get("train")
        self._steps = samples // config.training.batch_size if isinstance(samples, int) else 0
        self._plans = {plan["index"]: plan for plan in record.get("rounds", [])}
        self._dropped = {one["round"]: {drop.get("particle") for drop in one.get("dropped", ())} for one in records}

    def of(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Epochs and costs of a round, and of all that it needs."""
        index = record["round"]
        dense = dense_phases(self._config, self._steps) if self._steps else ()
        before = self._passes(dense)
        so_far = self._account(dense)
        for one in range(index + 1):
            before += self._round(one)
            so_far += self._account(self._phases(one))
        found = {"training_epochs": self._round(index), "cumulative_training_epochs": before}
        for what, planned in (("cost", self._account(self._phases(index))), ("cost_so_far", so_far)):
            values = {**planned.as_dict(), **record.get(what, {})}
            for face in FACES:
                value = values[face]
                found[f"{what}/{face}"] = math.nan if value is None else value
        return found

    def _round(self, index: int) -> float:
        phases = self._phases(index)
        return math.nan if phases is None else self._passes(phases)

    def _phases(self, index: int) -> Sequence[Phase] | None:
        """What a round trained; None where it is not known."""
        plan = self._plans.get(index, {})
        count = plan.get("num_particles")
        if not isinstance(count, int) or not self._steps:
            return None
        entered = [particle for particle in range(count) if particle not in self._dropped.get(index, ())]
        return round_phases(self._config, self._steps, index, entered, float(plan.get("sparsity", 0.0)))

    def _passes(self, phases: Sequence[Phase]) -> float:
        """Passes over the training split, however many gradients of a batch a step takes."""
        steps = sum(stretch.steps for phase in phases for training in phase for stretch in training)
        return steps / self._steps if self._steps else 0.0

    def _account(self, phases: Sequence[Phase] | None) -> Cost:
        """In epochs; how many FLOPs a network takes is known to its own records alone."""
        if phases is None or not self._steps:
            return Cost(math.nan, math.nan, None, None)
        return cost_of(phases, self._steps, self._config.training.batch_size, None, None)


def flat_config(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A config's options by dotted name; a length as a number, with its unit in its name."""
    plain = section.model_dump(mode="json")
    for name in type(section).model_fields:
        value = getattr(section, name)
        path = f"{prefix}{name}"
        if isinstance(value, Section):
            yield from flat_config(value, f"{path}.")
        elif isinstance(value, Length):
            yield f"{path}_{value.unit}", value.amount
        elif isinstance(value, Mapping):
            yield from _flat_options(plain[name], path)
        else:
            yield path, _plain(plain[name])


def _flat_options(options: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat_options(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", _plain(value)


def _plain(value: Any) -> Any:
    """A value for a cell: lists and mappings as JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | Mapping) else value


def _column_names(rows: Sequence[Mapping[str, Any]], sweep: Sweep) -> list[str]:
    """All columns: the leading ones, metrics by network, split and name, and options in the order of the config."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    leading = list(LEADING)
    where = leading[:leading.index("round")]
    counts = leading[leading.index("round"):]
    metrics = [name for network in NETWORKS for name in sorted(names) if name.startswith(f"{network}/")]
    options = [name for name in names if name.startswith(CONFIG)]
    # Options that only some members have, as those of another model, stand beside their like.
    options.sort(key=lambda name: _section_rank(name.removeprefix(CONFIG)))
    unset = {name for name in options if all(row.get(name) is None for row in rows)}
    options = [name for name in options if not (name in unset and {f"{name}_epochs", f"{name}_steps"} & {*options})]
    return [*where, *(f"{SPACE}{entry}" for entry in sweep.config.space), *counts, *metrics, *EPOCHS, *COSTS, *options]


def _section_rank(option: str) -> int:
    return list(SwampConfig.model_fields).index(option.partition(".")[0])


def _column(name: str, values: Sequence[Any]) -> pd.Series:
    """A column of the type that its values have; whole numbers stay whole where some are missing."""
    if name in LEADING:
        return pd.Series(list(values), dtype=LEADING[name])
    if name in (*EPOCHS, *COSTS) or name.partition("/")[0] in NETWORKS or name.endswith(("_epochs", "_steps")):
        return pd.Series(list(values), dtype="float64")
    kinds = {type(value) for value in values if value is not None}
    missing = any(value is None for value in values)
    if kinds == {bool}:
        return pd.Series(list(values), dtype="boolean" if missing else "bool")
    if kinds == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pd.Series(list(values), dtype="Int64" if missing else "int64")
    if kinds and kinds <= {int, float}:
        return pd.Series([math.nan if value is None else float(value) for value in values], dtype="float64")
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pd.Series(texts, dtype="str")
