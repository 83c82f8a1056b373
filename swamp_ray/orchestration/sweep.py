"""A sweep: settings as trials of ``ray.tune.Tuner``, over a storage in which nothing is trained twice.

Tune's own restore is not used. A sweep that is started again makes a new Tuner; what the earlier one has finished is
found in the storage, and reported again where a search or a scheduler learns from it.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune import ProgressReporter, Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from swamp_ray.config import SwampConfig, differences
from swamp_ray.errors import Interrupted, RunError, SwampError, UserError
from swamp_ray.orchestration.cluster import cluster_gpus, connect, node_resources
from swamp_ray.orchestration.nodes import check_shared
from swamp_ray.orchestration.preparation import device_kind
from swamp_ray.orchestration.provenance import PACKAGES, commit, now, version
from swamp_ray.orchestration.resources import capacity, check_address, this_machine, worker_resources
from swamp_ray.orchestration.scheduling import make_scheduler
from swamp_ray.orchestration.searching import ListedSettings, check_search, make_search
from swamp_ray.orchestration.space import free_bytes
from swamp_ray.orchestration.stopping import Stopping
from swamp_ray.orchestration.sweep_planning import SweepPlan, plan_sweep, setting_workers
from swamp_ray.orchestration.tracking import check_callbacks, make_callbacks
from swamp_ray.orchestration.trial import (
    COMPLETE,
    FINISHED,
    StopSignal,
    Trials,
    anchored,
    plain_setting,
    quiet_tune,
    reason_of,
)
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.leases import Lease
from swamp_ray.storage.places import Place, open_place
from swamp_ray.storage.rundir import RunDir
from swamp_ray.storage.sweepdir import SweepDir
from swamp_ray.sweep_config import Setting, Sweep, build_sweep, label

NO_ROOM_S = 60.0
"""After so long without any setting at work it is said that there is no room."""
STOP_SLACK_S = 10.0
"""What trials get to end in, on top of the time for their checkpoints."""


class SweepReporter:
    """A silent watcher of a sweep; every method may be left as it is."""

    def sweep_started(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir) -> None:
        """The plan stands; nothing has been started yet."""

    def ray_starting(self) -> None:
        """Ray is being started, or joined."""

    def setting_changed(self, record: Mapping[str, Any]) -> None:
        """A setting has begun or ended: its record, as in ``trials.jsonl``."""

    def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
        """A setting has reported."""

    def warning(self, text: str) -> None:
        """Something the user should know."""

    def stopping(self, grace_s: float) -> None:
        """The sweep was asked to stop; running particles have so many seconds for a checkpoint."""

    def tick(self) -> None:
        """Called often, for displays that move."""

    def sweep_finished(self, complete: bool) -> None:
        """Nothing more will come; called however the sweep ends."""


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that has come to its end.

    Attributes:
        sweepdir: Its folder.
        records: The last record of each setting, by label.
        plan: What was planned.
        trained: Training runs that its attempts have really carried out, dense phases included.
    """

    sweepdir: SweepDir
    records: dict[str, dict[str, Any]]
    plan: SweepPlan
    trained: int

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Records of the settings that failed."""
        return [record for record in self.records.values() if record["status"] == "failed"]


def run_sweep(sweep: Sweep, reporter: SweepReporter | None = None, stopping: Stopping | None = None) -> SweepOutcome:
    """Carry a sweep to its end, from wherever it stands.

    Args:
        sweep: The sweep.
        reporter: Who is told; by default nobody.
        stopping: Whose signal handlers are installed; by default they are installed for as long as the sweep takes.

    Raises:
        UserError: Something has to be changed; nothing has been started.
        RunError: The sweep as a whole failed; a setting that fails does not end it.
        Interrupted: It was asked to stop; the same call goes on.
    """
    reporter = reporter or SweepReporter()
    sweep = replace(sweep, base=anchored(sweep.base))
    check_search(sweep)
    check_callbacks(sweep)
    check_address(sweep.base.execution)
    place = open_place(sweep.base.storage, sweep.base.execution.storage_patience_s)
    sweepdir = SweepDir(place, sweep.name)
    check_space(sweep, sweepdir)
    embedded = sweep.base.execution.address is None and not ray.is_initialized()
    plan = plan_sweep(sweep, device_kind(sweep.base), [this_machine()]) if embedded else None
    quiet_tune()
    with _handled(stopping) as stopping:
        reporter.ray_starting()
        owns = connect(sweep.base.execution)
        try:
            device = _device(sweep.base, embedded)
            nodes = node_resources()
            plan = plan or plan_sweep(sweep, device, nodes)
            if len(nodes) > 1:
                check_shared(place)
            check_search(sweep, plan.num_milestones)
            return _Sweep(sweep, plan, sweepdir, place, reporter, stopping, device).run()
        finally:
            if owns:
                ray.shutdown()


def check_space(sweep: Sweep, sweepdir: SweepDir) -> None:
    """Refuse a name that stands for another sweep.

    Raises:
        UserError: With the differences, old -> new.
    """
    text = sweepdir.read_config()
    if text is None:
        return
    earlier = build_sweep(yaml.safe_load(text), source=str(sweepdir.config))
    changed = differences(earlier.identity(), sweep.identity())
    if changed:
        raise UserError(
            f"the sweep {sweep.name!r} exists already with another space or base:\n  " + "\n  ".join(changed) + "\n",
            do="Choose another name with --name; whatever both have in common is found and not trained again.",
            where=str(sweepdir.spot()))


@contextlib.contextmanager
def _handled(stopping: Stopping | None) -> Iterator[Stopping]:
    if stopping is not None:
        yield stopping
        return
    stopping = Stopping()
    handlers = stopping.install()
    try:
        yield stopping
    finally:
        stopping.restore(handlers)


def _device(base: SwampConfig, embedded: bool) -> str:
    return device_kind(base) if embedded else device_kind(base, cluster_gpus())


@dataclass
class _Progress:
    """What the callbacks have seen in this attempt."""

    running: dict[str, float] = field(default_factory=dict)
    lost: list[Setting] = field(default_factory=list)


class _Sweep:
    """One attempt at a sweep on a cluster that is there."""

    def __init__(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir, place: Place, reporter: SweepReporter,
                 stopping: Stopping, device: str) -> None:
        self.sweep, self.plan, self.dir, self.reporter, self.stopping = sweep, plan, sweepdir, reporter, stopping
        self.progress = _Progress()
        self._place, self._device = place, device
        self._records: dict[str, dict[str, Any]] = {}
        self._record: dict[str, Any] = {}
        self._attempt: dict[str, Any] = {}
        self._lease: Lease | None = None
        self._finished: dict[str, dict[str, Any]] = {}
        self._data: dict[str, Any] = {}
        self._num_passes = 0
        self._nodes = [this_machine()]
        self.gave_up = ""

    def run(self) -> SweepOutcome:
        """Carry it to its end."""
        began = time.monotonic()
        try:
            self._open()
            self.reporter.sweep_started(self.sweep, self.plan, self.dir)
            self._exclude()
            self._warn()
            with self.stopping.noted():
                self._data = {key: ray.put(data) for key, data in self.plan.data.items()}
                self._run_all()
            if self.stopping.asked():
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            self._close("interrupted", began)
            raise Interrupted(f"stopped; what is finished is in {self._place.locate('')}. "
                              "Run the same command again to go on.") from None
        except BaseException:
            with contextlib.suppress(SwampError, OSError):
                self._close("failed", began)
            raise
        failed = [record for record in self._records.values() if record["status"] == "failed"]
        self._close("failed" if failed else "complete", began)
        return SweepOutcome(self.dir, self._records, self.plan, sum(one["trained"] for one in self._record["attempts"]))

    # Records

    def _open(self) -> None:
        ArtifactStore(self._place).check_writable()
        self._lease = self.dir.hold(self.sweep.base.execution.lease_expiry_s, self.reporter.warning)
        check_space(self.sweep, self.dir)  # nobody has written it meanwhile
        self.dir.config.write(yaml.safe_dump(self.sweep.resolved(), sort_keys=False, allow_unicode=True).encode())
        self._records = self.dir.read_trials()
        earlier = self.dir.read_record()
        self._attempt = {
            "started": now(), "argv": sys.argv, "host": socket.gethostname(), "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES}, "commit": commit(), "trained": 0,
            "trained_epochs": 0.0,
        }
        adaptive = self.sweep.config.is_adaptive
        planned = [] if adaptive else [label(setting) for setting in self.sweep.settings()]
        example = self.plan.example
        self._record = earlier | {
            "name": self.sweep.name, "status": "running", "metric": self.sweep.config.metric,
            "mode": self.sweep.config.mode, "primary": example.task.primary,
            "higher_is_better": example.task.higher_is_better, "planned": planned,
            "num_settings": self.sweep.config.num_samples if adaptive else len(planned),
            "plan": None if adaptive else self.plan.as_record(),
            "attempts": [*earlier.get("attempts", []), self._attempt],
        }
        self.dir.write_record(self._record)

    def _exclude(self) -> None:
        """Record the settings that cannot run; of a search only some were tried, and none of them is a setting."""
        if not self.sweep.config.is_adaptive:
            for key, reason in self.plan.invalid.items():
                self.write(self.plan.excluded[key], "failed", reason=reason)

    def _close(self, status: str, began: float) -> None:
        try:
            if self._attempt:
                self._count()
                self._attempt |= {"seconds": time.monotonic() - began, "status": status, "ended": now()}
                self._record["status"] = status
                self.dir.write_record(self._record)
        finally:
            self.reporter.sweep_finished(status == "complete")
            if self._lease is not None:
                self._lease.release()
                self._lease = None

    def write(self, setting: Setting, status: str, **values: Any) -> None:
        """Record a setting's state."""
        key = label(setting)
        runs = [self.sweep.member_name(setting, seed) for seed in self.sweep.config.seeds]
        record = {"label": key, "setting": setting, "status": status, "seeds": list(self.sweep.config.seeds),
                  "runs": runs, "workers": self._workers(setting), **values}
        self._records[key] = record
        self.dir.append_trial(record)
        self.reporter.setting_changed(record)

    def _workers(self, setting: Setting) -> int:
        try:
            return setting_workers(self.sweep, setting, self._device, self._nodes)
        except UserError:  # it cannot run
            return 0

    def ended(self, setting: Setting, status: str, milestone: int, reason: str = "") -> None:
        """Record that a setting has ended, and what has been trained so far."""
        key = label(setting)
        values: dict[str, Any] = {"milestone": milestone}
        if reason:
            values["reason"] = reason
        if key in self.progress.running:
            values["seconds"] = time.monotonic() - self.progress.running.pop(key)
        self.write(setting, status, **values)
        self._count()
        self.dir.write_record(self._record)

    def _count(self) -> None:
        """What the members' attempts since the beginning of this one have trained."""
        trained, epochs = 0, 0.0
        for record in self._records.values():
            for name in record["runs"]:
                with contextlib.suppress(SwampError):
                    for attempt in (RunDir(self._place, name).read_run() or {}).get("attempts", []):
                        if attempt["started"] >= self._attempt["started"]:
                            trained, epochs = trained + attempt["trained"], epochs + attempt["trained_epochs"]
        self._attempt |= {"trained": trained, "trained_epochs": epochs}

    # Trials

    def finished_before(self, key: str) -> bool:
        """Whether an earlier attempt has finished a setting, which then only reports again."""
        return key in self._finished

    def _run_all(self) -> None:
        """Pass over all settings; those whose process was lost are taken up again, a bounded number of times."""
        self._finished = {key: one for key, one in self._records.items() if one["status"] in FINISHED}
        if self.sweep.config.is_adaptive:
            recorded = [one["setting"] for one in self._records.values()]
            self._pass(make_search(self.sweep, recorded), max(self.sweep.config.num_samples, len(recorded)))
        else:
            self._pass_listed([setting for key, setting in self.plan.settings.items() if key not in self._finished])
        for _ in range(self.sweep.config.execution.max_failures):
            if not self.progress.lost or self.stopping.asked():
                return
            lost, self.progress.lost = self.progress.lost, []
            self._pass_listed(lost)

    def _pass_listed(self, settings: list[Setting]) -> None:
        """Run settings; what is finished reports again before, where a scheduler compares with it."""
        if not settings:
            return
        again = [one["setting"] for one in self._finished.values()] if self.sweep.config.compares else []
        self._pass(ListedSettings([*again, *settings]), len(again) + len(settings))

    def _pass(self, search: Any, count: int) -> None:
        config, nodes = self.sweep.config, node_resources()
        self._nodes = nodes
        signal: Any = ray.remote(StopSignal).options(num_cpus=0).remote()
        trials = Trials(
            self.sweep.member, config.seeds, self._device, config.at_sparsity, config.scheduler.name != "none",
            config.execution.worker_deadline_s,
            partial(setting_workers, self.sweep, device=self._device, nodes=nodes), self._data, self._finished, signal)
        self._num_passes += 1
        name = f"attempt-{len(self._record['attempts'])}" + (f"-{self._num_passes}" if self._num_passes > 1 else "")
        with self._tune_folder() as folder:
            tune.Tuner(
                tune.with_resources(trials.trainable(), trials.resources),
                tune_config=tune.TuneConfig(
                    search_alg=search, scheduler=make_scheduler(self.sweep, self.plan.num_milestones),
                    num_samples=count, max_concurrent_trials=config.execution.max_concurrent, reuse_actors=True),
                run_config=tune.RunConfig(
                    name=name, storage_path=folder, verbose=0, progress_reporter=_Silent(),
                    callbacks=[_Watch(self), _NoProgress(), *make_callbacks(self.sweep)], stop=_Stop(self, signal),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),
            ).fit()
        ray.kill(signal)
        if self.gave_up:
            raise RunError(self.gave_up)

    def has_room(self) -> bool:
        """Whether the living nodes could hold a worker, whatever else they do."""
        execution = self.sweep.base.execution
        return capacity(node_resources(), worker_resources(execution, self._device)) > 0

    @contextlib.contextmanager
    def _tune_folder(self) -> Iterator[str]:
        """Where Tune keeps its own files; beside a storage in an object store they are not kept."""
        folder = self.dir.tune.location
        if isinstance(folder, Path):
            yield str(folder)
        else:
            with tempfile.TemporaryDirectory(prefix="swamp-tune-") as temporary:
                yield temporary

    def _warn(self) -> None:
        if self.plan.invalid:
            kind = "of the settings that were tried" if self.sweep.config.is_adaptive else "settings"
            self.reporter.warning(f"{len(self.plan.invalid)} {kind} cannot run; the first: "
                                  f"{next(iter(self.plan.invalid.values()))}")
        free = free_bytes(self.sweep.base.storage)
        if free is not None and self.plan.num_bytes > free:
            self.reporter.warning(f"this may not fit: about {self.plan.num_bytes / 1e6:,.0f} MB in all, and "
                                  f"{free / 1e6:,.0f} MB are free")


