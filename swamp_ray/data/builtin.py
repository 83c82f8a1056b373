"""The built-in datasets that fit in memory: digits, synthetic, CIFAR-10 and CIFAR-100, before limits and splits."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.labels import check_labels
from swamp_ray.data.parquet import read_parquet
from swamp_ray.data.samples import UnsplitData, channel_statistics
from swamp_ray.data.splits import stratified_draw
from swamp_ray.errors import UserError

CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
DIGITS_TEST_SHARE = 0.2




def _labelled(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], **rest: Any) -> UnsplitData:
    """A dataset of images and labels."""
    return UnsplitData(train=train, test=test, train_labels=train[1], test_labels=test[1], **rest)


def load_digits_data(config: DataConfig, root: Path | None) -> UnsplitData:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, their 17 levels spread over 0..255.

    The test set is a stratified fifth (359 images), the same for every config.
    """
    rows = _digits_rows()
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    labels = rows[:, -1].astype(np.int64)
    test = np.sort(stratified_draw(labels, round(len(labels) * DIGITS_TEST_SHARE), 0, "digits"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    mean, std = channel_statistics(images[train])
    return _labelled(
        (images[train], labels[train]), (images[test], labels[test]), num_classes=10, mean=mean, std=std,
        class_names=tuple("0123456789"), source="scikit-learn load_digits")


def _digits_rows() -> np.ndarray:
    """64 pixels and the label of each digit, from scikit-learn's file: importing scikit-learn itself takes seconds."""
    package = importlib.util.find_spec("sklearn")
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return np.column_stack([found.data, found.target])


def load_synthetic(config: DataConfig, root: Path | None) -> UnsplitData:
    """Noisy copies of one random pattern a class, as uint8 images; for benchmarks and tests.

    Options: ``num_train`` (1024), ``num_test`` (256), ``num_classes`` (10), ``shape`` ([3, 32, 32]: channels,
    height, width), ``seed`` (0).
    """
    options = {"num_train": 1024, "num_test": 256, "num_classes": 10, "seed": 0, **config.options}
    shape = options.pop("shape", (3, 32, 32))
    for name, value in options.items():
        least = {"seed": 0, "num_classes": 2}.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"must be a whole number of at least {least}", got=value, where=f"data.options.{name}")
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UserError("must be [channels, height, width]", got=str(shape), where="data.options.shape")
    channels, height, width = shape
    num_classes = options["num_classes"]
    random = np.random.RandomState(options["seed"])
    patterns = random.randint(0, 256, (num_classes, height, width, channels))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num, dtype=np.int64) % num_classes
        noise = random.randint(0, 256, (num, height, width, channels), dtype=np.uint8)
        return ((patterns[labels] + noise) // 2).astype(np.uint8), labels

    train = draw(options["num_train"])
    test = draw(options["num_test"])
    mean, std = channel_statistics(train[0])
    return _labelled(train, test, num_classes=num_classes, mean=mean, std=std, source="synthetic")


def load_cifar(config: DataConfig, root: Path | None) -> UnsplitData:
    """CIFAR-10 or CIFAR-100: torchvision's folder if it is under the root, else Parquet files.

    Parquet: ``NAME-train.parquet`` and ``NAME-test.parquet`` with the columns ``image`` (bytes of an image file, or
    a struct with such a field ``bytes``) and ``label`` (integers). The class names may stand in the schema's
    metadata under ``classes``, separated by commas.

    Option ``shrink`` (1): sides are divided by it, each pixel being the rounded mean of a block; for studies on
    processors.
    """
    assert root is not None
    name = config.name
    shrink = config.options.get("shrink", 1)
    if isinstance(shrink, bool) or shrink not in (1, 2, 4):
        raise UserError("must be 1, 2 or 4", got=shrink, where="data.options.shrink")
    parquet = [root / f"{name}-{split}.parquet" for split in ("train", "test")]
    if (root / CIFAR_FOLDERS[name]).is_dir() or (config.download and not all(path.is_file() for path in parquet)):
        train, test, names = _read_torchvision(config, root)
        source = f"{CIFAR_FOLDERS[name]} (torchvision)"
    elif any(path.is_file() for path in parquet):
        train, names = read_parquet(parquet[0], CIFAR_CLASSES[name], config.limit_train)
        test, _ = read_parquet(parquet[1], CIFAR_CLASSES[name], config.limit_test)
        if train[0].shape[1:] != test[0].shape[1:]:
            sizes = [list(train[0].shape[1:3]), list(test[0].shape[1:3])]
            raise UserError("training and test images must have one size", got=str(sizes), where=str(root))
        source = f"{parquet[0].name}, {parquet[1].name}"
    else:
        raise UserError(f"{name} is not in this folder", got=str(root), where="data.root",
                        do=f"It needs {CIFAR_FOLDERS[name]}/ or {parquet[0].name} and {parquet[1].name}; "
                        "data.download: true lets torchvision fetch it.")
    mean, std = CIFAR_STATISTICS[name]
    train = (_shrunk(train[0], shrink), train[1])
    test = (_shrunk(test[0], shrink), test[1])
    return _labelled(train, test, num_classes=CIFAR_CLASSES[name], mean=mean, std=std, augment="crop_flip",
                    class_names=names, source=source)


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Images of a smaller size, each pixel the mean of a block, rounded half up: uint8 ``[N, H / f, W / f, C]``."""
    num, height, width, channels = images.shape
    if factor == 1:
        return images
    blocks = images.reshape(num, height // factor, factor, width // factor, factor, channels)
    sums = blocks.sum(axis=(2, 4), dtype=np.uint32)
    pixels = factor * factor
    return ((sums + pixels // 2) // pixels).astype(np.uint8)


def _read_torchvision(
    config: DataConfig, root: Path
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    folder = root / CIFAR_FOLDERS[config.name]
    try:
        first = kind(str(root), train=True, download=config.download)
        second = kind(str(root), train=False, download=config.download)
    except OSError as error:
        if folder.is_dir():
            raise UserError(f"{config.name} cannot be read: {error}", where=str(folder)) from error
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{config.name} is not in this folder and cannot be downloaded ({reason})", where=str(root),
            do=f"Put {folder.name}/, or {config.name}-train.parquet and {config.name}-test.parquet, there; or name the "
            "folder that has them in data.root or SWAMP_DATA.") from error
    except Exception as error:  # a damaged file makes the unpickler and torchvision raise many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{config.name} cannot be read, it is incomplete or damaged: {reason}", where=str(folder),
                        do=f"Restore the files of {folder.name}, or move this folder away and download it again with "
                        "data.download: true.") from error
    return _arrays(first, config, root), _arrays(second, config, root), tuple(first.classes)


def _arrays(dataset: Any, config: DataConfig, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and checked labels of one of torchvision's datasets."""
    labels = np.asarray(dataset.targets, dtype=np.int64)
    check_labels(labels, CIFAR_CLASSES[config.name], str(root))
    return np.asarray(dataset.data, dtype=np.uint8), labels












