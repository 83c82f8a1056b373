"""Where bytes lie: under keys such as ``artifacts/ab/abcd.../result.json``, in a folder or in an object store."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.local import (
    kind_of,
    link_error,
    local_folder,
    make_folder,
    opened_folder,
    read_file,
    remove_file,
    write_atomic,
    write_error,
)
from swamp_ray.storage.retrying import DEFAULT_PATIENCE_S, PassingError, Patience, PatientPlace, storage_error

OBJECT_STORES = ("s3", "gs", "az")
LOCK_S = 10.0
"""A lock is held for one small write; a process that was stopped in the middle of it may hold it for longer."""

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

    def write(self, key: str, data: bytes, *, keep_existing: bool = False, private: bool = False) -> bool:
        """Write an object; False if an existing one was to be kept and there is one.

        `private`: nobody but the owner may read it, where the place knows owners.
        """
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

    def others(self, folder: str) -> dict[str, str]:
        """What is neither an object nor a prefix, by name: ``"a link"``, ``"a named pipe"`` and so on."""
        ...

    def locked(self, folder: str) -> AbstractContextManager[None]:
        """Keep the swaps of other processes under a prefix waiting, where the place can do that."""
        ...

    def pin(self) -> None:
        """From now on a place that was moved, deleted or replaced by another is an error, and not made anew."""
        ...

    def unpin(self) -> None:
        """Let it be made anew again."""
        ...


class LocalPlace:
    """A folder that all nodes see. Its root may be a link; what is written or removed in it goes through none.

    Args:
        root: The folder; created when something is written.

    Raises:
        UserError: For a URL, or an empty path.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = local_folder(root)
        self._pinned: tuple[int, int] | None = None

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
        path = self._known(key)
        with _told(path, "read"):
            return read_file(path)

    def write(self, key: str, data: bytes, *, keep_existing: bool = False, private: bool = False) -> bool:
        """Write, fsync, rename, fsync the folder."""
        path = self._prepared(key)
        return write_atomic(path, data, keep_existing=keep_existing, below=self.root, private=private)

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Compare and replace under a lock on the folder, which other processes of this class take as well."""
        path = self._known(key)
        with _told(path, "replaced"):
            try:
                with opened_folder(path.parent, self.root) as folder:
                    _lock(folder, path.parent)
                    if read_file(path) != expected:
                        return False
                    return write_atomic(path, data, below=self.root)
            except FileNotFoundError:
                return False

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Unlink, and fsync the folder."""
        path = self._known(key)
        with _told(path, "removed"):
            remove_file(path, below=self.root, durable=durable)

    def size(self, key: str) -> int | None:
        """Bytes of a file."""
        path = self._known(key)
        with _told(path, "read"):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def entries(self, folder: str) -> list[Entry]:
        """The files in a folder, temporary ones of writers included; no links to files."""
        return [Entry(path.name, status.st_size, status.st_mtime) for path, status in self._children(folder)
                if stat.S_ISREG(status.st_mode)]

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder, links to folders included."""
        with _told(self.path(folder), "listed"):
            return [path.name for path, status in self._children(folder) if stat.S_ISDIR(status.st_mode)
                    or (stat.S_ISLNK(status.st_mode) and path.is_dir())]

    def others(self, folder: str) -> dict[str, str]:
        """Links, named pipes, sockets and devices in a folder."""
        return {path.name: kind_of(status.st_mode) for path, status in self._children(folder)
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))}

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """Hold the lock that `swap` takes; without effect where there is no such folder."""
        path = self._known(folder)
        descriptor = -1
        try:
            with _told(path, "locked"):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    _lock(descriptor, path)
                except FileNotFoundError:
                    pass
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def pin(self) -> None:
        """Know the folder by what it is, and no longer by its path alone; without effect while there is none."""
        self._pinned = self._pinned or _identity(self.root)

    def unpin(self) -> None:
        """Know the folder by its path again."""
        self._pinned = None

    def open_append(self, key: str) -> int:
        """A descriptor that reads a file and writes at its end; it is created with its folders.

        Raises:
            RunError: It is no file, a link is in the way, or it could not be opened.
        """
        path = self._prepared(key)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with opened_folder(path.parent, self.root, make=True) as folder:
                descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP and path.is_symlink():
                raise link_error(path) from error
            raise write_error(path, error) from error
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            raise RunError(f"{path} is {kind_of(mode)}, and not a file. Move it away: it does not belong there.")
        return descriptor

    def made_folder(self, key: str) -> Path:
        """A folder that others write into by its path; it is created, and no link leads to it.

        Raises:
            RunError: A link is in the way, or it could not be created.
        """
        path = self._prepared(key)
        try:
            with opened_folder(path, self.root, make=True):
                return path
        except OSError as error:
            raise write_error(path, error) from error

    def _prepared(self, key: str) -> Path:
        """The file of a key, about to be written: the root is there."""
        path = self._known(key)
        if self._pinned is None:
            try:
                make_folder(self.root)
            except OSError as error:
                raise write_error(path, error) from error
        return path

    def _known(self, key: str) -> Path:
        """The file of a key, if the root is still the one that was pinned."""
        path = self.path(key)
        if self._pinned is not None and self._pinned != _identity(self.root):
            raise RunError(f"the storage root {self.root} was moved, deleted or replaced while this process worked in "
                           "it. Nothing was written to its old place. Run the same command again with --storage and "
                           "the folder where it is now: it goes on from there.")
        return path

    def _children(self, folder: str) -> list[tuple[Path, os.stat_result]]:
        """What is in a folder, in the order of names, without following links."""
        path = self._known(folder)
        with _told(path, "listed"):
            try:
                names = sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return []
        found = []
        for name in names:
            with _told(path / name, "read"):
                try:
                    found.append((path / name, (path / name).lstat()))
                except FileNotFoundError:
                    continue  # removed meanwhile
        return found


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(f"{folder}: could not be read", error) from error
    return status.st_dev, status.st_ino


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

    def write(self, data: bytes, *, private: bool = False) -> None:
        """Replace the object; `private`: for the owner's eyes only."""
        self.place.write(self.key, data, private=private)


def check_key(key: str) -> None:
    """Raise ValueError for a key that could lead out of its place; ``""`` is the place itself."""
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")


def is_key(name: str) -> bool:
    """Whether a name can be a key, or a part of one."""
    return _KEY.fullmatch(name) is not None


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    """Errors of the file system in words; that a file does not exist stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(f"{path}: could not be {done}", error) from error


def _lock(folder: int, path: Path) -> None:
    """Take a folder's advisory lock until it is closed; without effect on file systems that have none."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None
        if time.monotonic() > end:
            raise PassingError(f"{path}: another process has locked the folder for {LOCK_S:.0f} s (was it stopped?)")
        time.sleep(0.001)


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


def inner_place(place: Place) -> Place:
    """The place itself, without what tries again or asks for permission on the way to it."""
    inner: Place | None = getattr(place, "inner", None)
    return place if inner is None else inner_place(inner)


def made_folder(where: Spot) -> Path | None:
    """A folder of a local storage root, created without following links; None in an object store."""
    place = inner_place(where.place)
    return place.made_folder(where.key) if isinstance(place, LocalPlace) else None


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
