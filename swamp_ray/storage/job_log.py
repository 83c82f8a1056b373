"""The log file of one job: lines of text, as they happen."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from swamp_ray.credentials import Concealer
from swamp_ray.errors import RunError
from swamp_ray.storage.append import PartWriter
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot, inner_place
from swamp_ray.storage.retrying import impatient


class JobLog:
    """Appends lines with the time in front. One that cannot be written, because the disk is full, never ends the work.

    Args:
        place: The storage root.
        key: The log in it; None writes nothing.
        conceal: Replaces what must not be read by others.
    """

    def __init__(self, place: Place, key: str | None, conceal: Callable[[str], str] | None = None) -> None:
        self._key = key
        self._conceal = conceal or Concealer()
        self._folder: LocalPlace | None = None
        self._parts: PartWriter | None = None
        inner = inner_place(place)
        if key is None:
            return
        if isinstance(inner, LocalPlace):
            self._folder = inner
        else:
            # Nobody waits for a log.
            self._parts = PartWriter(Spot(impatient(place), key))

    def __call__(self, line: str) -> None:
        """Write one line; in an object store it may wait some seconds for others."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._conceal(line)}\n"
        with contextlib.suppress(OSError, RunError):
            if self._folder is not None and self._key is not None:
                with os.fdopen(self._folder.open_append(self._key), "ab") as file:
                    file.write(text.encode())
            elif self._parts is not None:
                self._parts.append(text.encode())
                self._parts.flush_if_due()

    def close(self) -> None:
        """Write the lines that wait."""
        if self._parts is not None:
            with contextlib.suppress(OSError, RunError):
                self._parts.flush()
