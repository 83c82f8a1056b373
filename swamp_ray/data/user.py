"""Datasets of your own: ``package.module:function`` returns a mapping of splits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.builtin import Raw
from swamp_ray.data.labels import built_in_pair
from swamp_ray.data.samples import Data, channel_statistics
from swamp_ray.data.trees import num_samples
from swamp_ray.data.user_lazy import lazy_data
from swamp_ray.data.user_splits import Tables, arrays_of, as_split, form_of, label_leaf, read_split, spelled
from swamp_ray.data.user_targets import (
    Given,
    class_names_of,
    is_image_array,
    labels_of,
    number_of_classes,
    with_classes,
)
from swamp_ray.errors import UserError
from swamp_ray.reproducible import seeded
from swamp_ray.user_code.importing import load_object, own_traceback

KNOWN_KEYS = ("train", "test", "validation", "num_classes", "class_names", "train_plain", "transform", "label_column")
SPLITS = ("train", "validation", "test", "train_plain")


def load_user_data(config: DataConfig, task: str | None = None) -> Raw | Data:
    """Call ``function(**data.options)`` and read the mapping that it returns.

    Keys ``train`` and ``test``, optionally ``validation``, ``num_classes``, ``class_names``, ``train_plain`` and
    ``transform``, and ``label_column`` for tables. Each split is a nest of arrays, tensors or tables with equal first
    dimension, a list of samples, or a map-style torch dataset. A dataset whose samples are always the same and take up
    to 2 GiB is read into memory; another is read while training, and then needs ``data.version`` as its identity.

    A pair whose first part is uint8 ``[N, H, W, C]`` with 1 or 3 channels goes through the image pipeline; other
    arrays are used as they are, floating point as float32.

    Args:
        config: The data section.
        task: ``"classification"`` or ``"regression"``, which read pairs, and classes in one form; None: a task of the
            user's own, which is given what the data are.

    Raises:
        UserError: The function fails (its own error is shown), or what it returns is no such mapping.
    """
    given = _given(config, _call(config))
    read = {name: read_split(split, f"{config.name}, {name}")
            for name, split in given.splits.items() if isinstance(split, Dataset)}
    if given.transform is not None or any(found.nest is None for found in read.values()):
        return lazy_data(config, task, given, read)
    tables = Tables()
    nests = {name: arrays_of(read[name].nest if name in read else split, tables, f"{config.name}, {name}")
             for name, split in given.splits.items()}
    return _raw(config, task, given, nests)


def _call(config: DataConfig) -> Mapping[str, Any]:
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
            made = function(**config.options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config.name} failed", where="data.name",
                        do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(made, Mapping) or "train" not in made or "test" not in made:
        got = f"keys {sorted(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
        raise UserError(f"{config.name} must return a mapping with 'train' and 'test'", got=got, where="data.name")
    unknown = [str(key) for key in made if key not in KNOWN_KEYS]
    if unknown:
        raise UserError(f"{config.name} returns unknown keys {unknown}", where="data.name",
                        do=f"Known: {', '.join(KNOWN_KEYS)}.")
    return made


def _given(config: DataConfig, made: Mapping[str, Any]) -> Given:
    column, transform = made.get("label_column"), made.get("transform")
    splits = {name: as_split(made[name], column, f"{config.name}, {name}")
              for name in SPLITS if made.get(name) is not None}
    if missing := {"train", "test"} - set(splits):
        raise UserError(f"there is no {' and no '.join(sorted(missing))} split", got="None", where=config.name)
    if transform is not None and not callable(transform):
        raise UserError("transform must be a function of a sample", got=type(transform).__name__, where=config.name)
    if transform is not None and "train_plain" in splits:
        raise UserError("train_plain and transform are two ways to give the unchanged samples", where=config.name,
                        do="Return one of them.")
    num_classes = number_of_classes(made.get("num_classes"))
    return Given(splits, num_classes, class_names_of(made.get("class_names"), num_classes), transform)


def _raw(config: DataConfig, task: str | None, given: Given, nests: dict[str, Any]) -> Raw:
    if task is not None:
        nests = {name: _as_pair(nest, f"{config.name}, {name}") for name, nest in nests.items()}
    nests, target = with_classes(config, task, given, nests)
    forms = {name: form_of(nest) for name, nest in nests.items()}
    for name, form in forms.items():
        if form != forms["train"]:
            raise UserError(f"{name} must have the form of train", got=spelled(form), where=config.name,
                            do=f"train has {spelled(forms['train'])}.")
    _check_plain(config, nests)
    images = nests["train"][0] if isinstance(nests["train"], tuple) else None
    mean = std = None
    if isinstance(images, np.ndarray) and is_image_array(images):
        mean, std = channel_statistics(images)
    return Raw(
        train=nests["train"], test=nests["test"], validation=nests.get("validation"), plain=nests.get("train_plain"),
        train_labels=labels_of(nests["train"]), test_labels=labels_of(nests["test"]), num_classes=target.num_classes,
        mean=mean, std=std, class_names=target.class_names, source=config.name, warnings=target.warnings)


def _as_pair(nest: Any, where: str) -> Any:
    """What the built-in tasks read; a pair keeps its type."""
    return nest if isinstance(nest, tuple) and len(nest) == 2 else built_in_pair(nest, where)


def _check_plain(config: DataConfig, nests: dict[str, Any]) -> None:
    plain = nests.get("train_plain")
    if plain is None:
        return
    where = f"{config.name}, train_plain"
    if num_samples(plain) != num_samples(nests["train"]):
        raise UserError("it must hold the samples of train", got=f"{num_samples(plain)} samples instead of "
                        f"{num_samples(nests['train'])}", where=where)
    first, second = label_leaf(nests["train"]), label_leaf(plain)
    if first is not None and not np.array_equal(first, second):
        raise UserError("it must hold the samples of train in the same order, but their labels differ", where=where)
