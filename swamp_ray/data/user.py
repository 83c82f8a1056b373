"""Datasets of your own: ``package.module:function`` returns a mapping of splits."""

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
from swamp_ray.data.user_datasets import form_of, form_text, read_split
from swamp_ray.data.user_function import ReturnedSplits, call_user_function
from swamp_ray.data.user_lazy import lazy_data
from swamp_ray.errors import UserError


def load_user_data(config: DataConfig, task: str | None = None) -> UnsplitData | Data:
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
    given = call_user_function(config)
    read = {name: read_split(split, f"{config.name}, {name}")
            for name, split in given.splits.items() if isinstance(split, Dataset)}
    if given.transform is not None or any(found.nest is None for found in read.values()):
        return lazy_data(config, task, given, read)
    tables = TableColumns()
    nests = {name: arrays_of(read[name].nest if name in read else split, tables, f"{config.name}, {name}")
             for name, split in given.splits.items()}
    return _raw(config, task, given, nests)






def _raw(config: DataConfig, task: str | None, given: ReturnedSplits, nests: dict[str, Any]) -> UnsplitData:
    if task is not None:
        nests = {name: _as_pair(nest, f"{config.name}, {name}") for name, nest in nests.items()}
    nests, target = with_classes(config.name, task, nests, given.num_classes, given.class_names)
    forms = {name: form_of(nest) for name, nest in nests.items()}
    for name, form in forms.items():
        if form != forms["train"]:
            raise UserError(f"{name} must have the form of train", got=form_text(form), where=config.name,
                            do=f"train has {form_text(forms['train'])}.")
    _check_plain(config, nests)
    images = nests["train"][0] if isinstance(nests["train"], tuple) else None
    mean = std = None
    if isinstance(images, np.ndarray) and is_image_array(images):
        mean, std = channel_statistics(images)
    return UnsplitData(
        train=nests["train"], test=nests["test"], validation=nests.get("validation"), plain=nests.get("train_plain"),
        train_labels=integer_labels(nests["train"]), test_labels=integer_labels(nests["test"]),
        num_classes=target.num_classes, mean=mean, std=std, class_names=target.class_names, source=config.name,
        warnings=target.warnings)


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
