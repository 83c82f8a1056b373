"""Datasets of the user's: ``package.module:function`` returns a mapping of splits, read into memory where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.labels import with_classes
from swamp_ray.data.pairs import built_in_pair, integer_labels, label_leaf
from swamp_ray.data.samples import Data, UnsplitData, channel_statistics, is_image_array
from swamp_ray.data.trees import num_samples
from swamp_ray.data.user_arrays import TableColumns, arrays_of
from swamp_ray.data.user_datasets import ReadSplit, form_of, form_text, read_split
from swamp_ray.data.user_function import ReturnedSplits, call_user_function
from swamp_ray.data.user_lazy import lazy_data
from swamp_ray.errors import UserError


def load_user_data(config: DataConfig, task: str | None = None) -> UnsplitData | Data:
    """Call ``function(**data.options)`` and read the mapping that it returns.

    Keys ``train`` and ``test``, optionally ``validation``, ``num_classes``, ``class_names``, ``train_plain`` and
    ``transform``, and ``label_column`` for tables. Each split is a tree of arrays, tensors or tables with equal first
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
    returned = call_user_function(config)
    read: dict[str, ReadSplit] = {}
    for name, split in returned.splits.items():
        if isinstance(split, Dataset):
            read[name] = read_split(split, f"{config.name}, {name}")
    if returned.transform is not None or any(found.tree is None for found in read.values()):
        return lazy_data(config, task, returned, read)
    tables = TableColumns()
    trees: dict[str, Any] = {}
    for name, split in returned.splits.items():
        whole = read[name].tree if name in read else split
        trees[name] = arrays_of(whole, tables, f"{config.name}, {name}")
    return _in_memory(config, task, returned, trees)


def _in_memory(config: DataConfig, task: str | None, returned: ReturnedSplits, trees: dict[str, Any]) -> UnsplitData:
    """Splits that are trees of arrays, with labels as the task reads them."""
    if task is not None:
        trees = {name: _as_pair(tree, f"{config.name}, {name}") for name, tree in trees.items()}
    trees, target = with_classes(config.name, task, trees, returned.num_classes, returned.class_names)
    form = form_of(trees["train"])
    for name, tree in trees.items():
        if form_of(tree) != form:
            raise UserError(f"{name} must have the form of train", got=form_text(form_of(tree)), where=config.name,
                            do=f"train has {form_text(form)}.")
    _check_plain(config, trees)
    train = trees["train"]
    inputs = train[0] if isinstance(train, tuple) else None
    mean = std = None
    if isinstance(inputs, np.ndarray) and is_image_array(inputs):
        mean, std = channel_statistics(inputs)
    return UnsplitData(
        train=train, test=trees["test"], validation=trees.get("validation"), plain=trees.get("train_plain"),
        train_labels=integer_labels(train), test_labels=integer_labels(trees["test"]),
        num_classes=target.num_classes, mean=mean, std=std, class_names=target.class_names, source=config.name,
        warnings=target.warnings)


def _as_pair(tree: Any, where: str) -> Any:
    """What the built-in tasks read; a pair keeps its type."""
    return tree if isinstance(tree, tuple) and len(tree) == 2 else built_in_pair(tree, where)


def _check_plain(config: DataConfig, trees: dict[str, Any]) -> None:
    """Refuse unchanged samples that are not those of the training split."""
    plain = trees.get("train_plain")
    if plain is None:
        return
    where = f"{config.name}, train_plain"
    if num_samples(plain) != num_samples(trees["train"]):
        raise UserError("it must hold the samples of train", got=f"{num_samples(plain)} samples instead of "
                        f"{num_samples(trees['train'])}", where=where)
    labels = label_leaf(trees["train"])
    if labels is not None and not np.array_equal(labels, label_leaf(plain)):
        raise UserError("it must hold the samples of train in the same order, but their labels differ", where=where)
