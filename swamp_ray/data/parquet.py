"""Reads Parquet files of images and labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from swamp_ray.data.image_decoding import UnclearImage, decode_rgb, decoding_error, no_pillow_warnings
from swamp_ray.data.jpeg_ends import refuse_cut
from swamp_ray.data.labels import check_labels
from swamp_ray.data.splits import first_rows
from swamp_ray.errors import UserError


def read_parquet(
    path: Path, num_classes: int, limit: int | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Images and labels of one Parquet file, and the class names in its metadata.

    Args:
        path: The file.
        num_classes: Labels must lie in [0, num_classes).
        limit: Rows to decode; see :func:`first_rows`.

    Returns:
        uint8 ``[N, H, W, 3]`` and int64 ``[N]``; names, possibly none.

    Raises:
        UserError: The file is missing, no Parquet, empty, without the columns, or has a damaged image, images of
            several sizes, or a label that does not fit; a row is named by its number, from 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists() and not path.is_file():
        raise UserError("this is no regular file", where=str(path), do="Put the Parquet file there.")
    if not path.is_file():
        raise UserError("this file is missing", where=str(path), do="Both the training and the test file are needed.")
    try:
        schema = pq.read_schema(path)
        missing = [name for name in ("image", "label") if name not in schema.names]
        if missing:
            raise UserError(f"there is no column {' and no column '.join(missing)}", where=str(path),
                            do=f"The columns must be image and label; the file has: {', '.join(schema.names)}.")
        table = pq.read_table(path, columns=["image", "label"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"this is no Parquet file that can be read: {error}", where=str(path)) from error
    labels = _label_column(table["label"], num_classes, path)
    rows = first_rows(len(labels), labels, limit)
    with no_pillow_warnings():
        images = _decode_all(_image_column(table["image"], path), rows, path)
    metadata = schema.metadata or {}
    classes = metadata.get(b"classes", b"").decode()
    names = tuple(classes.split(",")) if classes else ()
    return (images, labels[rows]), names


def _label_column(column: Any, num_classes: int, path: Path) -> np.ndarray:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        got = f"{column.type} with {column.null_count} missing values" if column.null_count else str(column.type)
        raise UserError("the column label must hold integers without gaps", got=got, where=str(path))
    labels = column.to_numpy().astype(np.int64)
    check_labels(labels, num_classes, str(path))
    return labels


def _image_column(column: Any, path: Path) -> Any:
    """The chunks of encoded images; Hugging Face wraps them in a struct."""
    import pyarrow as pa

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise UserError("the column image must hold the bytes of PNG or JPEG files", got=str(column.type),
                        where=str(path))
    return column


def _decode_all(column: Any, rows: np.ndarray, path: Path) -> np.ndarray:
    """The images of some rows, uint8 ``[N, H, W, 3]``."""
    encoded = column if len(rows) == len(column) else column.take(rows)
    images: np.ndarray | None = None
    for position, scalar in enumerate(encoded):
        where = f"{path}, row {rows[position]}"
        image = _decode(scalar.as_py(), where)
        if images is None:
            images = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            sizes = f"{image.shape[1]}x{image.shape[0]} instead of {images.shape[2]}x{images.shape[1]}"
            raise UserError("all images must have one size", got=sizes, where=where)
        images[position] = image
    assert images is not None
    return images


def _decode(encoded: bytes | None, where: str) -> np.ndarray:
    from PIL import Image

    if not encoded:
        raise UserError("the image is missing", where=where)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            picture = decode_rgb(image)
            refuse_cut(encoded, image)
            return np.asarray(picture)
    except UnclearImage as error:
        raise UserError(f"the image cannot be used: {error}", where=where) from error
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
        raise UserError(f"the image cannot be decoded: {decoding_error(error)}", where=where,
                        do="Replace the file, or remove the row.") from error
