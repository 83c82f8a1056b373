"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from swamp_ray.errors import UserError

INPUT_KEYS = ("inputs", "image", "pixel_values")

LABEL_KEYS = ("labels", "label")

OWN_TASK = "or name a task of your own in task.name."




def built_in_pair(nest: Any, where: str) -> tuple[Any, Any]:
    """Inputs and targets, as the built-in tasks read them.

    Args:
        nest: A pair, or a mapping with one of ``inputs``, ``image``, ``pixel_values`` and one of ``labels``, ``label``.
        where: The data's name, for errors.

    Raises:
        UserError: It is neither.
    """
    if isinstance(nest, tuple | list) and len(nest) == 2:
        return nest[0], nest[1]
    if isinstance(nest, Mapping):
        keys = [[key for key in known if key in nest] for known in (INPUT_KEYS, LABEL_KEYS)]
        if [len(found) for found in keys] == [1, 1] and len(nest) == 2:
            return nest[keys[0][0]], nest[keys[1][0]]
        got = f"a mapping with {', '.join(map(str, nest))}"
    else:
        got = f"{len(nest)} parts" if isinstance(nest, tuple | list) else "a single part"
    raise UserError(
        "the built-in tasks read pairs of inputs and labels, or mappings with one of "
        f"{', '.join(INPUT_KEYS)} and one of {', '.join(LABEL_KEYS)}", got=got, where=where,
        do="Return such samples and nothing else, " + OWN_TASK)


def label_leaf(nest: Any) -> Any:
    """What stands where labels do: the second part of a pair, or ``labels`` or ``label`` of a mapping; else None."""
    if isinstance(nest, tuple) and len(nest) == 2:
        return nest[1]
    if isinstance(nest, Mapping):
        return next((nest[key] for key in LABEL_KEYS if key in nest), None)
    return None


def with_labels(nest: Any, labels: Any) -> Any:
    """The same nest with other labels."""
    if isinstance(nest, tuple):
        make: Any = type(nest)
        return make(nest[0], labels) if hasattr(nest, "_fields") else (nest[0], labels)
    key = next(key for key in LABEL_KEYS if key in nest)
    return {name: labels if name == key else value for name, value in nest.items()}


def integer_labels(nest: Any) -> np.ndarray | None:
    """Integer labels ``[N]``: the second part of a pair, or ``labels`` or ``label`` of a mapping."""
    found = label_leaf(nest)
    is_labels = isinstance(found, np.ndarray) and found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    return found if is_labels else None
