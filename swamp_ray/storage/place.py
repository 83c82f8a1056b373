"""What a place of bytes can do, whatever it is: a folder, or a prefix in an object store."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


def check_key(key: str) -> None:
    """Raise ValueError for a key that could lead out of its place; ``""`` is the place itself."""
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")


def is_key(name: str) -> bool:
    """Whether a name can be a key, or a part of one."""
    return _KEY.fullmatch(name) is not None
