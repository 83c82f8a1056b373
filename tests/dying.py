"""A worker of an analysis that dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.items import Item
from swamp_ray.analysis.measuring import measure

_texts: list[str] = []


def dying_measure(bench: Bench, item: Item) -> Any:
    """As `swamp analyze` measures; but the first process that is given a second piece ends there, without a word."""
    _texts.append(item.text)
    marker = Path(bench.rundir.place.uri) / "died"
    if len(_texts) == 2 and not marker.exists():
        marker.write_text(item.text)
        os._exit(1)
    return measure(bench, item)
