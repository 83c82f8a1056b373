"""Whether a cluster fits a submission: versions, nodes, labels, storage, paths."""

from __future__ import annotations

from typing import Any

import pytest

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.errors import UserError
from swamp_ray.run.placement import ACCELERATOR, Node
from swamp_ray.submit import fitting
from swamp_ray.submit.submission import Submission
from tests.helpers import TINY

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1+cpu"}

SCALING: dict[str, Any] = {"execution__autoscaling": True, "execution__device": "cpu"}


def submission(**values: Any) -> Submission:
    changed = {key.replace("__", "."): value for key, value in values.items()}
    defaults = {"execution.executor": "ray", "execution.address": "auto", "execution.device": "auto",
                "storage": "/mnt/shared"}
    return Submission(with_values(build_config(TINY), defaults | changed))


def node(cpu: float = 4, gpu: float = 0, kind: str = "", **labels: str) -> Node:
    accelerator = {ACCELERATOR: kind} if kind else {}
    return Node("a", {"CPU": cpu, "GPU": gpu}, {**labels, **accelerator})


def test_versions() -> None:
    assert fitting.check_versions(HERE, {**HERE, "torch": "2.14.1+cu130"}) == []
    assert fitting.check_versions(HERE, {**HERE, "python": "3.11.9"}) == [
        "python is 3.11.7 here and 3.11.9 on the cluster"]
    with pytest.raises(UserError) as error:
        fitting.check_versions(HERE, {"python": "3.12.1", "ray": "2.60.0", "torch": None})
    text = str(error.value)
    assert "python   here 3.11.7, on the cluster 3.12.1" in text
    assert "torch    here 2.14.1+cpu, on the cluster none" in text
    assert "\n  ray " not in text
    assert "before 'ray start'" in text


def test_missing_packages_are_named() -> None:
    fitting.check_packages([])
    with pytest.raises(UserError, match="lacks modules obstore, my_nets"):
        fitting.check_packages(["obstore", "my_nets"])


def test_workers_that_fit() -> None:
    assert fitting.check_nodes(submission(), [node(2), node(2)]) == 3
    assert fitting.check_nodes(submission(particle__num_workers=2), [node(2), node(2)]) == 2, "each of two ranks"
    assert fitting.check_nodes(submission(), [node(8), node(8, gpu=1)]) == 1, "a GPU a worker, where there are GPUs"
    with pytest.raises(UserError, match="no node can hold a single worker"):
        fitting.check_nodes(submission(execution__num_cpus=16.0), [node(8), node(8)])


def test_too_few_nodes_are_no_error_where_the_cluster_starts_them() -> None:
    scaling = submission(execution__num_cpus=16.0, **SCALING)
    assert fitting.check_nodes(scaling, [node(0)]) == 3
    assert fitting.room(scaling, [node(0)], 3) == (
        "1 node with 0 CPU and 0 GPU; more are started for up to 3 workers")
    assert fitting.room(submission(), [node(1)], 1) == "1 node with 1 CPU and 0 GPU: 1 worker fits at a time"


def test_labels_and_kinds_of_gpu_decide_which_nodes_count() -> None:
    nodes = [node(1, role="worker"), node(4, zone="b"), node(8, gpu=2, kind="H100")]
    cpu: dict[str, Any] = {"execution__device": "cpu"}
    assert fitting.check_nodes(submission(execution__labels={"role": "worker"}, **cpu), nodes) == 1
    assert fitting.check_nodes(submission(execution__accelerator_type="H100"), nodes) == 2
    with pytest.raises(UserError, match=r"execution\.labels: no node has these labels"):
        fitting.check_nodes(submission(execution__labels={"role": "none"}), nodes)
    with pytest.raises(UserError, match=r"execution\.stable_labels"):
        fitting.check_nodes(submission(execution__stable_labels={"role": "stable"}), nodes)


def test_storage() -> None:
    assert "only node" in fitting.check_storage(submission(), None, 1)
    assert "later" in fitting.check_storage(submission(**SCALING), None, 1)
    assert fitting.check_storage(submission(), None, 3) == "which all nodes see"
    assert fitting.check_storage(submission(storage="s3://b/x"), None, 3) == "which the cluster can write"
    with pytest.raises(UserError, match="cannot be used from the cluster: it is read-only"):
        fitting.check_storage(submission(), "it is read-only", 1)


def test_paths_that_a_node_does_not_see() -> None:
    run = submission(data__root="/data")
    fitting.check_paths(run, {})
    with pytest.raises(UserError, match=r"data\.root: this does not exist on b at 10\.0\.0\.2, but got '/data'"):
        fitting.check_paths(run, {"b at 10.0.0.2": "/data"})
    with pytest.raises(UserError, match="did not answer: no answer within 120 s"):
        fitting.check_paths(run, {"b at 10.0.0.2": "no answer within 120 s"})
