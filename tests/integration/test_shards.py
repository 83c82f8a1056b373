"""Averaging actors that share the weights of a network of more than one chunk, on a real local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray

from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.on_ray import executor as ray_executor
from swamp_ray.on_ray.executor import RayExecutor
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.sparsity.compact import CHUNK
from swamp_ray.storage.artifacts import ArtifactStore
from tests.helpers import ticket_digests, tiny

# 4,096 x 4,096 weights and a little: more than one chunk of 16.8 million.
LARGE: dict[str, Any] = {
    "model__name": "mlp", "model__options": {"hidden": [4096, 4096]}, "dense__length": 0, "round__length": "1 step",
    "averaging__within": "none", "training__schedule__warmup": 0, "particles__count": 2, "pruning__target": 0.5}


class KillsAShard(Reporter):
    """The second averaging actor dies once it may have been given something."""

    executors: ClassVar[list[RayExecutor]] = []

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def job_finished(self, job: Job, found: bool) -> None:
        if job == Job("particle", 0, 1):
            ray.kill(self.executors[0]._pool.averagers.actors()[1])

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_two_averaging_actors_of_which_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(RayExecutor):
        def __init__(self, prepared: Prepared, storage: str) -> None:
            super().__init__(prepared, storage)
            KillsAShard.executors.append(self)

    monkeypatch.setattr(ray_executor, "RayExecutor", Known)
    one = run(tiny(tmp_path / "one", **LARGE))
    assert one.prepared.layout.num_prunable > CHUNK
    reporter = KillsAShard()
    run(tiny(tmp_path / "two", execution__executor="ray", execution__num_workers=1, averaging__num_shards=2, **LARGE),
        reporter)
    assert KillsAShard.executors[0]._pool.averagers.num_dead == 1
    assert ["the averaging actor died" in text for text in reporter.warnings] == [True]
    assert ticket_digests(tmp_path / "two") == ticket_digests(tmp_path / "one")
    average = ArtifactStore(tmp_path / "two").find(one.records[0].artifacts["average"]["name"])
    assert average is not None
    assert sorted(average.files) == ["next_mask.safetensors", "state-00000.safetensors", "state-00001.safetensors"]
