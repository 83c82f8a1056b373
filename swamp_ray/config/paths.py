"""Paths as people write them: ``~``, ``$VAR`` and ``${VAR}`` are expanded once, where a config is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from swamp_ray.errors import UserError, nearest

PathRule = Literal["absolute", "expanded", "kept"]
"""What becomes of paths: absolute as well as expanded; only expanded, for a cluster's own folder; kept as stored."""

PATHS = ("storage", "data.root", "start_from.path")
"""Options of a run that name a file, a folder or a URL."""

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\})")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def expanded(text: str, where: str) -> str:
    """A path or URL with its variables replaced and ``~`` expanded.

    Args:
        text: As it is written.
        where: Option or argument, for errors.

    Raises:
        UserError: A variable is not set, or there is no user of the name after ``~``.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1] if match[1] is not None else match[2]
        if name not in os.environ:
            hint = nearest(name, os.environ) if name else ""
            raise UserError(f"the environment variable {name!r} is not set", got=text, where=where,
                            do=f"{hint} Set it, or write the path out.".lstrip())
        return os.environ[name]

    # An absolute path may lie in a folder that is really called so; what was made absolute below it is no variable.
    found = text if _is_literal(text) else _VARIABLE.sub(value_of, text)
    if _URL.match(found) or not found.startswith("~"):
        return found
    home = os.path.expanduser(found)
    if home.startswith("~"):
        raise UserError("the home folder is not known", got=text, where=where, do="Write the path out, or ./~... for a "
                        "name that begins with ~.")
    return home


def _is_literal(text: str) -> bool:
    """Whether a path is absolute and the part of it with dollar signs is there as it is written."""
    named, dollar, rest = text.rpartition("$")
    return bool(dollar) and os.path.isabs(text) and os.path.lexists(f"{named}${rest.partition(os.sep)[0]}")


def absolute(text: str, where: str, folder: str | Path = "") -> str:
    """Like :func:`expanded`, and absolute: below ``folder``, by default the current one; a URL stays a URL."""
    found = expanded(text, where)
    if _URL.match(found) or not found:
        return found
    return str(Path(folder, found).absolute())


def below(folder: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted key, with relative paths put below a folder; a section may stand in place of its options."""
    return _changed(values, lambda path, _: path if _URL.match(path) else str(Path(folder, path)), "")


def expanded_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options by dotted key, with paths expanded; a section may stand in place of its options."""
    return _changed(values, lambda path, key: expanded(path, f"{where} {key}"), "")


def _changed(values: Mapping[str, Any], change: Callable[[str, str], str], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and any(path.startswith(f"{key}.") for path in PATHS):
            found[name] = _changed(value, change, f"{key}.")
        elif key in PATHS and isinstance(value, str):
            found[name] = change(value, key)
        else:
            found[name] = value
    return found
