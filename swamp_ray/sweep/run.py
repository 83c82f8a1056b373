"""A sweep: settings as trials of ``ray.tune.Tuner``, over a storage in which nothing is trained twice.

Tune's own restore is not used. A sweep that is started again makes a new Tuner; what the earlier one has finished is
found in the storage, and reported again where a search or a scheduler learns from it.
"""

from __future__ import annotations

import contextlib
import math
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import tune

from swamp_ray.config.reading import differences
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_settings import Setting, Sweep, label
from swamp_ray.config.yaml_reading import dump_yaml
from swamp_ray.credentials import Concealer, concealed_arguments, credentials_in
from swamp_ray.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    CorruptArtifactError,
    Interrupted,
    RunError,
    SwampError,
    UserError,
)
from swamp_ray.on_ray.cluster import cluster_gpus, connect, living_nodes, loss, say_and_exit
from swamp_ray.on_ray.lifeline import LOOK_S, NO_ANSWER
from swamp_ray.on_ray.nodes import check_shared
from swamp_ray.run.capacity import capacity, check_address, this_machine, worker_resources
from swamp_ray.run.disk_space import free_bytes
from swamp_ray.run.name_check import CodeChanged
from swamp_ray.run.placement import check_labels, eligible
from swamp_ray.run.prepare import device_kind
from swamp_ray.run.provenance import PACKAGES, commit, now, version
from swamp_ray.run.shared_code import Code, codes_of, named_import_paths, refuse_main_on_ray
from swamp_ray.run.signals import Stopping, handled
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.leases import Lease
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place, working_folder
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.code_check import check_code
from swamp_ray.sweep.plan import SweepPlan, plan_sweep, setting_workers
from swamp_ray.sweep.reporter import SweepReporter
from swamp_ray.sweep.schedulers import make_scheduler
from swamp_ray.sweep.search import ListedSettings, check_search, make_search
from swamp_ray.sweep.trackers import check_callbacks, make_callbacks
from swamp_ray.sweep.trial import FINISHED, StopSignal, Trials, anchored, quiet_tune
from swamp_ray.sweep.tune_hooks import STOP_SLACK_S, NoProgress, Silent, Stop, Watch

LAST_RESORT_S = 5.0
"""After so long on top of all that a sweep may take to stop, Ray is taken for dead."""
COUNT_S = 3.0
"""Seconds between two looks at what the members have trained."""


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


def run_sweep(sweep: Sweep, reporter: SweepReporter | None = None, stopping: Stopping | None = None,
              code_changed: CodeChanged = "refuse") -> SweepOutcome:
    """Carry a sweep to its end, from wherever it stands.

    Args:
        sweep: The sweep.
        reporter: Who is told; by default nobody.
        stopping: Whose signal handlers are installed; by default they are installed for as long as the sweep takes.
        code_changed: ``retrain``: go on under the same name although the user's code is another than before.

    Raises:
        UserError: Something has to be changed; nothing has been started.
        RunError: The sweep as a whole failed; a setting that fails does not end it.
        Interrupted: It was asked to stop; the same call goes on.
    """
    reporter = reporter or SweepReporter()
    sweep = replace(sweep, base=anchored(sweep.base))
    paths = _own_code(sweep)
    if sweep.base.execution.executor == "ray":
        refuse_main_on_ray(paths)
    check_search(sweep)
    check_callbacks(sweep)
    check_address(sweep.base.execution)
    place = open_place(sweep.base.storage, sweep.base.execution.storage_patience_s)
    sweepdir = SweepDir(place, sweep.name)
    check_space(sweep, sweepdir)
    codes = codes_of(paths)  # imported, so that the import path is the one that they are found on
    outdated = check_code(sweep, sweepdir, code_changed)
    ArtifactStore(place).check_writable()
    held = sweepdir.held()
    if held is not None and held.life == "alive":
        sweepdir.hold().release()  # says who it is
    embedded = sweep.base.execution.address is None and not ray.is_initialized()
    plan = plan_sweep(sweep, device_kind(sweep.base), [this_machine()]) if embedded else None
    quiet_tune()
    with handled(stopping) as stopping:
        reporter.ray_starting()
        connection = connect(sweep.base.execution)
        try:
            device = _device(sweep.base, embedded)
            nodes = living_nodes()
            check_labels(nodes, sweep.base.execution)
            plan = plan or plan_sweep(sweep, device, eligible(nodes, sweep.base.execution))
            if len(nodes) > 1:
                check_shared(place)
            check_search(sweep, plan.num_milestones)
            return _Sweep(sweep, plan, sweepdir, place, reporter, stopping, device, embedded, codes, code_changed,
                          outdated).run()
        finally:
            connection.close()


