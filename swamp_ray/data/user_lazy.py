"""Data of the user's that are read while training: random samples, and those that take too much memory."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.labels import (
    BuiltInForm,
    TargetInfo,
    class_numbers,
    decide_classes,
    missing_classes,
    values_of,
    with_classes,
)
from swamp_ray.data.loader import collate
from swamp_ray.data.pairs import built_in_pair, label_leaf
from swamp_ray.data.samples import Data, ImageSettings, LazySamples, channel_statistics, digest_of, is_image_array
from swamp_ray.data.splits import first_rows, fixed_order, hold_out
from swamp_ray.data.user_arrays import TableColumns, arrays_of
from swamp_ray.data.user_datasets import (
    ArrayDataset,
    ReadSplit,
    attribute_labels,
    first_difference,
    form_of,
    form_text,
    length_of,
    read_split,
)
from swamp_ray.data.user_function import ReturnedSplits
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.user_code.importing import own_traceback

_FILE_LIBRARIES = {"h5py", "lmdb", "netCDF4", "tables"}


def lazy_data(config: DataConfig, task: str | None, returned: ReturnedSplits, read: Mapping[str, ReadSplit]) -> Data:
    """Data whose samples are read one by one.

    Args:
        config: The data section.
        task: As for :func:`swamp_ray.data.user.load_user_data`.
        returned: By the user's function.
        read: What was found of the splits that are datasets.

    Raises:
        UserError: The data have no version, splits or labels do not fit, or the unchanged samples are not those of
            the training split.
    """
    if config.version is None:
        raise UserError(
            f"{config.name} returns datasets that are read while training, because they are random, have a transform "
            "or take more than 2 GiB", where="data.version", do="Set data.version to name their content.")
    splits, images = _datasets(config, returned)
    probed: dict[str, ReadSplit] = {}
    for name, split in splits.items():
        probed[name] = read.get(name) or read_split(split, f"{config.name}, {name}")
    if config.augment.startswith("crop"):
        raise UserError("a dataset of your own augments by itself", got=config.augment, where="data.augment",
                        do="Leave data.augment at auto.")
    _check_plain(config, returned, splits, probed)
    labels = {name: attribute_labels(split) for name, split in splits.items()}
    target = _target(config, task, returned, probed, labels)
    form = None
    if task is not None:
        form = BuiltInForm(config.name, task == "classification", target.num_classes, target.shift)
    chosen = _chosen(config, splits, labels)
    plain = splits["train"] if returned.transform is not None else splits.get("train_plain")
    # Held-out samples are read without random changes where the user says how.
    held_out = splits["train"] if plain is None else plain
    validation = splits.get("validation", held_out)
    source = _source(config, returned, plain is not None)
    return Data(
        train=LazySamples(splits["train"], chosen["train"], images, returned.transform, plain=plain, form=form),
        validation=LazySamples(validation, chosen["validation"], images, form=form),
        test=LazySamples(splits["test"], chosen["test"], images, form=form),
        num_classes=target.num_classes,
        input_shape=_input_shape(probed["train"].probes, task, images, config.name),
        class_names=target.class_names,
        digest=digest_of(chosen, source),
        description={"name": config.name, "source": f"{config.name} (read while training)", "sample": "dataset",
                     **{name: len(rows) for name, rows in chosen.items()}},
        warnings=(*target.warnings, *_random_warnings(config, probed, plain is not None),
                  *_open_file_warnings(config, splits)),
        training_digest=digest_of({"train": chosen["train"]}, source),
    )


def _source(config: DataConfig, returned: ReturnedSplits, has_plain: bool) -> dict[str, Any]:
    """What the digest covers besides the chosen rows: the samples themselves are named by the user's version."""
    options = repr(sorted(config.options.items()))
    source = {"version": config.version, "name": config.name, "options": hashlib.sha256(options.encode()).hexdigest()}
    if has_plain:
        source["plain"] = "transform" if returned.transform is not None else "train_plain"
    return source


