"""The log file of one job: lines of text, as they happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from swamp_ray.credentials import Concealer
from swamp_ray.errors import RunError
from swamp_ray.storage.place import Appender, Place
from swamp_ray.storage.retrying import impatient


class JobLog:
    """Appends lines with the time in front. One that cannot be written, because the disk is full, never ends the work.

    Args:
        place: The storage root.
        key: The log in it; None writes nothing.
        conceal: Replaces what must not be read by others.
    """

    def __init__(self, place: Place, key: str | None, conceal: Callable[[str], str] | None = None) -> None:
        # Nobody waits for a log.
        self._place = impatient(place)
        self._key = key
        self._conceal = conceal or Concealer()
        self._lines: Appender | None = None

    def __call__(self, line: str) -> None:
        """Write one line; in an object store it may wait some seconds for others."""
        if self._key is None:
            return
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._conceal(line)}\n"
        with contextlib.suppress(OSError, RunError):
            if self._lines is None:
                self._lines = self._place.appender(self._key)
            self._lines.append(text.encode())
            self._lines.flush_if_due()

    def close(self) -> None:
        """Write the lines that wait."""
        if self._lines is not None:
            with contextlib.suppress(OSError, RunError):
                self._lines.close()
