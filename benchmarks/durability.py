"""What do checkpoints, hashes, leases and records cost?

Two runs in one process (executor inline): the quickstart, and one round of two particles of ResNet-20 on CIFAR-10. The
time inside everything that makes results durable is measured in the same run as the rest: serialising and writing
checkpoints and results with their SHA-256 and fsync, reading them back, leases, and the run's own records. The ratio is
the run's wall time over the wall time without these. A lease's heartbeat runs in a thread of its own and is not in it.
CIFAR-10 is looked for as Parquet in SWAMP_DATA, and left out where it is missing.

    python benchmarks/durability.py --repeats 3
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measuring import spread, write

from swamp_ray.config.reading import build_config, load_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.launch import run
from swamp_ray.run.journal import Journal
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.worker import Worker
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.leases import Lease, Leases
from swamp_ray.storage.recipes import Recipes

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
RESNET20: dict[str, Any] = {
    "name": "durability-resnet20",
    "data": {"name": "cifar10", "limit_train": 2000, "limit_test": 500},
    "model": {"name": "resnet20"},
    "dense": {"length": 1},
    "round": {"length": 4},
    "particles": {"count": 2},
    "pruning": {"target": 0.0},
}
MEASURED: dict[type, tuple[str, ...]] = {
    ArtifactStore: ("put", "find", "read", "discard", "check_writable"),
    Worker: ("_checkpoint", "_keep", "_stored"),
    Leases: ("acquire", "look", "remove"),
    Lease: ("release",),
    Journal: ("open", "close", "uses", "finished", "write_round", "write_ticket", "started_workers"),
    Recipes: ("state_digest", "mask_digest", "training", "average", "evaluation"),
}


class Meter:
    """Seconds inside the measured methods; calls of one from another count once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def __enter__(self) -> Meter:
        self._originals = {(kind, name): getattr(kind, name) for kind, names in MEASURED.items() for name in names}
        for (kind, name), method in self._originals.items():
            setattr(kind, name, self._measured(method))
        return self

    def __exit__(self, *_: object) -> None:
        for (kind, name), method in self._originals.items():
            setattr(kind, name, method)

    def _measured(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - began

        return measured


class Clock(Reporter):
    """When the run's own work began: data and network are ready."""

    def run_started(self, prepared: Any, path: str) -> None:
        """The plan stands."""
        self.began = time.perf_counter()


def measure(config: SwampConfig) -> tuple[float, float]:
    """Wall time of a run in a storage of its own, and the share of it that durability took."""
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as storage, Meter() as meter:
        run(with_values(config, {"storage": storage, "execution.executor": "inline"}), clock)
        return time.perf_counter() - clock.began, meter.seconds


def main() -> None:
    """Measure both runs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    runs = {"quickstart": (load_config(QUICKSTART), 1.05)}
    if "SWAMP_DATA" in os.environ:
        runs["resnet20_cifar10"] = (build_config(RESNET20), 1.02)
    result: dict[str, Any] = {"resnet20_config": RESNET20}
    for name, (config, target) in runs.items():
        rows = [measure(config) for _ in range(arguments.repeats)]
        ratios = [wall / (wall - durable) for wall, durable in rows]
        result[name] = {"wall_s": spread([wall for wall, _ in rows]), "durable_s": spread([row[1] for row in rows]),
                        "ratio": spread(ratios), "target": target}
        print(f"{name}: {result[name]['ratio']['median']:.4f} times the work alone (target {target}); "
              f"{result[name]['durable_s']['median']:.2f} of {result[name]['wall_s']['median']:.1f} s", flush=True)
    write("durability", result)


if __name__ == "__main__":
    main()
