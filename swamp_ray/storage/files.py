"""Files that are either completely there or not there at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from pathlib import Path

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.patience import PassingError, may_pass

TEMPORARY_SUFFIX = ".tmp"

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
    if not str(storage):
        raise UserError("the storage root must not be empty", where="storage", do="Give a path, e.g. ./storage.")
    return Path(storage).expanduser().absolute()


def write_atomic(path: Path, data: bytes, *, keep_existing: bool = False) -> bool:
    """Write a file so that readers and crashes see all of it or nothing: write, fsync, rename, fsync the folder.

    Args:
        path: The file; missing parent folders are created.
        data: All of its bytes.
        keep_existing: Leave a file that is already there as it is (decided atomically where the file
            system has hard links), instead of replacing it.

    Returns:
        True if the file now holds `data` because of this call, False if an existing one was kept.

    Raises:
        RunError: If the bytes could not be written; what was there before is unharmed.
    """
    try:
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
        try:
            _write_synced(temporary, data)
            written = _publish(temporary, path, keep_existing)
        finally:
            temporary.unlink(missing_ok=True)
        if written:
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    return written


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
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> RunError:
    """A failed write in words: the file, the system's reason, the space that is left there."""
    reason = error.strerror or str(error)
    if may_pass(error):
        return PassingError(f"{path}: could not be written: {reason}")
    return RunError(f"{path}: could not be written: {reason}{_free_space(path)}. What was stored before is unharmed. "
                    "Make room or repair the storage, then run the same command again: it goes on from there.")


def _write_synced(path: Path, data: bytes) -> None:
    # Not tempfile: its files are private to one user, and a storage root may belong to a group.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        view = memoryview(data)
        while view.nbytes:
            view = view[stream.write(view):]
        os.fsync(descriptor)


def _publish(temporary: Path, path: Path, keep_existing: bool) -> bool:
    if not keep_existing:
        os.replace(temporary, path)
        return True
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def _free_space(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.exists()), None)
    if folder is None:
        return ""
    try:
        return f" ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB free there)"
    except OSError:
        return ""
