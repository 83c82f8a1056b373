"""User code named in a config as ``package.module:attribute``."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp_ray.errors import UserError, nearest

importlib.import_module("swamp_ray.user_code.script")  # reads the script that runs before its file can change
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_STANDARD = tuple(str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "platstdlib"))
_LIBRARIES = {"site-packages", "dist-packages"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TORCH_NOISE = ("Exception raised from", "CUDA kernel errors", "\nframe #", "TORCHDYNAMO_VERBOSE", "TORCH_LOGS")
_TRIES = 3
_MAIN = ("Put it into a file of its own, for example my_project.py in the current folder, and name it "
         "my_project:{}.")


def is_import_path(name: str) -> bool:
    """Whether a name means user code (``package.module:attribute``) and not a built-in."""
    return ":" in name


def own_traceback(error: BaseException) -> str:
    """The traceback of user code: its own frames, and what the error says, without those of libraries and this package.

    Of torch's errors only the first line is kept, which says what is wrong. Colours are left out.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    text = _COLOUR.sub("", "".join(traceback.format_exception_only(error)).strip())
    if type(error).__module__.startswith("torch") or any(mark in text for mark in _TORCH_NOISE):
        text = text.splitlines()[0]
    head = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    return "".join([*head, text]).strip()


def _is_own(file: str) -> bool:
    """Whether a file is code of the user's: neither this package, nor a library, nor Python's own."""
    return not file.startswith(("<frozen", _PACKAGE, *_STANDARD)) and not _LIBRARIES & set(Path(file).parts)


def import_module(name: str, where: str, anew: bool = False) -> Any:
    """The module of a name, with the code that its file holds.

    Args:
        name: Its full name.
        where: Option path for the error text.
        anew: Whether its project is to be looked at once more, if this process has imported it before. Modules that
            have changed are then imported anew. In the course of a run this must not happen.

    Raises:
        UserError: The module fails on import (its own traceback is in the text), or cannot be imported anew.
    """
    from swamp_ray.user_code.loading import is_imported_as, restored_on_failure, take_up, taken

    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    changed: str | None = None
    is_name = all(word.isidentifier() for word in name.split("."))
    with restored_on_failure():
        for _ in range(_TRIES):
            if is_name and (anew or name not in sys.modules or taken(name) is None):
                take_up([name])
            module = _import(name, where)
            project = taken(name)
            if project is None or (changed := is_imported_as(project)) is None:
                return module
            anew = True
    raise UserError(f"the module {changed!r} changes again and again while it is imported", where=where)


def _import(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        reason = "".join(traceback.format_exception_only(error)).strip() if missing else own_traceback(error)
        raise UserError(
            f"the module {name!r} cannot be imported",
            do=f"Start swamp where the module can be found, or install it. The module's own error:\n{reason}",
            where=where,
        ) from error


def refuse_main(paths: Mapping[str, str]) -> None:
    """Refuse code that only the script or the notebook itself holds: workers on Ray cannot import it.

    Args:
        paths: Import paths by the option that names them.

    Raises:
        UserError: One begins with ``__main__``.
    """
    for option, path in paths.items():
        module_name, _, attribute = path.partition(":")
        if module_name == "__main__":
            raise UserError("workers on Ray are processes of their own, and cannot import what the script or the "
                            "notebook itself defines", got=path, where=option,
                            do=f"{_MAIN.format(attribute)} Or train in this process: execution.executor: inline.")


def split_path(path: str, where: str) -> tuple[str, str]:
    """The module and the attribute of an import path.

    Raises:
        UserError: One of them is missing.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError("must be an import path", got=path, do="Write it as 'package.module:attribute'.", where=where)
    return module_name, attribute


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
    module_name, attribute = split_path(path, where)
    found = import_module(module_name, where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{module_name!r} has no attribute {attribute!r}", where=where,
                            do=_MAIN.format(attribute) if module_name == "__main__" else nearest(part, dir(found)))
        found = getattr(found, part)
    return found
