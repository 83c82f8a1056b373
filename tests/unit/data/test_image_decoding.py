"""What image files of every kind show, against values worked out by hand; the rest is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.image_decoding import (
    DecodingSteps,
    UnclearImage,
    decode_rgb,
    decoding_steps,
    inspect_file,
    no_pillow_warnings,
)
from swamp_ray.data.image_folder import ImageFiles
from swamp_ray.data.image_listing import Inspector, list_images
from swamp_ray.data.parquet import read_parquet
from swamp_ray.data.samples import LazySamples, digest_of
from swamp_ray.data.splits import hold_out
from swamp_ray.errors import RunError, UserError

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOURS = np.random.RandomState(0).randint(0, 256, (6, 8, 3), dtype=np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(decode_rgb(image))


def steps(data: bytes) -> DecodingSteps:
    with Image.open(io.BytesIO(data)) as image:
        return inspect_file(io.BytesIO(data), image, whole=False)


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def png(depth: int, colour: int, rows: np.ndarray, chunks: bytes = b"", after: bytes = b"", side: int = 0) -> bytes:
    """A PNG made by hand: Pillow writes no 16-bit colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = (side, side) if side else rows.shape[:2]
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(lines)), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("data", "expected"), [
    (saved(COLOURS), COLOURS),
    (saved(RAMP), grey(RAMP)),
    (saved(Image.fromarray(RAMP > 100)), grey(np.where(RAMP > 100, 255, 0))),
    (saved(Image.fromarray(RAMP), "JPEG", quality=100, subsampling=0), None),
    (saved(Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)), None),
    (saved(Image.fromarray(COLOURS), "BMP"), COLOURS),
    (saved(Image.fromarray(COLOURS), "WEBP", lossless=True), COLOURS),
    (saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), None),
])
def test_ordinary_files_are_read_as_before(data: bytes, expected: np.ndarray | None) -> None:
    with Image.open(io.BytesIO(data)) as image:
        before = np.asarray(image.convert("RGB"))
    assert np.array_equal(shown(data), before)
    assert steps(data) == DecodingSteps.NONE
    if expected is not None:
        assert np.array_equal(before, expected)


@pytest.mark.parametrize("data", [
    saved(RAMP.astype(np.uint16) * 257 + 99),
    saved(RAMP.astype(np.uint16) * 256 + 255, "TIFF"),
    png(16, 0, (RAMP.astype(np.uint16) * 256 + 7).astype(">u2")),
    b"P5 8 6 65535\n" + (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes(),
])
def test_16_bit_grey_keeps_its_range(data: bytes) -> None:
    assert np.abs(shown(data).astype(int) - grey(RAMP)).max() <= 1
    assert steps(data) == DecodingSteps.SCALED


def test_16_bit_colours_keep_their_range() -> None:
    found = shown(png(16, 2, (COLOURS.astype(np.uint16) * 257).astype(">u2")))
    assert np.array_equal(found, COLOURS)


def test_16_bit_grey_whose_white_is_zero_is_turned_round() -> None:
    data = saved(RAMP.astype(np.uint16) * 257, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(shown(data), grey(255 - RAMP))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "PA", "webp", "palette", "key colour"])
