"""Lists the image files below class folders, and inspects each file before any work."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swamp_ray.data.image_decoding import DecodingSteps, UnclearImage, decoding_error, inspect_file, no_pillow_warnings
from swamp_ray.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
UNREAD_EXTENSIONS = (".gif", ".apng", ".jfif", ".jpe", ".jp2", ".heic", ".heif", ".avif", ".dcm", ".npy")
"""Formats of images that are not read; the user is told how many such files there are."""
DECODED_PIXELS = 100_000_000
"""Up to so many pixels of a dataset are decoded before any work, which takes about a second; of the other files only
the beginning and the end are read."""
_KINDS = ((stat.S_ISFIFO, "a pipe (FIFO)"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
          (stat.S_ISBLK, "a device"))
_REPLACE = "Replace or remove the file."


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files under one folder.

    Attributes:
        root: Holds one folder a class.
        files: Paths relative to the root as bytes (a quarter of the memory of text), sorted by class, then name.
        labels: int64 ``[N]``.
        stamps: Size in bytes and modification time in ns, int64 ``[N, 2]``.
        steps: What decoding each file takes (:class:`DecodingSteps`), uint8 ``[N]``.
        classes: Sorted folder names.
        num_unread: Image files of formats that are not read.
    """

    root: Path
    files: np.ndarray
    labels: np.ndarray
    stamps: np.ndarray
    steps: np.ndarray
    classes: tuple[str, ...]
    num_unread: int = 0


class Inspector:
    """Inspects image files before any work: which steps their decoding takes, and whether they can be read at all.

    Args:
        num_pixels: So many are decoded; of later files only the beginning and the end are read.
    """

    def __init__(self, num_pixels: int = DECODED_PIXELS) -> None:
        self._left = num_pixels

    def __call__(self, path: str) -> DecodingSteps:
        """The steps that decoding a file takes.

        Raises:
            UserError: The file cannot be read, is damaged, or does not show one certain picture.
        """
        from PIL import Image

        try:
            with open(path, "rb") as file, Image.open(file) as image:
                size = image.width * image.height
                whole = size <= self._left
                steps = inspect_file(file, image, whole)
        except UnclearImage as error:
            raise UserError(f"the image cannot be used: {error}", where=path) from error
        except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
            raise UserError(f"the image cannot be read: {decoding_error(error)}", where=path, do=_REPLACE) from error
        if whole:
            self._left -= size
        return steps


@dataclass(frozen=True)
class _ImageFile:
    """A file: its path, size in bytes, modification time in ns."""

    path: str
    size: int
    modified: int


def list_images(folder: Path, classes: tuple[str, ...] | None = None, inspect: Inspector | None = None) -> Listing:
    """The image files below the class folders of a folder.

    Args:
        folder: Holds one folder a class.
        classes: The classes that must be there; None: at least two, whatever their names.
        inspect: Looks at each file; by default one with a budget of its own.

    Raises:
        UserError: The folder is missing or empty, a class is missing or empty, there is only one, or a file is empty,
            damaged, no regular file, or does not show one certain picture.
    """
    found = _classes(folder, classes)
    inspect = inspect or Inspector()
    files: list[str] = []
    labels: list[int] = []
    stamps: list[tuple[int, int]] = []
    steps: list[int] = []
    num_unread = 0
    with no_pillow_warnings():
        for label, name in enumerate(found):
            walk = _Walk()
            of_class = sorted(walk.images_below(str(folder / name)), key=lambda one: (one.path, one.size, one.modified))
            num_unread += walk.num_unread
            if not of_class:
                raise UserError("this class has no images", where=str(folder / name),
                                do=f"Images end in {', '.join(EXTENSIONS)}.")
            for one in of_class:
                files.append(os.path.relpath(one.path, folder))
                stamps.append((one.size, one.modified))
                steps.append(int(inspect(one.path)))
            labels += [label] * len(of_class)
    names = np.array([os.fsencode(file) for file in files])
    return Listing(folder, names, np.array(labels, np.int64), np.array(stamps, np.int64), np.array(steps, np.uint8),
                   found, num_unread)


def _classes(folder: Path, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the class folders, checked."""
    if not folder.is_dir():
        raise UserError("this folder does not exist", where=str(folder), do="It must hold one folder a class.")
    found = class_folders(folder)
    if not found:
        raise UserError("there are no class folders", where=str(folder), do="It must hold one folder a class.")
    if classes is None and len(found) < 2:
        raise UserError("there must be at least two classes", got="only " + ", ".join(found), where=str(folder))
    if classes is not None and found != classes:
        odd = ", ".join(sorted(set(found) ^ set(classes))[:5])
        raise UserError("the class folders must be those of train", got=f"differences in: {odd}", where=str(folder))
    return found


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted; hidden ones are left out.

    Raises:
        UserError: The folder cannot be read, or holds a link that leads nowhere.
    """
    names: list[str] = []
    for entry in _entries(str(folder)):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            names.append(entry.name)
        elif entry.is_symlink():
            _status(entry)  # a link that leads nowhere may have been a class
    return tuple(sorted(names))


class _Walk:
    """One walk through the folders below a class.

    Attributes:
        num_unread: Image files of formats that are not read.
    """

    def __init__(self) -> None:
        self.num_unread = 0

    def images_below(self, folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[_ImageFile]:
        """The image files below a folder.

        Args:
            folder: Where to look.
            above: Device and inode of the folders on the way.

        Raises:
            UserError: Something there cannot be an image although it is named like one, or links lead in a circle.
        """
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in above:
            raise UserError("this link leads back to a folder above it", where=folder, do="Remove it.")
        inside = above | {(here.st_dev, here.st_ino)}
        for entry in _entries(folder):
            named_image = entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
            if _is_folder(entry):
                yield from self._folder(entry, named_image, inside)
            elif named_image:
                yield _image(entry)
            elif entry.is_symlink():
                _status(entry)  # a link that leads nowhere may have been a folder of images
            elif entry.name.lower().endswith(UNREAD_EXTENSIONS):
                self.num_unread += 1

    def _folder(self, entry: os.DirEntry[str], named_image: bool, above: frozenset[tuple[int, int]]
                ) -> Iterator[_ImageFile]:
        inside = list(self.images_below(entry.path, above))
        if named_image and not inside:
            raise UserError("this is a folder without images, named like an image file", where=entry.path,
                            do="Remove or rename it.")
        yield from inside


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"this folder cannot be read: {error.strerror}", where=folder) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _image(entry: os.DirEntry[str]) -> _ImageFile:
    """A file that is named like an image."""
    status = _status(entry)
    for is_kind, words in _KINDS:
        if is_kind(status.st_mode):
            raise UserError(f"this is {words}, named like an image file", where=entry.path, do="Remove or rename it.")
    if not status.st_size:
        raise UserError("this image file is empty", where=entry.path, do="Replace or remove it.")
    return _ImageFile(entry.path, status.st_size, status.st_mtime_ns)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """The status of a file, links followed."""
    try:
        return entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise UserError(f"this file cannot be read: {error.strerror}", where=entry.path, do=_REPLACE) from error
        target = os.readlink(entry.path)
        what = "this link leads in a circle" if error.errno == errno.ELOOP else "this link leads nowhere"
        raise UserError(f"{what} (to {target})", where=entry.path, do="Remove it, or restore what it stood for."
                        ) from error
