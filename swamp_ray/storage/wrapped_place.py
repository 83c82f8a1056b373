"""A place that is reached through another one: what the inner place can do, with something around each operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from swamp_ray.storage.place import Appender, Entry, IsLine, Place, Through, directly

_T = TypeVar("_T")


class WrappedPlace:
    """Does all that its inner place does. A subclass says what goes around reads and writes.

    Args:
        inner: The place.
    """

    def __init__(self, inner: Place) -> None:
        self.inner = inner

    def reading(self, operation: Callable[[], _T]) -> _T:
        """Carry out an operation that changes nothing."""
        return operation()

    def writing(self, operation: Callable[[], _T]) -> _T:
        """Carry out an operation that changes something."""
        return operation()

    @property
    def uri(self) -> str:
        """The inner place's."""
        return self.inner.uri

    @property
    def has_locks(self) -> bool:
        """The inner place's."""
        return self.inner.has_locks

    @property
    def is_seen_by_all(self) -> bool:
        """The inner place's."""
        return self.inner.is_seen_by_all

    def locate(self, key: str) -> Path | str:
        """The inner place's."""
        return self.inner.locate(key)

    def path_of(self, key: str) -> Path | None:
        """The inner place's."""
        return self.inner.path_of(key)

    def read(self, key: str) -> bytes:
        """All bytes of an object."""
        return self.reading(lambda: self.inner.read(key))

    def write(self, key: str, data: bytes, *, keep_existing: bool = False, private: bool = False) -> bool:
        """Write an object."""
        return self.writing(lambda: self.inner.write(key, data, keep_existing=keep_existing, private=private))

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Replace an object that holds what is expected."""
        return self.writing(lambda: self.inner.swap(key, data, expected))

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove an object."""
        self.writing(lambda: self.inner.remove(key, durable=durable))

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        return self.reading(lambda: self.inner.size(key))

    def entries(self, folder: str) -> list[Entry]:
        """The objects directly under a prefix."""
        return self.reading(lambda: self.inner.entries(folder))

    def folders(self, folder: str) -> list[str]:
        """The prefixes directly under a prefix."""
        return self.reading(lambda: self.inner.folders(folder))

    def others(self, folder: str) -> dict[str, str]:
        """What is neither an object nor a prefix."""
        return self.reading(lambda: self.inner.others(folder))

    def appender(self, key: str, *, durable: bool = False, is_line: IsLine | None = None,
                 through: Through = directly) -> Appender:
        """The inner place's, each of whose writes is one of this place's."""
        return self.inner.appender(key, durable=durable, is_line=is_line,
                                   through=lambda write: through(lambda: self.writing(write)))

    def read_appended(self, key: str, start: int = 0) -> bytes:
        """What was appended."""
        return self.reading(lambda: self.inner.read_appended(key, start))

    def appended(self, folder: str) -> list[tuple[str, float]]:
        """What grows directly under a prefix."""
        return self.reading(lambda: self.inner.appended(folder))

    def rewrite_appended(self, key: str, data: bytes) -> bool:
        """Replace what was appended."""
        return self.writing(lambda: self.inner.rewrite_appended(key, data))

    def remove_appended(self, key: str) -> None:
        """Remove what was appended."""
        self.writing(lambda: self.inner.remove_appended(key))

    def made_folder(self, key: str) -> Path | None:
        """The inner place's."""
        return self.inner.made_folder(key)

    def free_bytes(self) -> int | None:
        """The inner place's."""
        return self.inner.free_bytes()

    def free_files(self) -> int | None:
        """The inner place's."""
        return self.inner.free_files()

    def on_trial(self) -> AbstractContextManager[None]:
        """The inner place's."""
        return self.inner.on_trial()

    def locked(self, folder: str) -> AbstractContextManager[None]:
        """The inner place's."""
        return self.inner.locked(folder)

    def pin(self) -> None:
        """The inner place's."""
        self.inner.pin()

    def check_pinned(self) -> None:
        """The inner place's."""
        self.reading(self.inner.check_pinned)

    def unpin(self) -> None:
        """The inner place's."""
        self.inner.unpin()
