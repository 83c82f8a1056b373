"""The modules that user code consists of, found by following its import statements from file to file."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from swamp_ray.user_code.finding import OWN_PACKAGE, ModuleLocation, find, is_standard, release_of
from swamp_ray.user_code.source_text import Text, parents

ELSEWHERE = frozenset({"torch", "numpy", "swamp-ray"})
"""Distributions that are in every name already: by the arithmetic, by the data, by the format's number."""


@dataclass(frozen=True)
class Part:
    """A module of the user's.

    Attributes:
        location: Where it lies.
        text: What it consists of.
    """

    location: ModuleLocation
    text: Text


@dataclass(frozen=True)
class Project:
    """What user code consists of.

    Attributes:
        parts: The user's own modules by name.
        packages: Installed distributions that they import, ``"name==version"`` by name.
    """

    parts: Mapping[str, Part]
    packages: Mapping[str, str]

    def digest(self) -> dict[str, str]:
        """What stands for it in a name: ``source`` and, where there are any, ``packages``."""
        texts = sorted((name, part.text.digest) for name, part in self.parts.items())
        found = {"source": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
        if self.packages:
            found["packages"] = ",".join(sorted(self.packages.values()))
        return found


def explore(names: Iterable[str], read: Callable[[ModuleLocation], Text] = ModuleLocation.read) -> Project:
    """Follow the imports of modules to all that they lead to.

    Args:
        names: Modules; those that do not exist are left out.
        read: What a module consists of; default: what its file holds now.

    Raises:
        UserError: The source of a module cannot be read.
    """
    importlib.invalidate_caches()
    walk = _Walk(read)
    to_visit = list(dict.fromkeys(names))
    while to_visit:
        to_visit += walk.visit(to_visit.pop())
    return Project(walk.parts, walk.packages)


class _Walk:
    def __init__(self, read: Callable[[ModuleLocation], Text]) -> None:
        self.parts: dict[str, Part] = {}
        self.packages: dict[str, str] = {}
        self._read = read
        self._seen: set[str] = set()
        self._closed: set[str] = {OWN_PACKAGE}

    def visit(self, name: str) -> list[str]:
        """Take in a module; gives the names that it may import."""
        if name in self._seen:
            return []
        self._seen.add(name)
        if self._closed.intersection([*parents(name), name]):
            return []  # inside of a package that is known to be a library
        location = find(name)
        if location is None:
            return []
        if is_standard(location):
            self._closed.add(name)
            return []
        release = release_of(location)
        if release is not None:
            self._closed.add(name)
            for one in release.split(","):
                self._note(one)
            return []
        text = self._read(location)
        self.parts[name] = Part(location, text)
        return [*parents(name), *text.imports, *self._starred(text)]

    def _note(self, release: str) -> None:
        name = release.partition("==")[0]
        if name not in ELSEWHERE:
            self.packages[name] = release

    def _starred(self, text: Text) -> list[str]:
        """Modules that ``from package import *`` may import: those that the package's ``__all__`` names."""
        names = []
        for package in text.stars:
            location = find(package)
            if location is None or not location.is_package:
                continue
            if not self._closed.intersection([*parents(package), package]):
                names += [f"{package}.{name}" for name in self._read(location).exports]
        return names
