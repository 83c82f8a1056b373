"""Whether every node of a cluster sees the storage root: a local path may mean another disk on each of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swamp_ray.errors import UserError
from swamp_ray.storage.place import Place

ANSWER_S = 120.0
TRIES = 5

Ask = Callable[[Path, str], Mapping[str, str | None]]
"""Takes a file and its content; what is wrong on each node by its name, None where the file is seen."""


def check_shared(place: Place, ask: Ask | None = None) -> None:
    """Write a file into the storage root and let every other node look for it.

    Args:
        place: The storage root; an object store needs no check.
        ask: How nodes are asked; default: by a task on each living node of the connected cluster.

    Raises:
        UserError: Some nodes do not see the file; they are named.
    """
    if place.is_seen_by_all:
        return
    content = uuid.uuid4().hex
    key = f".probe-{content[:12]}"
    file = Path(place.locate(key))
    place.write(key, content.encode())
    try:
        answers = (ask or ask_nodes)(file, content)
    finally:
        place.remove(key, durable=False)
    blind = [f"{node} ({problem})" for node, problem in answers.items() if problem is not None]
    if blind:
        raise UserError("all nodes must see the storage root, but it is not the same folder on " + ", ".join(blind),
                        got=place.uri, where="storage",
                        do="Name a folder on a file system that all nodes share, or an object store (s3://, gs://, "
                           "az://).")


def ask_nodes(file: Path, content: str) -> dict[str, str | None]:
    """What the other living nodes of the connected cluster say, see `Ask`."""
    return on_others(look, str(file), content)


def on_others(function: Callable[..., str | None], *arguments: Any) -> dict[str, str | None]:
    """What a function returns on each other living node of the connected cluster, or why there is no answer."""
    own = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: f"{node['NodeManagerHostname']} at {node['NodeManagerAddress']}"
              for node in ray.nodes() if node["Alive"] and node["NodeID"] != own}
    task: Any = ray.remote(function)
    asked = {node: task.options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(
        node, soft=False)).remote(*arguments) for node in others}
    deadline = time.monotonic() + ANSWER_S
    return {f"{others[node]}, node {node[:8]}": _answer(reference, deadline) for node, reference in asked.items()}


def missing_path(paths: Sequence[str]) -> str | None:
    """The first path that does not exist on this node, None if all do."""
    return next((path for path in paths if not Path(path).exists()), None)


def _answer(reference: Any, deadline: float) -> str | None:
    try:
        return ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
    except GetTimeoutError:
        return f"no answer within {ANSWER_S:.0f} s"
    except RayError as error:
        return f"{type(error).__name__} while it was asked"


def look(file: str, content: str, pause_s: float = 0.5) -> str | None:
    """What is wrong with the file on this node, None if it is as it was written."""
    problem = "it does not see a file that was just written there"
    for attempt in range(TRIES):
        # A network file system may show a new file a little later.
        time.sleep(pause_s * attempt)
        try:
            return None if Path(file).read_text(encoding="utf-8") == content else "it sees other bytes there"
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = error.strerror or str(error)
    return problem
