"""Datasets by name: built-in ones, folders of images, and your own by import path."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swamp_ray.config.paths import expanded
from swamp_ray.config.sections import DataConfig, TaskConfig
from swamp_ray.data.builtin import load_cifar, load_digits_data, load_synthetic
from swamp_ray.data.image_folder import load_image_folder
from swamp_ray.data.samples import (
    ArraySamples,
    Data,
    UnsplitData,
    digest_of,
    image_pipeline,
)
from swamp_ray.data.splits import first_rows, fixed_order, hold_out, take
from swamp_ray.data.trees import leaves
from swamp_ray.data.user import load_user_data
from swamp_ray.errors import UserError, nearest
from swamp_ray.process_state import computing
from swamp_ray.user_code.importing import is_import_path

BUILT_IN_TASKS = ("classification", "regression")


@dataclass(frozen=True)
class _Dataset:
    load: Callable[[DataConfig, Path | None], UnsplitData | Data]
    needs_root: bool = False
    options: tuple[str, ...] = ()


DATASETS: dict[str, _Dataset] = {
    "digits": _Dataset(load_digits_data),
    "cifar10": _Dataset(load_cifar, needs_root=True, options=("shrink",)),
    "cifar100": _Dataset(load_cifar, needs_root=True, options=("shrink",)),
    "image_folder": _Dataset(load_image_folder, needs_root=True),
    "synthetic": _Dataset(load_synthetic, options=("num_train", "num_test", "num_classes", "shape", "seed")),
}


@computing()
def load_data(config: DataConfig, task: TaskConfig | None = None) -> Data:
    """Read, check and split the dataset that a config names.

    The split into training and validation depends on the labels, ``validation`` and ``split_seed`` only. It is
    stratified where the labels are integers. The test set takes part in nothing. Limits keep the classes' shares
    and take the first rows of each class.

    Args:
        config: The data section.
        task: Who reads the data. A built-in task is given what a dataset of your own returns in its own form; any other
            is given what that returns.

    Raises:
        UserError: The name or an option is unknown, a folder or file is missing, empty or damaged, labels do not
            fit the classes, or there are too few samples.
    """
    if is_import_path(config.name):
        found = load_user_data(config, task.name if task is not None and task.name in BUILT_IN_TASKS else None)
    else:
        found = _built_in(config)
    return found if isinstance(found, Data) else assemble(config, found)


def _built_in(config: DataConfig) -> UnsplitData | Data:
    if config.name not in DATASETS:
        raise UserError(
            "there is no such dataset", got=config.name, where="data.name",
            do=f"{nearest(config.name, DATASETS)} Known: {', '.join(DATASETS)}; or package.module:function.".lstrip())
    dataset = DATASETS[config.name]
    for option in config.options:
        if option not in dataset.options:
            takes = ", ".join(dataset.options) or "none"
            raise UserError(f"the dataset {config.name} takes no option {option!r}", where="data.options",
                            do=f"{nearest(option, dataset.options)} It takes: {takes}.".lstrip())
    return dataset.load(config, _root(config) if dataset.needs_root else None)


def _root(config: DataConfig) -> Path:
    """The folder of the data: ``data.root``, or else the environment variable SWAMP_DATA."""
    named = config.root or os.environ.get("SWAMP_DATA")
    if not named:
        raise UserError(f"the dataset {config.name} needs the folder of its files", where="data.root",
                        do="Set data.root or the environment variable SWAMP_DATA.")
    where = "data.root" if config.root else "SWAMP_DATA"
    # A config's own path was expanded where it was read; the variable's is each node's own.
    root = Path(named if config.root else expanded(named, where)).expanduser()
    if root.is_dir() or config.download:
        return root
    raise UserError("the data folder does not exist", got=str(root), where=where,
                    do="Correct the path, or set data.download: true where torchvision may fetch the dataset.")


def assemble(config: DataConfig, raw: UnsplitData) -> Data:
    """Limit, split and name a dataset that has been read into memory."""
    train_rows = first_rows(raw.num_train, raw.train_labels, config.limit_train)
    labels = None if raw.train_labels is None else raw.train_labels[train_rows]
    test = take(raw.test, first_rows(raw.num_test, raw.test_labels, config.limit_test))
    if raw.validation is None:
        stays, held = hold_out(len(train_rows), labels, config.validation, config.split_seed)
        validation = take(raw.train if raw.plain is None else raw.plain, train_rows[held])
    else:
        stays, validation = fixed_order(np.arange(len(train_rows)), config.split_seed), raw.validation
    splits = {"train": take(raw.train, train_rows[stays]), "validation": validation, "test": test}
    images = None
    if raw.mean is not None and raw.std is not None:
        images = image_pipeline(config, raw.augment, raw.mean, raw.std)
    elif config.augment.startswith("crop"):
        raise UserError("only uint8 images [N, H, W, C] can be augmented here", got=config.augment,
                        where="data.augment", do="Return such images, or set data.augment: none.")
    samples = {name: ArraySamples(nest, images) for name, nest in splits.items()}
    if raw.plain is not None:
        splits["train_plain"] = take(raw.plain, train_rows[stays])
        samples["train"] = ArraySamples(splits["train"], images, splits["train_plain"])
    first = leaves(raw.train)[0]
    return Data(
        train=samples["train"], validation=samples["validation"], test=samples["test"],
        num_classes=raw.num_classes,
        input_shape=_input_shape(raw, images is not None),
        class_names=raw.class_names,
        digest=digest_of(splits, images),
        description={"name": config.name, "source": raw.source, "sample": f"{first.dtype} {list(first.shape[1:])}",
                     **{name: len(split) for name, split in samples.items()}},
        warnings=raw.warnings,
        training_digest=digest_of({"train": splits["train"]}, images),
    )


def _input_shape(raw: UnsplitData, is_images: bool) -> tuple[int, ...] | None:
    """Shape of what the model reads first, where that is one array."""
    inputs = raw.train[0] if isinstance(raw.train, tuple | list) else raw.train
    if not hasattr(inputs, "shape"):
        return None
    shape = tuple(inputs.shape[1:])
    return (shape[2], shape[0], shape[1]) if is_images else shape
