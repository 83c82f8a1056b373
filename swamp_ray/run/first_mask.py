"""The mask that a run with ``pruning.when: dynamic`` begins with."""

from __future__ import annotations

import numpy as np

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.dynamic import num_exchanged, prune_to, random_growth
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.schedule import survivors_at
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.training.program import Program


def dynamic_first_mask(config: SwampConfig, layout: Layout, given: np.ndarray) -> np.ndarray:
    """A random mask of the target sparsity with the densities of ``pruning.scope``, bool ``[P]``.

    Args:
        config: The run; its seed decides the mask.
        layout: The prunable weights.
        given: The mask of ``start_from``; where that is sparse it is the first mask.

    Raises:
        UserError: A mask that is given has another sparsity than the target, or a layer would be empty and the config
            refuses that.
    """
    pruning = config.pruning
    num = survivors_at(layout.num_prunable, pruning.target, int(np.count_nonzero(given)))
    if not given.all():
        if int(np.count_nonzero(given)) != num:
            raise UserError(f"with pruning.when: dynamic the target must be the sparsity of the ticket that the run "
                            f"starts from, which keeps {np.count_nonzero(given)} of {layout.num_prunable} weights",
                            got=pruning.target, where="pruning.target")
        return given
    sizes = [layer.size for layer in layout.layers]
    budgets = layer_budgets(layout, sizes, num, pruning.scope)
    empty = [layer.name for layer, budget in zip(layout.layers, budgets, strict=True) if budget == 0]
    if empty and pruning.empty_layers == "refuse":
        raise UserError(f"the first mask would leave no weight in {', '.join(empty)}", got=pruning.target,
                        where="pruning.target", do="Lower it, or allow it with pruning.empty_layers: warn.")
    return prune_to(layout, given, random_growth(layout, derive_seed(config.seed, "first mask")), budgets)


def refuse_idle_updates(layout: Layout, mask: np.ndarray, program: Program) -> None:
    """Raise UserError if no layer has a weight to exchange at the first change of the mask."""
    updates = program.mask_updates
    if updates is None or updates.method == "prune":
        return
    share = updates.share_at(updates.steps[0])
    counts = [int(np.count_nonzero(mask[layer.span])) for layer in layout.layers]
    if all(count == layer.size for count, layer in zip(counts, layout.layers, strict=True)):
        raise UserError("pruning.when: dynamic needs pruned weights that can grow, but the target leaves every layer "
                        "whole", where="pruning.target", do="Raise it.")
    moves = [num_exchanged(count, layer.size, share) for count, layer in zip(counts, layout.layers, strict=True)]
    if sum(moves) == 0:
        raise UserError("no layer would exchange a single weight at the first change of the mask",
                        got=f"{share:.3g} of at most {max(counts)} weights", where="pruning.updates.drop_share",
                        do="Raise it, lower pruning.target, or train a larger network.")
