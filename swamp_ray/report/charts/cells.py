"""Text in coloured cells and beside them."""

from __future__ import annotations

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
