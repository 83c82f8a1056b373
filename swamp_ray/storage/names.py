"""Names of results: digests of everything that a result depends on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import numpy as np

from swamp_ray.storage.code_digest import digest_sources

FORMATS = {"particle": 2, "evaluation": 2}
"""By kind of result, 1 for all others. Raised when a change of the code alters numbers of that kind, so that no old
result answers for a new one. `swamp_ray.storage.former_names` knows which results of earlier formats hold the same
numbers.
"""


def format_of(kind: str) -> int:
    """The present format of a kind of result."""
    return FORMATS.get(kind, 1)


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, shortest floats that round-trip.

    Tuples are arrays. 1 and 1.0 are spelled differently, as are 0.0 and -0.0.

    Raises:
        TypeError: For a type that JSON does not have, naming where it is.
        ValueError: For NaN, infinities and text that is not Unicode.
    """
    _check_json(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and values (row-major, little-endian), in the order of names.

    Neither the order of the mapping nor strides nor the machine's byte order matter.

    Raises:
        TypeError: For arrays of objects or records.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.hasobject or array.dtype.kind == "V":
            raise TypeError(f"array {name!r} of dtype {array.dtype} has no well-defined bytes")
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        header = canonical_json([name, little.dtype.str, list(array.shape)])
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def name_of(kind: str, content: Mapping[str, object], version: int | None = None) -> str:
    """The name (64 hex digits) of a result of one kind, e.g. ``"particle"``, made from all that it depends on.

    Args:
        kind: What sort of result it is; kinds never share names.
        content: JSON values; the keys ``kind`` and ``format`` are taken.
        version: An earlier format of this kind; default: the present one.
    """
    taken = {"kind", "format"} & content.keys()
    if taken:
        raise ValueError(f"the content of a name must not have the keys {sorted(taken)}")
    return digest_bytes(canonical_json({**content, "kind": kind,
                                        "format": format_of(kind) if version is None else version}))


def source_digest(import_path: str, version: str | None = None) -> dict[str, str]:
    """What stands for user code in a name.

    Args:
        import_path: ``"package.module:attribute"``.
        version: A version that the user declares; it then stands for the code, whose text no longer matters.

    Returns:
        ``{"version": ...}`` if one is declared, else ``{"source": digest}`` of the module and of all modules of the
        same project that it imports, see `swamp_ray.storage.code_digest`. A module that is installed with a
        distribution also has ``"distribution": "name==version"``, which stands for the rest of that package.

    Raises:
        UserError: If the path is malformed or the module's source cannot be found.
    """
    return {"version": version} if version is not None else digest_sources(import_path)


def _check_json(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"{where or 'the value'} must be a dict, but is {type(value).__name__}")
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"keys of {where or 'the value'} must be text, but one is {key!r}")
            _check_json(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where or 'the value'} must be finite, but is {value}")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"{where or 'the value'} must be JSON, but is {type(value).__name__}")
