"""What grows: a file in a folder, numbered objects under its key in an object store, which has no append.

``runs/r/metrics.jsonl`` consists there of ``runs/r/metrics.jsonl/00000001``, ``.../00000002`` and so on. Callers ask
:meth:`swamp_ray.storage.place.Place.appender` for one or the other.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from swamp_ray.storage.local import write_error
from swamp_ray.storage.place import FLUSH_S, IsLine, Place, Through
from swamp_ray.storage.retrying import PassingError

_BLOCK_BYTES = 1 << 16
_PART = re.compile(r"\d{8,}")


class FileAppender:
    """Appends lines to one file, which stays open.

    Args:
        path: The file, for messages.
        open_file: Gives a descriptor that reads the file and writes at its end; the file is made if it is missing.
        through: Each access to the file goes through it.
        durable: Wait for the disk after each line.
        is_line: Whether the last line is one that was written; if not, a crash has torn it, and it is removed before
            another one follows. None: nothing is removed.
    """

    def __init__(self, path: Path, open_file: Callable[[], int], through: Through, *, durable: bool = False,
                 is_line: IsLine | None = None) -> None:
        self._path = path
        self._open_file = open_file
        self._through = through
        self._durable = durable
        self._is_line = is_line
        self._descriptor = -1
        through(self._open)

    def append(self, line: bytes) -> None:
        """Add a line. Raises RunError if it could not be written; no part of it stays then."""
        self._through(lambda: self._append(line))

    def flush_if_due(self, every_s: float = FLUSH_S) -> None:
        """Lines are written when they are appended."""

    def flush(self) -> None:
        """Lines are written when they are appended."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self.close()
        self._descriptor = self._open_file()
        try:
            self._drop_torn_end()
        except OSError as error:
            raise write_error(self._path, error) from error

    def _append(self, line: bytes) -> None:
        if self._descriptor < 0:
            self._open()
        end = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                # A second write reports why the first one was cut short.
                os.write(self._descriptor, line)
            if self._durable:
                os.fsync(self._descriptor)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, end)
            except OSError:
                # Opened again, for the next line, the file is freed of what is torn.
                self.close()
            raise write_error(self._path, error) from error

    def _drop_torn_end(self) -> None:
        if self._is_line is None:
            return
        size = os.fstat(self._descriptor).st_size
        end = self._line_start(size)
        last = self._line_start(end - 1) if end else 0
        if end and not self._is_line(os.pread(self._descriptor, end - last, last)):
            end = last
        if end < size:
            os.ftruncate(self._descriptor, end)

    def _line_start(self, position: int) -> int:
        """Where the line begins in which `position` lies: one past the newline before it, or 0."""
        while position > 0:
            start = max(0, position - _BLOCK_BYTES)
            newline = os.pread(self._descriptor, position - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
        return 0


class PartAppender:
    """Writes what is appended as further numbered objects. Two writers never overwrite each other's.

    Args:
        place: The object store.
        key: The key under which the parts lie.
        through: Each access to the store goes through it.
        durable: Write each line at once.
    """

    def __init__(self, place: Place, key: str, through: Through, *, durable: bool = False) -> None:
        self._place = place
        self._key = key
        self._through = through
        self._durable = durable
        self._buffer: list[bytes] = []
        self._next: int | None = None
        self._may_be_written = False
        self._tried = -float("inf")

    def append(self, line: bytes) -> None:
        """Add a line, which waits for others where it need not be durable."""
        self._buffer.append(line)
        if self._durable:
            self.flush()

    def flush_if_due(self, every_s: float = FLUSH_S) -> None:
        """Write what was appended, unless that has been tried within ``every_s``.

        Raises:
            RunError: As for `flush`. A store that hangs is not asked again at once.
        """
        if time.monotonic() - self._tried >= every_s:
            self.flush()

    def flush(self) -> None:
        """Write what was appended as one object.

        Raises:
            RunError: If it could not be written; it is kept, and the next call tries again.
        """
        if not self._buffer:
            return
        self._tried = time.monotonic()
        data = b"".join(self._buffer)
        self._through(lambda: self._put(data))
        self._buffer.clear()

    def close(self) -> None:
        """Write what was appended."""
        self.flush()

    def _put(self, data: bytes) -> None:
        if self._next is None:
            self._next = 1 + max((int(name) for name, _ in parts_of(self._place, self._key)), default=0)
        try:
            # Should another process have written a part of this number, the next number is taken.
            while not self._place.write(self._part(), data, keep_existing=True) and not self._is_own(data):
                self._next += 1
        except PassingError:
            self._may_be_written = True
            raise
        self._may_be_written = False
        self._next += 1

    def _part(self) -> str:
        return f"{self._key}/{self._next:08d}"

    def _is_own(self, data: bytes) -> bool:
        """Whether the part that is there was written by an earlier try, whose answer was lost."""
        return self._may_be_written and self._place.read(self._part()) == data


def parts_of(place: Place, key: str) -> list[tuple[str, int]]:
    """Names and sizes of the parts under a key, in order of their numbers."""
    found = [(entry.name, entry.size) for entry in place.entries(key) if _PART.fullmatch(entry.name)]
    return sorted(found, key=lambda part: int(part[0]))


def read_parts(place: Place, key: str, start: int = 0) -> bytes:
    """What the parts under a key hold together, from a byte on."""
    data = []
    position = 0
    for name, size in parts_of(place, key):
        if position + size > start:
            data.append(place.read(f"{key}/{name}")[max(0, start - position):])
        position += size
    return b"".join(data)
