"""Files that are either completely there or not there at all, and folders in which no link is followed."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.retrying import PassingError, may_pass

TEMPORARY_SUFFIX = ".tmp"
LONGEST_NAME = 255
LONGEST_SHOWN = 60

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES}


def local_folder(storage: str | Path) -> Path:
    """The storage root as an absolute path; ``~`` is expanded.

    Raises:
        UserError: For a URL such as ``s3://...``, which would otherwise become a folder called ``s3:``.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(storage)):
        raise UserError("the storage root must be a local folder", got=str(storage), where="storage",
                        do="Give a path on a file system that all nodes share, e.g. /mnt/shared/swamp.")
    if "\0" in str(storage) or any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(storage).parts):
        raise UserError(f"the parts of the storage root's path must have at most {LONGEST_NAME} bytes each, and no "
                        "character 0", where="storage", got=shown(str(storage)), do="Choose a shorter path.")
    if not str(storage):
        raise UserError("the storage root must not be empty", where="storage", do="Give a path, e.g. ./storage.")
    return Path(storage).expanduser().absolute()


def shown(name: str) -> str:
    """A name for a message: the beginning of one that is very long, without what a terminal would obey."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    if len(printable) <= LONGEST_SHOWN:
        return printable
    return f"{printable[:LONGEST_SHOWN]}... ({len(name):,} characters)"


def write_atomic(path: Path, data: bytes, *, keep_existing: bool = False, below: Path | None = None,
                 private: bool = False) -> bool:
    """Write a file so that readers and crashes see all of it or nothing: write, fsync, rename, fsync the folder.

    Args:
        path: The file; missing parent folders are created. A link of this name is replaced, not followed.
        data: All of its bytes.
        keep_existing: Leave a file that is already there as it is (decided atomically where the file
            system has hard links), instead of replacing it.
        below: A folder above the file; no link between the two is followed.
        private: Let nobody but the owner read it.

    Returns:
        True if the file now holds `data` because of this call, False if an existing one was kept.

    Raises:
        RunError: If the bytes could not be written; what was there before is unharmed.
    """
    try:
        if below is None:
            make_folder(path.parent)
        with opened_folder(path.parent, below or path.parent, make=True) as folder:
            temporary = f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
            try:
                _write_synced(temporary, data, folder, 0o600 if private else 0o666)
                written = _publish(temporary, path.name, folder, keep_existing)
            finally:
                _remove_if_there(temporary, folder)
            if written:
                _sync(folder)
    except OSError as error:
        raise write_error(path, error) from error
    return written


@contextmanager
def opened_folder(path: Path, below: Path, *, make: bool = False) -> Iterator[int]:
    """A folder, opened for `os` functions with ``dir_fd``: what is done there is done in it, whatever its path becomes.

    Args:
        path: The folder.
        below: The same, or a folder above it. It may be reached through links; no link between the two is followed.
        make: Create what is missing between the two.

    Yields:
        Its descriptor.

    Raises:
        RunError: There is a link, or something else that is no folder, in between.
        OSError: It cannot be opened; FileNotFoundError if it is not there.
    """
    descriptor = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        reached = below
        for part in path.relative_to(below).parts:
            reached = reached / part
            inner = _open_inside(descriptor, part, reached, make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open_inside(folder: int, name: str, path: Path, make: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        # Which of the two a link gives depends on the system.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(name, folder):
            raise link_error(path) from error
        raise
    try:
        os.mkdir(name, dir_fd=folder)
    except FileExistsError:
        pass  # another process was faster
    else:
        _sync(folder)
    return os.open(name, flags, dir_fd=folder)


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def link_error(path: Path) -> RunError:
    """What is said of a link in the way of something that writes or removes."""
    return RunError(f"{path} is a link. Nothing is written or removed through links inside a storage root: move what "
                    "it leads to to its place, or use the folder that it leads to as the storage root.")


def read_file(path: Path, start: int = 0) -> bytes:
    """All bytes of a file from ``start`` on. Links are followed; what is no file is named and never waited for.

    Raises:
        RunError: It is a folder, a pipe, a device or a socket, or a link that leads nowhere.
        OSError: It cannot be read; FileNotFoundError if there is nothing of this name.
    """
    _check_regular(path, _status(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        # Looked at again: it may have been replaced meanwhile.
        _check_regular(path, os.fstat(descriptor))
        file.seek(start)
        return file.read()


def check_is_file(path: Path) -> None:
    """Look whether what others open by its path can be opened without waiting for ever.

    Raises:
        RunError: It is a pipe, a device or a socket, or a link that leads nowhere.
    """
    with suppress(OSError):
        status = _status(path)
        if not stat.S_ISDIR(status.st_mode):
            _check_regular(path, status)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise RunError(f"{path} is a link that leads nowhere. Remove it, or restore what it leads to.") from None
        raise


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path} is {kind_of(status.st_mode)}, and not a file. Move it away: it does not belong there.")


def kind_of(mode: int) -> str:
    """What something in a folder is, in words."""
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a named pipe",
             stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    return next((word for test, word in kinds.items() if test(mode)), "something unknown")


def make_folder(path: Path) -> None:
    """Create a folder and its parents, each made durable in the folder above it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; a no-op on file systems that cannot."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove_file(path: Path, *, below: Path, durable: bool = True) -> None:
    """Unlink a file; no error if there is none. Links between `below` and it are not followed.

    Raises:
        RunError: One of the folders in between is a link.
        OSError: It could not be removed.
    """
    try:
        with opened_folder(path.parent, below) as folder:
            os.unlink(path.name, dir_fd=folder)
            if durable:
                _sync(folder)
    except (FileNotFoundError, NotADirectoryError):
        return


def write_error(path: Path, error: OSError) -> RunError:
    """A failed write in words: the file, the system's reason, the space that is left there."""
    reason = error.strerror or str(error)
    if may_pass(error):
        return PassingError(f"{path}: could not be written: {reason}")
    return RunError(f"{path}: could not be written: {reason}{_free_space(path)}. What was stored before is unharmed. "
                    "Make room or repair the storage, then run the same command again: it goes on from there.")


def _write_synced(name: str, data: bytes, folder: int, mode: int) -> None:
    # Not tempfile: its files are private to one user, and a storage root may belong to a group.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        view = memoryview(data)
        while view.nbytes:
            view = view[stream.write(view):]
        os.fsync(descriptor)


def _publish(temporary: str, name: str, folder: int, keep_existing: bool) -> bool:
    if not keep_existing:
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        return True
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if _is_there(name, folder):
            return False
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove_if_there(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def _free_space(path: Path) -> str:
    """What is left of bytes, and of inodes where these are used up: a file system can be full of small files."""
    folder = next((parent for parent in path.parents if parent.exists()), None)
    if folder is None:
        return ""
    try:
        space = os.statvfs(folder)
    except OSError:
        return ""
    if space.f_files and not space.f_favail:
        return " (no inodes are free there: the file system holds as many files as it can, whatever their size)"
    return f" ({space.f_bavail * space.f_frsize / 2**20:,.1f} MiB free there)"
