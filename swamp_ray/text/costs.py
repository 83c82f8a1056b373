"""What trainings cost, as it is written in lines and tables: three faces, always together."""

from __future__ import annotations

import math
from collections.abc import Mapping

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
UNKNOWN = "-"


def flops_text(flops: float | None) -> str:
    """``1.23 TFLOPs``, with three digits; ``-`` where they are not known."""
    text = short_flops(flops)
    return text if text == UNKNOWN else f"{text}FLOPs" if text[-1].isalpha() else f"{text} FLOPs"


def short_flops(flops: float | None) -> str:
    """``1.23 T``, for columns whose heading says what it is."""
    if flops is None or math.isnan(flops):
        return UNKNOWN
    for size, letter in UNITS:
        # What three digits would round up to a thousand is written in the next unit.
        if flops >= 0.9995 * size:
            return f"{flops / size:.3g} {letter}"
    return f"{flops:.3g}"


def epochs_text(epochs: float | None) -> str:
    """``1,234`` or ``12.5``, with three digits; ``-`` where they are not known."""
    if epochs is None or math.isnan(epochs):
        return UNKNOWN
    return f"{epochs:,.0f}" if epochs >= 99.95 else f"{epochs:.3g}"


def cost_text(cost: Mapping[str, float | None]) -> str:
    """All faces of a cost in a line.

    Args:
        cost: With the values of :class:`swamp_ray.training.cost.Cost` by name.
    """
    dense = cost.get("dense_flops")
    sparse = cost.get("sparse_flops")
    text = (f"{epochs_text(cost.get('total_epochs'))} epochs of all particles, "
            f"{epochs_text(cost.get('critical_epochs'))} one after the other")
    if dense is None:
        return f"{text}, FLOPs not known"
    masked = "" if sparse is None else f" ({flops_text(sparse)} at the masks' density)"
    return f"{text}, {flops_text(dense)}{masked}"
