"""How long the exact global mask takes, against numpy's and torch's ways to the same threshold.

    python benchmarks/selection.py --sizes 25 100 --repeats 5

``top_k`` gives the whole mask with exactly k weights, ties included; the others only what it could be built from.
Writes ``benchmarks/results/selection.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from _measuring import spread, write

from swamp_ray.sparsity.top_k import top_k

MILLION = 1_000_000
TARGET = 2.0
DENSITIES = (0.8, 0.05)


def scores_of(kind: str, num: int) -> np.ndarray:
    """Scores as float32 ``[num]``: magnitudes of normal weights; ``ties``: the same in steps of 1/100."""
    scores = np.abs(np.random.default_rng(0).standard_normal(num, dtype=np.float32))
    return np.round(scores, 2) if kind == "ties" else scores


def contestants(scores: np.ndarray, k: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; top_k first, then its yardstick, then the slow ones."""
    tensor, place = torch.from_numpy(scores), scores.size - k
    return {
        "top_k": lambda: top_k(scores, k),
        "np.partition": lambda: np.partition(scores, place),
        "torch.kthvalue": lambda: torch.kthvalue(tensor, place + 1),
        "torch.sort": lambda: torch.sort(tensor),
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(kind: str, num: int, density: float, repeats: int, slow: bool) -> dict[str, object]:
    """One row: seconds of every contestant; repeats alternate between them, the slow ones run once."""
    scores, k = scores_of(kind, num), round(num * density)
    timed = contestants(scores, k)
    fast = ["top_k", "np.partition"]
    for name in fast:
        timed[name]()
    seconds: dict[str, list[float]] = {name: [] for name in fast}
    for _ in range(repeats):
        for name in fast:
            seconds[name].append(seconds_of(timed[name]))
    if slow:
        seconds |= {name: [seconds_of(timed[name])] for name in timed if name not in fast}
    kept = int(np.count_nonzero(top_k(scores, k)))
    assert kept == k, f"{kept} weights were kept instead of {k}"
    ratio = spread(seconds["top_k"])["median"] / spread(seconds["np.partition"])["median"]
    return {
        "scores": kind, "weights": num, "density": density, "kept": kept, "ratio": round(ratio, 3),
        "seconds": {name: spread(values) for name, values in seconds.items()},
    }


def line(row: dict[str, object]) -> str:
    """A row of the table."""
    seconds = row["seconds"]
    assert isinstance(seconds, dict)
    cells = [f"{seconds[name]['median']:.3f}" if name in seconds else "-"
             for name in ("top_k", "np.partition", "torch.kthvalue", "torch.sort")]
    extremes = f"{seconds['top_k']['min']:.3f}-{seconds['top_k']['max']:.3f}"
    return (f"{row['weights']:>12,}  {row['scores']:<8}  {row['density']:>7}  {cells[0]:>8}  {extremes:>13}  "
            f"{cells[1]:>12}  {cells[2]:>14}  {cells[3]:>10}  {row['ratio']:>5}")


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description="Time the exact global mask.")
    parser.add_argument("--sizes", type=float, nargs="+", default=[25, 100], help="millions of weights")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of top_k and np.partition")
    parser.add_argument("--slow-up-to", type=float, default=25, help="kthvalue and sort run up to this size (millions)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'weights':>12}  {'scores':<8}  {'density':>7}  {'top_k s':>8}  {'min-max':>13}  {'np.partition':>12}  "
          f"{'torch.kthvalue':>14}  {'torch.sort':>10}  ratio")
    rows: list[dict[str, object]] = []
    for size in given.sizes:
        for kind in ("distinct", "ties"):
            for density in DENSITIES:
                slow = size <= given.slow_up_to and density == DENSITIES[0]
                rows.append(measure(kind, round(size * MILLION), density, given.repeats, slow))
                print(line(rows[-1]), flush=True)
    worst = max(float(str(row["ratio"])) for row in rows)
    print(f"worst ratio to np.partition: {worst:.2f} (target at most {TARGET:g})")
    write("selection", {"unit": "seconds on one thread; ratio: medians of top_k to np.partition",
                        "target_ratio": TARGET, "worst_ratio": worst, "rows": rows})


if __name__ == "__main__":
    main()
