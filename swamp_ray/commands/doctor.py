"""``swamp doctor``: is this machine fit to run?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from rich.markup import escape

from swamp_ray.errors import SwampError
from swamp_ray.storage.find import DEFAULT_STORAGE
from swamp_ray.text.output import Output
from swamp_ray.text.tables import size

PACKAGES = ("swamp_ray", "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors", "pydantic")
SMALL_SHM_BYTES = 1 << 30
FEW_FILES = 10_000
"""Of so few that a storage can still hold, it is said how many."""


def examine(storage: str | None = None) -> bool:
    """Print what was found, one line a subject; True if nothing stands in the way of a run."""
    console = Output(highlight=False)
    healthy = True
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        ("python", _python), ("packages", _packages), ("devices", _devices), ("memory", _memory),
        ("storage", lambda: _storage(storage or DEFAULT_STORAGE)), ("data", _data), ("ray", _ray),
    ]
    for subject, check in checks:
        try:
            for line in check():
                mark = "[yellow]warn[/yellow]" if line.startswith("!") else "[green]ok[/green]  "
                console.print(f"{mark} {subject:<9} {escape(line.removeprefix('!').strip())}", soft_wrap=True)
        except (SwampError, OSError, ImportError, RuntimeError) as error:
            healthy = False
            reason = escape(str(error).removeprefix(f"{subject}: "))
            console.print(f"[red]fail[/red] {subject:<9} {reason}", soft_wrap=True)
    return healthy


def _python() -> Iterator[str]:
    yield f"{platform.python_version()} on {platform.platform()}"


def _packages() -> Iterator[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed; run make setup") from error
    yield ", ".join(found)


def _devices() -> Iterator[str]:
    import torch

    yield f"{len(os.sched_getaffinity(0))} CPU cores ({torch.backends.cpu.get_cpu_capability()})"
    if not torch.cuda.is_available():
        yield "no CUDA device: particles train on the CPU"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}: {properties.name}, {size(properties.total_memory)}"


def _memory() -> Iterator[str]:
    pages = os.sysconf("SC_AVPHYS_PAGES")
    page = os.sysconf("SC_PAGE_SIZE")
    yield f"{size(pages * page)} of memory are free"
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        small = "! " if free < SMALL_SHM_BYTES else ""
        yield f"{small}{size(free)} are free in /dev/shm, where Ray keeps its object store"


def _storage(storage: str) -> Iterator[str]:
    from swamp_ray.storage.artifacts import ArtifactStore

    store = ArtifactStore(storage)
    with store.place.on_trial():
        store.check_writable()
        free = store.place.free_bytes()
        inodes = store.place.free_files()
    if free is None:
        yield f"{store.place.locate('')} can be written"
        return
    yield f"{storage} can be written, {size(free)} are free"
    if inodes is not None and inodes < FEW_FILES:
        yield f"but no more than {inodes:,} further files fit there, whatever their size: its inodes are used up"


def _data() -> Iterator[str]:
    yield "digits: comes with scikit-learn"
    root = os.environ.get("SWAMP_DATA")
    if root is None:
        yield "SWAMP_DATA is not set: other datasets are looked for in data.root alone"
        return
    if not Path(root).is_dir():
        raise RuntimeError(f"SWAMP_DATA names {root}, which is not a folder")
    names = sorted(entry.name for entry in Path(root).iterdir())
    yield f"SWAMP_DATA = {root}: {', '.join(names[:8]) or 'empty'}"


def _ray() -> Iterator[str]:
    from swamp_ray.on_ray.cluster import probe

    yield from probe()
