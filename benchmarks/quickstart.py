"""What does the quickstart find, and what do averaging along a run and over particles add to it?

Runs three arms of configs/quickstart.yaml for several seeds, each particle with the same number of epochs, and draws
accuracy against sparsity. The storage is kept: a second call only adds what is missing.

    python benchmarks/quickstart.py --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _measuring import write

from swamp_ray import load_config
from swamp_ray.config.reading import with_values
from swamp_ray.launch import run
from swamp_ray.report.charts.figures import Curve, accuracy_against_sparsity

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, Any]] = {
    "SWAMP, 3 particles": {},
    "IMP + SWA": {"particles.count": 1},
    "IMP": {"particles.count": 1, "averaging.within": "none"},
}


def main() -> None:
    """Run, tabulate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--storage", default=str(ROOT / "results" / "quickstart-figure"))
    parser.add_argument("--executor", choices=("inline", "ray"), default="inline")
    arguments = parser.parse_args()
    base = load_config(ROOT / "configs" / "quickstart.yaml")
    runs: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in ARMS}
    for seed in range(arguments.seeds):
        for number, (arm, values) in enumerate(ARMS.items()):
            config = with_values(base, {**values, "seed": seed, "name": f"arm{number}-seed{seed}",
                                        "storage": arguments.storage, "execution.executor": arguments.executor})
            records = [asdict(record) for record in run(config).records]
            runs[arm].append(records)
            last = records[-1]
            print(f"{arm:<20} seed {seed}: {100 * last['average']['test']['accuracy']:.2f} % "
                  f"at {100 * last['sparsity']:.1f} %", flush=True)
    table = summary(runs)
    path = write("quickstart", {"seeds": arguments.seeds, "test_accuracy_percent": table})
    figure = accuracy_against_sparsity(
        [Curve(arm, found) for arm, found in runs.items()], lowest=0.95,
        title=f"Digits, 40,208 prunable weights: mean and range over {arguments.seeds} seeds")
    folder = ROOT / "docs" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"quickstart.{kind}", dpi=160)
    print(f"wrote {path.relative_to(ROOT)} and docs/figures/quickstart.svg")


def summary(runs: dict[str, list[list[dict[str, Any]]]]) -> dict[str, list[dict[str, Any]]]:
    """Mean, standard deviation and values over seeds, by arm and sparsity."""
    table: dict[str, list[dict[str, Any]]] = {}
    for arm, found in runs.items():
        rows = []
        for records in zip(*found, strict=True):
            values = [round(100 * record["average"]["test"]["accuracy"], 3) for record in records]
            rows.append({"sparsity": round(records[0]["sparsity"], 5), "mean": round(statistics.fmean(values), 3),
                         "std": round(statistics.stdev(values), 3) if len(values) > 1 else None, "values": values})
        table[arm] = rows
    return table


if __name__ == "__main__":
    main()
