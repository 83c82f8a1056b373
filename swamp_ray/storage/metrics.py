"""Every scalar of a run: JSON lines while it runs, Parquet afterwards, TensorBoard beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swamp_ray.storage.event_files import EventFiles
from swamp_ray.storage.json_lines import (
    CHECK_KEY,
    Lines,
    Salvaged,
    dump_json,
    load_json,
    salvage_lines,
    sealed,
)
from swamp_ray.storage.places import Spot, as_spot
from swamp_ray.storage.records import ScalarsRecord, fits

_LEADING: dict[str, pa.DataType] = {
    "time": pa.float64(), "kind": pa.string(), "round": pa.int64(), "particle": pa.int64(), "epoch": pa.int64(),
    "step": pa.int64(),
}
AFRESH = "measured_anew"
"""Kind of a line after which everything is logged again: metrics before it were measured in another way."""


class MetricsLog:
    """Writes scalars as they happen, one line a call, after what earlier attempts of the run have written.

    Args:
        jsonl: The file of JSON lines.
        tensorboard: Folder for TensorBoard's event files, see :mod:`swamp_ray.storage.event_files`; None for none. In
            an object store they are put there when the log is closed.
        afresh: What is in the file so far is out of date, because networks are measured in another way from now on;
            it stays there, and is not read any more.

    Raises:
        UserError: If TensorBoard files are wanted and tensorboardX is not installed.
        RunError: If the file could not be written.
    """

    def __init__(
        self, jsonl: str | Path | Spot, tensorboard: str | Path | Spot | None = None, afresh: bool = False
    ) -> None:
        self._lines = Lines(as_spot(jsonl))
        self._events = None if tensorboard is None else EventFiles(as_spot(tensorboard), afresh)
        if afresh:
            self._lines.append(sealed({"time": time.time(), "kind": AFRESH}))

    def log(self, **fields: Any) -> None:
        """Write one line.

        Args:
            fields: ``kind`` (text, e.g. ``"epoch"``), ``round``, ``particle``, ``epoch``, ``step`` as far as they
                apply, then values by name. ``time`` (seconds since 1970) is filled in. None is left out.
        """
        values = {f"metric/{name}" if name == CHECK_KEY else name: value for name, value in fields.items()}
        record = {"time": time.time(), **{name: value for name, value in values.items() if value is not None}}
        # What is read back decides, so that TensorBoard, Parquet and the lines cannot disagree about a value.
        plain: dict[str, Any] = load_json(dump_json(record))
        self._lines.append(sealed(plain))
        if self._events is not None:
            self._events.add(plain)

    def flush_if_due(self) -> None:
        """The lines so far belong together: in an object store they are written now, or later as a whole."""
        self._lines.flush_if_due()
        if self._events is not None:
            self._events.flush()

    def flush(self) -> None:
        """Have all lines written when this returns."""
        self._lines.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        try:
            self._lines.close()
        finally:
            if self._events is not None:
                events = self._events
                self._events = None
                events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(where: str | Path | Spot) -> list[dict[str, Any]]:
    """The lines of a run's metrics that can be read, and hold today."""
    return since_afresh(salvage_lines(as_spot(where)).records)


def since_afresh(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run's metrics that are not out of date."""
    last = max((number for number, line in enumerate(lines) if line.get("kind") == AFRESH), default=-1)
    return list(lines[last + 1:])


def salvage_jsonl(where: str | Path | Spot) -> Salvaged:
    """The lines that hold, and which do not."""
    return salvage_lines(as_spot(where), _is_scalars)


def _is_scalars(line: Mapping[str, Any]) -> bool:
    return fits(ScalarsRecord, line)


def mend_jsonl(where: str | Path | Spot) -> str:
    """Take lines that are damaged out of a file in a folder, so that what they held can be written again.

    Returns:
        What was found, in words; nothing if every line holds. In an object store the lines stay, and are not read.
    """
    spot = as_spot(where)
    found = salvage_jsonl(spot)
    # What a crash left at the end is no damage.
    damaged = [number for number in found.damaged if number < found.num_lines or number in found.changed]
    if not damaged:
        return ""
    spot.place.rewrite_appended(spot.key, b"".join(line + b"\n" for line in found.intact))
    several = len(damaged) > 1
    return (f"{spot}: line{'s' * several} {', '.join(map(str, damaged[:5]))} of {found.num_lines} "
            f"{'are' if several else 'is'} not what was written and left out; what stored results hold of "
            f"{'them' if several else 'it'} is written again")


def write_parquet(jsonl: str | Path | Spot, parquet: str | Path | Spot) -> None:
    """Write the JSON lines as a table, atomically.

    Columns: time, kind, round, particle, epoch, step (always there), then the others by name. A column of whole
    numbers is int64, and so it is in pandas where values are missing; one with any fraction is float64, one that mixes
    text or nested values with others JSON text. Rows are in the order of rounds: the dense phase, then of each round
    the particles and last the round's own row, in whatever order evaluations ended.
    """
    records = sorted(read_metrics(jsonl), key=_place_in_table)
    others = sorted({name for record in records for name in record} - _LEADING.keys())
    columns = {name: _column([record.get(name) for record in records], _LEADING.get(name, pa.float64()))
               for name in [*_LEADING, *others]}
    buffer = pa.BufferOutputStream()
    pq.write_table(_with_whole_numbers(pa.table(columns)), buffer)
    as_spot(parquet).write(buffer.getvalue().to_pybytes())


def _place_in_table(record: Mapping[str, Any]) -> tuple[float, bool, float]:
    """What rows are sorted by; those of one particle stay in the order in which they were written."""
    round_, particle = (record.get(name) for name in ("round", "particle"))
    return (round_ if type(round_) is int else -1, record.get("kind") == "round",
            particle if type(particle) is int else -1)


def _with_whole_numbers(table: pa.Table) -> pa.Table:
    """The same table, with a note for pandas: it would read whole numbers as floats where some are missing."""
    import pandas as pd

    frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    noted = pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False).schema.metadata
    return table.replace_schema_metadata(noted)


def _column(values: Sequence[Any], default: pa.DataType) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.array(values, type=default)
    if kinds == {bool}:
        return pa.array(values, type=pa.bool_())
    if kinds == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pa.array(values, type=pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, type=pa.string())
