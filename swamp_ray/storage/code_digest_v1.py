"""The digest of user code as format 1 named it: kept so that results which were stored under it are still found.

It is the SHA-256 of source texts, comments included, and it sees only modules that lie in the folder of the user's
module, or in its top-level package. Nothing new is named by it: see :mod:`swamp_ray.storage.code_digest`.
This module must never change, or older storage is not found any more.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from swamp_ray.errors import UserError

_OWN_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class _Module:
    name: str
    file: Path
    is_package: bool


def digest_sources_v1(import_path: str) -> dict[str, str]:
    """Digest of the module of ``"package.module:attribute"`` and of the modules of its project that it imports.

    Returns:
        ``{"source": 64 hex digits}``, with ``"distribution": "name==version"`` for an installed package.

    Raises:
        UserError: If the path is malformed or the module has no source file.
    """
    name = _module_name(import_path)
    importlib.invalidate_caches()
    start = _locate(name)
    if start is None:
        raise UserError(f"no source file was found for the module {name!r}", where=import_path,
                        do="Put it into a file on the import path (PYTHONPATH or the current folder), or declare a "
                           "version for it.")
    if _is_library(start.file):
        return {"source": _digest([start]), **_distribution(name)}
    return {"source": _digest(_project(start))}


def modules_v1(import_path: str) -> set[str]:
    """Names of the modules that this digest is of; empty where it is that of an installed package."""
    start = _locate(_module_name(import_path))
    if start is None or _is_library(start.file):
        return set()
    return {module.name for module in _project(start)}


def _module_name(import_path: str) -> str:
    module, colon, attribute = import_path.partition(":")
    words = module.split(".") + attribute.split(".")
    if not colon or not all(word.isidentifier() for word in words):
        raise UserError("an import path must have the form package.module:attribute", got=import_path,
                        do="For example my_project.models:make_model.")
    return module


def _project(start: _Module) -> list[_Module]:
    top = start.name.partition(".")[0]
    root = _root(start)
    found: dict[str, _Module] = {}
    to_visit = [start.name]
    seen = set(to_visit)
    while to_visit:
        name = to_visit.pop()
        module = start if name == start.name else _locate(name)
        if module is None or not _belongs(module, top, root):
            continue
        found[name] = module
        names = [*_parents(name), *_imports(module)]
        to_visit += [other for other in dict.fromkeys(names) if other not in seen]
        seen.update(names)
    return list(found.values())


def _belongs(module: _Module, top: str, root: Path) -> bool:
    own_top = module.name.partition(".")[0]
    if _is_library(module.file):
        return False
    return own_top == top or (own_top != _OWN_PACKAGE and root in module.file.parents)


def _root(module: _Module) -> Path:
    """The folder on the import path in which the module's top-level package lies."""
    return module.file.parents[module.name.count(".") + module.is_package]


def _digest(modules: Sequence[_Module]) -> str:
    texts = sorted((module.name, hashlib.sha256(_source(module)).hexdigest()) for module in modules)
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _source(module: _Module) -> bytes:
    try:
        data = module.file.read_bytes()
    except OSError as error:
        raise UserError(f"the source of the module {module.name!r} could not be read: {error.strerror}",
                        where=str(module.file)) from error
    # Line ends depend on how the files were checked out, not on what they say.
    return data.replace(b"\r\n", b"\n") if module.file.suffix == ".py" else data


def _locate(name: str) -> _Module | None:
    """The file of a module, found as Python would, but without importing its parents."""
    if name == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        return _Module(name, Path(file).resolve(), False) if file and Path(file).is_file() else None
    top, *rest = name.split(".")
    # The current folder is importable, as with `python -m`.
    spec = _find_top(top) or PathFinder.find_spec(top, [str(Path.cwd())])
    for word in rest:
        # By its last word: for a full name, a namespace package asks for parents that are not imported here.
        spec = PathFinder.find_spec(word, list(spec.submodule_search_locations or [])) if spec is not None else None
    if spec is None or not spec.has_location or not spec.origin or not Path(spec.origin).is_file():
        return None
    return _Module(name, Path(spec.origin).resolve(), spec.submodule_search_locations is not None)


def _find_top(name: str) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, None) if find is not None else None
        if spec is not None:
            return spec
    return None


def _parents(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:depth]) for depth in range(1, len(words))]


def _imports(module: _Module) -> Iterator[str]:
    """Every module that an import statement of this one could mean."""
    if module.file.suffix != ".py":
        return
    try:
        tree = ast.parse(_source(module))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from [*_parents(alias.name), alias.name]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            if base:
                yield from [*_parents(base), base]
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _absolute(module: _Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    words = module.name.split(".")
    keep = len(words) - node.level + module.is_package
    return ".".join([*words[:max(keep, 0)], *([node.module] if node.module else [])])


def _is_library(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return any(Path(folder).resolve() in file.parents for folder in standard)


def _distribution(name: str) -> dict[str, str]:
    owners = importlib.metadata.packages_distributions().get(name.partition(".")[0], [])
    if not owners:
        return {}
    return {"distribution": ",".join(f"{owner}=={importlib.metadata.version(owner)}" for owner in sorted(set(owners)))}
