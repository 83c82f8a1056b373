"""Decodes image files to 8-bit RGB; a file that does not show one certain picture is refused.

Grey, palette, CMYK, YCbCr and HSV images become RGB. 16-bit values keep their upper eight bits, so that the full range
stays the full range. Transparent pixels show a white ground. A photograph is turned as its EXIF orientation says.
Several frames, floats, 32-bit integers and Lab have no certain form in 8-bit RGB.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from enum import IntFlag
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from swamp_ray.data.jpeg_ends import FORMATS, refuse_cut

if TYPE_CHECKING:
    from PIL.Image import Image

GROUND = (255, 255, 255)
"""The colour behind transparent pixels."""
_AS_THEY_ARE = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION = 0x0112
_MAY_TURN = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
_BITS = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_TO_8_BIT = "Save it as an 8-bit or 16-bit PNG, all images with the same scale."


class UnclearImage(Exception):
    """An image that cannot be shown as one 8-bit RGB picture; the text says why."""


class DecodingSteps(IntFlag):
    """The steps of decoding besides a change of colour space; none for ordinary 8-bit files."""

    NONE = 0
    SCALED = 1
    FLATTENED = 2
    TURNED = 4


def decoding_steps(image: Image) -> DecodingSteps:
    """The steps that decoding an opened file takes; its pixels need not be loaded.

    Raises:
        Unclear: It does not show one certain picture.
    """
    _refuse_size(image)
    _refuse_frames(image)
    steps = DecodingSteps.NONE
    if _is_16_bit_grey(image):
        steps |= DecodingSteps.SCALED
    elif image.mode not in _AS_THEY_ARE | _TRANSPARENT:
        raise UnclearImage(f"its pixels are {_named(image.mode)}, which have no certain form in 8-bit RGB. {_TO_8_BIT}")
    if image.mode in _TRANSPARENT:
        steps |= DecodingSteps.FLATTENED
    elif "transparency" in image.info:
        # Pillow compares the transparent value, as it stands in the file, with values that it has scaled.
        if steps or (";" in _raw_mode(image) and image.mode not in {"1", "P"}):
            raise UnclearImage(f"one of its values is transparent, and it has other than 8 bits. {_TO_8_BIT}")
        steps |= DecodingSteps.FLATTENED
    if _orientation(image) != 1:
        steps |= DecodingSteps.TURNED
    return steps


def decode_rgb(image: Image) -> Image:
    """The picture of an opened file, mode RGB.

    What is plain 8-bit RGB already is given back without a copy.

    Raises:
        Unclear: It does not show one certain picture.
        Exception: Whatever decoders raise on damaged files.
    """
    steps = decoding_steps(image)
    with _whole_files_only():
        image.load()
    # Read after loading: some files hold the orientation behind their pixels.
    orientation = _orientation(image)
    if steps & DecodingSteps.SCALED:
        image = _scaled(image)
    elif steps & DecodingSteps.FLATTENED:
        image = _flattened(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return _turned(image, orientation)


def inspect_file(file: BinaryIO, image: Image, whole: bool) -> DecodingSteps:
    """The steps that decoding a file takes; refuses a file of which a part is missing.

    Args:
        file: Open for reading.
        image: Opened from it, its pixels not loaded.
        whole: Decode it. Otherwise JPEG, PNG and WebP files are only decoded where their ends look odd, and others not.

    Raises:
        Unclear: It does not show one certain picture.
        Exception: Whatever decoders raise on damaged files.
    """
    steps = decoding_steps(image)
    if whole or not _ends_well(file, image.format):
        with _whole_files_only():
            image.load()
        if image.format in FORMATS:
            file.seek(0)
            refuse_cut(file.read(), image)
        if _orientation(image) != 1:
            steps |= DecodingSteps.TURNED
    return steps


@contextlib.contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """A block without Pillow's warnings about odd files: those that matter are errors here."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


