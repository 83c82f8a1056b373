"""Small runs for tests: synthetic data, a tiny network, a second or less."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import DataConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.named_folder import NamedFolder
from swamp_ray.storage.places import open_place
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.results import Gradients, Progress
from swamp_ray.training.tasks import Batch
from swamp_ray.training.training_run import Steps, TrainingRun, never

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "synthetic", "options": {"num_train": 96, "num_test": 40, "num_classes": 3, "shape": [1, 6, 6]}},
    "model": {"name": "digits_cnn"},
    "training": {"batch_size": 16, "lr": 0.05},
    "dense": {"length": 1},
    "round": {"length": 2},
    "averaging": {"within": "swa", "start": 0.5},
    "particles": {"count": 3},
    "pruning": {"target": 0.75, "rate": 0.5},
    "execution": {"executor": "inline", "device": "cpu", "checkpoint_interval_s": 0.0},
}


def tiny(storage: Path | str, **values: Any) -> SwampConfig:
    """The tiny run in a storage root, with dotted keys changed; ``__`` stands for a dot."""
    changed = {key.replace("__", "."): value for key, value in values.items()}
    return with_values(build_config(TINY), {"storage": str(storage), **changed})


def with_sections(base: dict[str, Any], **sections: Any) -> SwampConfig:
    """A config whose sections are those of a base with some values replaced."""
    tree = {name: dict(values) for name, values in base.items()}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return build_config(tree)


def data_of(config: SwampConfig) -> Data:
    """Its decoded data, read once."""
    return _data(config.data.model_dump_json())


@cache
def _data(section: str) -> Data:
    return load_data(DataConfig.model_validate_json(section))


def ticket_digests(storage: Path | str, name: str = "tiny") -> dict[str, str]:
    """SHA-256 of every ticket of a run, by sparsity."""
    place, folder = open_place(storage), f"runs/{name}/tickets"
    return {sparsity: hashlib.sha256(place.read(f"{folder}/{sparsity}/model.safetensors")).hexdigest()
            for sparsity in place.folders(folder)}


def folder_of(folder: NamedFolder) -> Path:
    """The folder of a run or a sweep in a storage root that is a folder."""
    return Path(folder.spot().location)


def root_of(holder: NamedFolder | ArtifactStore) -> Path:
    """The storage root, which is a folder."""
    return Path(holder.place.uri)


def artifacts_of(store: ArtifactStore) -> Path:
    """The folder of artifacts of a storage root that is a folder."""
    return root_of(store) / "artifacts"


def descendants(pid: int) -> list[int]:
    """Processes below a process, nearest first, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(0), [])
        found += children
        waiting += children
    return found


def command_line(pid: int) -> str:
    """A process's command line, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait until something is so, while a process is at work on it."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def train_epoch(
    pack: Pack, runs: Mapping[int, TrainingRun], stop: Callable[[], bool] = never
) -> dict[int, Progress | None]:
    """Carry several training runs through their current epochs side by side.

    Args:
        pack: The seats that the runs were begun on.
        runs: By seat.
        stop: Asked by each of them after every step.

    Returns:
        Where each of them stands; None where it was stopped before.

    Raises:
        DivergedError: A loss became NaN or infinite, in any of them.
    """
    found: dict[int, Progress | None] = {}
    steps: dict[int, Steps] = {seat: run.epoch_steps(stop) for seat, run in runs.items()}
    # Sending None starts a generator.
    answers: dict[int, Gradients | None] = dict.fromkeys(steps)
    with pack.randomness():
        while steps:
            batches: dict[int, Batch] = {}
            for seat in list(steps):
                try:
                    request = steps[seat].send(answers[seat])  # type: ignore[arg-type]
                    batches[seat] = request.batch
                except StopIteration as end:
                    found[seat] = end.value
                    del steps[seat]
            answers = dict(pack.gradients(batches)) if batches else {}
    return found
