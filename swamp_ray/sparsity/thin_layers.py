"""Layers that keep so few of their weights that hardly anything passes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

SHARE = 0.1
"""A layer is thin below this share of the square root of its size: of a square matrix the side, its highest rank."""
_SHOWN = 5

Thin = dict[str, tuple[int, int]]
"""Weights that are left, and weights in all, by layer."""


def thin_layers(layers: Iterable[tuple[str, int, int]]) -> Thin:
    """The layers that have some weights left, but hardly any.

    Args:
        layers: Name, number of weights, number of weights that are left.
    """
    return {name: (left, size) for name, size, left in layers if 0 < left < SHARE * math.sqrt(size)}


def thin_of_record(record: Mapping[str, object], sizes: Iterable[tuple[str, int]]) -> Thin:
    """The thin layers of a finished round.

    Args:
        record: The round's line in ``rounds.jsonl``.
        sizes: Name and number of weights of each layer, as in ``run.json``.
    """
    densities = record.get("layer_densities")
    if not isinstance(densities, Mapping):
        return {}
    return thin_layers((name, size, round(densities[name] * size)) for name, size in sizes if name in densities)


def thin_text(thin: Mapping[str, tuple[int, int]]) -> str:
    """What is said of thin layers, e.g. ``"1 of 14,400 weights in conv3"``."""
    parts = [f"{left:,} of {size:,} weights in {name}" for name, (left, size) in list(thin.items())[:_SHOWN]]
    more = f" and few in {len(thin) - _SHOWN} more layers" if len(thin) > _SHOWN else ""
    return ", ".join(parts) + more
