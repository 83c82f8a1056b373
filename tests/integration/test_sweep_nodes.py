"""A sweep on several nodes that go away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import actors
from ray.cluster_utils import Cluster

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting
from swamp_ray.errors import RunError
from swamp_ray.sweep.run import run_sweep
from tests.helpers import TINY
from tests.integration.test_sweep import Watcher, logged, sweep_of

pytestmark = pytest.mark.nightly


@pytest.mark.slow
def test_when_the_nodes_are_gone_for_good_the_sweep_ends_and_goes_on_once_they_are_back(
    nodes: Cluster, tmp_path: Path
) -> None:
    node = nodes.add_node(num_cpus=1)
    sweep = sweep_of(tmp_path, {"pruning.target": {"grid": [0.9]}}, execution={"worker_deadline_s": 3.0}, base={
        "round": {"length": 20}})

    class LosesItsNode(Watcher):
        def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
            if not self.milestones:
                nodes.remove_node(node, allow_graceful=False)
            super().milestone(setting, result)

    with pytest.raises(RunError, match=r"no node could hold a worker for .* s, because nodes have gone"):
        run_sweep(sweep, LosesItsNode())
    nodes.add_node(num_cpus=1)
    outcome = run_sweep(sweep)
    assert {record["status"] for record in outcome.records.values()} == {"complete"}
    assert set(logged(tmp_path).values()) == {1}


def test_trials_keep_to_the_labels(nodes: Cluster, tmp_path: Path) -> None:
    """Also where the node for what stays has no CPU to give."""
    nodes.add_node(num_cpus=2)
    spot = nodes.add_node(num_cpus=1, labels={"market": "spot"})
    assert nodes.head_node is not None
    head = nodes.head_node.node_id
    places: dict[str, set[str]] = {}

    class Looks(Watcher):
        def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
            known: Any = actors()
            for actor in known.values():
                if actor["State"] == "ALIVE":
                    places.setdefault(actor["ActorClassName"], set()).add(actor["Address"]["NodeID"])
            super().milestone(setting, result)

    labels = {"labels": {"market": "spot"}, "stable_labels": {"role": "head"}}
    base = {**TINY, "execution": {**TINY["execution"], "executor": "ray", **labels}}
    run_sweep(build_sweep({"name": "s", "storage": str(tmp_path), "base": base,
                           "space": {"pruning.target": {"grid": [0.5, 0.75]}}}), Looks())
    assert places["ParticleActor"] == {spot.node_id}
    assert places["AveragingActor"] == {head}
