"""The peak memory of a job: on the CPU the process's own, from the job's start, or nothing where it is not known."""

from __future__ import annotations

import gc
import mmap
import sys
from pathlib import Path

import pytest
import torch

from swamp_ray.training.peak_memory import PeakMemory

CPU = torch.device("cpu")
MIB = 1 << 20


def pages(num_mib: int) -> mmap.mmap:
    """Fresh memory, all of it touched; an allocator might give out what the process has already."""
    memory = mmap.mmap(-1, num_mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"1" * len(memory))
    return memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_the_peak_is_that_of_the_job_and_not_of_what_was_before() -> None:
    gc.collect()  # what earlier tests have left would go at any moment
    pages(128).close()
    job = PeakMemory(CPU)
    at_start = job.read_bytes()
    pages(32).close()
    peak = job.read_bytes()
    assert at_start is not None
    assert peak is not None
    assert 28 * MIB <= peak - at_start <= 80 * MIB, "the pages, and what was written to them"


def process(folder: Path, status: str | None) -> Path:
    """A process as the system tells of it, whose peak cannot be reset."""
    (folder / "clear_refs").touch()
    if status is not None:
        (folder / "status").write_text(status)
    return folder


@pytest.mark.parametrize("status", [
    None,
    "Name:\tpython\nThreads:\t1\n",
    "VmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n",
], ids=["no status", "a status without memory", "a peak from before the job"])
def test_what_is_not_the_jobs_peak_is_not_reported(tmp_path: Path, status: str | None) -> None:
    assert PeakMemory(CPU, process(tmp_path, status)).read_bytes() is None


def test_a_system_that_resets_nothing_is_seen(tmp_path: Path) -> None:
    assert PeakMemory(CPU, tmp_path / "none").read_bytes() is None
    assert PeakMemory(CPU, process(tmp_path, "VmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n")).read_bytes() == 2048 * 1024


@pytest.mark.gpu
def test_on_a_gpu_it_is_what_torch_has_allocated() -> None:
    device = torch.device("cuda", 0)
    before = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    del before
    kept = torch.empty(16 * MIB, dtype=torch.uint8, device=device)
    job = PeakMemory(device)
    work = torch.empty(32 * MIB, dtype=torch.uint8, device=device)
    del work
    peak = job.read_bytes()
    assert peak is not None
    assert 48 * MIB <= peak <= 48 * MIB + torch.cuda.memory_allocated(device)
    del kept
