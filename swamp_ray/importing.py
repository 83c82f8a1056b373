"""User code named in a config as ``package.module:attribute``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from swamp_ray.errors import UserError, nearest

_PACKAGE = str(Path(__file__).parent) + os.sep


def is_import_path(name: str) -> bool:
    """Whether a name means user code (``package.module:attribute``) and not a built-in."""
    return ":" in name


def own_traceback(error: BaseException) -> str:
    """The traceback of user code: without the frames of this package and of the import machinery, ends included.

    Libraries' frames stay where user code called them last, two at most: what they say comes last anyway.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith(("<frozen", _PACKAGE)) and frame.filename != importlib.__file__]
    own = [index for index, frame in enumerate(frames) if "site-packages" not in frame.filename]
    if own:
        frames = frames[: own[-1] + 3]
    lines = traceback.format_list(frames) + traceback.format_exception_only(error)
    return "".join((["Traceback (most recent call last):\n"] if frames else []) + lines).strip()


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
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = "".join(traceback.format_exception_only(error)).strip() if missing else own_traceback(error)
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
