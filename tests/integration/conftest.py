"""The Rays that these tests share: to start one takes seconds, to connect to it does not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 2**30
# A node that is gone refuses connections at once; one that is merely slow has long to answer.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_timeout_ms": 20_000,
         "health_check_failure_threshold": 5}


@contextlib.contextmanager
def started(**head: Any) -> Iterator[Cluster]:
    """A cluster of a head alone."""
    found = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    try:
        yield found
    finally:
        found.shutdown()


@contextlib.contextmanager
def connected(found: Cluster) -> Iterator[None]:
    ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="package")
def one_node(s3: str) -> Iterator[Cluster]:
    """Two CPUs, and two GPUs that exist in Ray's books only; workers inherit the S3 server's credentials."""
    with started(num_cpus=2, num_gpus=2, object_store_memory=STORE_BYTES) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(one_node: Cluster) -> Iterator[None]:
    """This process is connected to the node."""
    with connected(one_node):
        yield


@pytest.fixture(scope="package")
def head() -> Iterator[Cluster]:
    with started(num_cpus=0, labels={"role": "head"}, _system_config=QUICK) as found:
        yield found


@pytest.fixture
def nodes(head: Cluster) -> Iterator[Cluster]:
    """A head without CPUs, labelled as one, that this process is connected to; what a test adds goes with it."""
    with connected(head):
        yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
