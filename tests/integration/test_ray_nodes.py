"""Several Ray nodes on one machine, of which some are lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from tests.faults import uneven
from tests.helpers import ticket_digests, tiny

pytestmark = pytest.mark.nightly


class LosesItsNode(Reporter):
    """Takes the only node with workers away while states of the round lie on it, and brings another when asked to."""

    def __init__(self, cluster: Cluster, marker: Path) -> None:
        self._cluster, self._marker = cluster, marker
        self._node: Any = cluster.add_node(num_cpus=2)
        self.lost = False
        self.warnings: list[str] = []
        self.failures: list[Job] = []

    def job_finished(self, job: Job, found: bool) -> None:
        if job == Job("particle", 0, 2):
            self._cluster.remove_node(self._node, allow_graceful=False)
            self.lost = True

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        self.failures.append(job)
        # Not before: a worker of the lost node may live on for a moment, and must not finish what waits for the marker.
        self._marker.touch()

    def warning(self, text: str) -> None:
        self.warnings.append(text)
        if "no living node can hold one" in text:
            self._cluster.add_node(num_cpus=1)


@pytest.mark.chaos
def test_a_lost_node_costs_no_result(nodes: Cluster, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    run(tiny(tmp_path / "undisturbed", **uneven(marker)))
    marker.unlink()
    reporter = LosesItsNode(nodes, marker)
    done = run(tiny(tmp_path / "lost", execution__executor="ray", **uneven(marker)), reporter)
    assert reporter.lost
    assert reporter.failures == [Job("particle", 0, 0)], "what was finished before is not trained again"
    assert sum("no living node can hold one" in text for text in reporter.warnings) == 1, "it is said once"
    assert ticket_digests(tmp_path / "lost") == ticket_digests(tmp_path / "undisturbed")
    incidents = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]["incidents"]
    kinds = [(one["who"], one["kind"]) for one in incidents]
    assert ("round 0, particle 0", "machine") in kinds
    assert ("workers", "machine") in kinds
