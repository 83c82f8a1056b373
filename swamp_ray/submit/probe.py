"""What a cluster says of itself, before anything of the user's is uploaded.

Runs there, as a job of its own: ``python -m swamp_ray.submit.probe QUESTION``. Until it is known that the
cluster has what this package needs, only the standard library is imported.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

MARK = "swamp probe: "
VERSIONS = ("ray", "torch")
PATIENCE_S = 10.0


def question(storage: str, paths: Sequence[str], modules: Sequence[str]) -> str:
    """What is asked, as an argument of this module.

    Args:
        storage: The storage root.
        paths: Files and folders that each node must see.
        modules: Top-level modules that must be importable.
    """
    return json.dumps({"storage": storage, "paths": list(paths), "modules": list(modules)})


def read_answer(text: str) -> dict[str, Any] | None:
    """The answer in the log of the job, None if there is none."""
    lines = [line.partition(MARK)[2] for line in text.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1]) if lines else None


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and missing modules; where none of them is missing, nodes, and what is wrong with storage and paths."""
    said: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
        "missing": [name for name in asked["modules"] if not _is_there(name)],
    }
    return said if said["missing"] else said | _of_the_cluster(asked["storage"], asked["paths"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _of_the_cluster(storage: str, paths: Sequence[str]) -> dict[str, Any]:
    import logging

    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    nodes = [{"id": node["NodeID"], "resources": node["Resources"], "labels": node.get("Labels") or {}}
             for node in ray.nodes() if node["Alive"]]
    found = {"nodes": nodes, "storage": _storage_problem(storage, len(nodes)), "paths": _missing_paths(paths)}
    ray.shutdown()
    return found


def _storage_problem(storage: str, num_nodes: int) -> str | None:
    """What is wrong with the storage root, None if it can be written and all nodes see it."""
    from swamp_ray.errors import SwampError
    from swamp_ray.on_ray.nodes import check_shared
    from swamp_ray.storage.places import open_place

    try:
        place = open_place(storage, PATIENCE_S)
        key = ".probe-write"
        with place.on_trial():
            place.write(key, b"")
            try:
                if num_nodes > 1:
                    check_shared(place)
            finally:
                place.remove(key, durable=False)
    except (SwampError, OSError) as error:
        return str(error)
    return None


def _missing_paths(paths: Sequence[str]) -> dict[str, str]:
    """A path that a node does not see, or why it did not answer, by the node's name."""
    from swamp_ray.on_ray.nodes import missing_path, on_others

    if not paths:
        return {}
    here = {"the head node": missing_path(paths)}
    return {node: path for node, path in {**here, **on_others(missing_path, list(paths))}.items() if path is not None}


if __name__ == "__main__":
    print(MARK + json.dumps(answer(json.loads(sys.argv[1]))), flush=True)
