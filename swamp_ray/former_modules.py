"""Modules that scripts of earlier versions import, found under their former names with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER = {
    "swamp_ray.config_reading": "swamp_ray.config.reading",
    "swamp_ray.sweep_reading": "swamp_ray.config.sweep_reading",
    "swamp_ray.orchestration.upload": "swamp_ray.submit.upload",
}
"""Former names and today's. docs/decisions/rooms.md has all that have moved."""
_FOLDERS = {name.rpartition(".")[0] for name in FORMER} - {"swamp_ray"}
"""Packages that are gone; the modules that were in them are looked for through them."""


class _Alias(Loader):
    """Makes an empty module that looks every name up in another one."""

    def __init__(self, target: str) -> None:
        self._target = target

    def exec_module(self, module: ModuleType) -> None:
        """Say that the module has moved, and let it give what the other one has."""
        # The frames between this one and the import statement are Python's own.
        warnings.warn(f"{module.__name__} has moved to {self._target}", DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            return getattr(importlib.import_module(self._target), name)

        module.__getattr__ = look_up


class _Finder(MetaPathFinder):
    """Finds modules by their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A former name's module; None for any other name."""
        if fullname in _FOLDERS:
            return ModuleSpec(fullname, None, is_package=True)
        if fullname in FORMER:
            return ModuleSpec(fullname, _Alias(FORMER[fullname]))
        return None


def install() -> None:
    """Let former names be imported, from now on, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
