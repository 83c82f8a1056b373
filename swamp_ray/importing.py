"""User code named in a config as ``package.module:attribute``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from swamp_ray.errors import UserError, nearest


def is_import_path(name: str) -> bool:
    """Whether a name means user code (``package.module:attribute``) and not a built-in."""
    return ":" in name


def load_object(path: str, where: str) -> Any:
    """The object that an import path names.

    The current directory is importable, as with ``python -m``.

    Args:
        path: ``package.module:attribute``; the attribute may be dotted.
        where: Option path for the error text, e.g. ``"model.name"``.

    Raises:
        UserError: The path is malformed, the module fails on import (its own traceback is in the text),
            or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError("must be an import path", got=path, do="Write it as 'package.module:attribute'.", where=where)
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        if not (isinstance(error, ModuleNotFoundError) and error.name == module_name):
            reason = traceback.format_exc().strip()
        raise UserError(
            f"the module {module_name!r} cannot be imported",
            do=f"Start swamp where the module can be found, or install it. The module's own error:\n{reason}",
            where=where,
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = nearest(part, dir(found))
            raise UserError(f"{module_name!r} has no attribute {attribute!r}", do=hint, where=where)
        found = getattr(found, part)
    return found
