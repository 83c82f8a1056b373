"""How fast is the training of a particle, and of several on one device?

1. One particle, as a worker trains it, against a minimal loop tuned by hand (target: at least 0.97 times its speed; on
   CUDA also against one whose whole step is a CUDA graph), and against the usual loop: a DataLoader with transforms
   image by image in 2 processes, plain SGD, loss.item() at every step.
2. Several particles packed into one process, against one alone; on CUDA also a process for each.
3. The share of the device's matrix rate that the loop reaches.
4. A round of 4 particles end to end, with Ray; on CUDA also all rounds of a study, if the budget allows.

Loops that are compared are timed in turn in one process. On the CPU a loop has one thread, and its speed is given per
second of processor time, which others on the machine disturb less; against the usual loop it is wall time.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --budget-s 540
    python benchmarks/training.py --table cpu

Each case is written to ``benchmarks/results/training_cpu.json`` or ``training_cuda.json`` once it is measured. A call
goes on with what an earlier one on such a machine has left out; if that is nothing, it begins anew. --table prints the
tables of docs/speed.md from a result file.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _measuring import RESULTS, hardware, versions, write

TARGET = 0.97
NOTE = ("CPU: one thread, per second of processor time; others used the machine at the same time. "
        "Compared loops alternate within one process; ratios are medians over repetitions.")
WIDTHS = (1, 2, 4, 8, 16)
CHAIN_IMAGES = 45_000 * 24 * 4 * 8
"""Of a study's particles: 8 rounds of 4 particles and 24 epochs of CIFAR-10."""


@dataclass(frozen=True)
class Task:
    """One case of the benchmark.

    Attributes:
        name: Its key in the result file.
        estimate_s: About how long it takes; it is left out where less time is left.
        measure: Measures it.
    """

    name: str
    estimate_s: float
    measure: Callable[[], Any]


def tasks(device: str, repeats: int) -> list[Task]:
    """All cases, the important ones first."""
    import _training_loops as loops
    import _training_packs as packs
    import _training_peak as peak
    import _training_rounds as rounds

    on_cpu = device == "cpu"
    many = {"resnet20": 2, "lenet_300_100": 8, "digits_cnn": 8} if on_cpu else {}
    names = ("resnet20", "lenet_300_100", "wrn_28_2", "digits_cnn", "resnet50")
    found = [Task(f"one/{name}", 40 if on_cpu else 45,
                  lambda name=name: loops.measure(name, device, repeats * many.get(name, 1)))
             for name in names]
    forms = ("stacked",) if on_cpu else ("graphs", "stacked")
    packed = ("resnet20", "lenet_300_100", "digits_cnn") + (() if on_cpu else ("wrn_28_2",))
    found += [Task(f"packed/{form}/{name}", 40 if on_cpu else 45,
                   lambda name=name, form=form: packs.measure(name, form, WIDTHS, device, 3))
              for name in packed for form in forms]
    found += [Task(f"peak/{name}", 15, lambda name=name: peak.measure(name, device, repeats))
              for name in ("resnet20", "wrn_28_2", "resnet50")]
    found.append(Task("round", 60, lambda: rounds.measure(rounds.config_of(device))))
    if not on_cpu:
        found += [Task(f"processes/{name}", 90, lambda name=name: packs.side_by_side(name, WIDTHS[:4], device, 3))
                  for name in ("resnet20", "lenet_300_100")]
        found.append(Task("chain", 1500, lambda: rounds.measure(rounds.chain_of(device))))
    return found


def earlier(device: str, names: list[str]) -> dict[str, Any]:
    """Cases that were measured on such a machine with these versions; without the named ones, if all of them were."""
    path = RESULTS / f"training_{device}.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if (record["hardware"], record["versions"]) != (hardware(), versions()):
        return {}
    cases = {name: found for name, found in record["cases"].items() if "error" not in found}
    return {name: found for name, found in cases.items() if name not in names} if set(names) <= set(cases) else cases


