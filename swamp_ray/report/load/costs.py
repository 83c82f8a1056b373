"""What a run cost: epochs of particles, and hours of devices, as they are stored with its results."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.method.events import DENSE, Job
from swamp_ray.report.load.broken_off import BrokenOff
from swamp_ray.report.load.missing import DENSE_ROUND, TRAINED, particles_of, unknown_trainings
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.records import job_of
from swamp_ray.text.costs import cost_text
from swamp_ray.training.arithmetic import form_and_width


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
    """Epochs of a round's trunk and all its particles that entered, -1: of the dense phase; a cut epoch counts as one.

    Whether this run trained them or found them does not matter: it is what its results take.
    """
    if "kind" not in run.metrics:
        return {}
    epochs: pd.DataFrame = run.metrics.loc[run.metrics["kind"].isin(["dense_epoch", "trunk_epoch", "particle_epoch"])]
    rounds = epochs["round"].fillna(DENSE_ROUND) if "round" in epochs else [DENSE_ROUND] * len(epochs)
    # One line stands for all replicas of a training whose mask changes.
    replicas = epochs["replicas"].fillna(1) if "replicas" in epochs else [1] * len(epochs)
    found: Counter[int] = Counter()
    for index, number in zip(rounds, replicas, strict=True):
        found[int(index)] += int(number)
    return dict(sorted(found.items()))


def epochs_so_far(run: ReportRun) -> dict[int, int]:
    """Of each finished round: the epochs of the dense phase and of all particles up to its end.

    Empty where the epochs of a training are not all recorded.
    """
    if unknown_trainings(run):
        return {}
    known = epochs_by_round(run)
    total = known.get(DENSE_ROUND, 0)
    found = {}
    for record in run.records:
        if record["round"] not in known:
            return {}
        total += known[record["round"]]
        found[record["round"]] = total
    return found


def account_text(run: ReportRun) -> str:
    """What the run's trainings cost, all faces in a sentence; empty of a run of an older version.

    In contrast to :func:`epochs_by_round` a cut epoch counts in part, and a step of two gradients twice.
    """
    found = run.records[-1].get("cost_so_far")
    if not found:
        return ""
    reason = run.about.get("flops", {}).get("reason", "")
    return cost_text(found) + (f": {reason}" if reason and found.get("dense_flops") is None else "")


def device_time(run: ReportRun) -> DeviceTime | None:
    """Device seconds of the dense phase and of all particles; None where nothing says how long they took.

    Particles that one device trains side by side share its time. With each result lies what its training took from the
    checkpoint that it went on from; what was broken off before is counted apart.
    """
    shares, unit = _shares(run)
    store = ArtifactStore(run.rundir.place)
    own = _Own(run)
    total = 0.0
    own_total = 0.0
    unknown = 0
    recorded = {entry["name"] for record in run.records for entry in record["artifacts"]["particles"]}
    for name, work in sorted(_trainings(run).items()):
        manifest = None
        with contextlib.suppress(CorruptArtifactError, ValueError):
            manifest = store.find(name)
        seconds = None if manifest is None else manifest.info.get("seconds")
        if manifest is None or not isinstance(seconds, int | float):
            unknown += name in recorded or work == DENSE
            continue
        total += shares[work.kind] * seconds
        own_total += shares[work.kind] * seconds if own.trained(work, manifest) else 0.0
    return DeviceTime(total, own_total, unit, unknown) if total else None


def broken_off_time(run: ReportRun, broken: BrokenOff) -> float:
    """Device seconds of what was broken off."""
    shares, _ = _shares(run)
    return sum(shares[kind] * seconds for kind, seconds in broken.seconds.items())


def _trainings(run: ReportRun) -> dict[str, Job]:
    """The dense phase and the particles by the names of their results; where they were not noted, those of rounds."""
    found = {entry["name"]: Job("particle", record["round"], particle) for record in run.records
             for particle, entry in zip(particles_of(record), record["artifacts"]["particles"], strict=False)}
    return found | {line["name"]: job_of(line) for line in run.results if line["kind"] in TRAINED}


class _Own:
    """Which results a run has trained itself.

    With a result lies the name of the run that trained it, but a folder can be renamed, or copied and gone on with. So
    it counts which jobs the run's workers did; only where these are not all recorded, the names that it has had.
    """

    def __init__(self, run: ReportRun) -> None:
        attempts = run.about.get("attempts", [])
        done = [line for line in run.jobs if line.kind in TRAINED and line.how == "done" and line.epochs > 0]
        self._works = {line.job() for line in done}
        self._all_known = len(done) >= sum(attempt["trained"] for attempt in attempts) and \
            all("ended" in attempt for attempt in attempts)
        self._names = {run.name, run.config.name, run.about.get("name")}

    def trained(self, work: Job, manifest: Manifest) -> bool:
        """Whether a job's result is this run's work."""
        return work in self._works or (not self._all_known and manifest.info.get("run") in self._names)


def _shares(run: ReportRun) -> tuple[dict[str, float], str]:
    """How many devices a training run takes up, by kind, and what a device is. Only particles are packed."""
    arithmetic = run.about.get("arithmetic", {})
    execution = run.config.execution
    width = form_and_width(str(arithmetic.get("packing", "single:1")))[1]
    ranks = int(arithmetic.get("ranks", 1))
    if arithmetic.get("device") == "cuda":
        each = 1.0 if execution.num_gpus is None else execution.num_gpus
        unit = "GPU"
    else:
        each = float(arithmetic.get("threads", 1))
        unit = "core"
    return {"dense": ranks * each, "trunk": ranks * each, "particle": ranks * each / width}, unit
