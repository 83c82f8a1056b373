"""The script that this process runs, as it was at its start: what becomes of its file later is not what runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _read() -> tuple[Path, bytes] | None:
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        return None if file is None else (Path(os.path.abspath(file)), Path(file).read_bytes())
    except OSError:
        return None


SCRIPT = _read()
"""Its file and its bytes; None in a notebook and in an interactive session."""
