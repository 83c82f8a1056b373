"""Tables and figures of speech that commands share. Light: nothing here imports torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from swamp_ray.text.metric_names import is_percent, short


def results_table(records: Sequence[Mapping[str, Any]], primary: str) -> Table:
    """The table at the end of a run.

    Args:
        records: Lines of ``rounds.jsonl``.
        primary: The metric shown.
    """
    several = any(record["num_particles"] > 1 for record in records)
    network = "averaged" if several else "network"
    caption = escape(bounded(primary)) + (" in percent" if is_percent(primary) else "")
    for record in records:
        if record.get("dropped"):
            caption += f"\nround {record['round']}: {_entered(record)} of {record['num_particles']} particles"
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", caption=caption, caption_justify="left", pad_edge=False)
    for heading in ("\nround", "\nsparsity", "weights\nleft", "dense\ntest",
                    "particles\ntest" if several else "particle\ntest", f"{network}\nvalidation", f"{network}\ntest"):
        table.add_column(heading, justify="right", no_wrap=True)
    dense = dense_metric(records, primary)
    for record in records:
        std = f" ± {short(record['std']['test'][primary], primary)}" if _entered(record) > 1 else ""
        average = record["average"]
        table.add_row(
            str(record["round"]), percent(record["sparsity"]), f"{record['survivors']:,}",
            "-" if dense is None else short(dense, primary),
            short(record["mean"]["test"][primary], primary) + std,
            short(average["validation"][primary], primary),
            Text(short(average["test"][primary], primary), style="bold green"))
    return table


NAME_WIDTH = 60
"""Characters of a name in a table or a line."""


def bounded(name: str, longest: int = NAME_WIDTH) -> str:
    """A name, of a long one its beginning and its end."""
    if len(name) <= longest:
        return name
    kept = longest - 3
    return f"{name[: kept // 2]}...{name[-(kept - kept // 2) :]}"


def told_apart(names: Sequence[str], longest: int) -> list[str]:
    """Long names with parts left out, so that names that differ are still told apart.

    Names are cut in the middle. Where two would then read alike, the words that differ between all the long ones are
    kept instead, or what stands between their common beginning and end, and a number stands at the end where even that
    is too long.
    """
    short = [shortened(name, longest) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    long = list(dict.fromkeys(name for name in names if len(name) > longest))
    words = [re.split(r"[./]", name) for name in long]
    spelled: dict[str, str] = {}
    if len({len(parts) for parts in words}) == 1:
        differing = [column for column in range(len(words[0])) if len({parts[column] for parts in words}) > 1]
        spelled = {name: "…".join(["", *(parts[column] for column in differing), ""])
                   for name, parts in zip(long, words, strict=True)}
    if not spelled or max(map(len, spelled.values())) > longest:
        spelled = _between_common_parts(long, longest)
    if not spelled:
        spelled = {name: f"{name[: max(1, longest - 6)]}… {number}" for number, name in enumerate(long, start=1)}
    return [spelled.get(name, name) for name in names]


def _between_common_parts(names: Sequence[str], longest: int) -> dict[str, str]:
    """Different names without most of their common beginning and end; nothing where what differs is too long."""
    start = len(os.path.commonprefix(names))  # noqa: RUF071 - letters, not folders
    end = len(os.path.commonprefix([name[start:][::-1] for name in names]))  # noqa: RUF071
    room = longest - 2 - max(len(name) - start - end for name in names)
    if room < 0:
        return {}
    before = min(start, room // 2)
    after = min(end, room - before)
    return {name: f"…{name[start - before: len(name) - end + after]}…" for name in names}


def short_names(names: Iterable[str], longest: int) -> dict[str, str]:
    """The short form of each name, see :func:`told_apart`."""
    every = list(dict.fromkeys(map(str, names)))
    return dict(zip(every, told_apart(every, longest), strict=True))


def shortened(name: str, longest: int) -> str:
    """A long name with its middle left out: beginnings tell the place, ends the kind."""
    if len(name) <= longest:
        return name
    kept = longest - 1
    return f"{name[:kept // 2]}…{name[-(kept - kept // 2):]}"


def _entered(record: Mapping[str, Any]) -> int:
    return record["num_particles"] - len(record.get("dropped", ()))


def dense_metric(records: Sequence[Mapping[str, Any]], primary: str) -> float | None:
    """Test metric of the dense network: the mean of the particles that were trained without a mask."""
    dense = [record for record in records if record["sparsity"] == 0]
    return float(dense[0]["mean"]["test"][primary]) if dense else None


def counted(num: int, noun: str) -> str:
    """``"1 round"``, ``"2 rounds"``."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def percent(fraction: float) -> str:
    """A sparsity in percent, with as many digits as show one of a small density: 99.95 %."""
    density = 100 * (1 - fraction)
    digits = 1 if density >= 0.1 or density <= 0 else min(6, math.ceil(-math.log10(density)))
    return f"{100 * fraction:.{digits}f} %"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Whole numbers in order, those that follow each other together: ``"0 to 3, 7"``."""
    found: list[list[int]] = []
    for one in sorted(set(numbers)):
        if found and one == found[-1][-1] + 1:
            found[-1][1:] = [one]
        else:
            found.append([one])
    shown = [" to ".join(map(str, ends)) if ends[-1] != ends[0] + 1 else f"{ends[0]}, {ends[-1]}" for ends in found]
    return ", ".join(shown[:most]) + (" ..." if len(shown) > most else "")


def duration(seconds: float) -> str:
    """``"3 min 20 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """``"3.2 MB"``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.95 or unit == "TB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return ""


def display_path(path: str | Path) -> str:
    """Relative to the current folder where that is shorter; a URL as it is."""
    if "://" in str(path):
        return str(path)
    path = Path(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
