"""What is wrong with an option, in the words of somebody who writes YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from swamp_ray.config.fields import leaf_types
from swamp_ray.config.plain_values import inside
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import nearest


def explain(error: ValidationError, model: type[BaseModel] = SwampConfig) -> str:
    """Pydantic's errors in a YAML user's words, each with its option path.

    Args:
        error: What validation raised.
        model: What was validated, for the names of known options.
    """
    texts: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        place = tuple(part for part in problem["loc"] if not _is_kind(part))
        path = ".".join(str(part) for part in place)
        text = _explain_one(problem, place, path, model)
        if text not in texts.setdefault(path, []):
            texts[path].append(text)
    lines = [(f"{path}: " if path else "") + " or ".join(found) for path, found in texts.items()]
    return lines[0] if len(lines) == 1 else "several options are wrong:\n" + "\n".join(f"  - {line}" for line in lines)


def _is_kind(part: str | int) -> bool:
    """Whether a part of pydantic's path is no option, but one of the kinds of values that an option may have."""
    return part == "str" or str(part).startswith(("function-", "literal[", "bool", "tuple[", "dict["))


def _explain_one(problem: Any, place: Sequence[str | int], path: str, model: type[BaseModel]) -> str:
    text: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _no_such_option(str(place[-1]), _keys_at(place[:-1], model))
    if problem["type"] == "value_error" and not place:
        return text
    text = _PLAIN.get(str(problem["type"])) or text.replace("Input should be", "must be")
    got = problem.get("input")
    if isinstance(got, Mapping) or problem["type"] == "missing":
        return text
    return f"{text}, but got {'nothing' if got is None else str(got).lower() if isinstance(got, bool) else repr(got)}"


def _no_such_option(name: str, known: Sequence[str]) -> str:
    return " ".join(filter(None, ["there is no such option.", nearest(name, known), f"Known here: {', '.join(known)}"]))


def annotation_of(key: str) -> Any:
    """The type of the option that a dotted key names; Any inside options that are mappings, and for unknown keys."""
    annotation: Any = SwampConfig
    for part in key.split("."):
        annotation = inside(annotation, part)
    return annotation


def unknown_key(key: str) -> str | None:
    """What is wrong with a dotted key; None if it names an option, or something inside an option that is a mapping."""
    place: list[str] = []
    for part in key.split("."):
        known = _keys_at(place, SwampConfig)
        if not known:
            return None if _is_mapping(place) else f"{'.'.join(place)} is an option, not a section"
        if part not in known:
            return _no_such_option(part, known)
        place.append(part)
    return None


def _is_mapping(place: Sequence[str]) -> bool:
    section = _section_at(place[:-1], SwampConfig)
    return dict in {get_origin(kind) for kind in leaf_types(section.model_fields[place[-1]].annotation)}


# Pydantic's types of errors in a YAML user's words.
_PLAIN = {
    "missing": "is missing",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, such as {a: 1}",
    "model_type": "must be a section: a mapping of options",
    "model_attributes_type": "must be a section: a mapping of options",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text (in quotes, where YAML would read something else)",
}


def _keys_at(place: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    return list(getattr(_section_at(place, model), "model_fields", {}))


def _section_at(place: Sequence[str | int], model: type[BaseModel]) -> Any:
    """The section at a path, None where an option stands."""
    section: Any = model
    for part in place:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = _section_of(field.annotation) if field is not None else section
    return section


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part)) is not None), None)
