"""Names of metrics that know how their values are written. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PERCENT = "percent"
MAX_DIGITS = 12
OWN: Mapping[str, str | int] = {"accuracy": PERCENT}
"""How metrics are written whose task says nothing of them."""


class Metric(str):
    """A metric's name, equal to the plain text.

    Attributes:
        style: ``"percent"``: a share, written in percent with two decimals; a number: so many decimals; None: four
            significant digits.
    """

    style: str | int | None

    def __new__(cls, name: str, shown_as: Mapping[str, Any] | None = None) -> Metric:
        """A name, and what a task's ``shown_as`` or a record of it says; what is no style there is passed over."""
        made = super().__new__(cls, name)
        style = (shown_as or {}).get(name, OWN.get(name))
        made.style = style if is_style(style) else OWN.get(name)
        return made


def shown_primary(task: Any) -> Metric:
    """The metric that decides, as a task wants it written."""
    return Metric(task.primary, task.shown_as)


def is_style(value: object) -> bool:
    """Whether a value says how a metric is written."""
    return value == PERCENT or (type(value) is int and 0 <= value <= MAX_DIGITS)


def style_of(metric: str) -> str | int | None:
    """How values of a metric are written; plain text is a metric whose task says nothing of it."""
    return metric.style if isinstance(metric, Metric) else OWN.get(metric)


def is_percent(metric: str) -> bool:
    """Whether a metric is a share that is shown in percent, and its differences in points."""
    return style_of(metric) == PERCENT


def short(value: float, metric: str) -> str:
    """A metric in a column whose unit is known: shares in percent without the sign."""
    style = style_of(metric)
    if style == PERCENT:
        return f"{100 * value:.2f}"
    return f"{value:.4g}" if style is None else f"{value:.{style}f}"


def number(value: float, metric: str) -> str:
    """A metric as people read it: shares in percent, others with their decimals, or four digits."""
    return short(value, metric) + (" %" if is_percent(metric) else "")


def unit_words(metric: str) -> str:
    """What a table says of its numbers: ``"accuracy in percent"``."""
    return f"{metric} in percent" if is_percent(metric) else str(metric)
