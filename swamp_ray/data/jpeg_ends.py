"""Whether all of a JPEG's picture is there, although the file has an end marker.

The decoder fills what is missing with grey, and Pillow does not pass its warning on. Bytes in front of the end marker
tell: after a whole picture they are skipped, and in one that was cut off they are decoded as its next part.
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
_END, _START_OF_SCAN = 0xD9, 0xDA
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
    """Whether a loaded JPEG's last pixel is the grey of missing parts; in progressive ones they have no such sign."""
    if image.format not in FORMATS:
        return False
    value = image.getpixel((image.width - 1, image.height - 1))
    return set(value if isinstance(value, tuple) else (value,)) <= _GREYS


def _filled(encoded: bytes) -> bytes | None:
    """The file with bytes in front of its first end marker; None where there is none, or for other codes."""
    place, num_restarts, code = 2, 0, 0
    while (found := _MARKER.search(encoded, place)) is not None:
        kind = found[1][0]
        place = found.end()
        if kind == _END:
            if code not in _HUFFMAN:
                return None
            # The marker of the next interval, too, as a file may be cut exactly between two of them.
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
    return None
