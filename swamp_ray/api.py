"""SWAMP from Python: :class:`SwampTrainer` and what it returns."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from swamp_ray.commands.run_progress import Output, make_reporter
from swamp_ray.commands.sweep_progress import make_sweep_reporter, write_all
from swamp_ray.config.reading import build_config, load_config, located, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_reading import build_sweep, load_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError
from swamp_ray.launch import Run, run
from swamp_ray.on_ray.cluster import cluster_gpus, is_connected
from swamp_ray.on_ray.train_configs import run_values, scaling_values
from swamp_ray.run.messages import RoundRecord
from swamp_ray.run.prepare import device_kind
from swamp_ray.run.shared_code import codes_of, import_paths
from swamp_ray.storage.places import as_spot
from swamp_ray.storage.tickets import Ticket, load_ticket
from swamp_ray.sweep.results import by_setting, collect
from swamp_ray.sweep.run import run_sweep
from swamp_ray.sweep.trial import FreeSettings, Trials, anchored
from swamp_ray.user_code.importing import refuse_main

if TYPE_CHECKING:
    from swamp_ray.on_ray.train_configs import RunConfig, ScalingConfig


SPARSITY_TOLERANCE = 0.005


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: The run's folder: a path, or a URL in an object store.
        rounds: One record a round: sparsity, metrics of particles and of their average, artifact names.
        ticket_paths: The ticket of each round, in order of sparsity.
    """

    path: Path | str
    rounds: list[RoundRecord]
    ticket_paths: list[Path | str]
    _frame: list[pd.DataFrame] = field(default_factory=list, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line: where it is, and how far it went."""
        if not self.rounds:
            return f"Result(path={str(self.path)!r}, no rounds)"
        last = self.rounds[-1]
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(last.average.get("test", {}).items())[:3])
        rounds = f"{len(self.rounds)} round{'s' * (len(self.rounds) > 1)}"
        return (f"Result(path={str(self.path)!r}, {rounds} to {100 * last.sparsity:.4g} % sparsity; test of the last "
                f"average: {metrics}; see .summary, .metrics, .ticket())")

    @property
    def metrics(self) -> pd.DataFrame:
        """Every scalar of the run, as in ``metrics.parquet``."""
        if not self._frame:
            spot = as_spot(f"{self.path}/metrics.parquet")
            frame = pd.read_parquet(io.BytesIO(spot.place.read(spot.key)))
            # A file of an earlier version has them as floats.
            whole = {name: "Int64" for name in ("round", "particle", "epoch", "step") if name in frame.columns}
            self._frame.append(frame.astype(whole))
        return self._frame[0]

    @property
    def summary(self) -> pd.DataFrame:
        """One row a round: sparsity, survivors, particles, and the metrics of average and particles."""
        return pd.DataFrame([_summary(record) for record in self.rounds])

    def ticket(self, sparsity: float | None = None) -> Ticket:
        """The ticket of a sparsity in [0, 1]; by default the sparsest.

        Raises:
            UserError: No round has this sparsity to within half a percent of the weights.
        """
        found = [record.sparsity for record in self.rounds]
        wanted = max(found) if sparsity is None else sparsity
        nearest = min(range(len(found)), key=lambda index: abs(found[index] - wanted))
        if abs(found[nearest] - wanted) > SPARSITY_TOLERANCE:
            raise UserError("no round has this sparsity", got=sparsity, where="ticket",
                            do=f"There are: {', '.join(f'{value:.4f}' for value in found)}.")
        return load_ticket(self.ticket_paths[nearest], sha256=self.rounds[nearest].ticket_sha256)


class SwampTrainer:
    """Runs a config, as ``swamp run`` does.

    Args:
        config: A :class:`SwampConfig`, nested values of one, or the path of a file.
        run_config: Ray Train's own; ``name``, ``storage_path`` and ``failure_config.max_failures`` (retries of a
            particle whose worker died) are read.
        scaling_config: Ray Train's own; ``num_workers``, ``use_gpu`` and ``resources_per_worker`` are read.
        quiet: Print nothing.
        code_changed: If your code is another than the run was begun with: ``refuse``, or ``retrain`` under its name.

    Raises:
        UserError: The config is wrong, or one of Ray's settings has no meaning here.
    """

    def __init__(
        self,
        config: SwampConfig | Mapping[str, Any] | str | Path,
        *,
        run_config: RunConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        quiet: bool = False,
        code_changed: Literal["refuse", "retrain"] = "refuse",
    ) -> None:
        built = _config_of(config)
        values: dict[str, Any] = {"name": built.name or "swamp"}
        if run_config is not None:
            values |= run_values(run_config)
        if scaling_config is not None:
            values |= scaling_values(scaling_config)
        self.config = located(with_values(built, values))
        self._quiet = quiet
        self._code_changed: Literal["refuse", "retrain"] = code_changed

    def fit(self) -> Result:
        """Carry the run to its end, from wherever it stands.

        Raises:
            UserError: Data, model or cluster do not fit the config; nothing has been started.
            RunError: Something failed for good; what is finished is kept, and the next call goes on.
        """
        reporter, _ = make_reporter(self._quiet)
        return result_of(run(self.config, reporter, code_changed=self._code_changed))


@dataclass(frozen=True)
class SweepResult:
    """A sweep that has come to its end.

    Attributes:
        path: The sweep's folder: a path, or a URL in an object store.
        settings: What became of each setting, by label: ``setting``, ``status``, ``runs``, ``reason``.
        results: A row for each setting, seed and round, as in ``results.parquet``.
        metric: What settings are compared by.
        trained: Particles and dense phases that were really trained.
    """

    path: Path | str
    settings: dict[str, dict[str, Any]]
    results: pd.DataFrame
    metric: str
    trained: int

    def __repr__(self) -> str:
        """One line: where it is, and what became of the settings."""
        states = [str(record.get("status")) for record in self.settings.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return (f"SweepResult(path={str(self.path)!r}, {len(states)} setting{'s' * (len(states) != 1)} ({counts}), "
                f"{self.trained} trained; see .by_setting(), .results, .settings)")

    def by_setting(self, metric: str | None = None, at_sparsity: float | None = None) -> pd.DataFrame:
        """One row a setting: mean of a metric over seeds, and its standard error.

        Args:
            metric: NETWORK/SPLIT/METRIC; default: the sweep's.
            at_sparsity: In the first round that is at least as sparse; default: in the last one that all seeds have.
        """
        return by_setting(self.results, metric or self.metric, at_sparsity)


class SwampSweep:
    """Runs a sweep, as ``swamp sweep`` does.

    Args:
        config: A sweep's file, or nested plain values of one.
        quiet: Print nothing.
        code_changed: If your code is another than before: ``refuse``, or ``retrain`` under the sweep's name.

    Raises:
        UserError: The config is wrong.
    """

    def __init__(self, config: Sweep | Mapping[str, Any] | str | Path, *, quiet: bool = False,
                 code_changed: Literal["refuse", "retrain"] = "refuse") -> None:
        if isinstance(config, Sweep):
            self.sweep = config
        else:
            self.sweep = load_sweep(config) if isinstance(config, str | Path) else build_sweep(config)
        self._quiet = quiet
        self._code_changed: Literal["refuse", "retrain"] = code_changed

    def fit(self) -> SweepResult:
        """Carry the sweep to its end, from wherever it stands.

        Raises:
            UserError: Something does not fit; nothing has been started.
            RunError: The sweep as a whole failed. A setting that fails does not end it.
        """
        reporter = make_sweep_reporter(Output(quiet=self._quiet, highlight=False), self._quiet)
        outcome = run_sweep(self.sweep, reporter, code_changed=self._code_changed)
        write_all(outcome.sweepdir)
        return SweepResult(outcome.sweepdir.spot().location, outcome.records, collect(outcome.sweepdir),
                           self.sweep.config.metric, outcome.trained)


def tune_trainable(
    config: SwampConfig | Mapping[str, Any] | str | Path,
    *,
    seeds: Sequence[int] = (0,),
    at_sparsity: Sequence[float] = (),
    worker_deadline_s: float = 600.0,
    code_changed: Literal["refuse", "retrain"] = "refuse",
) -> tuple[type, Callable[[Mapping[str, Any]], Any]]:
    """A trainable and its resources, for a ``ray.tune.Tuner`` of your own.

    The Tuner's ``param_space`` has options of the config as keys, e.g. ``{"training.lr": tune.loguniform(0.01, 1)}``.
    A trial is one setting with all seeds; it reports ``average/validation/accuracy`` and the other metrics, means over
    seeds, with ``..._se``, their standard errors, ``sparsity`` and ``milestone``, a counter for schedulers.

    Args:
        config: The run that trials change; its name begins the names of their runs.
        seeds: Of every trial.
        at_sparsity: Sparsities in [0, 1) at which trials report, and wait for the scheduler; default: every round.
        worker_deadline_s: A trial fails once it has been without any worker for so many seconds.
        code_changed: If your code is another than a trial's runs were begun with: ``refuse``, which fails the trial
            before it trains, or ``retrain`` under their names.

    Returns:
        Both are given to Tune: ``tune.Tuner(tune.with_resources(trainable, resources), ...)``.

    Raises:
        UserError: The config is wrong.
    """
    built = _config_of(config)
    base = anchored(located(with_values(built, {"name": built.name or "tune"})))
    paths = import_paths(base)
    refuse_main(paths)  # trials load the data themselves, and so these count as well
    device = device_kind(base, cluster_gpus() if is_connected() else None)
    trials = Trials(FreeSettings(base).member, tuple(seeds), device, tuple(at_sparsity), bool(at_sparsity),
                    worker_deadline_s, codes=codes_of(paths), code_changed=code_changed)
    return trials.trainable(), trials.resources


def _config_of(config: SwampConfig | Mapping[str, Any] | str | Path) -> SwampConfig:
    """The config that is given, or that a file holds."""
    if isinstance(config, SwampConfig):
        return config
    if isinstance(config, str | Path):
        return load_config(config)
    if not isinstance(config, Mapping):
        raise UserError("the config must be a SwampConfig, a mapping of its sections, or the path of a file",
                        got=type(config).__name__, where="config")
    return build_config(config)


def result_of(done: Run) -> Result:
    """The public result of a finished run."""
    tickets = [done.rundir.place.locate(record.ticket) for record in done.records]
    return Result(done.rundir.spot().location, done.records, tickets)


def _summary(record: RoundRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"round": record.round, "sparsity": record.sparsity, "survivors": record.survivors,
                           "num_particles": record.num_particles, "spread": record.spread}
    for prefix, metrics in (("average", record.average), ("particles_mean", record.mean),
                            ("particles_std", record.std)):
        row |= {f"{prefix}/{split}/{name}": value for split, values in metrics.items()
                for name, value in values.items()}
    return row