def _datasets(config: DataConfig, returned: ReturnedSplits) -> tuple[dict[str, Any], ImageSettings | None]:
    """All splits as datasets, and the pipeline of images that came as arrays."""
    tables = TableColumns()
    splits = dict(returned.splits)
    arrays: dict[str, Any] = {}
    for name, split in returned.splits.items():
        if not isinstance(split, Dataset):
            arrays[name] = arrays_of(split, tables, f"{config.name}, {name}")
            splits[name] = ArrayDataset(arrays[name])
    if len(arrays) < len(splits) or not isinstance(arrays["train"], tuple):
        return splits, None
    inputs = arrays["train"][0]
    if isinstance(inputs, np.ndarray) and is_image_array(inputs):
        return splits, ImageSettings(*channel_statistics(inputs))
    return splits, None


def _chosen(
    config: DataConfig, splits: Mapping[str, Any], labels: Mapping[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Which samples of each dataset make up each split."""
    rows = first_rows(length_of(splits["train"]), labels["train"], config.limit_train)
    if "validation" in splits:
        chosen = {"train": fixed_order(rows, config.split_seed),
                  "validation": np.arange(length_of(splits["validation"]))}
    else:
        known = None if labels["train"] is None else labels["train"][rows]
        stays, held = hold_out(len(rows), known, config.validation, config.split_seed)
        chosen = {"train": rows[stays], "validation": rows[held]}
    chosen["test"] = first_rows(length_of(splits["test"]), labels["test"], config.limit_test)
    return chosen


def _check_plain(
    config: DataConfig, returned: ReturnedSplits, splits: Mapping[str, Any], read: Mapping[str, ReadSplit]
) -> None:
    """Refuse unchanged samples that are random, or not those of the training split."""
    name = "train" if returned.transform is not None else "train_plain"
    if name not in splits:
        return
    where = f"{config.name}, {name}"
    plain = read[name]
    changed = read["train"].probes
    if plain.random:
        raise UserError("the samples to which no transform is applied must be the same whenever they are read",
                        where=where, do="Return them without random changes.")
    if returned.transform is not None:
        changed = _transformed(config, returned, splits["train"], plain.rows)
    elif length_of(splits["train_plain"]) != length_of(splits["train"]):
        raise UserError("it must hold the samples of train", where=where, got=f"{length_of(splits['train_plain'])} "
                        f"samples instead of {length_of(splits['train'])}")
    if form_of(changed) != form_of(plain.probes):
        raise UserError("changed and unchanged training samples must have one form", where=where,
                        got=f"{form_text(form_of(changed))} and {form_text(form_of(plain.probes))}")
    if label_leaf(changed) is not None and returned.transform is None:
        odd = first_difference(label_leaf(changed), label_leaf(plain.probes))
        if odd is not None:
            raise UserError("it must hold the samples of train in the same order, but the labels differ", where=where,
                            got=f"another one in sample {plain.rows[odd]}")


def _transformed(config: DataConfig, returned: ReturnedSplits, split: Any, rows: list[int]) -> Any:
    """Some training samples, changed and stacked."""
    assert returned.transform is not None
    try:
        with seeded(0):
            return collate([returned.transform(split[row]) for row in rows])
    except Exception as error:
        raise UserError("the transform fails on a training sample", where=f"{config.name}, transform",
                        do=f"It is given what the dataset gives. Its own error:\n{own_traceback(error)}") from error


def _target(
    config: DataConfig, task: str | None, returned: ReturnedSplits, read: Mapping[str, ReadSplit],
    labels: Mapping[str, np.ndarray | None],
) -> TargetInfo:
    """Classes, from the labels that datasets have as attributes, or else from the samples that were probed."""
    if task != "classification":
        pairs = {name: (found, found) for name, found in labels.items() if found is not None}
        if "train" not in pairs:
            return TargetInfo(returned.num_classes, returned.class_names)
        return with_classes(config.name, task, pairs, returned.num_classes, returned.class_names)[1]
    numbers: dict[str, np.ndarray] = {}
    widths: set[int | None] = set()
    all_attributes = True
    for name, one in read.items():
        where = f"{config.name}, {name}"
        targets = built_in_pair(one.probes, where)[1]
        values = values_of(targets) if isinstance(targets, Tensor) else np.asarray(targets)
        numbers[name], width = class_numbers(values, where)
        widths.add(width)
        attribute = labels[name]
        # An attribute counts only where it agrees with the labels of the samples that were read.
        if attribute is not None and np.array_equal(attribute[one.rows], numbers[name]):
            numbers[name] = attribute
        else:
            all_attributes = False
    num = returned.num_classes
    if widths != {None}:
        num = max(width for width in widths if width is not None)
    if returned.num_classes not in (None, num) or len(widths) > 1:
        raise UserError("labels must have one form and one number of classes in all splits", where=config.name)
    expected = num or len(returned.class_names) or None
    if all_attributes:
        classes = decide_classes(numbers, expected, (), config.name)
        warnings = missing_classes(classes.labels, classes.num_classes, config.name)
        return TargetInfo(classes.num_classes, returned.class_names, warnings, classes.shift)
    if expected is None:
        if min(int(found.min()) for found in numbers.values()) < 0:
            decide_classes(numbers, None, (), config.name)  # which refuses them
        return TargetInfo(None, returned.class_names)
    # A few probed samples may be of one class, and miss the first: only their range can be checked.
    largest = max(int(found.max()) for found in numbers.values())
    if largest >= expected:
        raise UserError(f"labels must lie in [0, {expected})", got=largest, where=config.name)
    return TargetInfo(expected, returned.class_names)


def _random_warnings(config: DataConfig, read: Mapping[str, ReadSplit], has_plain: bool) -> tuple[str, ...]:
    """Warnings about samples that change from one reading to the next."""
    texts: list[str] = []
    if read["train"].random and not has_plain:
        held_out = "" if "validation" in read else "the validation samples that are held out of them, and "
        texts.append(f"{config.name}: training samples change whenever they are read, as augmentation does, and there "
                     f"are no unchanged ones. So {held_out}passes that measure on training samples get changed ones, "
                     "too. Return train_plain as well: the same samples in the same order without random changes; or "
                     "the unchanged samples with transform, a function that changes one")
    for name in ("validation", "test"):
        if name in read and read[name].random:
            texts.append(f"{config.name}: the samples of {name} change whenever they are read, so metrics on {name} "
                         "are measured on changed samples")
    unrepeatable = [name for name, found in read.items() if not found.repeatable]
    if unrepeatable:
        names = ", ".join(unrepeatable)
        texts.append(f"{config.name}: the samples of {names} differ even under the same seeds, so results cannot be "
                     "repeated. Draw from the global generators of Python, NumPy or torch, which are seeded for each "
                     "sample")
    return tuple(texts)


def _open_file_warnings(config: DataConfig, splits: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings about files that datasets hold open: forked processes would share their positions."""
    if not config.loader_workers:
        return ()
    texts: list[str] = []
    for name, split in splits.items():
        attributes = getattr(split, "__dict__", {})
        files = [key for key, value in attributes.items() if _is_open_file(value)]
        if files:
            texts.append(f"{config.name}: the dataset of {name} holds an open file ({', '.join(files)}), which the "
                         "processes that read samples share, so they may read at wrong positions. Open it where it is "
                         "first used, in __getitem__, or set data.loader_workers: 0")
    return tuple(texts)


def _is_open_file(value: Any) -> bool:
    if isinstance(value, io.IOBase | zipfile.ZipFile | tarfile.TarFile | sqlite3.Connection):
        return True
    return type(value).__module__.partition(".")[0] in _FILE_LIBRARIES


def _input_shape(probes: Any, task: str | None, images: ImageSettings | None, where: str) -> tuple[int, ...] | None:
    """Shape of one input of the model, where that is one tensor."""
    if task is not None:
        inputs: Any = built_in_pair(probes, where)[0]
    else:
        inputs = probes[0] if isinstance(probes, tuple) else probes
    if not isinstance(inputs, Tensor):
        return None
    shape = tuple(inputs.shape[1:])
    return (shape[2], shape[0], shape[1]) if images is not None else shape
