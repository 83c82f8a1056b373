"""Nests: tuples, lists and mappings of tensors or arrays whose first dimensions are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def tree_map(function: Callable[[Any], Any], nest: Any) -> Any:
    """The same nest with a function applied to every leaf; named tuples keep their type."""
    if isinstance(nest, Mapping):
        return {key: tree_map(function, value) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        values = [tree_map(function, value) for value in nest]
        if isinstance(nest, list):
            return values
        return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)
    return function(nest)


def leaves(nest: Any) -> list[Any]:
    """The leaves in order; mappings in the order of their keys."""
    return [leaf for _, leaf in named_leaves(nest)]


def named_leaves(nest: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves with their path, e.g. ``("1.mask", leaf)`` for ``(x, {"mask": leaf})``."""
    if isinstance(nest, Mapping):
        entries = [(str(key), value) for key, value in nest.items()]
    elif isinstance(nest, tuple | list):
        entries = [(str(index), value) for index, value in enumerate(nest)]
    else:
        return [(prefix, nest)]
    found: list[tuple[str, Any]] = []
    for name, value in entries:
        found += named_leaves(value, f"{prefix}.{name}" if prefix else name)
    return found


def num_samples(nest: Any) -> int:
    """The first dimension of the nest's leaves."""
    return len(leaves(nest)[0])


def split_batch(batch: Any, size: int) -> list[Any]:
    """Parts of at most ``size`` samples of a nest of tensors."""
    starts = range(0, num_samples(batch), size)
    return [tree_map(lambda tensor, first=start: tensor[first:first + size], batch) for start in starts]
