"""Digests of what small runs give, bit by bit: the same after every change that is not meant to alter results.

``python -m tests.old_results compare`` runs everything and compares, ``python -m tests.old_results write`` pins what
this machine gives today. Last bits differ between processors and versions of torch, so a digest only means something on
the machine that it names: ``tests/unit/test_pinned.py`` holds the same promise on all others, within rounding.

Only public names and the files of a run are used here: nothing in this file has to change when the package does.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from swamp_ray import SwampSweep, SwampTrainer
from swamp_ray.errors import Interrupted

FILE = Path(__file__).with_name("old_results.json")
UNPINNED = ("peak_bytes", "check", "cost", "cost_so_far")
"""Entries of a round's record that depend on the machine's load, the checksum over them, and what was added later."""

BASE: dict[str, Any] = {
    "name": "pinned",
    "data": {"name": "synthetic", "options": {"num_train": 64, "num_test": 30, "num_classes": 3, "shape": [1, 6, 6]}},
    "model": {"name": "tests.pinned_networks:conv"},
    "training": {"batch_size": 16, "lr": 0.05},
    "dense": {"length": 1},
    "round": {"length": 2},
    "averaging": {"within": "swa", "start": 0.5},
    "particles": {"count": 3},
    "pruning": {"target": 0.75, "rate": 0.5},
    "execution": {"executor": "inline", "device": "cpu", "checkpoint_interval_s": 0.0, "threads": 1},
}
ALONE: dict[str, Any] = {"averaging": {"within": "none"}, "particles": {"count": 1}}
ARMS: dict[str, dict[str, Any]] = {
    "swamp": {},
    "swamp_plus": {"particles": {"count": 1, "schedule": [{"sparsity": 0.5, "count": 3}]}},
    "swamp_without_swa": {"averaging": {"within": "none"}},
    "imp": ALONE,
    "imp_swa": {"particles": {"count": 1}},
    "imp_ema": {**ALONE, "averaging": {"within": "ema", "ema_decay": 0.8}},
    "imp_best_of_3": {"averaging": {"within": "none"}, "particles": {"count": 3, "combine": "best"}},
    "imp_erk": {**ALONE, "pruning": {"target": 0.75, "rate": 0.5, "scope": "erk"}},
    "imp_uniform": {**ALONE, "pruning": {"target": 0.75, "rate": 0.5, "scope": "uniform"}},
    "imp_rewind_init": {**ALONE, "rewind": {"weights": "init"}},
    "lr_rewinding": {**ALONE, "rewind": {"weights": "none"}},
    "one_shot": {**ALONE, "pruning": {"target": 0.75, "rate": 0.75}},
    "random_pruning": {**ALONE, "pruning": {"target": 0.75, "rate": 0.5, "score": "random"}},
    "movement": {"pruning": {"target": 0.75, "rate": 0.5, "score": "movement"}},
    "sparse_model_soups": {
        "averaging": {"within": "none"}, "rewind": {"weights": "none"},
        "round": {"length": 2, "schedule": "retrain", "retrain_length": 1, "retrain_lr": 0.05},
        "particles": {"count": 1, "schedule": [{"sparsity": 0.1, "count": 3}],
                      "vary": {"weight_decay": [0.0005, 0.0001, 0.001]}}},
    "crops_unaugmented": {"data": {**BASE["data"], "augment": "crop_flip", "crop_padding": 1},
                          "averaging": {"within": "swa", "start": 0.5, "statistics": "unaugmented"}},
    "micro_batches": {"training": {"batch_size": 16, "lr": 0.05, "micro_batch": 8, "nesterov": True}},
    "dropout": {"model": {"name": "tests.pinned_networks:mlp"}},
    "attention": {"model": {"name": "tests.pinned_networks:Attention"},
                  "training": {"batch_size": 16, "lr": 0.01, "optimizer": "adamw", "clip_norm": 1.0}},
}


def _with(sections: dict[str, Any], storage: Path, **execution: Any) -> dict[str, Any]:
    tree = {**BASE, **sections, "storage": str(storage)}
    tree["execution"] = {**BASE["execution"], **execution}
    return tree


def _run(sections: dict[str, Any], storage: Path, **execution: Any) -> None:
    SwampTrainer(_with(sections, storage, **execution), quiet=True).fit()


def _resumed(storage: Path) -> None:
    """A run that is interrupted after its first round, and goes on."""
    rounds = storage / "runs" / "pinned" / "rounds.jsonl"
    over = threading.Event()

    def interrupt() -> None:
        while not over.is_set():
            if rounds.exists() and rounds.read_text().count("\n"):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    sections = {"round": {"length": 60}}
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        _run(sections, storage)
    except Interrupted:
        _run(sections, storage)
    else:
        raise AssertionError("the run came to its end before it was interrupted")
    finally:
        over.set()
        watcher.join()


def _swept(storage: Path, executor: str) -> None:
    tree = _with({}, storage, executor=executor)
    space = {"particles.count": {"grid": [1, 3]}}
    SwampSweep({"name": "pinned", "storage": str(storage), "base": tree, "space": space, "seeds": [0, 1]},
               quiet=True).fit()


LARGE: dict[str, Any] = {  # of more than one chunk of weights, so that two averaging actors share them
    "model": {"name": "mlp", "options": {"hidden": [4096, 4096]}},
    "dense": {"length": 0}, "round": {"length": "1 step"},
    "averaging": {"within": "none", "num_shards": 2}, "particles": {"count": 2},
    "training": {"batch_size": 16, "lr": 0.05, "schedule": {"warmup": 0}}, "pruning": {"target": 0.5, "rate": 0.5}}
INLINE: dict[str, Callable[[Path], None]] = {
    **{arm: lambda storage, sections=sections: _run(sections, storage) for arm, sections in ARMS.items()},
    "packed": lambda storage: _run({}, storage, particles_per_worker=3),
    "resumed": _resumed,
}
ON_RAY: dict[str, Callable[[Path], None]] = {
    "swamp_on_ray": lambda storage: _run({}, storage, executor="ray", num_workers=2),
    "imp_on_ray": lambda storage: _run(ALONE, storage, executor="ray"),
    "packed_on_ray": lambda storage: _run({}, storage, executor="ray", particles_per_worker=3),
    "sharded_on_ray": lambda storage: _run(LARGE, storage, executor="ray", num_workers=1),
    "ranked_on_ray": lambda storage: _run({"particle": {"num_workers": 2}}, storage, executor="ray"),
    "swept": lambda storage: _swept(storage, "inline"),
    "swept_on_ray": lambda storage: _swept(storage, "ray"),
}
CASES = {**INLINE, **ON_RAY}


def machine() -> dict[str, str]:
    """What last bits depend on beside the code."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "")
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"torch": str(torch.__version__), "processor": model, "instructions": instructions}


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits of SHA-256 over canonical JSON, or over bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _mask_of(ticket: Path) -> str:
    with safe_open(ticket, framework="np") as file:
        names = [name for name in file.keys() if "mask" in name]  # noqa: SIM118
        masks = {name: file.get_tensor(name) for name in names}
    assert masks, "a ticket holds masks"
    return digest_of(b"".join(name.encode() + masks[name].tobytes() for name in sorted(masks)))


