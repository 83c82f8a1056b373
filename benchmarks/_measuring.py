"""What the benchmarks share: hardware, versions, spread, and where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, cores, GPU, memory."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    found: dict[str, Any] = {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "ray", "numpy")}}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and n of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result file with the command, the date, hardware and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    record = {"command": command, "date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": versions(),
              **result}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
