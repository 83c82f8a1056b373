"""Where bytes lie: under keys such as ``artifacts/ab/abcd.../result.json``, in a folder or in an object store."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swamp_ray.errors import UserError
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.place import Place
from swamp_ray.storage.retrying import DEFAULT_PATIENCE_S, Patience, PatientPlace

OBJECT_STORES = ("s3", "gs", "az")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


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

    def read_appended(self, start: int = 0) -> bytes:
        """What was appended, from a byte on; nothing if that is nothing."""
        return self.place.read_appended(self.key, start)

    def write(self, data: bytes, *, private: bool = False) -> None:
        """Replace the object; `private`: for the owner's eyes only."""
        self.place.write(self.key, data, private=private)


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


@contextmanager
def working_folder(where: Spot, *, keep: bool) -> Iterator[Path]:
    """A folder for files that another library writes.

    Args:
        where: Where they belong. Where the place has folders that is the one, created without following links; else it
            is a temporary one.
        keep: The files of a temporary one are written to where they belong at the end of the block.

    Raises:
        RunError: A link is in the way, or, at the end, a file could not be written.
    """
    folder = where.place.made_folder(where.key)
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="swamp-", ignore_cleanup_errors=True) as name:
        temporary = Path(name)
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()] if keep else []
        for path in sorted(files):
            where.place.write(f"{where.key}/{path.relative_to(temporary).as_posix()}", path.read_bytes())


def as_spot(where: str | Path | Spot) -> Spot:
    """A spot that is given, or the one that a path or a URL names: its folder is the place."""
    if isinstance(where, Spot):
        return where
    if is_url(where):
        folder, _, name = str(where).rpartition("/")
        return Spot(open_place(folder), name)
    path = Path(where)
    return Spot(open_place(path.parent), path.name)
