"""What the options of a config are made of: lengths, fractions, free options, labels, and what all sections share."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)


@dataclass(frozen=True)
class Length:
    """How long something lasts: a number of epochs or of optimiser steps."""

    amount: float
    unit: Literal["epochs", "steps"] = "epochs"

    def steps(self, steps_per_epoch: int) -> int:
        """The same length in optimiser steps, rounded to the nearest step."""
        return round(self.amount * steps_per_epoch) if self.unit == "epochs" else int(self.amount)

    def __str__(self) -> str:
        # Exact, so that a saved config reads back as the same length.
        amount = int(self.amount) if self.amount == int(self.amount) else repr(self.amount)
        return f"{amount} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"


_LENGTH = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(k?)\s*(epochs?|steps?)?\s*")


def parse_length(value: object) -> Length:
    """A :class:`Length` from ``4``, ``"4 epochs"``, ``"0.5 epochs"``, ``"800 steps"`` or ``"16k steps"``."""
    if isinstance(value, Length):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a length such as '4 epochs' or '800 steps'")
    match = _LENGTH.fullmatch(f"{value}")
    if match is None:
        raise ValueError("must be a length such as '4 epochs' or '800 steps', and not negative")
    amount = float(match[1]) * (1000 if match[2] else 1)
    if not math.isfinite(amount):
        raise ValueError("must be finite")
    unit: Literal["epochs", "steps"] = "steps" if (match[3] or "").startswith("step") else "epochs"
    if unit == "steps" and amount != int(amount):
        raise ValueError("must be a whole number of steps")
    return Length(amount, unit)


EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""A number as YAML 1.1 takes it for a text."""


def leaf_types(annotation: Any) -> set[Any]:
    """The types that a plain value of a field, or of its list, may have, without their constraints."""
    if get_origin(annotation) is Annotated:
        return leaf_types(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return {tuple}.union(*(leaf_types(part) for part in get_args(annotation) if part is not Ellipsis))
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(leaf_types(part) for part in get_args(annotation)))
    return {annotation}


LengthField = Annotated[
    Length,
    BeforeValidator(parse_length),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": ["string", "number"]}),
]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options enter names as JSON, in which dates, bytes and infinities have no spelling."""
    for path, value in _leaves(options):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} must be finite, but is {value}")
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"{path} must be text, a number, a list or a mapping, but is {type(value).__name__}")
    return options


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"keys must be text, but one is {key!r}")
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


Options = Annotated[dict[str, Any], AfterValidator(_plain_options)]


def _is_selector(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"must have keys such as ray.io/node-group, but one is {key!r}")
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{key} must be a label such as spot, !spot or in(a, b), but is {value!r}")
    return labels


_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"([a-zA-Z0-9.-]+/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"!?({_NAME}|in\({_NAME}(, ?{_NAME})*\))")
Labels = Annotated[dict[str, str], AfterValidator(_is_selector)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take true for 1 and the text '0.9' for the number, where somebody made a mistake."""
        kinds = leaf_types(cls.model_fields[str(info.field_name)].annotation)
        found = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in found) and bool not in kinds and kinds & {int, float}:
            raise ValueError("must hold numbers" if found is value else "must be a number")
        # YAML reads 1e-3, without a point, as a text.
        if isinstance(value, str) and kinds <= {int, float, type(None)} and not EXPONENT.fullmatch(value):
            raise ValueError("must be a number, not a text")
        return value


def exact(value: float) -> Fraction:
    """The rational number that was written, e.g. 1/5 for 0.2."""
    return Fraction(repr(float(value)))
