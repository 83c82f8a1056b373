"""The classes of datasets: samples in memory or read one by one, the splits, and the digest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.trees import named_leaves, num_samples


@dataclass(frozen=True)
class ImageSettings:
    """How uint8 images become the network's input; these settings are part of the recipe.

    Attributes:
        mean: Per channel, of pixels scaled to [0, 1].
        std: Standard deviations of the same pixels, greater than 0.
        crop_padding: Black pixels on each side before a random crop of the old size.
        flip: Mirror left-right with probability 1/2, in training.
        crop: Crop at random, in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    crop: bool = False


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples in memory.

    Attributes:
        arrays: A tree of arrays with equal first dimension; for classification a pair of images
            (uint8 ``[N, H, W, C]``, or float32 as the model reads them) and labels (int64 ``[N]``).
        images: The pipeline of the first leaf; None where all arrays are used as they are.
        plain: The same samples without changes, for passes that are not to be augmented; None: they are ``arrays``.
    """

    arrays: Any
    images: ImageSettings | None = None
    plain: Any = None

    def __len__(self) -> int:
        return num_samples(self.arrays)


@dataclass(frozen=True, eq=False)
class LazySamples:
    """Samples that are read one by one, see :mod:`swamp_ray.data.loader`.

    Attributes:
        dataset: Map-style, picklable; a sample is a tree.
        indices: Which of them, int64 ``[N]``, in the fixed order.
        images: Normalisation of the first leaf (uint8 ``[H, W, C]``), or None.
        train_transform: Applied to a sample when training, under a seed of its own; or None.
        eval_transform: Applied to a sample otherwise, or None.
        plain: Gives the same samples without random changes, for passes that are not to be augmented; or None.
        form: Makes what the task reads of samples that were put together; or None.
    """

    dataset: Any
    indices: np.ndarray
    images: ImageSettings | None = None
    train_transform: Callable[[Any], Any] | None = None
    eval_transform: Callable[[Any], Any] | None = None
    plain: Any = None
    form: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)


Samples = ArraySamples | LazySamples


@dataclass(frozen=True, eq=False)
class UnsplitData:
    """A dataset in memory, before limits and the split into training and validation.

    Attributes:
        train: Tree of arrays with equal first dimension.
        test: The same for the test samples.
        train_labels: int64 ``[N]`` for stratification; None where targets are no classes.
        test_labels: Of the test samples.
        num_classes: None where targets are no classes.
        mean: Per channel, for uint8 images ``[N, H, W, C]``; None where arrays are used as they are.
        std: Standard deviations, like ``mean``.
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


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset, decoded and split.

    Attributes:
        train: For training and for re-estimating normalisation statistics.
        validation: For decisions.
        test: For reports only.
        num_classes: None where the targets are no classes.
        input_shape: Of one input, images as ``(C, H, W)``; None where the input is not one tensor.
        class_names: In the order of the labels; may be empty.
        digest: SHA-256 of the three splits and the pipeline.
        description: Name, source, sizes: plain values for people.
        warnings: What the user should know of the data.
        training_digest: SHA-256 of the training split and the pipeline alone; empty: ``digest`` stands for it.
        decoder: ``"name==version"`` of the library that decodes samples while training; empty where the digests are
            of decoded samples.
    """

    train: Samples
    validation: Samples
    test: Samples
    num_classes: int | None
    input_shape: tuple[int, ...] | None
    class_names: tuple[str, ...]
    digest: str
    description: dict[str, Any]
    warnings: tuple[str, ...] = ()
    training_digest: str = ""
    decoder: str = ""














def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images ``[N, H, W, C]``, scaled to [0, 1].

    A constant channel gets the deviation 1.
    """
    levels = np.arange(256) / 255.0
    means: list[float] = []
    stds: list[float] = []
    for channel in range(images.shape[-1]):
        values = images[..., channel]
        shares = np.bincount(values.ravel(), minlength=256) / values.size
        mean = float(shares @ levels)
        std = float(np.sqrt(shares @ (levels - mean) ** 2)) or 1.0
        means.append(round(mean, 6))
        stds.append(max(1e-6, round(std, 6)))
    return tuple(means), tuple(stds)


def image_pipeline(config: DataConfig, default: str, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSettings:
    """The pipeline that ``data.augment`` asks for; ``default`` is what ``auto`` means."""
    augment = default if config.augment == "auto" else config.augment
    crop = augment.startswith("crop") and config.crop_padding > 0
    return ImageSettings(mean, std, config.crop_padding if crop else 0, flip=augment == "crop_flip", crop=crop)


def digest_of(splits: dict[str, Any], pipeline: object) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the splits' leaves, and over the pipeline's settings.

    Args:
        splits: Trees of arrays by split name.
        pipeline: An :class:`ImageSettings`, None, or plain JSON values.
    """
    digest = hashlib.sha256()
    settings = asdict(pipeline) if isinstance(pipeline, ImageSettings) else pipeline
    digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for split, tree in splits.items():
        for path, leaf in named_leaves(tree):
            array = np.ascontiguousarray(leaf)
            digest.update(f"\n{split}/{path} {array.dtype.str} {array.shape}\n".encode())
            if array.size:
                digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_image_array(array: np.ndarray) -> bool:
    """Whether an array holds images as the pipeline reads them: uint8 ``[N, H, W, C]``, C 1 or 3."""
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in {1, 3}
