"""Warnings about networks of which pruning reaches little, so that a sparsity says less than it seems to."""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import nn

from swamp_ray.sparsity.masks import Layout, clean_name, prunable_tensors

SMALL_SHARE = 0.5
_SHOWN = 5


def prunable_warnings(model: nn.Module, layout: Layout) -> tuple[str, ...]:
    """Warnings about a network's prunable weights; empty for most.

    Args:
        model: It has computed the gradients of a training batch.
        layout: Its prunable weights and the rest.
    """
    found = []
    num = layout.num_prunable
    share = num / layout.num_parameters
    if share < SMALL_SHARE:
        found.append(
            f"only {num:,} of {layout.num_parameters:,} parameters ({100 * share:.1f} %) can be pruned; "
            f"not pruned: {_left_out(model, layout)}. Sparsities are those of the prunable weights alone")
    unused = []
    for layer, weight in zip(layout.layers, prunable_tensors(model, layout), strict=True):
        if weight.grad is None:
            unused.append(layer.name)
    if unused:
        found.append(f"no gradient reaches {_listed(unused)}: the training step does not use these weights, which "
                     "count as prunable all the same. pruning.exclude leaves them out")
    return tuple(found)


def _left_out(model: nn.Module, layout: Layout) -> str:
    """Parameters that are not pruned, by the kind of their module, the most first."""
    owners: dict[str, str] = {}
    for path, module in model.named_modules():
        for key, _ in module.named_parameters(recurse=False):
            owners[clean_name(f"{path}.{key}" if path else key)] = type(module).__name__
    counts: Counter[str] = Counter()
    for name, shape in layout.rest:
        counts[owners.get(name, "others")] += int(np.prod(shape, dtype=np.int64))
    return _listed([f"{count:,} of {kind}" for kind, count in counts.most_common()])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
