"""What grows: a file in a folder, numbered objects under its key in an object store, which has no append.

``runs/r/metrics.jsonl`` consists there of ``runs/r/metrics.jsonl/00000001``, ``.../00000002`` and so on.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot

FLUSH_S = 5.0

_PART = re.compile(r"\d{8,}")


class PartWriter:
    """Writes what is appended as further numbered objects. Two writers never overwrite each other's.

    Args:
        spot: The key under which the parts lie.
    """

    def __init__(self, spot: Spot) -> None:
        self._spot = spot
        self._buffer: list[bytes] = []
        self._next: int | None = None
        self._tried = -float("inf")

    def append(self, data: bytes) -> None:
        """Add bytes; they are not written yet."""
        self._buffer.append(data)

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
        if self._next is None:
            self._next = 1 + max((int(name) for name in _parts(self._spot)), default=0)
        data = b"".join(self._buffer)
        # Should another process have written a part of this number, the next number is taken.
        while not self._spot.place.write(f"{self._spot.key}/{self._next:08d}", data, keep_existing=True):
            self._next += 1
        self._next += 1
        self._buffer.clear()


def read_growing(spot: Spot) -> bytes:
    """All that was written; nothing if that is nothing."""
    if isinstance(spot.location, Path):
        return spot.read() or b""
    return b"".join(spot.place.read(f"{spot.key}/{name}") for name in _parts(spot))


def move_growing(source: Spot, target: Spot) -> None:
    """Append all whole lines of one file to another, and remove the first; a missing file stays missing."""
    data = read_growing(source)
    whole_lines = data[:data.rfind(b"\n") + 1]
    is_file = isinstance(source.location, Path)
    if whole_lines and is_file:
        target.write((target.read() or b"") + whole_lines)
    elif whole_lines:
        parts = PartWriter(target)
        parts.append(whole_lines)
        parts.flush()
    # Only now: a crash before leaves lines in both files, never in neither.
    keys = [source.key] if is_file else [f"{source.key}/{name}" for name in _parts(source)]
    for key in keys:
        source.place.remove(key)


def growing(place: Place, folder: str) -> list[tuple[str, float]]:
    """Names of what grows directly under a prefix, and when it did so last (seconds, by the place's clock)."""
    if isinstance(place.locate(folder), Path):
        return [(entry.name, entry.modified_s) for entry in place.entries(folder)]
    found = [(name, place.entries(f"{folder}/{name}")) for name in place.folders(folder)]
    return [(name, max(entry.modified_s for entry in parts)) for name, parts in found if parts]


def _parts(spot: Spot) -> list[str]:
    """The names of the parts, in order of their numbers."""
    names = [entry.name for entry in spot.place.entries(spot.key) if _PART.fullmatch(entry.name)]
    return sorted(names, key=int)
