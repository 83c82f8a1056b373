"""A trial of Ray Tune: one setting with all its seeds, whose workers live in the trial's placement group."""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError

from swamp_ray.config.option_errors import unknown_key
from swamp_ray.config.reading import located, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep import reserved
from swamp_ray.config.sweep_reading import refuse_ranks
from swamp_ray.config.sweep_settings import Setting, label
from swamp_ray.errors import CorruptArtifactError, Interrupted, SwampError, UserError
from swamp_ray.method.events import RoundPlan
from swamp_ray.on_ray.actors import Spares
from swamp_ray.on_ray.cluster import living_nodes
from swamp_ray.run.capacity import this_machine
from swamp_ray.run.journal import flat
from swamp_ray.run.messages import RoundRecord
from swamp_ray.run.name_check import CodeChanged
from swamp_ray.run.placement import eligible
from swamp_ray.run.shared_code import Code, import_paths, joined
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.members import Milestone, Team, milestone_rounds
from swamp_ray.sweep.placement_group import HEAD, placement_group
from swamp_ray.sweep.plan import data_key, num_workers

COMPLETE = "complete"
"""Key of a report: whether the setting has reached its own target."""
FINISHED = ("complete", "stopped")
DONE = "done"
"""Key of a report: Tune ends the trial."""
ASK_S = 1.0


_spares = Spares()
"""Of this process, which Tune uses for one setting after the other."""


class StopSignal:
    """An actor that knows whether the sweep was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask all trials to stop."""
        self._asked = True

    def asked(self) -> bool:
        """Whether they are asked to."""
        return self._asked


class RemoteStopping(Stopping):
    """Looks at a :class:`StopSignal` now and then; one that is gone asks to stop as well."""

    def __init__(self, signal: Any) -> None:
        super().__init__()
        self._signal = signal
        self._found = False
        self._next = 0.0

    def asked(self) -> bool:
        """Whether the sweep was asked to stop."""
        now = time.monotonic()
        if self._signal is not None and not self._found and now >= self._next:
            try:
                self._found = bool(ray.get(self._signal.asked.remote(), timeout=60))
            except RayError:
                self._found = True
            self._next = time.monotonic() + ASK_S
        return self._found