def measured(task: Task) -> Any:
    """What a case gave, or why it gave nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return task.measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:400]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def carry_out(device: str, repeats: int, budget_s: float, only: str) -> None:
    """Measure what is missing, as long as the budget lasts."""
    began = time.perf_counter()
    every = [task for task in tasks(device, repeats) if task.name.startswith(only)]
    cases = earlier(device, [task.name for task in every])
    for task in every:
        if task.name in cases:
            continue
        left = budget_s - (time.perf_counter() - began)
        if estimate_s(task, cases) > left:
            print(f"{task.name}: left out, takes about {estimate_s(task, cases):.0f} s of {max(0, left):.0f}",
                  flush=True)
            continue
        case_began = time.perf_counter()
        cases[task.name] = measured(task)
        write(f"training_{device}", {"note": NOTE, "target": {"one": f"ours_over_bare at least {TARGET}"},
                                     "cases": cases})
        print(f"{task.name}: took {time.perf_counter() - case_began:.0f} s\n{described(task.name, cases[task.name])}",
              flush=True)


def estimate_s(task: Task, cases: dict[str, Any]) -> float:
    """About how long a case takes; that of a study from the speed that was measured of one particle."""
    one = cases.get("one/resnet20", {})
    if task.name == "chain" and "ours_images_per_s" in one:
        return 1.2 * CHAIN_IMAGES / one["ours_images_per_s"]["median"]
    return task.estimate_s


def described(name: str, found: Any) -> str:
    """A case's figures in a few lines."""
    if isinstance(found, dict) and "error" in found:
        return f"  failed: {found['error']}"
    rows = found if isinstance(found, list) else [found]
    lines = []
    for row in rows:
        parts = [f"{key} {_text(value)}" for key, value in row.items() if key != "config"]
        lines.append("  " + ", ".join(parts))
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_number(value['median'])} ({_number(value['min'])} to {_number(value['max'])}, n = {value['n']})"
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.2e}"


def table(device: str) -> str:
    """The tables of docs/speed.md."""
    cases = json.loads((RESULTS / f"training_{device}.json").read_text())["cases"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print("| network | batch | images/s | over the bare loop | fastest over fastest | over its CUDA graph | "
              "over the usual loop |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, row in _of(cases, "one/"):
            print(f"| {name} | {row['batch']} | {_number(row['ours_images_per_s']['median'])} | "
                  f"{_between(row['ours_over_bare'])} | {row['ours_over_bare']['of_the_fastest']:.2f} | "
                  f"{_between(row.get('ours_over_bare_graph'))} | "
                  f"{_between(row.get('ours_over_usual'))} |")
        print("\n| network | form | " + " | ".join(f"N = {width}" for width in WIDTHS) + " |")
        print("|---|---|" + "---:|" * len(WIDTHS))
        for kind in ("packed/", "processes/"):
            for name, rows in _of(cases, kind):
                form, _, model = name.rpartition("/")
                cells = {row["particles"]: row["over_one"]["median"] for row in rows if "over_one" in row}
                print(f"| {model} | {form or 'processes'} | "
                      + " | ".join(f"{cells[width]:.2f}" if width in cells else "" for width in WIDTHS) + " |")
        print("\n| network | MFLOP an image | matrix rate GFLOP/s | copy GB/s | share of the matrix rate |")
        print("|---|---:|---:|---:|---:|")
        for name, row in _of(cases, "peak/"):
            print(f"| {name} | {row['flops_per_image'] / 1e6:.0f} | {row['matrix_flops_per_s']['median'] / 1e9:.0f} | "
                  f"{row['copy_bytes_per_s']['median'] / 1e9:.1f} | {_between(row['share_of_matrix_rate'])} |")
        for name in ("round", "chain"):
            if "rounds_s" in cases.get(name, {}):
                row = cases[name]
                print(f"\n{name}: {row['rounds_s']:.0f} s of rounds ({row['wall_s']:.0f} s in all, "
                      f"{row['until_ray_was_there_s']:.0f} s until Ray was there), {row['workers']} workers, "
                      f"{row['training_share_of_workers_time']:.0%} of their time inside training loops")
    return text.getvalue()


def _of(cases: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(kind), row) for name, row in cases.items() if name.startswith(kind)
            and not (isinstance(row, dict) and "error" in row)]


def _between(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found.get("quartiles", (found["min"], found["max"]))
    return f"{found['median']:.2f} ({low:.2f}-{high:.2f}, n = {found['n']})"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both, where CUDA is")
    parser.add_argument("--budget-s", type=float, help="begin no case that ends later; default 330, on CUDA 900")
    parser.add_argument("--repeats", type=int, default=5, help="on the CPU up to 8 times as many for small networks")
    parser.add_argument("--only", default="", help="cases whose name begins so: one/, packed/, peak/, round, chain")
    parser.add_argument("--table", choices=["cpu", "cuda"], help="print tables of a result file, measure nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    devices = [given.device] if given.device else ["cuda"] * torch.cuda.is_available() + ["cpu"]
    for device in devices:
        carry_out(device, given.repeats, given.budget_s or (330 if device == "cpu" else 900), given.only)


if __name__ == "__main__":
    main()
