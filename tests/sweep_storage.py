"""Storage roots with sweeps in them: really trained ones, and ones that are only written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting, Sweep, label
from swamp_ray.launch import run
from swamp_ray.storage.place import Place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from tests.helpers import TINY

GRID: dict[str, Any] = {"pruning.target": {"grid": [0.5, 0.75]}, "particles.count": {"grid": [1, 2]}}


def planned_sweep(storage: Path | str, name: str = "grid", **values: Any) -> tuple[SweepDir, Sweep]:
    """A sweep over the tiny run that has been started, with no setting begun."""
    sweep = build_sweep({"name": name, "storage": str(storage), "base": TINY, "space": GRID, "seeds": 2, **values})
    sweepdir = SweepDir(storage, name)
    sweepdir.config.write(yaml.safe_dump(sweep.resolved(), sort_keys=False).encode())
    sweepdir.write_record({
        "name": name, "status": "running", "primary": "accuracy", "higher_is_better": True,
        "planned": [label(setting) for setting in sweep.settings()], "num_settings": len(sweep.settings()),
        "plan": None, "attempts": []})
    return sweepdir, sweep


def note(sweepdir: SweepDir, sweep: Sweep, setting: Setting, status: str, **values: Any) -> None:
    """Record the state of a setting."""
    seeds = list(sweep.config.seeds)
    sweepdir.append_trial({
        "label": label(setting), "setting": setting, "status": status, "seeds": seeds,
        "runs": [sweep.member_name(setting, seed) for seed in seeds], **values})


def trained_sweep(storage: Path | str, name: str = "grid", **values: Any) -> SweepDir:
    """A sweep whose members were all trained in this process."""
    sweepdir, sweep = planned_sweep(storage, name, **values)
    for setting in sweep.settings():
        for seed in sweep.config.seeds:
            run(sweep.member(setting, seed))
        note(sweepdir, sweep, setting, "complete")
    sweepdir.write_record({**sweepdir.read_record(), "status": "complete"})
    return sweepdir


def write_member(place: Place | Path, sweep: Sweep, setting: Setting, seed: int, accuracies: list[float],
                 num_rounds: int) -> RunDir:
    """A member's folder as if it had finished some of its rounds; validation is half of a test accuracy."""
    rundir = RunDir(place, sweep.member_name(setting, seed))
    plans = [{"index": index, "sparsity": 1 - 0.5**index, "num_particles": 1} for index in range(num_rounds)]
    rundir.write_run({"status": "running", "rounds": plans, "attempts": []})
    for index, accuracy in enumerate(accuracies):
        rundir.append_round(round_of(index, accuracy))
    return rundir


def round_of(index: int, accuracy: float) -> Mapping[str, Any]:
    """What status needs of a line of ``rounds.jsonl``."""
    average = {"test": {"accuracy": accuracy}, "validation": {"accuracy": accuracy / 2}}
    return {"round": index, "sparsity": 1 - 0.5**index, "survivors": math.ceil(1024 * 0.5**index), "average": average}
