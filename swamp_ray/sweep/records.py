"""What a sweep has written of itself, checked: its settings, and the member runs of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swamp_ray.config.sweep_settings import Setting, Sweep, label, setting_key
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.records import SweepRecord, TrialRecord, wrong_fields
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir

FINAL = ("complete", "stopped", "failed")
"""States of a setting in which nothing more will come."""
STATES = ("running", *FINAL, "interrupted", "waiting")
NETWORKS = {"average": "average", "particles_mean": "mean", "particles_std": "std"}
"""What metrics are of, as named by a sweep and in ``rounds.jsonl``."""


@dataclass(frozen=True)
class Member:
    """One run of a setting: its seed and its folder."""

    seed: int
    rundir: RunDir


@dataclass(frozen=True)
class Trial:
    """One setting of a sweep and what has become of it.

    Attributes:
        label: Its name.
        setting: A value for each entry of the space.
        status: running, complete, stopped, failed, interrupted, or waiting for its turn.
        members: Its runs, in the order of seeds, whether or not they were begun.
        reason: Why it failed, or at what it was stopped.
    """

    label: str
    setting: Setting
    status: str
    members: tuple[Member, ...] = field(compare=False)
    reason: str = ""


def read_sweep(sweepdir: SweepDir) -> Sweep:
    """The sweep as it was resolved when it started.

    Raises:
        UserError: It has not been started.
        CorruptArtifactError: Its file is not what was written.
    """
    found = sweepdir.read_sweep()
    if found is None:
        raise UserError("the sweep has not been started yet", where=str(sweepdir.spot()))
    return found


def read_record(sweepdir: SweepDir) -> dict[str, Any]:
    """What ``sweep.json`` says; empty if there is none.

    Raises:
        CorruptArtifactError: It is not what a sweep writes.
    """
    record = sweepdir.read_record()
    wrong = wrong_fields(SweepRecord, record)
    if not wrong:
        wrong += [f"planned: {one!r}" for one in record.get("planned", []) if not isinstance(one, str)]
    if wrong:
        raise CorruptArtifactError(f"{sweepdir.record}: this is not what was written ({', '.join(wrong[:5])}). Restore "
                                   "the file or delete it; it only describes the sweep.")
    return record


class Settings:
    """The settings of a sweep in the order in which they were planned, as their records change.

    Args:
        sweepdir: The sweep's folder.
        sweep: What lies in it; read where it is not given.
    """

    def __init__(self, sweepdir: SweepDir, sweep: Sweep | None = None) -> None:
        self._sweepdir = sweepdir
        self._sweep = sweep or read_sweep(sweepdir)
        planned = [] if self._sweep.config.is_adaptive else self._sweep.settings()
        self._planned = {setting_key(setting): setting for setting in planned}

    def read(self, with_waiting: bool = True) -> list[Trial]:
        """All settings as last recorded; those that were not begun among them, or left out.

        Raises:
            CorruptArtifactError: A record is not what a sweep writes.
        """
        return self._trials(self._sweepdir.read_trials(), with_waiting)

    def salvage(self) -> tuple[list[Trial], list[str]]:
        """All settings as far as their records can be read, and what is damaged."""
        records, damage = self._sweepdir.salvage_trials()
        found = [damage] if damage else []
        for key, record in list(records.items()):
            try:
                self._check(key, record)
                self._members(record["setting"], record)
            except CorruptArtifactError as error:
                found.append(str(error))
                del records[key]
        return self._trials(records, with_waiting=True), found

    def _trials(self, trials: Mapping[str, Mapping[str, Any]], with_waiting: bool) -> list[Trial]:
        records = {setting_key(record["setting"]): record for record in trials.values()}
        keys = dict.fromkeys([*self._planned, *records])
        return [self._trial(key, records.get(key)) for key in keys
                if with_waiting or not _waits(records.get(key))]

    def _trial(self, key: str, record: Mapping[str, Any] | None) -> Trial:
        if record is None:
            setting = self._planned[key]
            return Trial(label(setting), setting, "waiting", self._members(setting, {}))
        name = record["label"]
        setting = record["setting"]
        self._check(name, record)
        return Trial(name, setting, record.get("status", "running"), self._members(setting, record),
                     record.get("reason") or "")

    def _members(self, setting: Setting, record: Mapping[str, Any]) -> tuple[Member, ...]:
        seeds = record.get("seeds", self._sweep.config.seeds)
        # Only those that were begun may be named yet.
        runs = [*record.get("runs", []), *(self._sweep.member_name(setting, seed) for seed in seeds)]
        try:
            return tuple(Member(seed, RunDir(self._sweepdir.place, run))
                         for seed, run in zip(seeds, runs, strict=False))
        except UserError as error:
            raise CorruptArtifactError(f"{self._sweepdir.trials}: {error.got!r} is no name of a run. Restore the file, "
                                       "or delete that line.") from error

    def _check(self, name: str, record: Mapping[str, Any]) -> None:
        wrong = wrong_fields(TrialRecord, record)
        if not wrong:
            space = self._sweep.config.space
            seeds = record.get("seeds", self._sweep.config.seeds)
            runs = record.get("runs", [])
            wrong += ["status"] * (record.get("status", "running") not in STATES)
            wrong += ["setting"] * (set(record["setting"]) != set(space))
            wrong += ["seeds"] * (not all(isinstance(seed, int) for seed in seeds))
            wrong += ["runs"] * (len(runs) > len(seeds) or not all(isinstance(run, str) for run in runs))
        if wrong:
            raise CorruptArtifactError(f"{self._sweepdir.trials}: the record of {name!r} is not what was written "
                                       f"({', '.join(wrong)}). Restore the file, or delete that line.")


def _waits(record: Mapping[str, Any] | None) -> bool:
    """Whether a setting was not begun, or waits to be trained anew with other code."""
    return record is None or record.get("status") == "waiting"
