"""Do the claims of SWAMP hold? Runs a tier of the study in slices, and makes its tables from the committed results.

Each finished part (an arm with a seed) is written to benchmarks/results/study/TIER.parquet at once; a later call, on
this machine or another, goes on with what is missing. docs/study.md says what is run and why.

    python benchmarks/study.py cpu --budget-min 60 --jobs 2
    python benchmarks/study.py cpu --report
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from _measuring import RESULTS, hardware, versions

from swamp_ray import load_config
from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.paths import line
from swamp_ray.config import SwampConfig
from swamp_ray.config_reading import with_values
from swamp_ray.evaluation import evaluate_runs
from swamp_ray.orchestration.running import Run, run

ROOT = Path(__file__).resolve().parents[1]
SECOND_SEED = 1000
"""Added to a study's seed for the second of two IMP solutions."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way of pruning.

    Attributes:
        values: What differs from the tier's config.
        second: Whether a second run with another seed follows, for the ensemble of two solutions.
        lines: Whether lines between its networks are measured.
        stage: Arms of a stage are done for all seeds before those of the next one begin.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    second: bool = False
    lines: bool = False
    stage: int = 1


@dataclass(frozen=True)
class Tier:
    """What is run on one kind of machine: a config, seeds that are fixed beforehand, and arms in their order."""

    config: str
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]

    def parts(self) -> list[tuple[str, int]]:
        """Arms and seeds in the order in which they are done."""
        stages = sorted({arm.stage for arm in self.arms.values()})
        return [(name, seed) for stage in stages for seed in self.seeds
                for name, arm in self.arms.items() if arm.stage == stage]


TIERS = {
    "cpu": Tier("configs/study/cpu.yaml", (0, 1, 2, 3, 4), {
        "imp": Arm({"particles.count": 1, "averaging.within": "none", "averaging.lr": None}, second=True),
        "imp_swa": Arm({"particles.count": 1}),
        "swamp": Arm(lines=True),
        "swamp_without_swa": Arm({"averaging.within": "none", "averaging.lr": None}, stage=2),
        "imp_4t": Arm({"particles.count": 1, "averaging.within": "none", "averaging.lr": None,
                       "round.length": "48 epochs"}, stage=3),
    }),
}


def main() -> None:
    """Run a slice, or print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=TIERS)
    parser.add_argument("--budget-min", type=float, default=60.0, help="Begin nothing after so many minutes.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes that share the work, one part each at a time.")
    parser.add_argument("--storage", default=str(ROOT / "results" / "study"), help="Storage root of the runs.")
    parser.add_argument("--report", action="store_true", help="Run nothing; write the tables of docs/study.md.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="Only to try the script out.")
    parser.add_argument("--results", type=Path, default=RESULTS / "study", help="Folder of the results.")
    arguments = parser.parse_args()
    if arguments.report:
        from _study_report import report

        report(arguments.tier, arguments.results / f"{arguments.tier}.parquet")
        return
    if arguments.jobs > 1:
        sys.exit(side_by_side(arguments.jobs))
    base = load_config(ROOT / TIERS[arguments.tier].config, tuple(arguments.overrides))
    slice_of(TIERS[arguments.tier], with_values(base, {"storage": arguments.storage}),
             arguments.results / f"{arguments.tier}.parquet", 60 * arguments.budget_min)


def side_by_side(jobs: int) -> int:
    """This command in several processes, which divide the parts among them; an interrupt reaches all of them.

    Returns:
        The first exit status that is not 0, else 0.
    """
    # The last of two --jobs counts.
    started = [subprocess.Popen([sys.executable, *sys.argv, "--jobs", "1"]) for _ in range(jobs)]

    def pass_on(number: int, _frame: object) -> None:
        for process in started:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return next((status for status in [process.wait() for process in started] if status), 0)


def slice_of(tier: Tier, base: SwampConfig, path: Path, budget_s: float) -> None:
    """Do the parts that are missing and that no other process does, until the time is up."""
    end = time.monotonic() + budget_s
    elsewhere = 0
    for name, seed in tier.parts():
        with held(path.parent / f".{path.stem}-{name}-{seed}.lock") as mine:
            if (name, seed) in finished(path):
                continue
            if not mine:
                elsewhere += 1
                continue
            if time.monotonic() > end:
                print(f"the time is up before {name}, seed {seed}; the same command goes on", flush=True)
                return
            began = time.monotonic()
            rows = part(base, name, tier.arms[name], seed)
            append(path, rows, {"seconds": time.monotonic() - began})
            print(f"{name:<20} seed {seed}: {time.monotonic() - began:6.0f} s, {headline(rows)}", flush=True)
    print(f"another process does the last {elsewhere}" if elsewhere else "every part is done", flush=True)


@contextlib.contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds a lock; the system frees it when its process ends, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def part(base: SwampConfig, name: str, arm: Arm, seed: int) -> list[Row]:
    """An arm with a seed: its rounds, its lines, and the ensemble with its second solution."""
    done = run(arm_config(base, name, arm, seed))
    rows = [{"arm": name, "seed": seed, **row} for row in round_rows(done)]
    if arm.lines:
        rows += [{"arm": name, "seed": seed, **row} for row in line_rows(done)]
    if arm.second:
        other = run(arm_config(base, f"{name}_second", arm, seed + SECOND_SEED))
        rows += [{"arm": f"{name}_second", "seed": seed, **row} for row in round_rows(other)]
        rows += [{"arm": f"{name}_ensemble", "seed": seed, **row} for row in ensemble_rows(done, other)]
    return rows


def arm_config(base: SwampConfig, name: str, arm: Arm, seed: int) -> SwampConfig:
    """The config of one run."""
    return with_values(base, {**arm.values, "seed": seed, "name": f"{name}-seed{seed}"})


def round_rows(done: Run) -> list[Row]:
    """Metrics of the average and of the particles' mean, by round, split and metric."""
    rows = []
    for record in done.records:
        for network, metrics in (("average", record.average), ("particles", record.mean)):
            rows += [{"round": record.round, "sparsity": record.sparsity, "what": network, "split": split,
                      "metric": metric, "value": value}
                     for split, found in metrics.items() for metric, value in found.items()]
    return rows


