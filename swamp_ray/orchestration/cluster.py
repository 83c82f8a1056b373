"""The Ray cluster of a run: one that is joined, or an embedded one, and what its nodes have."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from swamp_ray.config import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.orchestration.placement import Node


def connect(execution: ExecutionConfig) -> bool:
    """Join a running cluster, or start an embedded one; True if this call did either.

    Raises:
        UserError: No Ray answers at the address.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if execution.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        with _own_signals():
            ray.init(address="local", include_dashboard=False, **quiet)
        return True
    try:
        with _own_signals():
            ray.init(address=execution.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"no Ray cluster answers ({str(error).splitlines()[0]})", got=execution.address,
                        do="Start one with 'ray start --head', or leave the address out for an embedded one. If it "
                           "asks for a token, set RAY_AUTH_MODE=token, and name its file in RAY_AUTH_TOKEN_PATH.",
                        where="execution.address") from error
    return True


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put the process's signal handlers back, which ray.init replaces: a run has to stop in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def ray_is_running() -> bool:
    """Whether this process is connected to a cluster."""
    return ray.is_initialized()


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def living_nodes() -> list[Node]:
    """The living nodes of the connected cluster; what is free may be a moment old."""
    free = available_resources_per_node()
    return [Node(node["NodeID"], node["Resources"], node.get("Labels") or {}, free.get(node["NodeID"], {}))
            for node in ray.nodes() if node["Alive"]]


def probe() -> str:
    """Start an embedded Ray, run an actor on it, stop it; a sentence on what was found."""
    began = time.monotonic()
    owns = connect(ExecutionConfig())
    try:
        kind: Any = ray.remote(_Probe)
        answer = ray.get(kind.remote().answer.remote(), timeout=60)
        resources = ray.cluster_resources()
    finally:
        if owns:
            ray.shutdown()
    return (f"ray {ray.__version__} starts and runs an actor ({answer}) in {time.monotonic() - began:.0f} s; "
            f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU")


class _Probe:
    def answer(self) -> str:
        return f"pid {os.getpid()}"
