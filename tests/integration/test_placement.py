"""Particles on the nodes of a cluster: spread by policy and labels, while nodes join and leave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import actors
from ray.cluster_utils import Cluster

from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from tests.faults import epoch_seed
from tests.helpers import ticket_digests, tiny

pytestmark = pytest.mark.nightly

PATIENCE_S = 120


def nodes_of(kind: str) -> dict[str, int]:
    """How many living actors of a class each node has."""
    found: dict[str, int] = {}
    known: Any = actors()
    for actor in known.values():
        if actor["ActorClassName"] == kind and actor["State"] == "ALIVE":
            node = actor["Address"]["NodeID"]
            found[node] = found.get(node, 0) + 1
    return found


class JoinAndLeave(Reporter):
    """While all particles of the round wait, a node joins, and then one leaves; then they may go on.

    Each node has half of a (pretended) GPU to spare.
    """

    def __init__(self, cluster: Cluster, marker: Path) -> None:
        self._cluster, self._marker = cluster, marker
        self._nodes: list[Any] = [cluster.add_node(num_cpus=1, num_gpus=1, labels={"market": "spot"})
                                  for _ in range(3)]
        self._began = time.monotonic()
        self.spread: dict[str, int] = {}
        self.averagers: dict[str, int] = {}
        self.sizes: list[int] = []
        self.failures: list[Job] = []
        self.joined = False

    def executor_started(self, num_workers: int) -> None:
        self.sizes.append(num_workers)

    def workers_changed(self, num_workers: int) -> None:
        self.sizes.append(num_workers)

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        self.failures.append(job)
        self._marker.touch()

    def tick(self) -> None:
        assert time.monotonic() < self._began + PATIENCE_S, f"{self.sizes}, {self.spread}, {self.failures}"
        if self._marker.exists():
            return
        if not self.spread:
            spread, averagers = nodes_of("ParticleActor"), nodes_of("AveragingActor")
            if sum(spread.values()) < 3 or not averagers:
                return
            self.spread, self.averagers = spread, averagers
            self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1, labels={"market": "spot"}))
        elif not self.joined and self._nodes[-1].node_id in nodes_of("ParticleActor"):
            self.joined = True
            self._cluster.remove_node(self._nodes[0], allow_graceful=False)


def test_particles_spread_over_nodes_that_join_and_leave(nodes: Cluster, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    changed: dict[str, Any] = {
        "dense__length": 0, "round__length": 2, "averaging__within": "none", "particles__count": 6,
        "pruning__target": 0.5, "task__name": "tests.faults:Faulty",
        "task__options": {"waits": [epoch_seed(0, particle) for particle in range(6)], "marker": str(marker)}}
    marker.touch()
    run(tiny(tmp_path / "undisturbed", **changed))
    marker.unlink()
    reporter = JoinAndLeave(nodes, marker)
    run(tiny(tmp_path / "cluster", execution__executor="ray", execution__num_gpus=0.5,
             execution__labels={"market": "spot"}, execution__stable_labels={"role": "head"}, **changed), reporter)
    assert nodes.head_node is not None
    head = nodes.head_node.node_id
    assert list(reporter.spread.values()) == [1, 1, 1]
    assert head not in reporter.spread
    assert reporter.averagers == {head: 1}, "what all depends on stays where nodes stay"
    assert reporter.sizes[:2] == [3, 4], "a node that joins takes particles that wait"
    assert len(reporter.failures) == 1, "a node that leaves costs the particle on it, and no other"
    assert ticket_digests(tmp_path / "cluster") == ticket_digests(tmp_path / "undisturbed")


@pytest.mark.slow
def test_packed_workers_fill_a_node_and_wrong_labels_are_refused(nodes: Cluster, tmp_path: Path) -> None:
    for cpus in (2, 3):
        nodes.add_node(num_cpus=cpus)
    seen: list[dict[str, int]] = []

    class Looks(Reporter):
        def round_finished(self, record: Any) -> None:
            seen.append(nodes_of("ParticleActor"))

    with pytest.raises(UserError, match="no node has these labels"):
        run(tiny(tmp_path / "wrong", execution__executor="ray", execution__labels={"market": "spt"}))
    assert not (tmp_path / "wrong" / "runs").exists(), "nothing was started"
    run(tiny(tmp_path / "packed", execution__executor="ray", execution__placement="pack", particles__count=3), Looks())
    assert sorted(seen[-1].values()) == [1, 2], "the smaller node is full, and the third worker is on the other one"
