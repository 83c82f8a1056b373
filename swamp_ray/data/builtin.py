"""The built-in datasets that fit in memory, as they come before limits and splits."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.image_decoding import Unclear, decoded, quietly, why
from swamp_ray.data.jpeg_ends import refuse_cut
from swamp_ray.data.samples import channel_statistics, class_counts, first_rows, shuffled
from swamp_ray.data.trees import num_samples
from swamp_ray.errors import UserError

CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Raw:
    """A dataset in memory.

    Attributes:
        train: Nest of arrays with equal first dimension.
        test: Likewise.
        train_labels: int64 ``[N]`` for stratification; None where targets are no classes.
        test_labels: Likewise.
        num_classes: None where targets are no classes.
        mean: Per channel, for uint8 images ``[N, H, W, C]``; None where arrays are used as they are.
        std: Likewise.
        augment: What ``data.augment: auto`` means here.
        class_names: In label order; may be empty.
        validation: Given by the source itself, or None.
        source: Where it came from, for people.
        plain: The training samples without changes; None: they are ``train``.
        warnings: What the user should know of the data.
    """

    train: Any
    test: Any
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    num_classes: int | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str = "none"
    class_names: tuple[str, ...] = ()
    validation: Any = None
    source: str = ""
    plain: Any = None
    warnings: tuple[str, ...] = ()

    @property
    def num_train(self) -> int:
        """Training samples before limits and the split."""
        return num_samples(self.train)

    @property
    def num_test(self) -> int:
        """Test samples before limits."""
        return num_samples(self.test)


def labelled(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], **rest: Any) -> Raw:
    """A :class:`Raw` of images and labels."""
    return Raw(train=train, test=test, train_labels=train[1], test_labels=test[1], **rest)


def load_digits_data(config: DataConfig, root: Path | None) -> Raw:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, their 17 levels spread over 0..255.

    The test set is a stratified fifth (359 images), the same for every config.
    """
    rows = _digits_rows()
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    labels = rows[:, -1].astype(np.int64)
    counts = class_counts(labels, round(len(labels) * DIGITS_TEST_SHARE))
    test = np.sort(np.concatenate(
        [np.flatnonzero(labels == c)[shuffled(int((labels == c).sum()), 0, "digits", c)[:n]] for c, n in counts.items()]
    ))
    train = np.setdiff1d(np.arange(len(labels)), test)
    mean, std = channel_statistics(images[train])
    return labelled(
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


def load_synthetic(config: DataConfig, root: Path | None) -> Raw:
    """Noisy copies of one random pattern a class, as uint8 images; for benchmarks and tests.

    Options: ``num_train`` (1024), ``num_test`` (256), ``num_classes`` (10), ``shape`` ([3, 32, 32]: channels,
    height, width), ``seed`` (0).
    """
    options = {"num_train": 1024, "num_test": 256, "num_classes": 10, "seed": 0, **config.options}
    shape = options.pop("shape", (3, 32, 32))
    for name, value in options.items():
        least = 0 if name == "seed" else 2 if name == "num_classes" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"must be a whole number of at least {least}", got=value, where=f"data.options.{name}")
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UserError("must be [channels, height, width]", got=str(shape), where="data.options.shape")
    channels, height, width = shape
    random = np.random.RandomState(options["seed"])
    patterns = random.randint(0, 256, (options["num_classes"], height, width, channels))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num, dtype=np.int64) % options["num_classes"]
        noise = random.randint(0, 256, (num, height, width, channels), dtype=np.uint8)
        return ((patterns[labels] + noise) // 2).astype(np.uint8), labels

    train, test = draw(options["num_train"]), draw(options["num_test"])
    mean, std = channel_statistics(train[0])
    return labelled(train, test, num_classes=options["num_classes"], mean=mean, std=std, source="synthetic")


def load_cifar(config: DataConfig, root: Path | None) -> Raw:
    """CIFAR-10 or CIFAR-100: torchvision's folder if it is under the root, else Parquet files.

    Parquet: ``NAME-train.parquet`` and ``NAME-test.parquet`` with the columns ``image`` (bytes of an image file, or
    a struct with such a field ``bytes``) and ``label`` (integers). The class names may stand in the schema's
    metadata under ``classes``, separated by commas.

    Option ``shrink`` (1): sides are divided by it, each pixel being the rounded mean of a block; for studies on
    processors.
    """
    assert root is not None
    name, shrink = config.name, config.options.get("shrink", 1)
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
            raise UserError("training and test images must have one size", got=str([list(train[0].shape[1:3]),
                            list(test[0].shape[1:3])]), where=str(root))
        source = f"{parquet[0].name}, {parquet[1].name}"
    else:
        raise UserError(f"{name} is not in this folder", got=str(root), where="data.root",
                        do=f"It needs {CIFAR_FOLDERS[name]}/ or {parquet[0].name} and {parquet[1].name}; "
                        "data.download: true lets torchvision fetch it.")
    mean, std = CIFAR_STATISTICS[name]
    train, test = ((shrunk(images, shrink), labels) for images, labels in (train, test))
    return labelled(train, test, num_classes=CIFAR_CLASSES[name], mean=mean, std=std, augment="crop_flip",
                    class_names=names, source=source)


def shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Images of a smaller size, each pixel the mean of a block, rounded half up: uint8 ``[N, H / f, W / f, C]``."""
    num, height, width, channels = images.shape
    if factor == 1:
        return images
    blocks = images.reshape(num, height // factor, factor, width // factor, factor, channels)
    return ((blocks.sum(axis=(2, 4), dtype=np.uint32) + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _read_torchvision(
    config: DataConfig, root: Path
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    folder = root / CIFAR_FOLDERS[config.name]
    try:
        parts = [kind(str(root), train=train, download=config.download) for train in (True, False)]
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
    train, test = ((np.asarray(part.data, dtype=np.uint8), np.asarray(part.targets, dtype=np.int64)) for part in parts)
    for _, labels in (train, test):
        check_labels(labels, CIFAR_CLASSES[config.name], str(root))
    return train, test, tuple(parts[0].classes)


def read_parquet(
    path: Path, num_classes: int, limit: int | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Images and labels of one Parquet file, and the class names in its metadata.

    Args:
        path: The file.
        num_classes: Labels must lie in [0, num_classes).
        limit: Rows to decode; see :func:`first_rows`.

    Returns:
        uint8 ``[N, H, W, 3]`` and int64 ``[N]``; names, possibly none.

    Raises:
        UserError: The file is missing, no Parquet, empty, without the columns, or has a damaged image, images of
            several sizes, or a label that does not fit; a row is named by its number, from 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists() and not path.is_file():
        raise UserError("this is no regular file", where=str(path), do="Put the Parquet file there.")
    if not path.is_file():
        raise UserError("this file is missing", where=str(path), do="Both the training and the test file are needed.")
    try:
        schema = pq.read_schema(path)
        missing = [column for column in ("image", "label") if column not in schema.names]
        if missing:
            raise UserError(f"there is no column {' and no column '.join(missing)}", where=str(path),
                            do=f"The columns must be image and label; the file has: {', '.join(schema.names)}.")
        table = pq.read_table(path, columns=["image", "label"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"this is no Parquet file that can be read: {error}", where=str(path)) from error
    labels = _label_column(table["label"], num_classes, path)
    rows = first_rows(len(labels), labels, limit)
    with quietly():
        images = _decode_all(_image_column(table["image"], path), rows, path)
    named = (schema.metadata or {}).get(b"classes", b"").decode()
    return (images, labels[rows]), tuple(named.split(",")) if named else ()


def _label_column(column: Any, num_classes: int, path: Path) -> np.ndarray:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        got = f"{column.type} with {column.null_count} missing values" if column.null_count else str(column.type)
        raise UserError("the column label must hold integers without gaps", got=got, where=str(path))
    labels = column.to_numpy().astype(np.int64)
    check_labels(labels, num_classes, str(path))
    return labels


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels outside [0, num_classes), no labels at all, and a single class.

    Raises:
        UserError: Names the first offending row.
    """
    if not len(labels):
        raise UserError("there are no samples", where=where)
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise UserError(f"labels must lie in [0, {num_classes})", got=f"{labels[bad[0]]} in row {bad[0]}", where=where)
    if labels.min() == labels.max():
        raise UserError("there must be at least two classes", got=f"only label {labels[0]}", where=where)


def _image_column(column: Any, path: Path) -> Any:
    """The chunks of encoded images; Hugging Face wraps them in a struct."""
    import pyarrow as pa

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise UserError("the column image must hold the bytes of PNG or JPEG files", got=str(column.type),
                        where=str(path))
    return column


def _decode_all(column: Any, rows: np.ndarray, path: Path) -> np.ndarray:
    wanted = column if len(rows) == len(column) else column.take(rows)
    images: np.ndarray | None = None
    for position, scalar in enumerate(wanted):
        image = _decode(scalar.as_py(), f"{path}, row {rows[position]}")
        if images is None:
            images = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError("all images must have one size", got=f"{image.shape[1]}x{image.shape[0]} instead of "
                            f"{images.shape[2]}x{images.shape[1]}", where=f"{path}, row {rows[position]}")
        images[position] = image
    assert images is not None
    return images


def _decode(encoded: bytes | None, where: str) -> np.ndarray:
    from PIL import Image

    if not encoded:
        raise UserError("the image is missing", where=where)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            picture = decoded(image)
            refuse_cut(encoded, image)
            return np.asarray(picture)
    except Unclear as error:
        raise UserError(f"the image cannot be used: {error}", where=where) from error
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
        raise UserError(f"the image cannot be decoded: {why(error)}", where=where,
                        do="Replace the file, or remove the row.") from error
