"""What a run cost: epochs of particles, and hours of devices, as they are stored with its results."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.report.reading import ReportRun
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.training.arithmetic import form_and_width

DENSE_ROUND = -1


@dataclass(frozen=True)
class DeviceTime:
    """How long devices trained what a run's results are made of.

    Attributes:
        seconds: Of one device: a CPU core or a GPU.
        own_seconds: The part that this run trained; the rest was found in the storage.
        unit: ``"core"`` or ``"GPU"``.
        num_unknown: Results of which it is not stored.
    """

    seconds: float
    own_seconds: float
    unit: str
    num_unknown: int


def epochs_by_round(run: ReportRun) -> dict[int, int]:
    """Epochs of all particles of each round that entered it, -1: of the dense phase; a cut epoch counts as one.

    Whether this run trained them or found them does not matter: it is what its results take.
    """
    if "kind" not in run.metrics:
        return {}
    epochs: pd.DataFrame = run.metrics.loc[run.metrics["kind"].isin(["dense_epoch", "particle_epoch"])]
    rounds = epochs["round"].fillna(DENSE_ROUND) if "round" in epochs else [DENSE_ROUND] * len(epochs)
    return dict(sorted(Counter(int(index) for index in rounds).items()))


def epochs_so_far(run: ReportRun) -> dict[int, int]:
    """Of each finished round: the epochs of the dense phase and of all particles up to its end.

    Empty where the epochs of a round are not recorded.
    """
    known = epochs_by_round(run)
    total, found = known.get(DENSE_ROUND, 0), {}
    for record in run.records:
        if record["round"] not in known:
            return {}
        total += known[record["round"]]
        found[record["round"]] = total
    return found


def device_time(run: ReportRun) -> DeviceTime | None:
    """Device seconds of the dense phase and of all particles; None where no result says how long it took.

    Particles that one device trains side by side share its time. What an interrupted attempt trained before the last
    checkpoint is not in it.
    """
    shares, unit = _shares(run)
    store, total, own, unknown = ArtifactStore(run.rundir.place), 0.0, 0.0, 0
    recorded = {entry["name"] for record in run.records for entry in record["artifacts"]["particles"]}
    kinds = {str(line["name"]): str(line.get("kind")) for line in run.rundir.read_results()}
    for name, kind in sorted(kinds.items()):
        if kind not in shares:
            continue
        manifest = None
        with contextlib.suppress(CorruptArtifactError, ValueError):
            manifest = store.find(name)
        seconds = None if manifest is None else manifest.info.get("seconds")
        if manifest is None or not isinstance(seconds, int | float):
            unknown += name in recorded or kind == "dense"
            continue
        total += shares[kind] * seconds
        own += shares[kind] * seconds if manifest.info.get("run") == run.name else 0.0
    return DeviceTime(total, own, unit, unknown) if total else None


def _shares(run: ReportRun) -> tuple[dict[str, float], str]:
    """How many devices a training run takes up, by kind, and what a device is. The dense phase is never packed."""
    arithmetic, execution = run.about.get("arithmetic", {}), run.config.execution
    width = form_and_width(str(arithmetic.get("packing", "single:1")))[1]
    ranks = int(arithmetic.get("ranks", 1))
    if arithmetic.get("device") == "cuda":
        each, unit = 1.0 if execution.num_gpus is None else execution.num_gpus, "GPU"
    else:
        each, unit = float(arithmetic.get("threads", 1)), "core"
    return {"dense": ranks * each, "particle": ranks * each / width}, unit