@dataclass(frozen=True)
class Trials:
    """Makes trials of settings.

    Attributes:
        member: The run of a setting and a seed.
        seeds: Of every setting.
        device: Kind of device that particles train on.
        at_sparsity: Milestones; empty: every round.
        pause: Nothing trains beyond a milestone before it was reported and Tune has decided.
        worker_deadline_s: Seconds without any worker after which a trial fails.
        count_workers: How many workers a setting has; None: one for each particle of its largest round.
        data: Object references of decoded data by their section of the config.
        recorded: Records of settings that an earlier attempt has finished, by label: they only report again.
        stop: A :class:`StopSignal`, or None.
        codes: The user code that trials must have, by import path.
        code_changed: ``retrain``: go on with members that were begun with other user code.
    """

    member: Callable[[Setting, int], SwampConfig]
    seeds: Sequence[int]
    device: str
    at_sparsity: Sequence[float] = ()
    pause: bool = False
    worker_deadline_s: float | None = None
    count_workers: Callable[[Setting], int] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stop: Any = None
    codes: Mapping[str, Code] = field(default_factory=dict)
    code_changed: CodeChanged = "refuse"

    def reports(self, setting: Setting) -> Generator[dict[str, Any]]:
        """Carry a setting to its end: one report a milestone, and a last one that is ``done``.

        Whoever does not go on closes the generator: workers end, and what is finished stays.
        """
        record = self.recorded.get(label(setting))
        if record is not None and (found := self._again(setting, record)):
            yield from found
            return
        configs = [self.member(setting, seed) for seed in self.seeds]
        reference = self.data.get(data_key(configs[0]))
        self._take_over_code(configs[0], needs_data=reference is None)
        team = Team(
            configs, self.device, data=None if reference is None else ray.get(reference),
            at_sparsity=self.at_sparsity, pause=self.pause, num_workers=self.num_workers(setting),
            worker_deadline_s=self.worker_deadline_s, stopping=RemoteStopping(self.stop), spares=_spares,
            code_changed=self.code_changed)
        last: dict[str, Any] = {"milestone": 0, COMPLETE: False}
        milestones = team.milestones()
        try:
            for milestone in milestones:
                # A setting that is at its target is not stopped any more.
                last = {**report_of(milestone), COMPLETE: milestone.round == team.last_round}
                yield last
        except Interrupted:
            yield {**last, DONE: True}
            return
        finally:
            milestones.close()
        yield {**last, "milestone": team.num_milestones + 1, COMPLETE: True, DONE: True}

    def _take_over_code(self, config: SwampConfig, needs_data: bool) -> None:
        """Have the user code that the sweep was started with.

        Raises:
            UserError: It is another one here.
        """
        paths = import_paths(config)
        if not needs_data:
            paths.pop("data.name", None)
        joined(paths, self.codes).take_over()

    def num_workers(self, setting: Setting) -> int:
        """How many workers a setting has."""
        if self.count_workers is not None:
            return self.count_workers(setting)
        member = self.member(setting, self.seeds[0])
        nodes = eligible(living_nodes(), member.execution) if ray.is_initialized() else [this_machine()]
        return num_workers(member, self.device, nodes)

    def resources(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """The placement group of a trial: its workers, or its own process where they do not have any."""
        setting = plain_setting(config)
        record = self.recorded.get(label(setting))
        if record is not None and self._recorded(setting, record) is not None:
            return tune.PlacementGroupFactory([HEAD])
        member = self.member(setting, self.seeds[0])
        num_workers = 0 if member.execution.executor == "inline" else self.num_workers(setting)
        return placement_group(member.execution, self.device, num_workers)

    def trainable(self) -> type[tune.Trainable]:
        """For ``ray.tune.Tuner``, together with :meth:`resources`.

        A class, not a function: Tune waits until a trial that it stops has tidied up.
        """
        trials = self

        class Swamp(tune.Trainable):
            """One setting with all its seeds; a step goes to the next milestone."""

            def setup(self, config: dict[str, Any]) -> None:
                self._reports = trials.reports(plain_setting(config))

            def step(self) -> dict[str, Any]:
                return next(self._reports)

            def cleanup(self) -> None:
                self._reports.close()

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                self.cleanup()
                self.setup(new_config)
                return True

            def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
                return {}  # everything lies in the storage root

            def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
                """The storage root is looked through anyway."""

        return Swamp

    def _again(self, setting: Setting, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The reports of a finished setting from its records; none if they are not all there any more."""
        milestones = self._recorded(setting, record)
        complete = record["status"] == "complete"
        if not milestones:
            return []
        found = [{**report_of(milestone), COMPLETE: complete} for milestone in milestones]
        last = {**found[-1], "milestone": len(found) + 1} if complete else found.pop()
        return [*found, {**last, DONE: True}]

    def is_there(self, setting: Setting, record: Mapping[str, Any]) -> bool:
        """Whether the rounds of a setting that is recorded as finished are recorded as well."""
        return self._recorded(setting, record) is not None

    def _recorded(self, setting: Setting, record: Mapping[str, Any]) -> list[Milestone] | None:
        """The milestones that a finished setting has reached; None if their rounds are not all there any more."""
        configs = [self.member(setting, seed) for seed in self.seeds]
        rundirs = [RunDir(config.storage, str(config.name)) for config in configs]
        try:
            rounds = [{line["round"]: RoundRecord(**line) for line in rundir.read_rounds()} for rundir in rundirs]
            plan = [RoundPlan(**one) for one in (rundirs[0].read_run() or {}).get("rounds", [])]
        except (CorruptArtifactError, TypeError):  # the setting is taken up again, and says what is damaged
            return None
        if not plan:
            return None
        indices = milestone_rounds(plan, self.at_sparsity)
        if record["status"] == "complete" and any(one.index not in found for found in rounds for one in plan):
            return None
        reached = int(record.get("milestone", 0)) if record["status"] == "stopped" else len(indices)
        if any(index not in found for found in rounds for index in indices[:reached]):
            return None
        return [Milestone(number, index, plan[index].sparsity, [found[index] for found in rounds])
                for number, index in enumerate(indices[:reached], start=1)]


def anchored(config: SwampConfig) -> SwampConfig:
    """The config with absolute paths: trials may work in another folder, on another node."""
    return with_values(located(config), {"storage": open_place(located(config).storage).uri})


@dataclass(frozen=True)
class FreeSettings:
    """Runs of settings whose entries are options of the config, for a Tuner of the user's own.

    Attributes:
        base: The run that settings change.

    Raises:
        UserError: No sweep can have this base.
    """

    base: SwampConfig

    def __post_init__(self) -> None:
        refuse_ranks(self.base, "particle.num_workers")

    def member(self, setting: Setting, seed: int) -> SwampConfig:
        """The run of a setting and a seed.

        Raises:
            UserError: There is no such option, or the values contradict each other.
        """
        for key in setting:
            problem = unknown_key(key)
            if problem is not None:
                raise UserError(problem, where=f"param_space[{key!r}]")
            advice = reserved(key)
            if advice is not None:
                raise UserError("this option cannot be swept", where=f"param_space[{key!r}]", do=advice)
        name = f"{self.base.name}-{label(setting)}-seed{seed}"
        return with_values(self.base, {**setting, "seed": seed, "name": name})


def report_of(milestone: Milestone) -> dict[str, Any]:
    """What Tune is told: mean over seeds and its standard error, by metric; NaN for the error of a single seed."""
    found: dict[str, Any] = {
        "milestone": milestone.number, "round": milestone.round, "sparsity": milestone.sparsity,
        "num_seeds": len(milestone.records), COMPLETE: False,
    }
    rows = [metrics_of(record) for record in milestone.records]
    for name in rows[0]:
        values = [row[name] for row in rows]
        found[name] = statistics.fmean(values)
        found[f"{name}_se"] = standard_error(values)
    return found


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """A round's metrics by ``NETWORK/SPLIT/METRIC``."""
    return {f"{network}/{name}": value for network, metrics in (
        ("average", record.average), ("particles_mean", record.mean), ("particles_std", record.std))
        for name, value in flat(metrics).items()}


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over the root of n; NaN for a single value, or one that is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def plain_setting(config: Mapping[str, Any]) -> Setting:
    """Values as Tune hands them over, without numpy's types."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in config.items()}


def quiet_tune() -> None:
    """Tune's own output and signal handling off, for a process that shows progress itself; before a Tuner is made."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a setting that is asked to stop may report nothing
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "30")
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def reason_of(error: BaseException | None) -> str:
    """Why a trial failed, in the words of what it failed of."""
    found = error
    while isinstance(cause := getattr(found, "cause", None), BaseException):  # Ray's wrapper looks like what it wraps
        found = cause
    if isinstance(found, SwampError):
        return str(found).strip()
    if isinstance(found, RayActorError):
        return "the process that drove it was lost"
    lines = str(found).strip().splitlines() if found is not None else []
    return f"{type(found).__name__}: {lines[-1].strip()}" if lines else type(found).__name__