def ensemble_rows(one: Run, other: Run) -> list[Row]:
    """Two runs' averaged predictions, by round."""
    levels, _ = evaluate_runs([one.rundir, other.rundir])
    return [{"round": index, "sparsity": level.sparsity, "what": "ensemble", "split": split, "metric": metric,
             "value": value}
            for index, level in enumerate(levels) for split, found in (level.ensemble or {}).items()
            for metric, value in found.items()]


def line_rows(done: Run) -> list[Row]:
    """Barriers, and the deepest dips, between two particles of each round and between successive averages."""
    bench = Bench(done.rundir, done.prepared.data)

    def measure(point: Any) -> dict[str, dict[str, float]]:
        return bench.measure(point, ("test",))

    rows = []
    for index in bench.rounds:
        first, second = bench.particles(index)[:2]
        ends = {"particles": (first, second)}
        if index + 1 in bench.rounds:
            ends["rounds"] = (bench.average(index), bench.average(index + 1))
        for kind, (a, b) in ends.items():
            found = line(measure, a, b)
            for metric in ("loss", "error"):
                excess = found.excess("test", metric)
                rows += [{"round": index, "sparsity": bench.sparsity(index), "what": f"{what} between {kind}",
                          "split": "test", "metric": metric, "value": float(value)}
                         for what, value in (("barrier", excess.max()), ("dip", excess.min()))]
    return rows


def finished(path: Path) -> set[tuple[str, int]]:
    """Arms and seeds whose results are there."""
    if not path.exists():
        return set()
    frame = pd.read_parquet(path, columns=["arm", "seed"]).drop_duplicates()
    return {(str(arm), int(seed)) for arm, seed in zip(frame["arm"], frame["seed"], strict=True)}


def append(path: Path, rows: list[Row], facts: Mapping[str, Any]) -> None:
    """Add rows with where and when they were made; the file is replaced as a whole."""
    where = {"date": time.strftime("%Y-%m-%d"), "cpu": hardware()["cpu"], "gpu": hardware().get("gpu", ""),
             "torch": versions()["torch"], **facts}
    frame = pd.DataFrame([{**row, **where} for row in rows])
    with held(path.parent / f".{path.stem}.lock", wait=True):
        if path.exists():
            frame = pd.concat([pd.read_parquet(path), frame], ignore_index=True)
        waiting = path.with_suffix(".new")
        frame.to_parquet(waiting, index=False)
        waiting.replace(path)


def headline(rows: list[Row]) -> str:
    """Test accuracies of the average at the last rounds."""
    wanted = ("average", "test", "accuracy")
    last = [row for row in rows if (row["what"], row["split"], row["metric"]) == wanted][-3:]
    return ", ".join(f"{100 * row['value']:.2f} % at {100 * row['sparsity']:.1f} %" for row in last)


if __name__ == "__main__":
    main()
