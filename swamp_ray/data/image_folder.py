"""Folders of image files in the layout of ImageNet, read one by one while training."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.image_decoding import decode_rgb, decoding_error
from swamp_ray.data.image_listing import EXTENSIONS, UNREAD_EXTENSIONS, Inspector, Listing, class_folders, list_images
from swamp_ray.data.jpeg_ends import looks_cut, refuse_cut
from swamp_ray.data.samples import Data, ImageSettings, LazySamples, digest_of
from swamp_ray.data.splits import first_rows, fixed_order, hold_out
from swamp_ray.errors import RunError, UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFiles(Dataset[Any]):
    """Decoded RGB images (:mod:`swamp_ray.data.image_decoding`) and their labels, by position in a listing."""

    def __init__(self, listing: Listing) -> None:
        self.root = str(listing.root)
        self.files = listing.files
        self.labels = listing.labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        path = os.path.join(self.root, os.fsdecode(self.files[index]))
        try:
            with Image.open(path) as image:
                picture = decode_rgb(image)
                if looks_cut(image):
                    refuse_cut(Path(path).read_bytes(), image)
                return picture, int(self.labels[index])
        except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
            reason = decoding_error(error)
            raise RunError(f"the image {path} cannot be read: {reason}. Replace or remove the file.") from error


@dataclass(frozen=True)
class ImageTransform:
    """A transform of the image of an ``(image, label)`` sample, to uint8 ``[H, W, 3]``."""

    transform: Callable[[Any], Any]

    def __call__(self, sample: tuple[Any, int]) -> tuple[np.ndarray, int]:
        """The sample with its image transformed."""
        return np.array(self.transform(sample[0])), sample[1]


def load_image_folder(config: DataConfig, root: Path | None) -> Data:
    """``root/train/CLASS/*.jpg``, and ``root/val`` or ``root/test`` in the same form.

    One of ``val`` and ``test`` is the test set, and validation is held out of ``train``. Where both exist, ``val`` is
    the validation set. Training images: random resized crop and mirroring (``data.augment``); others:
    shorter side to ``data.resize``, centre crop of ``data.image_size``; then ImageNet's normalisation.
    The digest covers each file's relative path, size and modification time, not its pixels; of files whose values are
    scaled, put on a ground or turned (:mod:`swamp_ray.data.image_decoding`) that, too.
    """
    assert root is not None
    inspect = Inspector()
    train = list_images(root / "train", None, inspect)
    held_out_folders: list[str] = [name for name in ("val", "test") if _has_class_folders(root / name)]
    if not held_out_folders:
        raise UserError("there must be a folder val or test with one folder a class", where=str(root))
    others = {name: list_images(root / name, train.classes, inspect) for name in held_out_folders}
    test = others[held_out_folders[-1]]
    images, augmented, plain = _pipeline(config)
    rows = first_rows(len(train.files), train.labels, config.limit_train)
    if len(others) == 2:
        validation = others["val"]
        train_rows = fixed_order(rows, config.split_seed)
        validation_rows = np.arange(len(validation.files))
    else:
        validation = train
        stays, held = hold_out(len(rows), train.labels[rows], config.validation, config.split_seed)
        train_rows = rows[stays]
        validation_rows = rows[held]
    test_rows = first_rows(len(test.files), test.labels, config.limit_test)

    def samples(listing: Listing, chosen: np.ndarray) -> LazySamples:
        return LazySamples(ImageFiles(listing), chosen, images, augmented, plain)

    identities = {"train": _identity(train, train_rows), "validation": _identity(validation, validation_rows),
                  "test": _identity(test, test_rows)}
    settings = {"images": [list(images.mean), list(images.std)], "augment": _augment(config),
                "size": config.image_size, "resize": config.resize}
    return Data(
        train=samples(train, train_rows),
        validation=samples(validation, validation_rows),
        test=samples(test, test_rows),
        num_classes=len(train.classes),
        input_shape=(3, config.image_size, config.image_size),
        class_names=train.classes,
        digest=digest_of(identities, settings),
        description={"name": config.name, "source": f"train, {', '.join(held_out_folders)}", "sample": "image files",
                     "train": len(train_rows), "validation": len(validation_rows), "test": len(test_rows)},
        warnings=_warnings([train, *others.values()]), decoder=f"pillow=={importlib.metadata.version('pillow')}",
        training_digest=digest_of({"train": identities["train"]}, settings),
    )


def _warnings(listings: Sequence[Listing]) -> tuple[str, ...]:
    num = sum(listing.num_unread for listing in listings)
    if not num:
        return ()
    return (f"{num} files of the data end in {', '.join(UNREAD_EXTENSIONS)}, or one of these, and are not read; images "
            f"end in {', '.join(EXTENSIONS)}",)


def _identity(listing: Listing, rows: np.ndarray) -> dict[str, np.ndarray]:
    found = {"files": listing.files[rows], "labels": listing.labels[rows], "stamps": listing.stamps[rows]}
    # Only where some file takes steps: sets of ordinary files keep the digest that older versions gave them.
    if listing.steps[rows].any():
        found["steps"] = listing.steps[rows]
    return found


def _pipeline(config: DataConfig) -> tuple[ImageSettings, ImageTransform, ImageTransform]:
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
    return ImageSettings(IMAGENET_MEAN, IMAGENET_STD), ImageTransform(augmented), ImageTransform(plain)


def _augment(config: DataConfig) -> str:
    return "crop_flip" if config.augment == "auto" else config.augment


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(class_folders(folder))