def _own_code(sweep: Sweep) -> dict[str, str]:
    """Import paths of the user's code in the runs of a sweep, by the option that names them."""
    plain = sweep.resolved()
    return named_import_paths({key: plain[key] for key in ("base", "space") if key in plain})


def check_space(sweep: Sweep, sweepdir: SweepDir) -> None:
    """Refuse a name that stands for another sweep.

    Raises:
        UserError: With the differences, old -> new.
    """
    earlier = sweepdir.read_sweep()
    if earlier is None:
        return
    changed = differences(earlier.identity(), sweep.identity())
    if changed:
        raise UserError(
            f"the sweep {sweep.name!r} exists already with another space or base:\n  " + "\n  ".join(changed) + "\n",
            do="Choose another name with --name; whatever both have in common is found and not trained again.",
            where=str(sweepdir.spot()))


def _device(base: SwampConfig, embedded: bool) -> str:
    return device_kind(base) if embedded else device_kind(base, cluster_gpus())


class _Sweep:
    """One attempt at a sweep on a cluster that is there."""

    def __init__(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir, place: Place, reporter: SweepReporter,
                 stopping: Stopping, device: str, embedded: bool = False, codes: Mapping[str, Code] | None = None,
                 code_changed: CodeChanged = "refuse", outdated: frozenset[str] = frozenset()) -> None:
        self.is_alone = embedded
        self.sweep = sweep
        self.plan = plan
        self.dir = sweepdir
        self.reporter = reporter
        self.stopping = stopping
        self.running: dict[str, float] = {}
        self.lost: list[Setting] = []
        self._place = place
        self._device = device
        self._records: dict[str, dict[str, Any]] = {}
        self._record: dict[str, Any] = {}
        self._attempt: dict[str, Any] = {}
        self._lease: Lease | None = None
        self._finished: dict[str, dict[str, Any]] = {}
        self._data: dict[str, Any] = {}
        self._codes = codes or {}
        self._code_changed: CodeChanged = code_changed
        self._outdated = outdated
        self._num_passes = 0
        self._nodes = [this_machine()]
        self.gave_up = ""
        self._last_count = -math.inf

    def run(self) -> SweepOutcome:
        """Carry it to its end."""
        began = time.monotonic()
        try:
            self._open()
            self.reporter.sweep_started(self.sweep, self.plan, self.dir)
            self._exclude()
            self._warn()
            with self.stopping.noted(), self._last_resort(began):
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
        with contextlib.suppress(CorruptArtifactError):  # of a member; the attempts' own counts are shown then
            self._record["trained"] = self.trained()
        self._close("failed" if failed else "complete", began)
        counted = sum(attempt["trained"] for attempt in self._record["attempts"])
        trained = self._record.get("trained", counted)
        return SweepOutcome(SweepDir(self._place, self.dir.name), self._records, self.plan, trained)

    @contextlib.contextmanager
    def _last_resort(self, began: float) -> Iterator[None]:
        """End the process if Ray does not let go of it.

        A signal to the whole process group ends an embedded Ray as well, and its processes may die. Whoever calls it
        then waits for a minute and is aborted, without a word in the records; Tune would try trial after trial.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_S):
                text = None if self.stopping.asked() else loss()
                if text is not None and not over.wait(LOOK_S):
                    with contextlib.suppress(SwampError, OSError):
                        self._close("failed", began)
                    say_and_exit(text, EXIT_FAILED)
                patience_s = self.sweep.base.execution.grace_s + STOP_SLACK_S + LAST_RESORT_S
                if self.is_alone and self.stopping.asked() and not over.wait(patience_s):
                    with contextlib.suppress(SwampError, OSError):
                        self._close("interrupted", began)
                    say_and_exit(NO_ANSWER, EXIT_INTERRUPTED)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    # Records

    def _open(self) -> None:
        ArtifactStore(self._place).check_writable()
        self._lease = self.dir.hold(self.sweep.base.execution.lease_expiry_s, self.reporter.warning)
        self.dir = self.dir.held_by(self._lease)
        check_space(self.sweep, self.dir)  # nobody has written it meanwhile
        plain = self.sweep.resolved()
        self.dir.config.write(dump_yaml(plain).encode(), private=bool(credentials_in(plain)))
        self._records = self.dir.read_trials()
        self._set_back()
        earlier = self._earlier()
        self._attempt = {
            "started": now(), "argv": concealed_arguments(sys.argv), "host": socket.gethostname(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES}, "commit": commit(), "trained": 0,
            "trained_epochs": 0.0,
        }
        adaptive = self.sweep.config.is_adaptive
        planned = [] if adaptive else [label(setting) for setting in self.sweep.settings()]
        example = self.plan.example
        self._record = earlier | {
            "name": self.sweep.name, "status": "running", "metric": self.sweep.config.metric,
            "mode": self.sweep.config.mode, "primary": example.task.primary, "shown_as": dict(example.task.shown_as),
            "higher_is_better": example.task.higher_is_better, "planned": planned,
            "num_settings": self.sweep.config.num_samples if adaptive else len(planned),
            "plan": None if adaptive else self.plan.as_record(),
            "attempts": [*earlier.get("attempts", []), self._attempt],
        }
        self.dir.write_record(self._record)

    def _set_back(self) -> None:
        """Let settings whose code has changed wait again, so that no result of the other code counts as finished."""
        for key in self._outdated & self._records.keys():
            if self._records[key]["status"] != "waiting":
                self._records[key] = {**self._records[key], "status": "waiting"}
                self.dir.append_trial(self._records[key])

    def _earlier(self) -> dict[str, Any]:
        """What ``sweep.json`` says of earlier attempts; one that is damaged only describes them, and is begun anew."""
        try:
            return self.dir.read_record()
        except CorruptArtifactError as error:
            self.reporter.warning(f"{error} The sweep goes on, and begins it anew.")
            return {}

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
            values["reason"] = Concealer(self.sweep.resolved())(reason)
        if key in self.running:
            values["seconds"] = time.monotonic() - self.running.pop(key)
        self.write(setting, status, **values)
        self._count()
        self.dir.write_record(self._record)

    def counted(self) -> None:
        """Bring the record of what has been trained up to date, not too often."""
        if time.monotonic() - self._last_count > COUNT_S:
            self._count()
            self.dir.write_record(self._record)
            self._last_count = time.monotonic()

    def trained(self) -> int:
        """Training runs whose results this sweep's members have made: a killed process may have lost its own count."""
        store = ArtifactStore(self._place)
        runs = {name for record in self._records.values() for name in record["runs"]}
        names = {line["name"] for name in runs for line in RunDir(self._place, name).read_results()
                 if line["kind"] in ("dense", "trunk", "particle")}
        return sum(manifest.info.get("run") in runs for name in names if (manifest := store.find(name)) is not None)

    def _count(self) -> None:
        """What the members' attempts since the beginning of this one have trained."""
        trained = 0
        epochs = 0.0
        for record in self._records.values():
            for name in record["runs"]:
                with contextlib.suppress(SwampError):
                    for attempt in (RunDir(self._place, name).read_run() or {}).get("attempts", []):
                        if attempt["started"] >= self._attempt["started"]:
                            trained = trained + attempt["trained"]
                            epochs = epochs + attempt["trained_epochs"]
        self._attempt |= {"trained": trained, "trained_epochs": epochs}

    # Trials

    def finished_before(self, key: str) -> bool:
        """Whether an earlier attempt has finished a setting, which then only reports again."""
        return key in self._finished

    def _run_all(self) -> None:
        """Pass over all settings; those whose process was lost are taken up again, a bounded number of times."""
        self._finished = self._all_there()
        if self.sweep.config.is_adaptive:
            recorded = [one["setting"] for one in self._records.values()]
            self._pass(make_search(self.sweep, recorded), max(self.sweep.config.num_samples, len(recorded)))
        else:
            self._pass_listed([setting for key, setting in self.plan.settings.items() if key not in self._finished])
        for _ in range(self.sweep.config.execution.max_failures):
            if not self.lost or self.stopping.asked():
                return
            lost = self.lost
            self.lost = []
            self._finished = self._all_there()
            self._pass_listed(lost)
        for setting in self.lost:
            self.write(setting, "failed", reason="the process that drove it was lost again and again")

    def _all_there(self) -> dict[str, dict[str, Any]]:
        """Settings that are finished, by their own records and by those of their members."""
        trials = Trials(self.sweep.member, self.sweep.config.seeds, self._device, self.sweep.config.at_sparsity)
        return {key: one for key, one in self._records.items()
                if one["status"] in FINISHED and trials.is_there(one["setting"], one)}

    def _pass_listed(self, settings: list[Setting]) -> None:
        """Run settings; what is finished reports again before, where a scheduler compares with it."""
        if not settings:
            return
        again = [one["setting"] for one in self._finished.values()] if self.sweep.config.compares else []
        self._pass(ListedSettings([*again, *settings]), len(again) + len(settings))

    def _pass(self, search: Any, count: int) -> None:
        config = self.sweep.config
        nodes = eligible(living_nodes(), self.sweep.base.execution)
        self._nodes = nodes
        signal: Any = ray.remote(StopSignal).options(num_cpus=0).remote()
        trials = Trials(
            self.sweep.member, config.seeds, self._device, config.at_sparsity, config.scheduler.name != "none",
            config.execution.worker_deadline_s,
            partial(setting_workers, self.sweep, device=self._device, nodes=nodes), self._data, self._finished, signal,
            self._codes, self._code_changed)
        self._num_passes += 1
        name = f"attempt-{len(self._record['attempts'])}" + (f"-{self._num_passes}" if self._num_passes > 1 else "")
        with self._tune_folder() as folder:
            tune.Tuner(
                tune.with_resources(trials.trainable(), trials.resources),
                tune_config=tune.TuneConfig(
                    search_alg=search, scheduler=make_scheduler(self.sweep, self.plan.num_milestones),
                    num_samples=count, max_concurrent_trials=config.execution.max_concurrent, reuse_actors=True),
                run_config=tune.RunConfig(
                    name=name, storage_path=folder, verbose=0, progress_reporter=Silent(),
                    callbacks=[Watch(self), NoProgress(), *make_callbacks(self.sweep)], stop=Stop(self, signal),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),
            ).fit()
        ray.kill(signal)
        if self.gave_up:
            raise RunError(self.gave_up)

    def has_room(self) -> bool:
        """Whether the living nodes could hold a worker, whatever else they do."""
        execution = self.sweep.base.execution
        nodes = eligible(living_nodes(), execution)
        return execution.autoscaling or capacity(nodes, worker_resources(execution, self._device)) > 0

    @contextlib.contextmanager
    def _tune_folder(self) -> Iterator[str]:
        """Where Tune keeps its own files; beside a storage in an object store they are not kept."""
        with working_folder(self.dir.tune, keep=False) as folder:
            yield str(folder)

    def _warn(self) -> None:
        if self.plan.invalid:
            kind = "of the settings that were tried" if self.sweep.config.is_adaptive else "settings"
            self.reporter.warning(f"{len(self.plan.invalid)} {kind} cannot run; the first: "
                                  f"{next(iter(self.plan.invalid.values()))}")
        for text in self.plan.remarks:
            self.reporter.warning(text)
        free = free_bytes(self.sweep.base.storage)
        if free is not None and self.plan.num_bytes > free:
            self.reporter.warning(f"this may not fit: about {self.plan.num_bytes / 1e6:,.0f} MB in all, and "
                                  f"{free / 1e6:,.0f} MB are free")
