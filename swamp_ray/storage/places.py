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

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.files import local_folder, make_folder, sync_folder, write_atomic

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
    RunError.
    """

    @property
    def uri(self) -> str:
        """How the place is written in a config: an absolute path, or a URL such as ``s3://bucket/folder``."""
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

    def remove(self, key: str) -> None:
        """Remove an object; no error if there is none."""
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
        if key and not _KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        return self.root / key if key else self.root

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        path = self.path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunError(f"{path}: could not be read: {error.strerror}. Repair the storage, then run the same "
                           "command again: it goes on from there.") from error

    def write(self, key: str, data: bytes, *, keep_existing: bool = False) -> bool:
        """Write, fsync, rename, fsync the folder."""
        return write_atomic(self.path(key), data, keep_existing=keep_existing)

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Compare and replace under a lock on the folder, which other processes of this class take as well."""
        path = self.path(key)
        make_folder(path.parent)
        with _locked(path.parent):
            try:
                if path.read_bytes() != expected:
                    return False
            except FileNotFoundError:
                return False
            return write_atomic(path, data)

    def remove(self, key: str) -> None:
        """Unlink, and make it durable."""
        path = self.path(key)
        try:
            path.unlink()
            sync_folder(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise RunError(f"{path}: could not be removed: {error.strerror}.") from error

    def size(self, key: str) -> int | None:
        """Bytes of a file."""
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def entries(self, folder: str) -> list[Entry]:
        """The files in a folder, temporary ones of writers included."""
        found = []
        for path in self._children(folder):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                found.append(Entry(path.name, status.st_size, status.st_mtime))
        return found

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder."""
        return [path.name for path in self._children(folder) if path.is_dir()]

    def _children(self, folder: str) -> list[Path]:
        try:
            return sorted(self.path(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


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


def open_place(storage: str | Path) -> Place:
    """The place that a storage root names.

    Raises:
        UserError: The storage root is of a kind that is not known.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(storage))
    if scheme is None:
        return LocalPlace(storage)
    raise UserError("the storage root must be a local folder", got=str(storage), where="storage",
                    do="Give a path on a file system that all nodes share, e.g. /mnt/shared/swamp.")
