"""Tables as CSV that no spreadsheet takes for formulas, and no terminal for codes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from swamp_ray.text.output import visible
from swamp_ray.text.tables import bounded

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 1000
"""Characters of a cell's text, of which a longer one has the beginning and the end."""
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """A frame as CSV: numbers in full, texts that a spreadsheet would compute with an apostrophe before them."""
    plain = frame.rename(columns=_cell)
    for position in range(frame.shape[1]):
        column = frame.iloc[:, position]
        if column.dtype.kind not in "biufM":
            plain.isetitem(position, column.map(_cell))
    return plain.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = bounded(visible(value), LONGEST)
    return f"'{text}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else text
