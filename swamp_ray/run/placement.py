"""On which nodes workers may run, and on which the next one goes: arithmetic over nodes, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.run.capacity import Resources, capacity

ACCELERATOR = "ray.io/accelerator-type"
"""The label by which Ray says what kind of GPUs a node has."""


@dataclass(frozen=True)
class Node:
    """A living node of a cluster.

    Attributes:
        id: Ray's own.
        resources: What it has.
        labels: Its labels.
        free: What of its resources nobody uses at the moment.
    """

    id: str
    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    free: Resources = field(default_factory=dict)


def worker_labels(execution: ExecutionConfig) -> dict[str, str]:
    """Labels that a worker's node must have, in Ray's terms."""
    kind = {} if execution.accelerator_type is None else {ACCELERATOR: execution.accelerator_type}
    return {**execution.labels, **kind}


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels fits; a label that it does not have fits only a negation."""
    return all(_fits(labels.get(key), wanted) for key, wanted in selector.items())


def _fits(label: str | None, wanted: str) -> bool:
    positive = wanted.removeprefix("!")
    listed = positive.removeprefix("in(").removesuffix(")").split(",") if positive.startswith("in(") else [positive]
    return (label in [value.strip() for value in listed]) is (positive == wanted)


def eligible(nodes: Sequence[Node], execution: ExecutionConfig) -> list[Resources]:
    """Resources of the nodes on which workers may run."""
    selector = worker_labels(execution)
    return [node.resources for node in nodes if matches(node.labels, selector)]


def check_labels(nodes: Sequence[Node], execution: ExecutionConfig) -> None:
    """Refuse labels that no node has; where the cluster starts nodes as they are needed, only for those that stay.

    Raises:
        UserError: No node fits; the labels that there are are named.
    """
    for key, selector in (("labels", worker_labels(execution)), ("stable_labels", execution.stable_labels)):
        waits = execution.autoscaling and key == "labels"
        if waits or not selector or any(matches(node.labels, selector) for node in nodes):
            continue
        only_kind = key == "labels" and not execution.labels
        there = sorted({f"{name}={value}" for node in nodes for name, value in node.labels.items()
                        if name in selector or not name.startswith("ray.io/node-id")})
        raise UserError(
            "no node has these labels", got=", ".join(f"{name}: {value}" for name, value in selector.items()),
            where="execution.accelerator_type" if only_kind else f"execution.{key}",
            do=f"The nodes have {', '.join(there) or 'none'}; 'ray start --labels KEY=VALUE' gives a node labels.")


def next_node(
    nodes: Sequence[Node], execution: ExecutionConfig, asked: Resources, present: Mapping[str, int],
    starting: Mapping[str, int],
) -> str | None:
    """The node that the next worker goes to.

    Under ``placement: spread`` that is the one with the fewest workers, under ``pack`` the one with the most that has
    room for another; of equal ones the one with more room, under ``pack`` with less.

    Args:
        nodes: All living nodes.
        execution: Whose labels and policy count.
        asked: What a worker needs.
        present: Workers of this run by node, those that are being started included.
        starting: Those of them that are being started, and may not show in what is free.

    Returns:
        Its id; None if no node has room at the moment: Ray then waits for one.
    """
    selector = worker_labels(execution)
    candidates = []
    sign = 1 if execution.placement == "spread" else -1
    for order, node in enumerate(nodes):
        room = capacity([node.free], asked) - starting.get(node.id, 0)
        if matches(node.labels, selector) and room > 0:
            candidates.append((sign * present.get(node.id, 0), -sign * room, order, node.id))
    return min(candidates)[-1] if candidates else None
