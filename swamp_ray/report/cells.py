"""Text in coloured cells and beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

OWN_METRICS = ("accuracy", "loss", "mse", "mae")


def ink(background: Any) -> str:
    """Black or white, whichever has the larger contrast by the definition of WCAG 2.

    Args:
        background: Red, green, blue in [0, 1]; what follows is not looked at.
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background[:3]]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def capital(text: str) -> str:
    """With a large first letter."""
    return text[:1].upper() + text[1:]


def metric_title(metric: str) -> str:
    """A metric at the beginning of a title: the tool's own with a large letter, others as their authors spell them."""
    return capital(metric) if metric in OWN_METRICS else metric


def told_apart(names: Sequence[str], longest: int) -> list[str]:
    """Long names with parts left out, so that names that differ are still told apart.

    Names are cut in the middle. Where two would then read alike, the words that differ between all the long ones are
    kept instead, and a number stands at the end where even that is not enough.
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
        spelled = {name: f"{name[: max(1, longest - 6)]}… {number}" for number, name in enumerate(long, start=1)}
    return [spelled.get(name, name) for name in names]


def shortened(name: str, longest: int) -> str:
    """A long name with its middle left out: beginnings tell the place, ends the kind."""
    if len(name) <= longest:
        return name
    kept = longest - 1
    return f"{name[:kept // 2]}…{name[-(kept - kept // 2):]}"