def digests_of(storage: Path) -> dict[str, Any]:
    """Of each run in a storage root: a digest of each round's record, ticket and mask; and of all results' names."""
    found: dict[str, Any] = {"artifacts": digest_of(sorted(path.name for path in storage.glob("artifacts/*/*")))}
    for rounds in sorted(storage.glob("runs/*/rounds.jsonl")):
        lines = []
        for record in map(json.loads, rounds.read_text().splitlines()):
            pinned = {key: value for key, value in record.items() if key not in UNPINNED}
            ticket = storage / record["ticket"]
            lines.append({"record": digest_of(pinned), "mask": _mask_of(ticket),
                          "ticket": digest_of(ticket.read_bytes())})
        found[rounds.parent.name] = sorted(lines, key=lambda line: line["record"])
    return found


def results(case: str) -> dict[str, Any]:
    """Run a case in a storage root of its own, and digest what it gave."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "storage"
        CASES[case](storage)
        return digests_of(storage)


def main(mode: str) -> int:
    """``write`` or ``compare``; the exit code."""
    found = {}
    for case in CASES:
        found[case] = results(case)
        print(case, flush=True)
    if mode == "write":
        FILE.write_text(json.dumps({"machine": machine(), "results": found}, indent=1) + "\n")
        return 0
    pinned = json.loads(FILE.read_text())
    if pinned["machine"] != machine():
        print(f"pinned on another machine: {pinned['machine']}, this is {machine()}")
    others = [case for case in CASES if pinned["results"].get(case) != found[case]]
    print(f"{len(CASES) - len(others)} of {len(CASES)} as pinned; others: {', '.join(others) or 'none'}")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
