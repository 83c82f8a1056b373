"""Folders of image files in the layout of ImageNet, read one by one while training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..config import DataConfig
from ..errors import RunError, UserError
from .samples import Data, Images, LazySamples, digest_of, first_rows, fixed_order, hold_out

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files under one folder.

    Attributes:
        root: Holds one folder a class.
        files: Paths relative to the root as bytes (a quarter of the memory of text), sorted by class, then name.
        labels: int64 ``[N]``.
        stamps: Size in bytes and modification time in ns, int64 ``[N, 2]``.
        classes: Sorted folder names.
    """

    root: Path
    files: np.ndarray
    labels: np.ndarray
    stamps: np.ndarray
    classes: tuple[str, ...]


class ImageFiles(Dataset[Any]):
    """Decoded RGB images and their labels, by position in a listing."""

    def __init__(self, listing: Listing) -> None:
        self.root, self.files, self.labels = str(listing.root), listing.files, listing.labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        path = os.path.join(self.root, os.fsdecode(self.files[index]))
        try:
            with Image.open(path) as image:
                image.load()
                # Converting what is RGB already would copy it, at a tenth of the whole cost of a sample.
                return image if image.mode == "RGB" else image.convert("RGB"), int(self.labels[index])
        except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
            raise RunError(f"the image {path} cannot be read: {error}. Replace or remove the file.") from error


@dataclass(frozen=True)
class ImageTransform:
    """A transform of the image of an ``(image, label)`` sample, to uint8 ``[H, W, 3]``."""

    transform: Callable[[Any], Any]

    def __call__(self, sample: tuple[Any, int]) -> tuple[np.ndarray, int]:
        """The sample with its image transformed."""
        return np.array(self.transform(sample[0])), sample[1]


def load_image_folder(config: DataConfig, root: Path | None) -> Data:
    """``root/train/CLASS/*.jpg``, and ``root/val`` or ``root/test`` in the same form.

    One of ``val`` and ``test`` is the test set, and validation is held out of ``train``. Where both are there,
    ``val`` is the validation set. Training images: random resized crop and mirroring (``data.augment``); others:
    shorter side to ``data.resize``, centre crop of ``data.image_size``; then ImageNet's normalisation.
    The digest covers each file's relative path, size and modification time, not its pixels.
    """
    assert root is not None
    train = list_images(root / "train")
    held_folders: list[str] = [name for name in ("val", "test") if _has_class_folders(root / name)]
    if not held_folders:
        raise UserError("there must be a folder val or test with one folder a class", where=str(root))
    others = {name: list_images(root / name, train.classes) for name in held_folders}
    test = others[held_folders[-1]]
    images, augmented, plain = _pipeline(config)
    rows = first_rows(len(train.files), train.labels, config.limit_train)
    if len(others) == 2:
        train_rows = fixed_order(rows, config.split_seed)
        validation, validation_rows = others["val"], np.arange(len(others["val"].files))
    else:
        stays, held = hold_out(len(rows), train.labels[rows], config.validation, config.split_seed)
        train_rows, validation, validation_rows = rows[stays], train, rows[held]
    test_rows = first_rows(len(test.files), test.labels, config.limit_test)

    def samples(listing: Listing, chosen: np.ndarray) -> LazySamples:
        return LazySamples(ImageFiles(listing), chosen, images, augmented, plain)

    splits = {"train": (train, train_rows), "validation": (validation, validation_rows), "test": (test, test_rows)}
    settings = {"images": [list(images.mean), list(images.std)], "augment": _augment(config),
                "size": config.image_size, "resize": config.resize}
    return Data(
        train=samples(*splits["train"]),
        validation=samples(*splits["validation"]),
        test=samples(*splits["test"]),
        num_classes=len(train.classes),
        input_shape=(3, config.image_size, config.image_size),
        class_names=train.classes,
        digest=digest_of({name: _identity(*split) for name, split in splits.items()}, settings),
        description={"name": config.name, "source": f"train, {', '.join(held_folders)}", "sample": "image files",
                     **{name: len(chosen) for name, (_, chosen) in splits.items()}},
    )


def _identity(listing: Listing, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"files": listing.files[rows], "labels": listing.labels[rows], "stamps": listing.stamps[rows]}


def _pipeline(config: DataConfig) -> tuple[Images, ImageTransform, ImageTransform]:
    """Normalisation, training transform, evaluation transform."""
    from torchvision.transforms import v2

    if config.resize < config.image_size:
        raise UserError(f"must be at least data.image_size ({config.image_size})", got=config.resize,
                        where="data.resize")
    plain = v2.Compose([v2.Resize(config.resize), v2.CenterCrop(config.image_size)])
    steps: list[Any] = [v2.RandomResizedCrop(config.image_size)]
    if _augment(config) == "crop_flip":
        steps.append(v2.RandomHorizontalFlip())
    augmented = plain if _augment(config) == "none" else v2.Compose(steps)
    return Images(IMAGENET_MEAN, IMAGENET_STD), ImageTransform(augmented), ImageTransform(plain)


def _augment(config: DataConfig) -> str:
    return "crop_flip" if config.augment == "auto" else config.augment


def list_images(folder: Path, classes: tuple[str, ...] | None = None) -> Listing:
    """The image files below the class folders of a folder.

    Args:
        folder: Holds one folder a class.
        classes: The classes that must be there; None: at least two, whatever their names.

    Raises:
        UserError: The folder is missing or empty, a class is missing or empty, there is only one, or a file is empty.
    """
    if not folder.is_dir():
        raise UserError("this folder does not exist", where=str(folder), do="It must hold one folder a class.")
    found = _class_folders(folder)
    if not found:
        raise UserError("there are no class folders", where=str(folder), do="It must hold one folder a class.")
    if classes is None and len(found) < 2:
        raise UserError("there must be at least two classes", got="only " + ", ".join(found), where=str(folder))
    if classes is not None and found != classes:
        odd = ", ".join(sorted(set(found) ^ set(classes))[:5])
        raise UserError("the class folders must be those of train", got=f"differences in: {odd}", where=str(folder))
    files: list[str] = []
    labels: list[int] = []
    stamps: list[tuple[int, int]] = []
    for label, name in enumerate(found):
        of_class = sorted(_files_below(folder / name))
        if not of_class:
            raise UserError("this class has no images", where=str(folder / name),
                            do=f"Images end in {', '.join(EXTENSIONS)}.")
        for path, size, modified in of_class:
            files.append(os.path.relpath(path, folder))
            stamps.append((size, modified))
        labels += [label] * len(of_class)
    names = np.array([os.fsencode(file) for file in files])
    return Listing(folder, names, np.array(labels, np.int64), np.array(stamps, np.int64), found)


def _files_below(folder: Path) -> list[tuple[str, int, int]]:
    """Path, size and modification time of each image file."""
    found: list[tuple[str, int, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _files_below(Path(entry.path))
            elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                status = entry.stat()
                if not status.st_size:
                    raise UserError("this image file is empty", where=entry.path, do="Replace or remove it.")
                found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(_class_folders(folder))
