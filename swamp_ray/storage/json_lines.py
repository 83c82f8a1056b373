"""JSON for people and tools to read: single documents, and files that grow by one line at a time.

JSON has no word for infinite numbers or NaN, and other readers refuse Python's; here they are the strings
``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which are turned into numbers again on reading.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.storage.place import FLUSH_S
from swamp_ray.storage.places import Spot, as_spot

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
CHECK_KEY = "check"


def dump_json(value: object, indent: int | None = None) -> bytes:
    """UTF-8 JSON in the given key order; numpy scalars and one-element tensors count as numbers."""
    return json.dumps(_to_plain(value), indent=indent, ensure_ascii=False, allow_nan=False).encode()


def load_json(data: bytes) -> Any:
    """The value that `dump_json` was given. Raises ValueError for anything else."""
    return _from_plain(json.loads(data))


def read_lines(where: Path | Spot) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines, in order and without their checksums; a missing file has none.

    A last line that a crash cut off is ignored.

    Raises:
        CorruptArtifactError: If a line before the last is not a JSON object, or one has changed since it was written.
    """
    spot = as_spot(where)
    found = salvage_lines(spot)
    if found.changed:
        raise CorruptArtifactError(f"{spot}: a line has changed since it was written (line {found.changed[0]}). "
                                   "Restore the file, or delete that line.")
    wrong = [number for number in found.damaged if number < found.num_lines]
    if wrong:
        raise CorruptArtifactError(f"{spot}: line {wrong[0]} is not a JSON object. The file was changed or damaged "
                                   "after it was written; restore it, or delete that line.")
    return list(found.records)


@dataclass(frozen=True)
class Salvaged:
    """What can still be read of a file of JSON lines.

    Attributes:
        records: Of the lines that hold, in order.
        damaged: Numbers of the lines that do not, counted from 1.
        num_lines: How many whole lines there are.
        is_cut_off: Whether something without an end follows them.
        changed: Numbers of the damaged lines that are JSON objects, but not those that were written.
        unverified: How many of the records have no checksum, as older versions wrote them.
        intact: The bytes of the lines that hold.
    """

    records: tuple[dict[str, Any], ...]
    damaged: tuple[int, ...] = ()
    num_lines: int = 0
    is_cut_off: bool = False
    changed: tuple[int, ...] = ()
    unverified: int = 0
    intact: tuple[bytes, ...] = ()


def salvage_lines(where: Path | Spot, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> Salvaged:
    """All objects of a file of JSON lines that can be read, and which lines cannot; a missing file has none.

    A line without a checksum is from an older version, unless one with a checksum stands before it: then it was put
    there, or its checksum was taken away, and it is damaged.

    Args:
        where: The file.
        fits: Whether an object is what was written; one that is not counts as damaged.
    """
    return salvage_bytes(as_spot(where).read_appended(), fits)


def salvage_bytes(data: bytes, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> Salvaged:
    """What `salvage_lines` says of a file that holds these bytes, which may begin at any of its lines."""
    end = data.rfind(b"\n") + 1
    records = []
    damaged = []
    changed = []
    intact = []
    unverified = 0
    lines = data[:end].splitlines()
    for number, line in enumerate(lines, start=1):
        record = _parse_line(line)
        if record is None:
            damaged.append(number)
            continue
        has_check = CHECK_KEY in record
        holds = is_sealed(record) and (has_check or unverified == len(records))
        plain = {key: value for key, value in record.items() if key != CHECK_KEY}
        if not holds:
            changed.append(number)
        if not holds or not fits(plain):
            damaged.append(number)
            continue
        records.append(plain)
        intact.append(line)
        unverified += not has_check
    return Salvaged(tuple(records), tuple(damaged), len(lines), end < len(data), tuple(changed), unverified,
                    tuple(intact))


class Lines:
    """JSON lines that grow, wherever they lie; whatever a crash left torn at the end is removed first.

    Args:
        where: The file; in an object store its lines are numbered objects under its key.
        durable: Each line is written, and on the disk, when `append` returns.

    Raises:
        RunError: It could not be opened.
    """

    def __init__(self, where: Path | Spot, *, durable: bool = False) -> None:
        spot = as_spot(where)
        self._lines = spot.place.appender(spot.key, durable=durable, is_line=_is_line)

    def append(self, record: Mapping[str, object]) -> None:
        """Add one line. Raises RunError if it could not be written; no part of it stays then."""
        self._lines.append(dump_json(dict(record)) + b"\n")

    def append_bytes(self, lines: bytes) -> None:
        """Add whole lines that were written before; RunError as for `append`."""
        self._lines.append(lines)

    def flush_if_due(self, every_s: float = FLUSH_S) -> None:
        """A group of lines is complete, see :meth:`swamp_ray.storage.place.Appender.flush_if_due`."""
        self._lines.flush_if_due(every_s)

    def flush(self) -> None:
        """Have everything written when this returns."""
        self._lines.flush()

    def close(self) -> None:
        """Flush, and end; a second call does nothing."""
        self._lines.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def append_line(where: Path | Spot, record: Mapping[str, object]) -> None:
    """Add one line with its checksum, durably."""
    with Lines(where, durable=True) as lines:
        lines.append(sealed(record))


def sealed(record: Mapping[str, object]) -> dict[str, object]:
    """The record with a last key ``check``: the beginning of the SHA-256 of the others."""
    return {**record, CHECK_KEY: _check(record)}


def unsealed(record: Mapping[str, Any], source: Path | Spot) -> dict[str, Any]:
    """The record that `sealed` was given; one without ``check`` as it is.

    Raises:
        CorruptArtifactError: If the record has changed since.
    """
    plain = {key: value for key, value in record.items() if key != CHECK_KEY}
    if not is_sealed(record):
        raise CorruptArtifactError(f"{source}: a line has changed since it was written ({dump_json(plain)[:60]!r}...). "
                                   "Restore the file, or delete that line.")
    return plain


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record is as `sealed` left it; one without ``check`` is."""
    plain = {key: value for key, value in record.items() if key != CHECK_KEY}
    return record.get(CHECK_KEY, _check(plain)) == _check(plain)


def _check(record: Mapping[str, object]) -> str:
    return hashlib.sha256(dump_json(dict(record))).hexdigest()[:16]


def _is_line(line: bytes) -> bool:
    return _parse_line(line) is not None


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = load_json(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    return _NON_FINITE.get(value, _text(value)) if isinstance(value, str) else value


def _text(text: str) -> str:
    """The text; half a surrogate pair, which JSON can spell and nobody can print, is a ValueError."""
    text.encode()
    return text
