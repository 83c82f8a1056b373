"""Data of your own that are read while training: random samples, and those that take too much memory."""

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


def lazy_data(config: DataConfig, task: str | None, given: ReturnedSplits, read: Mapping[str, ReadSplit]) -> Data:
    """Data whose samples are read one by one.

    Args:
        config: The data section.
        task: As for :func:`swamp_ray.data.user.load_user_data`.
        given: What the user's function returned.
        read: What was found of the splits that are datasets.

    Raises:
        UserError: The data have no version, splits or labels do not fit, or the unchanged samples are not those of
            the training split.
    """
    if config.version is None:
        raise UserError(
            f"{config.name} returns datasets that are read while training, because they are random, have a transform "
            "or take more than 2 GiB", where="data.version", do="Set data.version to name their content.")
    splits, images = _datasets(config, given)
    read = {name: read.get(name) or read_split(split, f"{config.name}, {name}") for name, split in splits.items()}
    if config.augment.startswith("crop"):
        raise UserError("a dataset of your own augments by itself", got=config.augment, where="data.augment",
                        do="Leave data.augment at auto.")
    _check_plain(config, given, splits, read)
    labels = {name: attribute_labels(split) for name, split in splits.items()}
    target = _target(config, task, given, read, labels)
    form = None
    if task is not None:
        form = BuiltInForm(config.name, task == "classification", target.num_classes, target.shift)
    chosen = _chosen(config, splits, labels)
    plain = splits.get("train_plain")
    if given.transform is not None:
        plain = splits["train"]
    sources = {"train": splits["train"], "test": splits["test"],
               "validation": splits.get("validation", plain if plain is not None else splits["train"])}
    samples = {name: LazySamples(sources[name], rows, images, form=form) for name, rows in chosen.items()}
    samples["train"] = LazySamples(splits["train"], chosen["train"], images, given.transform, plain=plain, form=form)
    source = {"version": config.version, "name": config.name, "options": hashlib.sha256(
        repr(sorted(config.options.items())).encode()).hexdigest()}
    if plain is not None:
        source["plain"] = "transform" if given.transform is not None else "train_plain"
    return Data(
        train=samples["train"], validation=samples["validation"], test=samples["test"],
        num_classes=target.num_classes, input_shape=_input_shape(read["train"].probes, task, images, config.name),
        class_names=target.class_names, digest=digest_of(chosen, source),
        description={"name": config.name, "source": f"{config.name} (read while training)", "sample": "dataset",
                     **{name: len(split) for name, split in samples.items()}},
        warnings=(*target.warnings, *_random_warnings(config, read, plain is not None),
                  *_open_file_warnings(config, splits)),
        training_digest=digest_of({"train": chosen["train"]}, source),
    )


def _datasets(config: DataConfig, given: ReturnedSplits) -> tuple[dict[str, Any], ImageSettings | None]:
    """All splits as datasets, and the pipeline of images that came as arrays."""
    if all(isinstance(split, Dataset) for split in given.splits.values()):
        return dict(given.splits), None
    tables = TableColumns()
    nests = {name: arrays_of(split, tables, f"{config.name}, {name}")
             for name, split in given.splits.items() if not isinstance(split, Dataset)}
    splits = {name: ArrayDataset(nests[name]) if name in nests else split for name, split in given.splits.items()}
    first = nests["train"][0] if len(nests) == len(splits) and isinstance(nests["train"], tuple) else None
    if isinstance(first, np.ndarray) and is_image_array(first):
        return splits, ImageSettings(*channel_statistics(first))
    return splits, None


