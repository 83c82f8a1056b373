"""The record of a finished round, from what its jobs left in the storage."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swamp_ray.method.events import Decision, RoundPlan
from swamp_ray.run.messages import Outcome, RoundRecord
from swamp_ray.storage.artifacts import Manifest
from swamp_ray.storage.states import state_digest
from swamp_ray.training.cost import Cost

Metrics = dict[str, dict[str, float]]


def round_record(
    plan: RoundPlan,
    outcomes: Sequence[Outcome],
    dropped: Sequence[Decision],
    average: Manifest,
    evaluation: Outcome,
    ticket: str,
    ticket_sha256: str = "",
    trunk: Outcome | None = None,
    costs: tuple[Cost, Cost] | None = None,
) -> RoundRecord:
    """A line of ``rounds.jsonl``.

    Args:
        plan: The round.
        outcomes: Of all particles that were not dropped, in index order.
        dropped: Why the others were.
        average: The round's average.
        evaluation: Its metrics.
        ticket: Path of the ticket, relative to the storage root.
        ticket_sha256: Of the file; empty as long as it is not written.
        trunk: Where its particles part, if they do.
        costs: Of the round, and of the run up to its end.
    """
    metrics = [outcome.info["metrics"] for outcome in outcomes]
    return RoundRecord(
        round=plan.index,
        sparsity=plan.sparsity,
        survivors=plan.survivors,
        num_particles=plan.num_particles,
        average=evaluation.info["metrics"],
        particles=metrics,
        mean=_over_particles(metrics, statistics.fmean),
        std=_over_particles(metrics, lambda values: statistics.stdev(values) if len(values) > 1 else 0.0),
        layer_densities=average.info["layer_densities"],
        spread=average.info["spread"],
        combined=average.info["particles"],
        artifacts=_artifacts(outcomes, average, evaluation, trunk),
        ticket=ticket,
        ticket_sha256=ticket_sha256,
        emptied_layers=average.info.get("emptied_layers", []),
        dropped=[{"particle": decision.particle, "what": decision.what, "reason": decision.reason,
                  "attempt": decision.attempt} for decision in dropped],
        peak_bytes=[outcome.info.get("peak_bytes") for outcome in outcomes],
        cost={} if costs is None else costs[0].as_dict(),
        cost_so_far={} if costs is None else costs[1].as_dict(),
    )


def _artifacts(
    outcomes: Sequence[Outcome], average: Manifest, evaluation: Outcome, trunk: Outcome | None
) -> dict[str, Any]:
    """Names and digests of what the round is made of."""
    named: dict[str, Any] = {
        "particles": [{"name": outcome.name, "sha256": outcome.digest} for outcome in outcomes],
        "average": {"name": average.name, "sha256": state_digest(average.files)},
        "evaluation": {"name": evaluation.name},
    }
    if trunk is not None:
        named["trunk"] = {"name": trunk.name, "sha256": trunk.digest}
    return named


def _over_particles(metrics: Sequence[Metrics], statistic: Callable[[list[float]], float]) -> Metrics:
    first: Mapping[str, Mapping[str, float]] = metrics[0]
    # Results that an earlier version stored may lack a metric, as the loss of a task of the user's own.
    return {split: {name: statistic([one[split][name] for one in metrics]) for name in values
                    if all(name in one[split] for one in metrics)}
            for split, values in first.items()}
