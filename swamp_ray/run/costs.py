"""What a run costs: beforehand by its plan, and of each round once its mask is known. See `training.cost`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from swamp_ray.method.events import RoundPlan
from swamp_ray.run.prepare import Prepared
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.training.cost import Cost, cost_of, dense_phases, round_phases


@dataclass(frozen=True)
class PlannedCosts:
    """The account of a run that has not been carried out.

    Attributes:
        dense: Of the dense phase.
        rounds: Of each round.
        has_layer_densities: Whether the densities of layers are those that the masks will have. Under a global scope
            nobody knows them beforehand, and every layer is taken to have the density of the round.
    """

    dense: Cost
    rounds: tuple[Cost, ...]
    has_layer_densities: bool

    @property
    def whole(self) -> Cost:
        """Of all."""
        return sum(self.rounds, self.dense)


def planned_costs(prepared: Prepared) -> PlannedCosts:
    """What a run will cost if no particle is left out."""
    rounds = []
    for plan in prepared.plan:
        densities = _expected_densities(prepared, plan)
        rounds.append(round_cost(prepared, plan, range(plan.num_particles), densities))
    known = prepared.config.pruning.scope != "global" or all(plan.sparsity == 0 for plan in prepared.plan)
    return PlannedCosts(dense_cost(prepared), tuple(rounds), known)


def dense_cost(prepared: Prepared) -> Cost:
    """What the dense phase costs; nothing where there is none."""
    phases = dense_phases(prepared.config, prepared.steps_per_epoch)
    return cost_of(phases, prepared.steps_per_epoch, prepared.config.training.batch_size, prepared.flops.network, {})


def round_cost(prepared: Prepared, plan: RoundPlan, particles: Sequence[int], densities: Mapping[str, float]) -> Cost:
    """What a round costs.

    Args:
        prepared: The run.
        plan: The round.
        particles: Those that entered it.
        densities: Share of the weights that its mask keeps, by prunable layer.
    """
    config = prepared.config
    steps = prepared.steps_per_epoch
    phases = round_phases(config, steps, plan.index, particles, plan.sparsity)
    return cost_of(phases, steps, config.training.batch_size, prepared.flops.network, densities)


def _expected_densities(prepared: Prepared, plan: RoundPlan) -> dict[str, float]:
    """By layer as the scope has them; with a global one the same in every layer."""
    layers = prepared.layout.layers
    scope = prepared.config.pruning.scope
    if scope == "global":
        return {layer.name: 1 - plan.sparsity for layer in layers}
    counts = [int(np.count_nonzero(prepared.first_mask[layer.span])) for layer in layers]
    budgets = layer_budgets(prepared.layout, counts, plan.survivors, scope)
    return {layer.name: budget / layer.size for layer, budget in zip(layers, budgets, strict=True)}
