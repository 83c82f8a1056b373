"""The user's dataset function: called, and what it returns checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.labels import class_names_of, number_of_classes
from swamp_ray.data.trees import leaves
from swamp_ray.data.user_arrays import is_table
from swamp_ray.data.user_datasets import ListDataset
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.user_code.importing import load_object, own_traceback

KNOWN_KEYS = ("train", "test", "validation", "num_classes", "class_names", "train_plain", "transform", "label_column")
SPLITS = ("train", "validation", "test", "train_plain")


@dataclass(frozen=True)
class ReturnedSplits:
    """What the user's function returned, checked.

    Attributes:
        splits: By name; tables divided into inputs and labels, lists of samples as datasets.
        num_classes: None where the function did not return it.
        class_names: In label order; may be empty.
        transform: Of training samples; or None.
    """

    splits: dict[str, Any]
    num_classes: int | None
    class_names: tuple[str, ...]
    transform: Callable[[Any], Any] | None


def call_user_function(config: DataConfig) -> ReturnedSplits:
    """Call ``function(**data.options)`` and check the mapping that it returns.

    Raises:
        UserError: The function fails (its own error is shown), or what it returns is no such mapping.
    """
    returned = _returned_mapping(config)
    column = returned.get("label_column")
    splits: dict[str, Any] = {}
    for name in SPLITS:
        if returned.get(name) is not None:
            splits[name] = checked_split(returned[name], column, f"{config.name}, {name}")
    missing = [name for name in ("test", "train") if name not in splits]
    if missing:
        raise UserError(f"there is no {' and no '.join(missing)} split", got="None", where=config.name)
    transform = returned.get("transform")
    if transform is not None and not callable(transform):
        raise UserError("transform must be a function of a sample", got=type(transform).__name__, where=config.name)
    if transform is not None and "train_plain" in splits:
        raise UserError("train_plain and transform are two ways to give the unchanged samples", where=config.name,
                        do="Return one of them.")
    num_classes = number_of_classes(returned.get("num_classes"))
    names = class_names_of(returned.get("class_names"), num_classes)
    return ReturnedSplits(splits, num_classes, names, transform)


def _returned_mapping(config: DataConfig) -> Mapping[str, Any]:
    function = load_object(config.name, "data.name")
    if not callable(function):
        raise UserError(f"{config.name} must be a function", got=type(function).__name__, where="data.name")
    try:
        inspect.signature(function).bind(**config.options)
    except TypeError as error:
        raise UserError(f"{config.name} cannot be called with the options {sorted(config.options)}: {error}",
                        where="data.options", do=f"Its signature is {inspect.signature(function)}.") from error
    except ValueError:
        pass  # some callables written in C have no signature; calling them tells
    try:
        with seeded(0):
            returned = function(**config.options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config.name} failed", where="data.name",
                        do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(returned, Mapping) or "train" not in returned or "test" not in returned:
        is_mapping = isinstance(returned, Mapping)
        got = f"keys {sorted(map(str, returned))}" if is_mapping else type(returned).__name__
        raise UserError(f"{config.name} must return a mapping with 'train' and 'test'", got=got, where="data.name")
    unknown = [str(key) for key in returned if key not in KNOWN_KEYS]
    if unknown:
        raise UserError(f"{config.name} returns unknown keys {unknown}", where="data.name",
                        do=f"Known: {', '.join(KNOWN_KEYS)}.")
    return returned


def checked_split(split: Any, label_column: Any, where: str) -> Any:
    """A split with a list of samples as a dataset, and a table divided into inputs and labels."""
    if is_table(split):
        if label_column is None:
            raise UserError("a table alone does not say which column holds the labels", where=where,
                            do="Return its name too, as label_column; or a pair of a table and a column.")
        if label_column not in split.columns:
            raise UserError("the table has no such column", got=label_column, where=f"{where}, label_column",
                            do=f"It has: {', '.join(map(str, list(split.columns)[:20]))}.")
        return split.drop(columns=label_column), split[label_column]
    if isinstance(split, list) and split and _is_sample(split[0]):
        return ListDataset(split)
    return split


def _is_sample(entry: Any) -> bool:
    """Whether the entry of a list is one sample and no part of all samples: it holds a single number or a text."""
    if not isinstance(entry, tuple | list | Mapping) or not entry:
        return False
    for leaf in leaves(entry):
        if isinstance(leaf, int | float | str | np.generic):
            return True
        if isinstance(leaf, np.ndarray | Tensor) and not leaf.ndim:
            return True
    return False
