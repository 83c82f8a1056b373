"""What a place of bytes can do, whatever it is: a folder, or a prefix in an object store."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FLUSH_S = 5.0
"""How long lines wait for others before an object store gets them."""

IsLine = Callable[[bytes], bool]
Through = Callable[[Callable[[], Any]], Any]
"""Carries out an operation that it is given, and returns what that returns."""

_KEY = re.compile(r"(?!.*(^|/)\.\.?(/|$))[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")


@dataclass(frozen=True)
class Entry:
    """One object: the last part of its key, its bytes, and when it was written (seconds, by the place's own clock)."""

    name: str
    size: int
    modified_s: float


def directly(operation: Callable[[], Any]) -> Any:
    """Carry out an operation, with nothing around it."""
    return operation()


class Appender(Protocol):
    """Adds lines to the end of something that grows."""

    def append(self, line: bytes) -> None:
        """Add a line with its newline; RunError if it could not be written, and no part of it stays then."""
        ...

    def flush_if_due(self, every_s: float = FLUSH_S) -> None:
        """A group of lines is complete: a crash may lose all of it from now on, but not a part of it.

        Where each write is an object of its own, nothing is written within ``every_s`` of the last try.
        """
        ...

    def flush(self) -> None:
        """Have everything written when this returns."""
        ...

    def close(self) -> None:
        """Flush, and end; a second call does nothing."""
        ...


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

    # What grows. It is not `read` and `written`, but appended to.

    def appender(self, key: str, *, durable: bool = False, is_line: IsLine | None = None,
                 through: Through = directly) -> Appender:
        """Go on with something that grows, or begin it.

        Args:
            key: Where it lies.
            durable: Each line is written, and on the disk, when `append` returns.
            is_line: Whether a last line is one that was written. What a crash left instead is removed.
            through: Each write goes through it.
        """
        ...

    def read_appended(self, key: str, start: int = 0) -> bytes:
        """What was appended, from a byte on; nothing if that is nothing."""
        ...

    def appended(self, folder: str) -> list[tuple[str, float]]:
        """Names of what grows directly under a prefix, and when it did so last (seconds, by the place's clock)."""
        ...

    def rewrite_appended(self, key: str, data: bytes) -> bool:
        """Replace what was appended, at once; False, and nothing changed, where that cannot be done."""
        ...

    def remove_appended(self, key: str) -> None:
        """Remove what was appended; no error if there is nothing."""
        ...

    # What other programs and other machines see of it.

    def path_of(self, key: str) -> Path | None:
        """Where any program finds an object as a file; None where it cannot."""
        ...

    def made_folder(self, key: str) -> Path | None:
        """A folder for files of other programs, created without following links; None where there are no folders."""
        ...

    @property
    def is_seen_by_all(self) -> bool:
        """Whether every machine that knows the place's name sees the same objects."""
        ...

    def free_bytes(self) -> int | None:
        """How much more it can hold; None where there is no bound."""
        ...

    def free_files(self) -> int | None:
        """How many more objects it can hold, whatever their size; None where there is no bound."""
        ...

    def on_trial(self) -> AbstractContextManager[None]:
        """Leave no empty place behind, if there was none before the block."""
        ...

    @property
    def has_locks(self) -> bool:
        """Whether `locked` keeps others out."""
        ...

    def locked(self, folder: str) -> AbstractContextManager[None]:
        """Keep the swaps of other processes under a prefix waiting, where the place can do that."""
        ...

    def pin(self) -> None:
        """From now on a place that was moved, deleted or replaced by another is an error, and not made anew."""
        ...

    def check_pinned(self) -> None:
        """Raise RunError if the place was pinned, and is not there any more."""
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
