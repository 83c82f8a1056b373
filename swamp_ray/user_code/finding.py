"""Where a module lies and whose it is, found as Python would find it, without running anything."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from swamp_ray.errors import UserError
from swamp_ray.user_code.script import SCRIPT
from swamp_ray.user_code.source_text import Text, understand

OWN_PACKAGE = __name__.partition(".")[0]
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class ModuleLocation:
    """A module that Python would import.

    Attributes:
        name: Its full name.
        file: Its file, links not followed; inside an archive, the path that Python gives it.
        is_package: Whether the file is a package's ``__init__``.
        loader: What Python would load it with.
        package: The package that its relative imports start from.
    """

    name: str
    file: Path
    is_package: bool
    loader: Any
    package: str

    @property
    def folder(self) -> Path:
        """The folder on the import path in which the module's top-level package lies, links followed."""
        depth = self.name.count(".") + self.is_package
        above = self.file.parents[min(depth, len(self.file.parents) - 1)]
        return Path(os.path.realpath(above))

    @property
    def is_compiled(self) -> bool:
        """Whether it is machine code, which a process loads only once."""
        return self.file.suffix not in (".py", ".pyc") and self.file.is_file()

    def read(self) -> Text:
        """What it consists of now.

        Raises:
            UserError: It can be found, but not read.
        """
        return understand(self._data(), self.file.suffix, self.package)

    def _data(self) -> bytes:
        if self.name == "__main__" and SCRIPT is not None:
            return SCRIPT[1]
        if self.file.is_file():
            try:
                return self.file.read_bytes()
            except OSError as error:
                raise UserError(f"the source of the module {self.name!r} could not be read: {error.strerror}",
                                where=str(self.file)) from error
        try:  # in an archive, or made by a loader of its own
            source = self.loader.get_source(self.name)
        except Exception:  # a loader of somebody else's may fail in any way
            source = None
        if source is None:
            raise UserError(f"the module {self.name!r} has no source that can be read", where=str(self.file),
                            do="Put it into a file, or declare a version for it (model.version, task.version or "
                               "pruning.version).")
        return str(source).encode("utf-8", "surrogatepass")


def find(name: str) -> ModuleLocation | None:
    """The module of a name; None where Python has none, or where it has no file, as a namespace package."""
    if name == "__main__":
        return _main()
    spec = _search(name)
    if spec is None:
        spec = _loaded_spec(name)
    if spec is None or not spec.has_location or not spec.origin:
        return None
    if not Path(spec.origin).is_file() and not hasattr(spec.loader, "get_source"):
        return None
    is_package = spec.submodule_search_locations is not None
    package = name if is_package else name.rpartition(".")[0]
    return ModuleLocation(name, Path(os.path.abspath(spec.origin)), is_package, spec.loader, package)


def _search(name: str) -> ModuleSpec | None:
    top, *rest = name.split(".")
    # The current folder is importable, as with `python -m`.
    spec = _ask(top, None) or PathFinder.find_spec(top, [str(Path.cwd())])
    full = top
    for word in rest:
        if spec is None:
            return None
        full += f".{word}"
        spec = _ask(full, list(spec.submodule_search_locations or []))
    return spec


def _ask(name: str, path: list[str] | None) -> ModuleSpec | None:
    """The answer of the first finder that knows a module; its parents are not imported for that."""
    for finder in sys.meta_path:
        if finder is PathFinder:
            # By the last word: for a full name, a namespace package asks for parents that are not imported here.
            found = PathFinder.find_spec(name.rpartition(".")[2], path) if path is None or path else None
        elif path is None or _is_mapping(finder):
            found = _asked(finder, name, path)
        else:
            continue
        if found is not None:
            return found
    return None


def _is_mapping(finder: Any) -> bool:
    """Whether a finder is one that an installation in place has made: it knows folders by the names of modules."""
    return "editable" in (getattr(finder, "__module__", None) or "").lower()


def _asked(finder: Any, name: str, path: list[str] | None) -> ModuleSpec | None:
    if (getattr(finder, "__module__", None) or "").startswith(OWN_PACKAGE):
        return None  # it asks the others
    try:
        found = finder.find_spec(name, path, None)
    except Exception:  # a finder of somebody else's may fail in any way; Python's own search comes after it
        return None
    return found if isinstance(found, ModuleSpec) else None


