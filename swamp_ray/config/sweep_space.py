"""The space of a sweep as people write it: every value gets the type of the option that it sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swamp_ray.config.option_errors import annotation_of
from swamp_ray.config.paths import expanded_values
from swamp_ray.config.plain_values import distinct, plain_value
from swamp_ray.config.sweep import Domain


def plain_space(space: Any, source: str, expand: bool) -> Any:
    """Plain values of a space, as :class:`~swamp_ray.config.sweep.SweepConfig` checks them.

    Args:
        space: Domains by entry, from YAML or Python.
        source: Where they come from, for errors.
        expand: Replace ``~`` and variables in paths.

    Raises:
        UserError: A value can be read in two ways, or a variable in a path is not set.
    """
    if not isinstance(space, Mapping):
        return plain_value(space, Any, source, "space")
    return {str(entry): _plain_domain(str(entry), domain, source, expand) for entry, domain in space.items()}


def _plain_domain(entry: str, domain: Any, source: str, expand: bool) -> Any:
    path = f"space.{entry}"
    if isinstance(domain, Domain):
        domain = domain.model_dump(exclude_none=True)
    if not isinstance(domain, Mapping):
        return plain_value(domain, Any, source, path)
    plain: dict[str, Any] = {}
    for kind, values in domain.items():
        where = f"{path}.{kind}"
        if kind not in ("grid", "choice"):
            field = Domain.model_fields.get(str(kind))
            plain[kind] = plain_value(values, Any if field is None else field.annotation, source, where)
        elif isinstance(values, Mapping):
            plain[kind] = {name: _plain_group(group, source, f"{where}.{name}", expand)
                           for name, group in values.items()}
        else:
            plain[kind] = _plain_values(entry, values, source, where, expand)
    return plain


def _plain_group(group: Any, source: str, path: str, expand: bool) -> Any:
    """The options that are set together under one name."""
    if not isinstance(group, Mapping):
        return plain_value(group, Any, source, path)
    return {key: _plain_value(str(key), value, source, f"{path}.{key}", expand) for key, value in group.items()}


def _plain_values(entry: str, values: Any, source: str, path: str, expand: bool) -> Any:
    """A list of values; those that are only written in another way than an earlier one are left out."""
    written = plain_value(values, tuple[Any, ...], source, path) if not isinstance(values, list | tuple) else values
    if not isinstance(written, list | tuple):
        return written
    plain = [_plain_value(entry, value, source, f"{path}[{index}]", expand) for index, value in enumerate(written)]
    return distinct(plain, list(written), annotation_of(entry))


def _plain_value(key: str, value: Any, source: str, path: str, expand: bool) -> Any:
    plain = plain_value(value, annotation_of(key), source, path)
    return expanded_values({key: plain}, f"{source}: {path},")[key] if expand else plain
