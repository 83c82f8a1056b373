"""The placement group of a trial: bundles for its workers, and for the process that drives it."""

from __future__ import annotations

from ray import tune

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.run.capacity import worker_resources
from swamp_ray.run.placement import worker_labels

HEAD = {"CPU": 0.01}
LABELLED_HEAD = {"memory": 1_000_000.0}
"""Bytes; a node that is kept for what stays may have no CPU to give."""


def placement_group(execution: ExecutionConfig, device: str, num_workers: int) -> tune.PlacementGroupFactory:
    """What a trial reserves.

    Args:
        execution: How its member runs are executed; inline ones train in the trial's own process.
        device: Kind of device that particles train on.
        num_workers: Workers of the trial, if it has any.
    """
    bundle = {kind: amount for kind, amount in worker_resources(execution, device).items() if amount} or HEAD
    labels = worker_labels(execution)
    stable = execution.stable_labels
    if execution.executor == "inline":
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[labels])
    workers = [bundle] * num_workers
    strategy = {"spread": "SPREAD", "pack": "PACK"}[execution.placement]
    if not labels and not stable:
        # The process that drives the trial needs next to nothing: an empty bundle, so that all CPUs are workers'.
        return tune.PlacementGroupFactory([{}, *workers], strategy)
    # Tune drops an empty bundle, and then there would be a selector too many.
    selectors = [stable, *[labels] * num_workers]
    return tune.PlacementGroupFactory([LABELLED_HEAD, *workers], strategy, bundle_label_selector=selectors)
