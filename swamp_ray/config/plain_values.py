"""Values as people give them, made plain: the type of an option decides what a number in YAML, or a value of NumPy's,
stands for.

Where no type decides, as in ``model.options``, the rule of :mod:`swamp_ray.config.yaml_reading` holds.
"""

from __future__ import annotations

import enum
import math
import os
import sys
import types
from collections.abc import KeysView, Mapping, Sequence, Set, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from swamp_ray.config.fields import EXPONENT, Length, leaf_types, parse_length
from swamp_ray.config.yaml_reading import MAX_DEPTH, Scalar
from swamp_ray.errors import UserError

MOST_BITS = 1024
"""Of a whole number that is taken for a text."""
_NUMBERS = {int, float}
_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep, or holds itself"


def plain_value(value: Any, annotation: Any, source: str, path: str = "", depth: int = MAX_DEPTH) -> Any:
    """A value as an option of a type gets it.

    Args:
        value: From YAML, with :class:`~swamp_ray.config.yaml_reading.Scalar` for numbers, or from Python: values of
            NumPy and pandas, paths, members of an Enum, tuples.
        annotation: The option's type; ``Any`` where none decides.
        source: Where the value comes from, for errors.
        path: The option's path, for errors.
        depth: How deep lists and mappings may be nested.

    Raises:
        UserError: A number can be read in two ways, a list has no order, or values are nested too deep.
    """
    if depth < 0:
        raise UserError(_TOO_DEEP, where=f"{source}: {path.split('.')[0]}")
    if isinstance(value, Scalar):
        return _from_scalar(value, annotation, source, path)
    if str in leaf_types(annotation) and callable(value) and not isinstance(value, str):
        return import_path_of(value, f"{source}: {path}")
    value = _unwrapped(value)
    if isinstance(value, Mapping):
        return {_key(key): plain_value(item, inside(annotation, _key(key)), source, _below(path, key), depth - 1)
                for key, item in value.items()}
    if isinstance(value, Set):
        raise UserError("must be a list, because a set has no order", where=f"{source}: {path}")
    if isinstance(value, list | tuple | range):
        return [plain_value(item, _element(annotation, index), source, f"{path}[{index}]", depth - 1)
                for index, item in enumerate(value)]
    return _typed(value, leaf_types(annotation))


def distinct(values: Sequence[Any], written: Sequence[Any], annotation: Any) -> list[Any]:
    """Values of a list, without those that are written in another way and mean the same as an earlier one.

    What is written in the same way twice stays: it may be a mistake, and is refused elsewhere.
    """
    spelled = [_spelling(one) for one in written]
    meant = [_meaning(value, annotation) for value in values]
    kept = []
    for index, value in enumerate(values):
        same = [other for other in range(index) if meant[other] == meant[index]]
        if not same or any(spelled[other] == spelled[index] for other in same):
            kept.append(value)
    return kept


def import_path_of(code: Any, where: str) -> str:
    """The import path of a function or class, by which workers and later commands find it.

    Raises:
        UserError: It has none: a lambda, a function inside another one, an object.
    """
    module = getattr(code, "__module__", None)
    name = getattr(code, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not None and found is not code and "." not in name and callable(code):
        raise UserError("its module was imported anew since this was taken from it", got=f"{module}.{name}",
                        where=where, do=f"Import it again (from {module} import {name}), or give '{module}:{name}'.")
    if not module or not name or found is not code:
        spelled = f"{module}.{name}" if name else f"an object of the class {type(code).__name__}"
        raise UserError("this cannot be found by its name, which workers and later commands need", got=spelled,
                        where=where, do="Put a function or class at the top level of a module, and give it, or its "
                        "import path 'module:name'.")
    return f"{module}:{name}"


def _spelling(value: Any) -> str:
    return value.text if isinstance(value, Scalar) else f"{type(value).__name__} {value!r}"


def _meaning(value: Any, annotation: Any) -> Any:
    if Length in leaf_types(annotation):
        try:
            return str(parse_length(value))
        except ValueError:
            return repr(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else value
    return repr(value)


def _from_scalar(scalar: Scalar, annotation: Any, source: str, path: str) -> Any:
    kinds = leaf_types(annotation)
    if str in kinds and not kinds & {int, float, bool}:
        return scalar.text
    if scalar.problem:
        raise UserError(f"{scalar.text} {scalar.problem}", where=f"{source}: {path}" if path else source)
    return _typed(scalar.value, kinds)


def _unwrapped(value: Any) -> Any:
    """What a value of a library stands for: a number, a text, a list or a mapping."""
    if value is None or type(value) in (bool, int, float, str, list, tuple, dict):
        return value
    if isinstance(value, enum.Enum):
        return _unwrapped(value.value)
    if isinstance(value, BaseModel | Length):
        return value
    if isinstance(value, os.PathLike):
        path: Any = os.fspath(value)
        return os.fsdecode(path)
    if isinstance(value, Decimal | Fraction):
        return float(value)
    if isinstance(value, KeysView | ValuesView):
        return list(value)
    # NumPy's scalars are subclasses of Python's, so this comes before those.
    to_list = getattr(value, "tolist", None)
    if callable(to_list) and not isinstance(value, type | Mapping):
        found = to_list()
        return found if type(found) is type(value) else _unwrapped(found)
    for kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value


def _typed(value: Any, kinds: set[Any]) -> Any:
    """A plain value as a type wants it, where what is meant is certain; else the value itself."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and str in kinds and not kinds & _NUMBERS and _can_be_spelled(value):
        return str(value)
    if isinstance(value, str) and kinds & _NUMBERS and str not in kinds and EXPONENT.fullmatch(value):
        value = float(value)
        is_number = True
    if is_number and isinstance(value, float) and int in kinds and float not in kinds and value.is_integer():
        return int(value)
    return value


def _can_be_spelled(value: float) -> bool:
    """Whether a number is finite and short: Python refuses to spell whole numbers of thousands of digits."""
    if isinstance(value, int):
        return value.bit_length() <= MOST_BITS
    return math.isfinite(value)


def _key(key: Any) -> Any:
    found = key.value if isinstance(key, Scalar) else _unwrapped(key)
    return found if found is None or isinstance(found, str | int | float | bool) else key


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _parts(annotation: Any) -> list[Any]:
    """The types of a union, without their constraints."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for one in get_args(annotation) for part in _parts(one)]
    return [annotation]


def inside(annotation: Any, key: Any) -> Any:
    """The type of what stands under a key."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            field = part.model_fields.get(str(key))
            return Any if field is None else field.annotation
        if get_origin(part) is dict:
            return get_args(part)[1]
    return Any


def _element(annotation: Any, index: int) -> Any:
    """The type of an element of a list."""
    for part in _parts(annotation):
        if get_origin(part) is tuple:
            kinds = [kind for kind in get_args(part) if kind is not Ellipsis]
            return kinds[min(index, len(kinds) - 1)] if kinds else Any
    return Any

