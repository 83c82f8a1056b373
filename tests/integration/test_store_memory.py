"""The object store of a run that goes through many rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import ray
from ray._private.internal_api import node_stats

from swamp_ray.launch import run
from swamp_ray.run.reporter import Reporter
from tests.helpers import tiny

pytestmark = pytest.mark.nightly

NUM_ROUNDS = 30
STORE_BYTES = 200 * 2**20


@pytest.fixture
def small_store() -> Iterator[None]:
    # By default Ray frees what nobody refers to once a second, in which several of these rounds pass.
    ray.init(address="local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False,
             log_to_driver=False, logging_level=logging.ERROR, _system_config={"free_objects_batch_size": 1})
    yield
    ray.shutdown()


class Weighs(Reporter):
    """Bytes and objects in the store whenever a round is recorded."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.objects: list[int] = []
        self.warnings: list[str] = []

    def round_finished(self, record: Any) -> None:
        node = ray.nodes()[0]
        stats: Any = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        self.bytes.append(stats.store_stats.object_store_bytes_used)
        self.objects.append(stats.store_stats.num_local_objects)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.usefixtures("small_store")
def test_its_use_stays_flat_over_thirty_rounds(tmp_path: Path) -> None:
    # Masks and states of this network are too large to travel inside of messages.
    values: dict[str, Any] = {
        "model__name": "mlp", "model__options": {"hidden": [1000, 1000]}, "dense__length": 0,
        "round__length": "2 steps", "averaging__within": "none", "training__schedule__warmup": 0,
        "particles__count": 2, "pruning__rate": 0.03, "pruning__target": 0.6, "rewind__weights": "none"}
    reporter = Weighs()
    done = run(tiny(tmp_path, execution__executor="ray", **values), reporter)
    assert len(done.records) >= NUM_ROUNDS
    mask, state = done.prepared.layout.num_prunable / 8, 4 * done.prepared.layout.num_prunable
    assert mask > 100_000
    # Of whatever each round kept, there would be twenty more; of what is on its way there are now more, now fewer.
    assert median(reporter.objects[-10:]) <= median(reporter.objects[:10]) + 4, reporter.objects
    assert max(reporter.objects) <= 10, "of one round and of what is on its way"
    assert max(reporter.bytes[-10:]) <= max(reporter.bytes[:10]) + 4 * state, reporter.bytes
    assert max(reporter.bytes) < 12 * state, "far less than the states of all rounds"
    assert not reporter.warnings
