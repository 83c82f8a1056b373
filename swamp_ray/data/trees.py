"""Trees of tensors or arrays: nested tuples, lists and mappings whose leaves have equal first dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with a function applied to every leaf; named tuples keep their type."""
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if not isinstance(tree, tuple | list):
        return function(tree)
    values = [tree_map(function, value) for value in tree]
    if isinstance(tree, list):
        return values
    if hasattr(tree, "_fields"):  # a named tuple
        return type(tree)(*values)
    return tuple(values)


def with_leaves(tree: Any, replacements: Sequence[Any]) -> Any:
    """The same tree with its leaves replaced, in the order of :func:`leaves`."""
    remaining = iter(replacements)
    return tree_map(lambda _: next(remaining), tree)


def leaves(tree: Any) -> list[Any]:
    """The leaves in order; mappings in the order of their keys."""
    return [leaf for _, leaf in named_leaves(tree)]


def named_leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves with their path, e.g. ``("1.mask", leaf)`` for ``(x, {"mask": leaf})``."""
    if isinstance(tree, Mapping):
        entries = tree.items()
    elif isinstance(tree, tuple | list):
        entries = enumerate(tree)
    else:
        return [(prefix, tree)]
    found: list[tuple[str, Any]] = []
    for name, value in entries:
        path = f"{prefix}.{name}" if prefix else str(name)
        found += named_leaves(value, path)
    return found


def num_samples(tree: Any) -> int:
    """The first dimension of the tree's leaves."""
    return len(leaves(tree)[0])


def split_batch(batch: Any, size: int) -> list[Any]:
    """Parts of at most ``size`` samples of a tree of tensors."""
    parts = []
    for start in range(0, num_samples(batch), size):
        rows = slice(start, start + size)
        parts.append(tree_map(lambda tensor, rows=rows: tensor[rows], batch))
    return parts
