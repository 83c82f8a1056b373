"""A place that is a folder which all nodes see."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swamp_ray.errors import RunError
from swamp_ray.storage.append import FileAppender
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
from swamp_ray.storage.place import Appender, Entry, IsLine, Through, check_key, directly
from swamp_ray.storage.retrying import PassingError, storage_error

LOCK_S = 10.0
"""A lock is held for one small write; a process that was stopped in the middle of it may hold it for longer."""


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

    def appender(self, key: str, *, durable: bool = False, is_line: IsLine | None = None,
                 through: Through = directly) -> Appender:
        """Append to one file."""
        return FileAppender(self.path(key), lambda: self._open_append(key), through, durable=durable, is_line=is_line)

    def read_appended(self, key: str, start: int = 0) -> bytes:
        """A file's bytes."""
        path = self._known(key)
        try:
            with _told(path, "read"):
                return read_file(path, start)
        except FileNotFoundError:
            return b""

    def appended(self, folder: str) -> list[tuple[str, float]]:
        """The files in a folder."""
        return [(entry.name, entry.modified_s) for entry in self.entries(folder)]

    def rewrite_appended(self, key: str, data: bytes) -> bool:
        """Replace the file."""
        return self.write(key, data)

    def remove_appended(self, key: str) -> None:
        """Remove the file."""
        self.remove(key)

    def path_of(self, key: str) -> Path | None:
        """The file of a key."""
        return self.path(key)

    @property
    def is_seen_by_all(self) -> bool:
        """No: on another machine a folder of this name may be another one."""
        return False

    def free_bytes(self) -> int | None:
        """Free bytes of the file system that the folder lies on, or will lie on."""
        return shutil.disk_usage(self._existing_folder()).free

    def free_files(self) -> int | None:
        """Inodes that are left; None of a file system without a bound."""
        found = os.statvfs(self._existing_folder())
        return found.f_favail if found.f_files else None

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Remove the folder at the end if it is new and nothing lies in it."""
        was_there = self.root.exists()
        try:
            yield
        finally:
            if not was_there:
                for folder, _, _ in os.walk(self.root, topdown=False):
                    with suppress(OSError):
                        os.rmdir(folder)

    @property
    def has_locks(self) -> bool:
        """Yes, as far as the file system has them."""
        return True

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

    def check_pinned(self) -> None:
        """Raise RunError if the folder was moved, deleted or replaced."""
        self._known("")

    def unpin(self) -> None:
        """Know the folder by its path again."""
        self._pinned = None

    def _open_append(self, key: str) -> int:
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

    def made_folder(self, key: str) -> Path | None:
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

    def _existing_folder(self) -> Path:
        folder = self.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder

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