class _Silent(ProgressReporter):
    """In place of Tune's own output."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None:
        """Nothing."""


class _NoProgress(TrialProgressCallback):
    """In place of the lines that Tune prints about trials."""

    def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None:
        """Nothing."""


class _Stop(Stopper):
    """Lets running trials write their checkpoints when the sweep is asked to stop, and then ends it."""

    def __init__(self, attempt: _Sweep, signal: Any) -> None:
        self._attempt, self._signal = attempt, signal
        self._until: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its results here."""
        return False

    def stop_all(self) -> bool:
        """Whether everything is to be ended now."""
        stopping = self._attempt.stopping
        if self._attempt.gave_up:
            return True
        if not stopping.asked():
            return False
        if self._until is None:
            grace_s = self._attempt.sweep.base.execution.grace_s
            self._until = time.monotonic() + grace_s + STOP_SLACK_S
            self._signal.ask.remote()
            self._attempt.reporter.stopping(grace_s)
        return stopping.impatient or not self._attempt.progress.running or time.monotonic() > self._until

    def __reduce__(self) -> tuple[Any, ...]:
        return (_NeverStop, ())  # Tune pickles it into its own files, from which nothing is restored


class _NeverStop(Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return False


def _error_of(trial: Any) -> BaseException | None:
    """What a trial has failed of. Tune has just written it beside the trial, and copies it to its storage later."""
    try:
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # an error whose class is not known here
        return trial.get_error()


class _Watch(tune.Callback):
    """Keeps the sweep's records, and passes on what happens."""

    def __init__(self, attempt: _Sweep) -> None:
        self._attempt = attempt
        self._idle_since, self._told = time.monotonic(), False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting begins."""
        setting, key = plain_setting(trial.config), label(plain_setting(trial.config))
        self._attempt.progress.running[key] = time.monotonic()
        if self._attempt.finished_before(key):
            return
        self._attempt.write(setting, "running", started=now())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any],
                        **info: Any) -> None:
        """A milestone."""
        self._attempt.reporter.milestone(plain_setting(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting has reached its target, or the scheduler has stopped it, or the user has."""
        setting, last = plain_setting(trial.config), trial.last_result or {}
        key, reached = label(setting), int(last.get("milestone", 0))
        if self._attempt.finished_before(key):
            self._attempt.progress.running.pop(key, None)
        elif last.get(COMPLETE):
            self._attempt.ended(setting, "complete", reached - 1)
        elif self._attempt.stopping.asked():
            self._attempt.ended(setting, "interrupted", reached)
        else:
            self._attempt.ended(setting, "stopped", reached,
                                f"by the scheduler at a sparsity of {100 * last.get('sparsity', 0.0):.4g} %")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting has failed."""
        setting, error = plain_setting(trial.config), _error_of(trial)
        if isinstance(error, RayActorError):
            self._attempt.progress.lost.append(setting)
        reached = int((trial.last_result or {}).get("milestone", 0))
        self._attempt.ended(setting, "failed", reached, reason_of(error))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Displays move. A cluster that has no room is not waited for in silence."""
        self._attempt.reporter.tick()
        if self._attempt.progress.running:
            self._idle_since, self._told = time.monotonic(), False
            return
        idle_s = time.monotonic() - self._idle_since
        if idle_s > self._attempt.sweep.config.execution.worker_deadline_s and not self._attempt.has_room():
            self._attempt.gave_up = (
                f"no node could hold a worker for {idle_s:.0f} s, because nodes have gone. What is finished is kept; "
                "once they are back, the same command goes on")
        elif idle_s > NO_ROOM_S and not self._told:
            self._told = True
            why = "others use the cluster" if self._attempt.has_room() else "no living node can hold its workers"
            self._attempt.reporter.warning(
                f"no setting has started for {NO_ROOM_S:.0f} s: {why}. The sweep goes on as soon as there is room; "
                "Ctrl-C stops it, and the same command goes on later")

    def __reduce__(self) -> tuple[Any, ...]:
        return (tune.Callback, ())  # Tune pickles it into its own files, from which nothing is restored