def _loaded_spec(name: str) -> ModuleSpec | None:
    """The spec of a module that is imported already, where a search does not find it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    is_there = isinstance(spec, ModuleSpec) and spec.origin is not None and Path(spec.origin).is_file()
    return spec if is_there else None


def _main() -> ModuleLocation | None:
    if SCRIPT is None:
        return None
    package = getattr(sys.modules["__main__"], "__package__", None) or ""
    return ModuleLocation("__main__", SCRIPT[0], False, None, package)


def is_standard(location: ModuleLocation) -> bool:
    """Whether a module belongs to Python itself."""
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    folders += [f"{folder}/lib-dynload" for folder in folders]
    return str(location.folder) in {os.path.realpath(folder) for folder in folders}


def release_of(location: ModuleLocation) -> str | None:
    """``"name==version"`` of the installed distribution that a module belongs to; None if it is nobody's, or changes.

    A distribution that is installed in place (``pip install -e``), or from a folder of this machine, changes without
    its version: its modules are sources as any others. One of a version control system has its commit in the text.
    """
    folder = str(location.folder)
    if not os.path.isdir(folder):  # an archive
        return None
    stamp = os.stat(folder).st_mtime_ns
    if not _holds_distributions(folder, stamp):
        return None
    candidates = _releases(location.name.partition(".")[0], folder, stamp)
    if len(candidates) > 1:  # a namespace that they share
        relative = os.path.relpath(os.path.realpath(location.file.parent) + os.sep + location.file.name, folder)
        candidates = [one for one in candidates if f"\n{relative}," in _record(one)]
    return ",".join(sorted(map(_spelled, candidates))) or None


@lru_cache(maxsize=4096)
def _holds_distributions(folder: str, _stamp: int) -> bool:
    return any(name.endswith((".dist-info", ".egg-info")) for name in os.listdir(folder))


@lru_cache(maxsize=4096)
def _releases(top: str, folder: str, stamp: int) -> list[importlib.metadata.Distribution]:
    """Distributions that have put a top-level module into a folder."""
    return [one for one in _candidates(top, folder, stamp)
            if os.path.realpath(str(one.locate_file(""))) == folder and _is_release(one, folder)]


def _candidates(top: str, folder: str, stamp: int) -> Iterator[importlib.metadata.Distribution]:
    """Distributions that have a top-level module. Most are called like it, which saves reading all of them."""
    likely = [one for one in importlib.metadata.distributions(name=top) if _declares(one, top)]
    if likely:
        yield from likely
        return
    for name in dict.fromkeys(_owners(folder, stamp, tuple(sys.path)).get(top, [])):
        yield from importlib.metadata.distributions(name=name)


@lru_cache(maxsize=16)
def _owners(_folder: str, _stamp: int, _path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Names of distributions by top-level module."""
    return importlib.metadata.packages_distributions()


def _declares(distribution: importlib.metadata.Distribution, top: str) -> bool:
    declared = (distribution.read_text("top_level.txt") or "").split()
    record = _record(distribution)
    return top in declared or f"\n{top}/" in record or f"\n{top}.py," in record


def _record(distribution: importlib.metadata.Distribution) -> str:
    """The list of its files as its installer wrote it; reading it through importlib.metadata takes seconds."""
    return "\n" + (distribution.read_text("RECORD") or "")


def _is_release(distribution: importlib.metadata.Distribution, folder: str) -> bool:
    if _origin(distribution).get("url", "").startswith("file:"):
        return False
    # Outside of the library folders an egg-info is a trace that a build has left beside the sources.
    is_egg = distribution.read_text("PKG-INFO") is not None and distribution.read_text("METADATA") is None
    return not is_egg or bool(_LIBRARY_FOLDERS & set(Path(folder).parts))


def _origin(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """Where a distribution was installed from, as far as its installer has noted it."""
    try:
        noted = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def _spelled(distribution: importlib.metadata.Distribution) -> str:
    name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
    commit = str(_origin(distribution).get("vcs_info", {}).get("commit_id", ""))
    return f"{name}=={distribution.version}" + (f"@{commit}" if commit else "")