def _chosen(
    config: DataConfig, splits: Mapping[str, Any], labels: Mapping[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Which samples of each dataset make up each split."""
    rows = first_rows(length_of(splits["train"]), labels["train"], config.limit_train)
    known = None if labels["train"] is None else labels["train"][rows]
    if "validation" in splits:
        validation = np.arange(length_of(splits["validation"]))
        chosen = {"train": fixed_order(rows, config.split_seed), "validation": validation}
    else:
        stays, held = hold_out(len(rows), known, config.validation, config.split_seed)
        chosen = {"train": rows[stays], "validation": rows[held]}
    return chosen | {"test": first_rows(length_of(splits["test"]), labels["test"], config.limit_test)}


def _check_plain(
    config: DataConfig, given: ReturnedSplits, splits: Mapping[str, Any], read: Mapping[str, ReadSplit]
) -> None:
    """Whether the unchanged samples are always the same, and those of the training split."""
    name = "train" if given.transform is not None else "train_plain"
    if name not in splits or (name == "train" and given.transform is None):
        return
    where, plain, changed = f"{config.name}, {name}", read[name], read["train"].probes
    if plain.random:
        raise UserError("the samples to which no transform is applied must be the same whenever they are read",
                        where=where, do="Return them without random changes.")
    if given.transform is not None:
        changed = _transformed(config, given, splits["train"], plain.rows)
    elif length_of(splits["train_plain"]) != length_of(splits["train"]):
        raise UserError("it must hold the samples of train", where=where, got=f"{length_of(splits['train_plain'])} "
                        f"samples instead of {length_of(splits['train'])}")
    if form_of(changed) != form_of(plain.probes):
        raise UserError("changed and unchanged training samples must have one form", where=where,
                        got=f"{form_text(form_of(changed))} and {form_text(form_of(plain.probes))}")
    if label_leaf(changed) is not None and given.transform is None:
        odd = first_difference(label_leaf(changed), label_leaf(plain.probes))
        if odd is not None:
            raise UserError("it must hold the samples of train in the same order, but the labels differ", where=where,
                            got=f"another one in sample {plain.rows[odd]}")


def _transformed(config: DataConfig, given: ReturnedSplits, split: Any, rows: list[int]) -> Any:
    """Some training samples, changed and stacked."""
    assert given.transform is not None
    try:
        with seeded(0):
            return collate([given.transform(split[row]) for row in rows])
    except Exception as error:
        raise UserError("the transform fails on a training sample", where=f"{config.name}, transform",
                        do=f"It is given what the dataset gives. Its own error:\n{own_traceback(error)}") from error


def _target(
    config: DataConfig, task: str | None, given: ReturnedSplits, read: Mapping[str, ReadSplit],
    labels: Mapping[str, np.ndarray | None],
) -> TargetInfo:
    """Classes, from the labels that datasets have at hand, or else from the samples that were read."""
    if task != "classification":
        nests = {name: (found, found) for name, found in labels.items() if found is not None}
        if "train" not in nests:
            return TargetInfo(given.num_classes, given.class_names)
        return with_classes(config.name, task, nests, given.num_classes, given.class_names)[1]
    numbers: dict[str, np.ndarray] = {}
    widths: set[int | None] = set()
    trusted = True
    for name, one in read.items():
        where = f"{config.name}, {name}"
        targets = built_in_pair(one.probes, where)[1]
        values = values_of(targets) if isinstance(targets, Tensor) else np.asarray(targets)
        found, width = class_numbers(values, where)
        widths.add(width)
        at_hand = labels[name]
        whole = at_hand is not None and np.array_equal(at_hand[one.rows], found)
        trusted = trusted and whole
        numbers[name] = at_hand if at_hand is not None and whole else found
    num = given.num_classes if widths == {None} else max(width for width in widths if width is not None)
    if given.num_classes not in (None, num) or len(widths) > 1:
        raise UserError("labels must have one form and one number of classes in all splits", where=config.name)
    expected = num or len(given.class_names) or None
    if not trusted and expected is None:
        least = min(int(found.min()) for found in numbers.values())
        if least < 0:
            decide_classes(numbers, None, (), config.name)
        return TargetInfo(None, given.class_names)
    classes = _settled(numbers, expected, config.name, trusted)
    odd = missing_classes(classes[0], classes[1], config.name) if trusted else ()
    return TargetInfo(classes[1], given.class_names, odd, classes[2])


def _settled(
    numbers: dict[str, np.ndarray], expected: int | None, where: str, whole: bool
) -> tuple[dict[str, np.ndarray], int, int]:
    """Labels, number of classes and shift. A few samples alone may be of one class, and miss the first."""
    if whole:
        classes = decide_classes(numbers, expected, (), where)
        return classes.labels, classes.num_classes, classes.shift
    assert expected is not None
    largest = max(int(found.max()) for found in numbers.values())
    if largest >= expected:
        raise UserError(f"labels must lie in [0, {expected})", got=largest, where=where)
    return numbers, expected, 0


def _random_warnings(config: DataConfig, read: Mapping[str, ReadSplit], has_plain: bool) -> tuple[str, ...]:
    """What is measured on samples that change from one reading to the next."""
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
    odd = [name for name, found in read.items() if not found.repeatable]
    if odd:
        texts.append(f"{config.name}: the samples of {', '.join(odd)} differ even under the same seeds, so results "
                     "cannot be repeated. Draw from the global generators of Python, NumPy or torch, which are seeded "
                     "for each sample")
    return tuple(texts)


def _open_file_warnings(config: DataConfig, splits: Mapping[str, Any]) -> tuple[str, ...]:
    """Processes that are forked share the position of a file that is open already."""
    if not config.loader_workers:
        return ()
    texts: list[str] = []
    for name, split in splits.items():
        held = [key for key, value in getattr(split, "__dict__", {}).items()
                if isinstance(value, io.IOBase | zipfile.ZipFile | tarfile.TarFile | sqlite3.Connection)
                or type(value).__module__.partition(".")[0] in _FILE_LIBRARIES]
        if held:
            texts.append(f"{config.name}: the dataset of {name} holds an open file ({', '.join(held)}), which the "
                         "processes that read samples share, so they may read at wrong positions. Open it where it is "
                         "first used, in __getitem__, or set data.loader_workers: 0")
    return tuple(texts)


def _input_shape(probes: Any, task: str | None, images: ImageSettings | None, where: str) -> tuple[int, ...] | None:
    """Shape of what the model reads first, where that is one tensor."""
    if task is not None:
        inputs: Any = built_in_pair(probes, where)[0]
    else:
        inputs = probes[0] if isinstance(probes, tuple) else probes
    if not isinstance(inputs, Tensor):
        return None
    shape = tuple(inputs.shape[1:])
    return (shape[2], shape[0], shape[1]) if images is not None else shape
