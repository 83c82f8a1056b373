"""Finds JPEG files whose picture was cut off although they have an end marker.

The decoder fills missing parts with grey, and Pillow does not pass its warning on. The test is to insert bytes in front
of the end marker and to decode again: after a whole picture they are skipped, after a part they become the next part.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = frozenset({"JPEG", "MPO"})
"""Pillow's names of files that begin with a JPEG."""
_FILLING = bytes(range(1, 255))
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_END = 0xD9
_START_OF_SCAN = 0xDA
_RESTARTS = range(0xD0, 0xD8)
_WITHOUT_LENGTH = {0x01, 0xD8, *_RESTARTS}
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_GREYS = {127, 128}


def refuse_cut(encoded: bytes, image: Image) -> None:
    """Refuse a JPEG that ends before its picture does.

    A progressive one that was cut exactly between two scans is a whole, coarser picture, and passes; so do files that
    are coded arithmetically, whose decoder may read on after a whole picture.

    Args:
        encoded: The file.
        image: Opened from it with Pillow, its pixels loaded.

    Raises:
        OSError: Part of the picture is missing.
    """
    from PIL import Image as Pillow

    filled = _filled(encoded) if image.format in FORMATS else None
    if filled is None:
        return
    with Pillow.open(io.BytesIO(filled)) as other:
        other.load()
        if other.tobytes() != image.tobytes():
            raise OSError("image file is truncated: it has an end marker, but part of the picture is missing")


def looks_cut(image: Image) -> bool:
    """Whether a loaded JPEG's last pixel is the grey of missing parts, which progressive files do not show."""
    if image.format not in FORMATS:
        return False
    value = image.getpixel((image.width - 1, image.height - 1))
    return set(value if isinstance(value, tuple) else (value,)) <= _GREYS


def _filled(encoded: bytes) -> bytes | None:
    """The file with bytes in front of its first end marker; None where there is none, or for other codes."""
    place = 2
    num_restarts = 0
    code = 0
    while True:
        found = _MARKER.search(encoded, place)
        if found is None:
            return None
        kind = found[1][0]
        place = found.end()
        if kind == _END:
            if code not in _HUFFMAN:
                return None
            # The marker of the next interval, too: a file may be cut exactly between two intervals.
            between = bytes([0xFF, _RESTARTS[num_restarts % len(_RESTARTS)]])
            return encoded[:found.start()] + _FILLING + between + _FILLING + encoded[found.start():]
        if kind in _RESTARTS:
            num_restarts += 1
        elif kind == _START_OF_SCAN:
            num_restarts = 0
        elif kind in _FRAMES:
            code = kind
        if kind not in _WITHOUT_LENGTH:
            place += int.from_bytes(encoded[place:place + 2], "big")
