"""Where inputs and labels stand in samples: a pair, or a mapping with known keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from swamp_ray.errors import UserError

INPUT_KEYS = ("inputs", "image", "pixel_values")
LABEL_KEYS = ("labels", "label")
OWN_TASK = "or name a task of your own in task.name."


def built_in_pair(tree: Any, where: str) -> tuple[Any, Any]:
    """Inputs and targets, as the built-in tasks read them.

    Args:
        tree: A pair, or a mapping with one of ``inputs``, ``image``, ``pixel_values`` and one of ``labels``, ``label``.
        where: The data's name, for errors.

    Raises:
        UserError: It is neither.
    """
    if isinstance(tree, tuple | list) and len(tree) == 2:
        return tree[0], tree[1]
    if isinstance(tree, Mapping):
        inputs = _present(tree, INPUT_KEYS)
        labels = _present(tree, LABEL_KEYS)
        if len(inputs) == 1 and len(labels) == 1 and len(tree) == 2:
            return tree[inputs[0]], tree[labels[0]]
        got = f"a mapping with {', '.join(map(str, tree))}"
    else:
        got = f"{len(tree)} parts" if isinstance(tree, tuple | list) else "a single part"
    raise UserError(
        "the built-in tasks read pairs of inputs and labels, or mappings with one of "
        f"{', '.join(INPUT_KEYS)} and one of {', '.join(LABEL_KEYS)}", got=got, where=where,
        do="Return such samples and nothing else, " + OWN_TASK)


def _present(tree: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key in tree]


def label_leaf(tree: Any) -> Any:
    """The second part of a pair, or ``labels`` or ``label`` of a mapping; else None."""
    if isinstance(tree, tuple) and len(tree) == 2:
        return tree[1]
    if isinstance(tree, Mapping):
        present = _present(tree, LABEL_KEYS)
        return tree[present[0]] if present else None
    return None


def with_labels(tree: Any, labels: Any) -> Any:
    """The same pair or mapping with other labels, where :func:`label_leaf` finds some."""
    if isinstance(tree, tuple):
        make: Any = type(tree)
        return make(tree[0], labels) if hasattr(tree, "_fields") else (tree[0], labels)
    return {**tree, _present(tree, LABEL_KEYS)[0]: labels}


def integer_labels(tree: Any) -> np.ndarray | None:
    """The labels of a pair or mapping where they are whole numbers ``[N]``; else None."""
    found = label_leaf(tree)
    is_labels = isinstance(found, np.ndarray) and found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    return found if is_labels else None
