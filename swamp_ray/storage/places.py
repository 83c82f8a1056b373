"""Where bytes lie: under keys such as ``artifacts/ab/abcd.../result.json``, in a folder or in an object store."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swamp_ray.errors import UserError
from swamp_ray.storage.files import local_folder, make_folder, sync_folder, write_atomic
from swamp_ray.storage.patience import DEFAULT_PATIENCE_S, Patience, PatientPlace, storage_error

OBJECT_STORES = ("s3", "gs", "az")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_KEY = re.compile(r"(?!.*(^|/)\.\.?(/|$))[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")


@dataclass(frozen=True)
class Entry:
    """One object: the last part of its key, its bytes, and when it was written (seconds, by the place's own clock)."""

    name: str
    size: int
    modified_s: float


class Place(Protocol):
    """Objects by key. Each is completely there or not there at all, and a write is durable when it returns.

    Keys are relative, with ``/`` between their parts. What cannot be read or written for a reason of the place's raises
    RunError, and `PassingError` where another try may succeed.
    """

    @property
    def uri(self) -> str:
        """How the place is written in a config: an absolute path, or a URL such as ``s3://bucket/folder``."""
        ...

    def locate(self, key: str) -> Path | str:
        """Where an object lies: a path in a folder, else a URL."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of an object. Raises FileNotFoundError if it does not exist."""
        ...

    def write(self, key: str, data: bytes, *, keep_existing: bool = False) -> bool:
        """Write an object; False if an existing one was to be kept and there is one."""
        ...

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Replace an object that still holds what is expected; False, and nothing changed, if it does not."""
        ...

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove an object; no error if there is none. Not `durable`: it may be back after a power cut."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if it does not exist."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """The objects directly under a prefix, in the order of their names; none if there is no such prefix."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of the prefixes directly under a prefix, in order."""
        ...


class LocalPlace:
    """A folder that all nodes see.

    Args:
        root: The folder; created when something is written.

    Raises:
        UserError: For a URL, or an empty path.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = local_folder(root)

    @property
    def uri(self) -> str:
        """The folder as an absolute path."""
        return str(self.root)

    def path(self, key: str) -> Path:
        """The file of a key; ``""`` is the folder itself."""
        check_key(key)
        return self.root / key if key else self.root

    def locate(self, key: str) -> Path | str:
        """The file of a key."""
        return self.path(key)

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        path = self.path(key)
        with _told(path, "read"):
            return path.read_bytes()

    def write(self, key: str, data: bytes, *, keep_existing: bool = False) -> bool:
        """Write, fsync, rename, fsync the folder."""
        return write_atomic(self.path(key), data, keep_existing=keep_existing)

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Compare and replace under a lock on the folder, which other processes of this class take as well."""
        path = self.path(key)
        with _told(path, "replaced"):
            make_folder(path.parent)
            with _locked(path.parent):
                try:
                    if path.read_bytes() != expected:
                        return False
                except FileNotFoundError:
                    return False
                return write_atomic(path, data)

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Unlink, and fsync the folder."""
        path = self.path(key)
        with _told(path, "removed"):
            try:
                path.unlink()
                if durable:
                    sync_folder(path.parent)
            except (FileNotFoundError, NotADirectoryError):
                return

    def size(self, key: str) -> int | None:
        """Bytes of a file."""
        path = self.path(key)
        with _told(path, "read"):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def entries(self, folder: str) -> list[Entry]:
        """The files in a folder, temporary ones of writers included."""
        found = []
        for path in self._children(folder):
            with _told(path, "read"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if path.is_file():
                    found.append(Entry(path.name, status.st_size, status.st_mtime))
        return found

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder."""
        children = self._children(folder)
        with _told(self.path(folder), "listed"):
            return [path.name for path in children if path.is_dir()]

    def _children(self, folder: str) -> list[Path]:
        path = self.path(folder)
        with _told(path, "listed"):
            try:
                return sorted(path.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return []


@dataclass(frozen=True)
class Spot:
    """One object, or what grows under one key: a place and a key in it."""

    place: Place
    key: str

    @property
    def location(self) -> Path | str:
        """A path in a folder, else a URL."""
        return self.place.locate(self.key)

    def __str__(self) -> str:
        return str(self.location)

    def read(self) -> bytes | None:
        """All bytes, None if there is no such object."""
        try:
            return self.place.read(self.key)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Replace the object."""
        self.place.write(self.key, data)


def check_key(key: str) -> None:
    """Raise ValueError for a key that could lead out of its place; ``""`` is the place itself."""
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    """Errors of the file system in words; that a file does not exist stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(f"{path}: could not be {done}", error) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock; without effect on file systems that have none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_url(text: object) -> bool:
    """Whether a storage root or a file is written as a URL."""
    return _URL.match(str(text)) is not None


def open_place(storage: str | Path, patience_s: float = DEFAULT_PATIENCE_S) -> Place:
    """The place that a storage root names; what fails in a way that may pass is tried again.

    Args:
        storage: A folder, or a URL such as ``s3://bucket/folder``, ``gs://...`` or ``az://container/folder``.
        patience_s: For how long one operation is tried.

    Raises:
        UserError: The storage root is of a kind that is not known, or the package for it is not installed.
    """
    return PatientPlace(_open(storage), Patience(patience_s))


def _open(storage: str | Path) -> Place:
    scheme = _URL.match(str(storage))
    if scheme is None:
        return LocalPlace(storage)
    if scheme[1] in OBJECT_STORES:
        from swamp_ray.storage.object_store import ObjectPlace

        return ObjectPlace(str(storage))
    raise UserError("the storage root must be a folder, or start with s3://, gs:// or az://", got=str(storage),
                    where="storage", do="Give a path on a file system that all nodes share, e.g. /mnt/shared/swamp.")


def as_place(storage: str | Path | Place) -> Place:
    """A place that is given, or the one that a storage root names."""
    return open_place(storage) if isinstance(storage, str | Path) else storage


def local_path(where: Place | Spot) -> Path:
    """Where something lies in a local storage root. Raises UserError for an object store."""
    location = where.location if isinstance(where, Spot) else where.locate("")
    if not isinstance(location, Path):
        raise UserError("this needs a storage root that is a folder", got=str(location), where="storage")
    return location


def as_spot(where: str | Path | Spot) -> Spot:
    """A spot that is given, or the one that a path or a URL names: its folder is the place."""
    if isinstance(where, Spot):
        return where
    if is_url(where):
        folder, _, name = str(where).rpartition("/")
        return Spot(open_place(folder), name)
    path = Path(where)
    return Spot(open_place(path.parent), path.name)
