"""Whether a cluster fits what is submitted to it: versions, packages, nodes, storage. Nothing here needs a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from swamp_ray.config import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.orchestration.resources import pool_size
from swamp_ray.orchestration.submission import Submission
from swamp_ray.storage.places import is_url

Node = Mapping[str, Any]
"""``name``, ``resources`` and ``labels`` of a node."""


def check_versions(here: Mapping[str, str | None], there: Mapping[str, str | None]) -> list[str]:
    """Compare versions: what was tried here must be what runs there.

    Args:
        here: Versions of this machine, by package.
        there: Versions of the cluster.

    Returns:
        Small differences, one sentence each.

    Raises:
        UserError: Major or minor versions differ.
    """
    differing = [name for name in here if _minor(here[name]) != _minor(there.get(name))]
    if differing:
        lines = "".join(f"\n  {name:<8} here {here[name] or 'none'}, on the cluster {there.get(name) or 'none'}"
                        for name in differing)
        raise UserError(f"this machine and the cluster have different versions:{lines}\n", where="--address",
                        do="Submit from an environment with the cluster's versions, or start the cluster with yours.")
    return [f"{name} is {here[name]} here and {there[name]} on the cluster"
            for name in here if _plain(here[name]) != _plain(there[name])]


def _plain(version: str | None) -> str:
    return (version or "").partition("+")[0]


def _minor(version: str | None) -> list[str]:
    return _plain(version).split(".")[:2]


def check_packages(missing: Sequence[str]) -> None:
    """Refuse a cluster without the packages that the job needs."""
    if missing:
        raise UserError(f"the cluster lacks {'modules' if len(missing) > 1 else 'the module'} {', '.join(missing)}",
                        where="--address", do="Install what is missing on all nodes (an image of your own), or submit "
                        "from the folder that holds it, if it is code of yours.")


def check_storage(submission: Submission, problem: str | None, num_nodes: int) -> str:
    """Refuse a storage root that the cluster cannot write or its nodes do not share; in words how far it reaches."""
    storage, execution = submission.run.storage, submission.run.execution
    if problem is not None:
        raise UserError(f"the storage root cannot be used from the cluster: {problem}", where="storage")
    if is_url(storage):
        return "which the cluster can write"
    if num_nodes > 1:
        return "which all nodes see"
    more = "; nodes that are started later must see it as well" if execution.autoscaling else ""
    return f"a folder of the cluster's only node{more}"


def check_paths(submission: Submission, missing: Mapping[str, str]) -> None:
    """Refuse data or a checkpoint that a node does not see."""
    options = {path: option for option, path in submission.paths().items()}
    for node, path in missing.items():
        if path not in options:
            raise UserError(f"{node} did not answer: {path}", where="--address")
        raise UserError(f"this does not exist on {node}", got=path, where=options[path],
                        do="Name a path that all nodes of the cluster see.")


def check_nodes(submission: Submission, nodes: Sequence[Node]) -> int | None:
    """How many workers the cluster holds now; None where there are none yet, and it starts nodes when it is asked.

    Raises:
        UserError: It cannot hold a single one, or no node can take the driver.
    """
    execution = submission.run.execution
    drivers = [node for node in nodes if has_labels(node["labels"], execution.stable_labels)]
    if not drivers and not execution.autoscaling:
        raise UserError("no node has the labels that the driver asks for", got=dict(execution.stable_labels),
                        where="execution.stable_labels", do="Start a node with them (ray start --labels=...), or leave "
                        "the option out: the driver then runs on the head node.")
    fitting = [node["resources"] for node in nodes if takes_workers(node, execution)]
    gpus = sum(node["resources"].get("GPU", 0.0) for node in nodes)
    device = execution.device if execution.device != "auto" else ("cuda" if gpus > 0 else "cpu")
    if not fitting and not execution.autoscaling and nodes:
        wanted = {**execution.labels, **({"accelerator_type": execution.accelerator_type}
                                         if execution.accelerator_type else {})}
        raise UserError("no node has what workers ask for", got=wanted, where="execution.labels",
                        do="Start such nodes, correct the labels, or set execution.autoscaling: true where the cluster "
                           "starts nodes when they are asked for.")
    try:
        return pool_size(execution, device, submission.most_particles, fitting)
    except UserError:
        if execution.autoscaling:
            return None
        raise


def takes_workers(node: Node, execution: ExecutionConfig) -> bool:
    """Whether a node has the labels and the kind of GPU that workers ask for."""
    kind = execution.accelerator_type
    return has_labels(node["labels"], execution.labels) and (
        kind is None or f"accelerator_type:{kind}" in node["resources"])


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels fit a selector of Ray: ``value``, ``!value``, ``in(a, b)`` or ``!in(a, b)`` a key."""
    return all(_has(labels.get(key), wanted) for key, wanted in selector.items())


def _has(value: str | None, wanted: str) -> bool:
    negated = wanted.startswith("!")
    text = wanted.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", text)
    values = [part.strip() for part in several[1].split(",")] if several else [text]
    return (value in values) is not negated
