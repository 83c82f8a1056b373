"""A sweep on several nodes that go away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from swamp_ray.errors import RunError
from swamp_ray.orchestration.sweep import run_sweep
from swamp_ray.sweep_config import Setting
from tests.integration.test_sweep import Watcher, logged, sweep_of


def test_when_the_nodes_are_gone_for_good_the_sweep_ends_and_goes_on_once_they_are_back(tmp_path: Path) -> None:
    ends = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    node = ends.add_node(num_cpus=1)
    ray.init(address=ends.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        sweep = sweep_of(tmp_path, {"pruning.target": {"grid": [0.9]}}, execution={"worker_deadline_s": 3.0}, base={
            "round": {"length": 20}})

        class LosesItsNode(Watcher):
            def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
                if not self.milestones:
                    ends.remove_node(node, allow_graceful=False)
                super().milestone(setting, result)

        with pytest.raises(RunError, match=r"no node could hold a worker for .* s, because nodes have gone"):
            run_sweep(sweep, LosesItsNode())
        ends.add_node(num_cpus=1)
        outcome = run_sweep(sweep)
        assert {record["status"] for record in outcome.records.values()} == {"complete"}
        assert set(logged(tmp_path).values()) == {1}
    finally:
        ray.shutdown()
        ends.shutdown()
