"""Datasets by name: built-in ones, folders of images, and the user's own by import path."""

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
    ImageSettings,
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
        task: Reads the data. What a dataset of the user's returns is converted for a built-in task, and left as it is
            for any other.

    Raises:
        UserError: The name or an option is unknown, a folder or file is missing, empty or damaged, labels do not
            fit the classes, or there are too few samples.
    """
    if is_import_path(config.name):
        built_in_task = task.name if task is not None and task.name in BUILT_IN_TASKS else None
        found = load_user_data(config, built_in_task)
    else:
        found = _built_in(config)
    return split_data(config, found) if isinstance(found, UnsplitData) else found


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
    # A path in a config was expanded where the config was read; the variable may differ on each node.
    root = Path(named if config.root else expanded(named, where)).expanduser()
    if root.is_dir() or config.download:
        return root
    raise UserError("the data folder does not exist", got=str(root), where=where,
                    do="Correct the path, or set data.download: true where torchvision may fetch the dataset.")


def split_data(config: DataConfig, unsplit: UnsplitData) -> Data:
    """Limit, split and name a dataset that has been read into memory."""
    rows = first_rows(unsplit.num_train, unsplit.train_labels, config.limit_train)
    if unsplit.validation is None:
        labels = None if unsplit.train_labels is None else unsplit.train_labels[rows]
        stays, held = hold_out(len(rows), labels, config.validation, config.split_seed)
        validation = take(unsplit.train if unsplit.plain is None else unsplit.plain, rows[held])
    else:
        stays = fixed_order(np.arange(len(rows)), config.split_seed)
        validation = unsplit.validation
    test_rows = first_rows(unsplit.num_test, unsplit.test_labels, config.limit_test)
    splits = {"train": take(unsplit.train, rows[stays]), "validation": validation,
              "test": take(unsplit.test, test_rows)}
    if unsplit.plain is not None:
        splits["train_plain"] = take(unsplit.plain, rows[stays])
    images = _images(config, unsplit)
    train = ArraySamples(splits["train"], images, splits.get("train_plain"))
    validation_samples = ArraySamples(splits["validation"], images)
    test = ArraySamples(splits["test"], images)
    first = leaves(unsplit.train)[0]
    return Data(
        train=train, validation=validation_samples, test=test,
        num_classes=unsplit.num_classes,
        input_shape=_input_shape(unsplit, images is not None),
        class_names=unsplit.class_names,
        digest=digest_of(splits, images),
        description={"name": config.name, "source": unsplit.source, "sample": f"{first.dtype} {list(first.shape[1:])}",
                     "train": len(train), "validation": len(validation_samples), "test": len(test)},
        warnings=unsplit.warnings,
        training_digest=digest_of({"train": splits["train"]}, images),
    )


def _images(config: DataConfig, unsplit: UnsplitData) -> ImageSettings | None:
    """The pipeline of images that are normalised; None for arrays that are used as they are."""
    if unsplit.mean is not None and unsplit.std is not None:
        return image_pipeline(config, unsplit.augment, unsplit.mean, unsplit.std)
    if config.augment.startswith("crop"):
        raise UserError("only uint8 images [N, H, W, C] can be augmented here", got=config.augment,
                        where="data.augment", do="Return such images, or set data.augment: none.")
    return None


def _input_shape(unsplit: UnsplitData, is_images: bool) -> tuple[int, ...] | None:
    """Shape of one input of the model, where that is one array."""
    inputs = unsplit.train[0] if isinstance(unsplit.train, tuple | list) else unsplit.train
    if not hasattr(inputs, "shape"):
        return None
    if is_images:
        height, width, channels = inputs.shape[1:]
        return channels, height, width
    return tuple(inputs.shape[1:])
