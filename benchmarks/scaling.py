"""How does a round grow with particles, workers and weights?

Two questions, each for itself with its flag; without one, both (about three quarters of an hour):

--efficiency: N particles that sleep for a known time instead of training, on workers of one CPU each: ideal time
(waves x sleep) / wall time of a round. Driver, state machine, pool, workers, averaging actor and storage are the real
ones. The workers' start is reported apart, and so is a first round; the driver's memory is reported with each N.

--weights: one round of 8 particles of 1 million to 1 billion weights: time of broadcast, gather, average, closing,
mask and writing, one after the other, and the peak of memory. The yardstick is to read the arriving states and one byte
a weight of mask once from memory, on one core.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --efficiency --cases 64x32x60 --rounds 3
    python benchmarks/scaling.py --weights --sizes 1000 --sparsities 0.9 0.98 --shards 1 2
    python benchmarks/scaling.py --markdown

Rows are merged into ``benchmarks/results/scaling.json``, each with its command and date; --markdown prints the tables
of docs/scaling.md from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import _scaling_bytes as moved
import _scaling_rounds as rounds
from _measuring import RESULTS, write
from _scaling_model import growth

MILLION = 1_000_000
CASES = ("1x1x5", "4x4x5", "8x8x5", "16x16x5", "32x32x5", "64x8x5", "64x32x60")
MEMORY_CASES = ("1x8x1", "8x8x1", "64x8x1")
MEMORY_WIDTH = 30_000
"""A state of 8 MB: 64 of them would show in the driver."""
KEYS = {"efficiency": ("particles", "workers", "sleep_s", "weights"),
        "weights": ("weights", "sparsity", "averaging_actors")}
TARGETS = {"efficiency": "at least 0.95 with 64 particles of 60 s on 32 warm workers",
           "ratio": "average, closing and mask within 8 times the yardstick",
           "peak": "at most 28 bytes a weight in all processes together"}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own, with a Ray of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def keep(part: str, new: Iterable[dict[str, Any]]) -> None:
    """Put rows into the result file, in the place of those of the same case."""
    path = RESULTS / "scaling.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    parts = {name: {_key(name, row): row for row in found.get(name, [])} for name in KEYS}
    made = {"command": " ".join(["python benchmarks/scaling.py", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d")}
    parts[part] |= {_key(part, row): row | made for row in new}
    rows = {name: [rows[key] for key in sorted(rows)] for name, rows in parts.items()}
    write("scaling", {"targets": TARGETS, **rows})


def _key(part: str, row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row[name] for name in KEYS[part])


def case_of(text: str, width: int = 8) -> rounds.Case:
    """``64x32x60``: 64 particles on 32 workers, each 60 s."""
    particles, workers, sleep_s = text.split("x")
    return rounds.Case(int(particles), int(workers), float(sleep_s), width)


def measure_efficiency(cases: list[rounds.Case], num_rounds: int) -> None:
    """A line and a row for each case."""
    print(rounds.HEAD)
    for case in cases:
        row = apart(rounds.measure, case, num_rounds)
        print(rounds.line(row), flush=True)
        keep("efficiency", [row])


def measure_weights(cases: list[moved.Case], shards: list[int], repeats: int) -> None:
    """A line and a row for each case and number of averaging actors."""
    print(moved.HEAD)
    for case in cases:
        found = apart(moved.measure, case, shards, repeats)
        for row in found:
            print(moved.line(row), flush=True)
        keep("weights", found)


def markdown() -> str:
    """The tables of docs/scaling.md."""
    found = json.loads((RESULTS / "scaling.json").read_text())
    return "\n\n".join(table(*part) for part in (
        (EFFICIENCY, [row for row in found["efficiency"] if row["weights"] < MILLION]),
        (MEMORY, [row for row in found["efficiency"] if row["weights"] >= MILLION]),
        (PHASES, found["weights"]), (TARGET, found["weights"]), (GROWTH, growth(found["weights"]))) if part[1])


Column = tuple[str, Callable[[dict[str, Any]], str]]


def table(columns: list[Column], rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [[name for name, _ in columns], ["---:"] * len(columns),
             *([text(row) for _, text in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _between(found: dict[str, Any], digits: int) -> str:
    return (f"{found['median']:.{digits}f} ({found['min']:.{digits}f}-{found['max']:.{digits}f}, n = {found['n']})")


def _phase(name: str) -> Column:
    return f"{name} s", lambda row: f"{row['phases_s'][name]['median']:.3f}"


EFFICIENCY: list[Column] = [
    ("particles", lambda row: str(row["particles"])), ("workers", lambda row: str(row["workers"])),
    ("sleep s", lambda row: f"{row['sleep_s']:g}"), ("ideal s", lambda row: f"{row['ideal_s']:g}"),
    ("round s", lambda row: f"{row['round_s']['median']:.2f}"),
    ("efficiency", lambda row: _between(row["efficiency"], 3)),
    ("beyond the ideal s", lambda row: _between(row["overhead_s"], 2)),
    ("workers' start s", lambda row: f"{row['workers_start_s']:.0f}"),
]
MEMORY: list[Column] = [
    ("particles", lambda row: str(row["particles"])), ("weights", lambda row: f"{row['weights']:,}"),
    ("driver before the first job MB", lambda row: f"{row['driver_rss_mb']['before']:.0f}"),
    ("driver at most MB", lambda row: f"{row['driver_rss_mb']['most']:.0f}"),
    ("a worker MB (PSS)", lambda row: f"{row['worker_mb']['pss']:.0f}"),
]
CASE: list[Column] = [
    ("weights", lambda row: f"{row['weights']:,}"), ("sparsity", lambda row: f"{row['sparsity']:g}"),
    ("averaging actors", lambda row: str(row["averaging_actors"])),
]
PHASES: list[Column] = [*CASE, *(_phase(name) for name in moved.PHASES)]
TARGET: list[Column] = [
    *CASE, ("yardstick s", lambda row: f"{row['yardstick_s']:.3f}"),
    ("average + closing + mask, in yardsticks", lambda row: _between(row["ratio"], 1)),
    ("peak bytes a weight", lambda row: f"{row['peak_bytes']['per_weight']:.1f}"),
    ("a surviving weight", lambda row: f"{row['peak_bytes']['per_survivor']:.1f}"),
    ("longest", lambda row: row["limits"]),
]
GROWTH: list[Column] = [
    ("sparsity", lambda row: f"{row['sparsity']:g}"), ("link Gbit/s", lambda row: f"{row['gbit']:g}"),
    ("averaging actors", lambda row: str(row["actors"])),
    ("a particle's state GB", lambda row: f"{row['state_gb']:.1f}"),
    ("arrives at an actor GB", lambda row: f"{row['slice_gb']:.1f}"),
    *((f"{name} s", lambda row, name=name: f"{row['seconds'][name]:.1f}")
      for name in ("mask to a node", "states to the actors", "adding", "closing and mask")),
    ("together s", lambda row: f"{sum(row['seconds'].values()):.0f}"),
]


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--efficiency", action="store_true", help="only this part")
    parser.add_argument("--weights", action="store_true", help="only this part")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the result file, measure nothing")
    parser.add_argument("--cases", nargs="+", default=CASES, help="efficiency: PARTICLESxWORKERSxSLEEP")
    parser.add_argument("--memory-cases", nargs="*", default=MEMORY_CASES, help="efficiency: the same with 8 MB states")
    parser.add_argument("--rounds", type=int, default=3, help="efficiency: rounds after the first")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 300, 1000], help="millions of weights")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0, 0.9, 0.98])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2], help="weights: averaging actors")
    parser.add_argument("--repeats", type=int, default=3, help="weights: rounds after the first")
    parser.add_argument("--dense-up-to", type=int, default=300, help="weights: millions at sparsity 0")
    given = parser.parse_args()
    if given.markdown:
        print(markdown())
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    both = given.efficiency == given.weights
    if both or given.efficiency:
        measure_efficiency([*(case_of(text) for text in given.cases),
                            *(case_of(text, MEMORY_WIDTH) for text in given.memory_cases)], given.rounds)
    if both or given.weights:
        cases = [moved.Case(size * MILLION, sparsity) for size in given.sizes for sparsity in given.sparsities
                 if sparsity > 0 or size <= given.dense_up_to]
        measure_weights(cases, given.shards, given.repeats)


if __name__ == "__main__":
    main()