class _Strictness:
    """How many threads decode, and the process's setting before the first of them."""

    lock = threading.Lock()
    num_threads = 0
    before = False


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """A block in which Pillow refuses files that were cut off, although the process may be set otherwise."""
    from PIL import ImageFile

    with _Strictness.lock:
        if _Strictness.num_threads == 0:
            _Strictness.before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _Strictness.num_threads += 1
    try:
        yield
    finally:
        with _Strictness.lock:
            _Strictness.num_threads -= 1
            if _Strictness.num_threads == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _Strictness.before


def decoding_error(error: BaseException) -> str:
    """One line on why a file could not be decoded, without addresses of objects in memory."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than an image may have here"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format, or its header is damaged"
    text = re.sub(r" ?<_io\.\w+ [^>]*>", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0]


def _refuse_size(image: Image) -> None:
    from PIL import Image as Pillow

    most = Pillow.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise UnclearImage(f"it has {image.width} x {image.height} pixels, and an image may have {most:,} here. "
                      "Make it smaller")


def _refuse_frames(image: Image) -> None:
    # Cameras add a small picture or a second view to a photograph, which is the first frame.
    if image.format == "MPO":
        return
    num = getattr(image, "n_frames", 1)
    if num > 1:
        raise UnclearImage(f"it has {num} frames or pages, and which of them counts is not certain. "
                      "Save the one that counts as a file of its own")


def _ends_well(file: BinaryIO, kind: str | None) -> bool:
    """Whether a file ends as its format wants; leaves the file where it was."""
    check = {"JPEG": _jpeg_ends, "MPO": _jpeg_ends, "PNG": _png_ends, "WEBP": _webp_ends}.get(kind or "")
    if check is None:
        return True
    place = file.tell()
    try:
        return check(file)
    finally:
        file.seek(place)


def _jpeg_ends(file: BinaryIO) -> bool:
    file.seek(-2, os.SEEK_END)
    return file.read(2) == b"\xff\xd9"


def _webp_ends(file: BinaryIO) -> bool:
    file.seek(4)
    [length] = struct.unpack("<I", file.read(4))
    return file.seek(0, os.SEEK_END) >= length + 8


def _png_ends(file: BinaryIO) -> bool:
    """Whether the last chunk is there, and none after the pixels says how the image is turned."""
    end = file.seek(0, os.SEEK_END)
    place = 8
    pixels_seen = False
    while place + 12 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IEND":
            return True
        if pixels_seen and name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
            return False
        pixels_seen = pixels_seen or name == b"IDAT"
        place += 12 + length
    return False


def _named(mode: str) -> str:
    words = {"F": "floating-point numbers (mode F)", "I": "32-bit integers (mode I)", "LAB": "Lab colours (mode LAB)"}
    return words.get(mode, f"of mode {mode}")


def _is_16_bit_grey(image: Image) -> bool:
    # Pillow spreads PNG's and PGM's values over 16 bits, whatever their own number of bits; other formats it does not.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})


def _raw_mode(image: Image) -> str:
    """How the file stores its values, in Pillow's words, e.g. ``RGB;16B``; empty once the pixels are loaded."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _tag(image: Image, number: int, default: int) -> int:
    """The first value of a TIFF's tag."""
    tags: Any = getattr(image, "tag_v2", {})
    value = tags.get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _scaled(image: Image) -> Image:
    """Grey values of up to 16 bits, their upper eight bits kept."""
    from PIL import Image as Pillow

    bits = _tag(image, _BITS, 16)
    values = np.asarray(image).astype(np.int64) >> (bits - 8)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        values = 255 - values
    return Pillow.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def _flattened(image: Image) -> Image:
    """An image with transparency, on its ground."""
    from PIL import Image as Pillow

    if image.mode == "La":
        image = image.convert("LA")
    whole = image.convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", whole.size, (*GROUND, 255)), whole).convert("RGB")


def _orientation(image: Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that can be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns it by itself
    if image.format == "PNG" and getattr(image, "png", None) is not None and not _MAY_TURN & set(image.info):
        return 1  # asking would decode the whole file
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # other programs show an image whose EXIF is damaged as it is
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    steps = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
             5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    return image.transpose(steps[orientation]) if orientation in steps else image
