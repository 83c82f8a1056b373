"""Whether a cluster fits what is submitted to it: versions, packages, nodes, storage. Nothing here needs a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from swamp_ray.errors import UserError
from swamp_ray.run.capacity import pack_width, pool_size
from swamp_ray.run.placement import Node, check_labels, eligible
from swamp_ray.storage.places import is_url
from swamp_ray.submit.submission import Submission


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
        advice = "Submit from an environment with the cluster's versions, or start the cluster with yours."
        if any(there.get(name) is None for name in differing):
            advice += (" A job runs the 'python' that is first on the PATH of the process that started Ray: activate "
                       "the environment (source .venv/bin/activate) before 'ray start'.")
        raise UserError(f"this machine and the cluster have different versions:{lines}\n", where="--address",
                        do=advice)
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
    storage = submission.run.storage
    execution = submission.run.execution
    if problem is not None:
        reason = problem.removeprefix("storage: ")
        raise UserError(f"the storage root cannot be used from the cluster: {reason}", where="storage")
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


def check_nodes(submission: Submission, nodes: Sequence[Node]) -> int:
    """How many workers the cluster holds; where it starts nodes as they are needed, how many it will.

    Raises:
        UserError: It cannot hold a single one, or no node has the labels that workers or the driver ask for.
    """
    execution = submission.run.execution
    gpus = sum(node.resources.get("GPU", 0.0) for node in nodes)
    device = execution.device if execution.device != "auto" else ("cuda" if gpus > 0 else "cpu")
    check_labels(nodes, execution)
    most = math.ceil(submission.most_particles / pack_width(execution))
    return pool_size(execution, device, most, eligible(nodes, execution), submission.run.particle.num_workers)


def room(submission: Submission, nodes: Sequence[Node], workers: int) -> str:
    """What the cluster has, in words."""
    total = {kind: sum(node.resources.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    there = f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {total['CPU']:g} CPU and {total['GPU']:g} GPU"
    text = f"{workers} worker{'s' * (workers != 1)}"
    if submission.run.execution.autoscaling:
        return f"{there}; more are started for up to {text}"
    return f"{there}: {text} fit{'s' * (workers == 1)} at a time"
