"""What does a sweep save by sharing, and how long do the workers that it has reserved stand idle?

The grid of configs/sweeps/sparsity_x_particles.yaml with short rounds, once as a sweep, and once with each setting in a
storage root of its own, so that nothing can be shared. Compared are the seconds that workers spent in trainings (from
the stored results), the trainings themselves with the distinct ones that were counted beforehand, and the wall time.
Idle is what the settings' workers had reserved less what they trained. Everything runs on one embedded Ray.

    python benchmarks/sweep.py --round-length 6
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _measuring import timed, write

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.config.sweep_reading import load_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.on_ray.cluster import connect
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.run import SweepOutcome, run_sweep

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "sweeps" / "sparsity_x_particles.yaml"


def training_seconds(outcome: SweepOutcome, storage: str) -> float:
    """Seconds of all trainings whose results the member runs name, each result once."""
    store = ArtifactStore(storage)
    names = {line["name"] for record in outcome.records.values() for run in record["runs"]
             for line in RunDir(storage, run).read_results() if line["kind"] in ("dense", "particle")}
    return sum(manifest.info["seconds"] for name in names if (manifest := store.find(name)) is not None)


def trained_epochs(outcome: SweepOutcome) -> float:
    """Epochs that the sweep's attempts have really trained."""
    return sum(attempt["trained_epochs"] for attempt in outcome.sweepdir.read_record()["attempts"])


def measure(sweep: Sweep, storage: str) -> dict[str, Any]:
    """Run a sweep in a fresh storage root."""
    wall, outcome = timed(lambda: run_sweep(replace(sweep, base=sweep.base.model_copy(update={"storage": storage}))))
    seconds = training_seconds(outcome, storage)
    reserved = sum(record["seconds"] * record["workers"] for record in outcome.records.values())
    return {
        "wall_s": wall, "training_s": seconds, "reserved_worker_s": reserved, "trained": outcome.trained,
        "trained_epochs": trained_epochs(outcome),
        "distinct": outcome.plan.num_distinct("particle") + outcome.plan.num_distinct("dense"),
        "named": outcome.plan.named("particle") + outcome.plan.named("dense"),
        "distinct_epochs": outcome.plan.distinct_epochs,
    }


def alone(sweep: Sweep) -> Iterator[Sweep]:
    """The sweep's settings as sweeps of one setting each."""
    for setting in sweep.settings():
        space = {entry: {"grid": [value]} for entry, value in setting.items()}
        config = type(sweep.config).model_validate(
            {**sweep.config.model_dump(exclude_none=True), "space": space})
        yield Sweep(config, sweep.base)


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round-length", default="6")
    arguments = parser.parse_args()
    sweep = load_sweep(CONFIG, [f"base.round.length={arguments.round_length}"])
    with contextlib.ExitStack() as stack:
        stack.callback(connect(ExecutionConfig()).close)
        storage = [stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())) for _ in range(10)]
        shared = measure(sweep, storage[0])
        parts = [measure(one, folder) for one, folder in zip(alone(sweep), storage[1:], strict=True)]
    apart = {key: sum(part[key] for part in parts) for key in parts[0]}
    result = {
        "shared": shared, "apart": apart,
        "trained_over_distinct": shared["trained"] / shared["distinct"],
        "epochs_over_distinct": shared["trained_epochs"] / shared["distinct_epochs"], "target": 1.05,
        "training_time_shared_over_apart": shared["training_s"] / apart["training_s"],
        "wall_time_shared_over_apart": shared["wall_s"] / apart["wall_s"],
        "idle_share_of_reserved": 1 - shared["training_s"] / shared["reserved_worker_s"],
        "idle_share_of_reserved_apart": 1 - apart["training_s"] / apart["reserved_worker_s"],
    }
    print(f"trained {shared['trained']} of {shared['distinct']} distinct trainings; epochs over distinct epochs "
          f"{result['epochs_over_distinct']:.4f} (target {result['target']})\n"
          f"with sharing {result['training_time_shared_over_apart']:.2f} times the training time, "
          f"{result['wall_time_shared_over_apart']:.2f} times the wall time ({shared['wall_s']:.0f} s against "
          f"{apart['wall_s']:.0f} s)\n"
          f"reserved workers stood idle {result['idle_share_of_reserved']:.0%} of their time "
          f"(without sharing {result['idle_share_of_reserved_apart']:.0%})")
    write("sweep", {"n": 1, **result})


if __name__ == "__main__":
    main()
