"""The log file of one job: lines of text, as they happen."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from swamp_ray.errors import RunError
from swamp_ray.storage.growing import PartWriter
from swamp_ray.storage.patience import impatient
from swamp_ray.storage.places import Place, Spot


class JobLog:
    """Appends lines with the time in front. One that cannot be written, because the disk is full, never ends the work.

    Args:
        place: The storage root.
        key: The log in it; None writes nothing.
    """

    def __init__(self, place: Place, key: str | None) -> None:
        self._path: Path | None = None
        self._parts: PartWriter | None = None
        if key is None:
            return
        location = place.locate(key)
        if isinstance(location, Path):
            self._path = location
        else:
            # Nobody waits for a log.
            self._parts = PartWriter(Spot(impatient(place), key))

    def __call__(self, line: str) -> None:
        """Write one line; in an object store it may wait some seconds for others."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"
        with contextlib.suppress(OSError, RunError):
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text)
            elif self._parts is not None:
                self._parts.append(text.encode())
                self._parts.settle()

    def close(self) -> None:
        """Write the lines that wait."""
        if self._parts is not None:
            with contextlib.suppress(OSError, RunError):
                self._parts.flush()