def test_transparent_pixels_show_white_and_others_stay(kind: str) -> None:
    clear = np.zeros((6, 8), bool)
    clear[:3] = True
    if kind == "key colour":
        data = saved(Image.fromarray(np.where(clear, 77, 10).astype(np.uint8)), transparency=77)
        colour = 10
    elif kind == "palette":
        image = Image.fromarray(np.where(clear, 1, 0).astype(np.uint8), "L").convert("P")
        image.putpalette([10, 10, 10, 200, 0, 0] + [0] * 762)
        data, colour = saved(image, transparency=1), 10
    elif kind == "PA":
        image = Image.new("PA", (8, 6))
        image.putpalette([10, 10, 10] + [0] * 765)
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        assert (np.asarray(decode_rgb(image))[:3] == 255).all()
        return
    else:
        pixels = np.full((6, 8, 4), 10, np.uint8)
        pixels[..., 3] = np.where(clear, 0, 255)
        image = Image.fromarray(pixels)
        data = saved(image.convert("LA") if kind == "LA" else image, "WEBP" if kind == "webp" else "PNG",
                     **({"lossless": True, "exact": True} if kind == "webp" else {}))
        colour = 10
    assert np.array_equal(shown(data), grey(np.where(clear, 255, colour)))
    assert steps(data) == DecodingSteps.FLATTENED


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert shown(saved(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned(kind: str, orientation: int) -> None:
    smooth = np.dstack([np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)] * 3)
    image = Image.fromarray(smooth)
    data = saved(image, kind, exif=with_orientation(orientation))
    tagged = Image.open(io.BytesIO(data))
    tagged.load()
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    assert np.array_equal(shown(data), expected)
    assert shown(data).shape == ((8, 6, 3) if orientation > 4 else (6, 8, 3))
    turned = orientation > 1 and kind != "TIFF"  # Pillow has always turned TIFF
    assert steps(data) == (DecodingSteps.TURNED if turned else DecodingSteps.NONE)


def test_an_orientation_after_the_pixels_counts() -> None:
    exif = with_orientation(6).tobytes()[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    data = png(8, 2, COLOURS, after=chunk)
    assert np.array_equal(shown(data), np.rot90(COLOURS, -1))
    assert steps(data) == DecodingSteps.TURNED


def test_damaged_exif_turns_nothing() -> None:
    data = saved(COLOURS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with no_pillow_warnings():
        assert steps(data) == DecodingSteps.NONE
        assert shown(data).shape == (6, 8, 3)


def frames(kind: str, num: int = 3) -> bytes:
    rest = [Image.fromarray(np.full((6, 8, 3), 40 * index, np.uint8)) for index in range(1, num)]
    return saved(COLOURS, kind, save_all=True, append_images=rest)


def test_the_first_of_a_cameras_pictures_counts() -> None:
    smooth = np.full((16, 16, 3), 90, np.uint8)
    data = saved(smooth, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert np.array_equal(shown(data), smooth)


UNCLEAR = {
    "gif": (frames("GIF"), "3 frames"),
    "apng": (frames("PNG"), "3 frames"),
    "webp": (frames("WEBP"), "3 frames"),
    "pages": (frames("TIFF", 2), "2 frames or pages"),
    "float": (saved(np.linspace(-1, 2, 48, dtype=np.float32).reshape(6, 8), "TIFF"), "floating-point"),
    "nan": (saved(np.full((6, 8), np.nan, np.float32), "TIFF"), "floating-point"),
    "int": (saved(np.arange(48, dtype=np.int32).reshape(6, 8) * 9999, "TIFF"), "32-bit integers"),
    "lab": (saved(Image.new("LAB", (8, 6)), "TIFF"), "Lab"),
    "key of 16 bits": (png(16, 0, np.zeros((6, 8), ">u2"),
                           b"\0\0\0\2tRNS\0\7" + struct.pack(">I", zlib.crc32(b"tRNS\0\7"))), "transparent"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_is_not_one_picture_is_refused(kind: str) -> None:
    data, text = UNCLEAR[kind]
    with pytest.raises(UnclearImage, match=text):
        shown(data)
    with Image.open(io.BytesIO(data)) as image, pytest.raises(UnclearImage, match=text):
        decoding_steps(image)


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                (root / split / name / f"{index}.png").write_bytes(saved(COLOURS))
    for path, data in files.items():
        (root / path).write_bytes(data)
    return root


DAMAGED = {
    "cut.jpg": (saved(np.zeros((64, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None], "JPEG")[:-300], "runc"),
    "cut.png": (saved(COLOURS)[:-40], "cannot be read"),
    "cut.tif": (saved(COLOURS, "TIFF")[:60], "cannot be read"),
    "text.jpg": (b"not an image at all", "no image of a known format"),
    "flipped.png": (saved(COLOURS).replace(b"IDAT", b"IDAX"), "cannot be read"),
    "large.png": (png(1, 0, np.zeros((1, 1), np.uint8), side=20000), "pixels"),
    "rather_large.png": (png(1, 0, np.zeros((1, 1), np.uint8), side=10000), "10000 x 10000 pixels"),
    **{f"{kind}.png": entry for kind, entry in UNCLEAR.items()},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_in_folders_are_refused_by_name_before_any_work(tmp_path: Path, name: str) -> None:
    data, text = DAMAGED[name]
    split = "val" if len(name) % 2 else "train"
    root = tree(tmp_path, {f"{split}/dog/{name}": data})
    with pytest.raises(UserError, match=text) as caught:
        load_data(DataConfig(name="image_folder", root=str(root)))
    assert str(caught.value).startswith(str(root / split / "dog" / name))
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp"])
def test_large_sets_are_looked_at_by_their_ends(tmp_path: Path, name: str) -> None:
    kind = {"jpg": "JPEG"}.get(name[4:], name[4:].upper())
    whole = saved(np.random.RandomState(1).randint(0, 256, (80, 80, 3), dtype=np.uint8), kind)
    root = tree(tmp_path, {f"train/cat/{name}": whole})
    list_images(root / "train", None, Inspector(0))
    (root / "train" / "cat" / name).write_bytes(whole[:-len(whole) // 3])
    with pytest.raises(UserError, match=name):
        list_images(root / "train", None, Inspector(0))


def write_parquet(path: Path, images: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": [row % 10 for row in range(len(images))]
                             }), path)


def test_parquet_images_of_every_kind(tmp_path: Path) -> None:
    kinds = [saved(RAMP.astype(np.uint16) * 257), saved(np.full((6, 8, 4), (9, 9, 9, 0), np.uint8)),
             saved(RAMP), saved(np.rot90(COLOURS).copy(), exif=with_orientation(6))]
    write_parquet(tmp_path / "a.parquet", kinds)
    (images, _), _ = read_parquet(tmp_path / "a.parquet", 10, None)
    assert np.array_equal(images[0], grey(RAMP))
    assert (images[1] == 255).all()
    assert np.array_equal(images[2], grey(RAMP))
    assert np.array_equal(images[3], COLOURS)


@pytest.mark.parametrize("kind", UNCLEAR)
def test_parquet_images_are_refused_by_row(kind: str, tmp_path: Path) -> None:
    data, text = UNCLEAR[kind]
    write_parquet(tmp_path / "a.parquet", [saved(COLOURS), saved(COLOURS), data])
    with pytest.raises(UserError, match=f"row 2: the image cannot be used.*{text}"):
        read_parquet(tmp_path / "a.parquet", 10, None)


def cut_jpeg(share: float, mode: str = "RGB", **options: Any) -> bytes:
    """A JPEG of which only a share is there, and an end marker."""
    blocks = np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).convert(mode)
    whole = saved(picture, "JPEG", **options)
    start = whole.rindex(b"\xff\xda") + 12 if not options.get("progressive") else whole.index(b"\xff\xda") + 12
    data = whole[:start + int(share * (len(whole) - 2 - start))]
    return data.rstrip(b"\xff") + b"\xff\xd9"


CUT_JPEGS: list[dict[str, Any]] = [
    {}, {"mode": "L"}, {"mode": "CMYK"}, {"progressive": True}, {"restart_marker_rows": 1},
    {"quality": 98, "subsampling": 0}, {"optimize": True, "quality": 10}]


@pytest.mark.parametrize("options", CUT_JPEGS, ids=str)
@pytest.mark.parametrize("truncated_allowed", [False, True])
def test_cut_jpegs_with_an_end_marker_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], truncated_allowed: bool
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    whole = cut_jpeg(1.0, **options)
    write_parquet(tmp_path / "whole.parquet", [whole, whole])
    read_parquet(tmp_path / "whole.parquet", 10, None)
    list_images(tree(tmp_path / "whole", {"train/cat/whole.jpg": whole}) / "train")
    for share in (0.1, 0.6, 0.97):
        data = cut_jpeg(share, **options)
        write_parquet(tmp_path / "cut.parquet", [whole, data])
        with pytest.raises(UserError, match="row 1: the image cannot be decoded: image file is truncated"):
            read_parquet(tmp_path / "cut.parquet", 10, None)
        root = tree(tmp_path / str(share), {"train/cat/cut.jpg": data})
        with pytest.raises(UserError, match=r"cat/cut\.jpg: the image cannot be read: image file is truncated"):
            list_images(root / "train")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is truncated_allowed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_caller_cannot_let_cut_files_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.RandomState(1).randint(0, 256, (80, 80, 3), dtype=np.uint8)
    data = saved(noise, kind)
    write_parquet(tmp_path / "a.parquet", [data, data[:len(data) * 2 // 3]])
    with pytest.raises(UserError, match="row 1: the image cannot be decoded"):
        read_parquet(tmp_path / "a.parquet", 10, None)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"restart_marker_rows": 1}], ids=str)
def test_cut_jpegs_of_large_folders_are_refused_when_they_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    cut, whole = cut_jpeg(0.5, **options), cut_jpeg(1.0, **options)
    root = tree(tmp_path, {"train/cat/cut.jpg": cut, "train/cat/whole.jpg": whole})
    listing = list_images(root / "train", None, Inspector(0))
    images, names = ImageFiles(listing), [name.decode() for name in listing.files]
    images[names.index("cat/whole.jpg")]
    with pytest.raises(RunError, match=r"cat/cut\.jpg cannot be read: image file is truncated"):
        images[names.index("cat/cut.jpg")]


def test_grey_pictures_and_what_follows_their_ends_are_whole(tmp_path: Path) -> None:
    grey_picture = saved(np.full((40, 40, 3), 128, np.uint8), "JPEG")
    for number, data in enumerate([grey_picture, grey_picture + b"camera \xff\xd9", grey_picture + b"\0" * 9,
                                   saved(np.full((5, 3), 128, np.uint8), "JPEG", progressive=True)]):
        root = tree(tmp_path / str(number), {"train/cat/grey.jpg": data})
        listing = list_images(root / "train")
        images = ImageFiles(listing)
        assert images[[name.decode() for name in listing.files].index("cat/grey.jpg")][0].getpixel((0, 0)) == (128,) * 3


def digest(root: Path) -> str:
    return load_data(DataConfig(name="image_folder", root=str(root))).digest


def test_digests_of_ordinary_folders_hold_no_word_of_the_decoding(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/cat/grey.png": saved(RAMP)})
    data = load_data(DataConfig(name="image_folder", root=str(root)))
    assert isinstance(data.train, LazySamples)
    listing = list_images(root / "train")
    assert not listing.steps.any()
    # Written out: the digest of such a folder must never change.
    stays, held = hold_out(len(listing.files), listing.labels, 0.1, 0)
    other = list_images(root / "val")
    rows = {"train": (listing, stays), "validation": (listing, held), "test": (other, np.arange(8))}
    settings = {"images": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], "augment": "crop_flip", "size": 224,
                "resize": 256}
    before = digest_of({name: {"files": one.files[chosen], "labels": one.labels[chosen], "stamps": one.stamps[chosen]}
                        for name, (one, chosen) in rows.items()}, settings)
    assert data.digest == before


@pytest.mark.parametrize("change", [
    lambda: saved(RAMP.astype(np.uint16) * 257), lambda: saved(COLOURS, exif=with_orientation(3)),
    lambda: saved(np.full((6, 8, 4), 9, np.uint8))])
def test_a_folder_that_is_decoded_in_another_way_has_another_digest(
    change: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path, {"train/cat/x.png": change()})
    listing = list_images(root / "train")
    assert listing.steps.any()
    now = digest(root)
    monkeypatch.setattr("swamp_ray.data.image_folder._identity", lambda found, rows: {
        "files": found.files[rows], "labels": found.labels[rows], "stamps": found.stamps[rows]})
    assert digest(root) != now


def test_what_the_network_reads_of_a_folder_is_what_the_files_show(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/cat/x.png": saved(RAMP.astype(np.uint16) * 257)})
    files = ImageFiles(list_images(root / "train"))
    image, label = files[4]
    assert label == 0
    assert np.array_equal(np.asarray(image), grey(RAMP))


def test_images_that_are_not_read_are_told(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train/cat/y.gif": saved(COLOURS, "GIF"), "val/dog/z.AVIF": b"x", "val/dog/notes.txt": b"x"})
    [warning] = load_data(DataConfig(name="image_folder", root=str(root))).warnings
    assert warning.startswith("2 files of the data end in .gif")
