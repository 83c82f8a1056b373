"""A run's user code, as the process that drives the run has it: all others compare theirs before they train."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.user_code.importing import import_module, is_import_path, refuse_main, split_path
from swamp_ray.user_code.loading import freeze, taken
from swamp_ray.user_code.project import explore


@dataclass(frozen=True)
class Module:
    """A module as one process has it: the digest of its code, and its file."""

    digest: str
    file: str


@dataclass(frozen=True)
class Code:
    """What user code consists of in one process.

    Attributes:
        paths: Import paths by the option that names them.
        modules: All modules of their projects by name.
        packages: Installed distributions that these import, ``"name==version"`` by name.
        search: The folders in which this process looks for modules, libraries left out.
        host: Where it runs.
    """

    paths: Mapping[str, str]
    modules: Mapping[str, Module]
    packages: Mapping[str, str]
    search: tuple[str, ...]
    host: str

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each module."""
        return {name: module.digest for name, module in self.modules.items()}

    def without(self, option: str) -> Code:
        """What is left of it if one option names nothing."""
        return _code({other: path for other, path in self.paths.items() if other != option})

    def part(self, option: str) -> Code:
        """What one option names."""
        return _code({option: self.paths[option]}) if option in self.paths else NO_CODE

    def notes(self, declared: Mapping[str, str | None]) -> tuple[str, ...]:
        """Warnings about code that the digest does not see; empty for most.

        Args:
            declared: For the options whose code is in names: the version that stands in place of its digest.
        """
        unseen = {name for option, path in self.paths.items() if option in declared and declared[option] is None
                  for name in _unseen(_module_of(path))}
        if not unseen:
            return ()
        return (f"{', '.join(sorted(unseen))} imports by a name that is put together at run time. What it leads to is "
                "not in the names of results: when only that changes, stored results are taken as they are. Write the "
                "name out, or declare a version (model.version, task.version, pruning.version)",)

    def check_unchanged(self) -> None:
        """Make sure that the files still hold what was imported.

        Raises:
            UserError: It names the module that has changed meanwhile.
        """
        project = explore(map(_module_of, self.paths.values()))
        for name, module in self.modules.items():
            part = project.parts.get(name)
            if part is None or part.text.digest != module.digest:
                raise UserError(f"the module {name!r} has changed while the run was being prepared", where=module.file,
                                do="Start it again.")

    def check_imported(self) -> None:
        """Make sure that this process still has the code that it had when this was made.

        Raises:
            UserError: Another run of this process has imported it anew.
        """
        self.compare(_code(self.paths))

    def take_over(self) -> None:
        """Import the same code in this process, and hold on to it.

        Folders of the process that drives the run come first on the import path, in its order.

        Raises:
            UserError: A module cannot be imported here, or is another one; both places are named.
        """
        freeze({})
        adopt_path(self.search)
        here = take_up(self.paths)
        self.compare(here)
        freeze(here.digests)

    def compare(self, here: Code) -> None:
        """Refuse user code that differs from this.

        Raises:
            UserError: It names the first module, or package, that does.
        """
        for name in sorted(self.modules.keys() | here.modules.keys()):
            expected = self.modules.get(name)
            found = here.modules.get(name)
            if expected is None or found is None or expected.digest != found.digest:
                if expected and found and (expected.file, self.host) == (found.file, here.host):
                    raise UserError(f"the module {name!r} has changed since the run was started", where=found.file,
                                    do="Start the run again; what was trained with the code before is kept.")
                raise UserError(
                    f"the module {name!r} is not the same on the worker as where the run was started: "
                    f"{_place(expected, self.host)} there, {_place(found, here.host)} on the worker",
                    do="Let all nodes see the same files, or submit the run with 'swamp submit', which takes the code "
                       "along. If the file was changed meanwhile, start the run again.")
        for name in sorted(self.packages.keys() | here.packages.keys()):
            expected = self.packages.get(name, "none")
            found = here.packages.get(name, "none")
            if expected != found:
                raise UserError(f"the package {name} is not the same on the worker as where the run was started: "
                                f"{expected} on {self.host}, {found} on {here.host}",
                                do="Install the same version on all nodes.")


def joined(paths: Mapping[str, str], codes: Mapping[str, Code]) -> Code:
    """The code of several import paths, as far as it is known.

    Args:
        paths: Import paths by the option that names them.
        codes: What is known, by import path.
    """
    known = {option: path for option, path in paths.items() if path in codes}
    modules: dict[str, Module] = {}
    packages: dict[str, str] = {}
    for path in known.values():
        modules |= codes[path].modules
        packages |= codes[path].packages
    any_code = next(iter(codes.values()), NO_CODE)
    return Code(known, modules, packages, any_code.search, any_code.host)


def codes_of(paths: Mapping[str, str]) -> dict[str, Code]:
    """The code of each of several import paths, by path; of those that can be imported."""
    found = {}
    for option, path in paths.items():
        with contextlib.suppress(UserError):  # where it is needed, it is refused
            found[path] = take_up({option: path})
    return found


def _place(module: Module | None, host: str) -> str:
    return f"none on {host}" if module is None else f"{module.file} on {host}"


def import_paths(config: SwampConfig) -> dict[str, str]:
    """Import paths of the user's code in a run's config, by the option that names them."""
    named = {"data.name": config.data.name, "model.name": config.model.name, "task.name": config.task.name,
             "pruning.score": config.pruning.score}
    return {option: path for option, path in named.items() if is_import_path(path)}


def named_import_paths(plain: Any) -> dict[str, str]:
    """Import paths of the user's code in nested plain values, such as those of a sweep, by the option that names them.

    Those in a space of several values for one option are told apart by their position.
    """
    found: dict[str, str] = {}
    for option, path in _named(plain):
        if is_import_path(path):
            others = sum(other == option or other.startswith(f"{option}[") for other in found)
            found[f"{option}[{others}]" if others else option] = path
    return found


def _named(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Texts under the keys ``name`` and ``score``, and the values of a space for such options."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _named(item, path)
    elif isinstance(value, str) and {"name", "score"} & set(path.split(".")):
        yield path, value


def refuse_main_on_ray(paths: Mapping[str, str]) -> None:
    """Refuse what workers on Ray cannot import, before Ray starts. A dataset's function runs where the run is driven.

    Raises:
        UserError: An option other than the data's names what the script or the notebook itself defines.
    """
    refuse_main({option: path for option, path in paths.items() if "data.name" not in option})


def take_up(paths: Mapping[str, str]) -> Code:
    """Import user code as its files are now; modules that have changed are imported anew, with their whole project.

    Args:
        paths: Import paths by the option that names them.

    Raises:
        UserError: A module cannot be imported, or not anew.
    """
    for option, path in paths.items():
        import_module(split_path(path, option)[0], option, anew=True)
    return _code(paths)


def _module_of(path: str) -> str:
    return path.partition(":")[0]


def _unseen(name: str) -> list[str]:
    """The modules of a project that import by a name which is put together at run time."""
    project = taken(name)
    return [] if project is None else [one for one, part in project.parts.items() if part.text.unseen]


def _code(paths: Mapping[str, str]) -> Code:
    modules: dict[str, Module] = {}
    packages: dict[str, str] = {}
    for name in map(_module_of, paths.values()):
        project = taken(name)
        if project is not None:
            modules |= {one: Module(part.text.digest, str(part.location.file)) for one, part in project.parts.items()}
            packages |= project.packages
    return Code(dict(paths), modules, packages, own_path(), socket.gethostname())


def own_path() -> tuple[str, ...]:
    """The folders in which this process looks for modules, in order, without those of Python and of libraries."""
    found = [str(Path.cwd()) if entry == "" else entry for entry in sys.path]
    return tuple(dict.fromkeys(os.path.abspath(entry) for entry in found if not _is_librarys(entry)))


def adopt_path(search: Iterable[str]) -> None:
    """Look for modules in these folders first, in this order."""
    first = [entry for entry in search if not _is_librarys(entry)]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first)]


def _is_librarys(entry: str) -> bool:
    """Whether a folder of the import path belongs to Python or holds its libraries."""
    parts = Path(entry).parts
    if {"site-packages", "dist-packages"} & set(parts):
        return True
    return Path(entry).is_relative_to(sys.base_prefix) and Path(entry).name in _standard_names()


def _standard_names() -> set[str]:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {f"python{version}", "lib-dynload", f"python{version.replace('.', '')}.zip"}


NO_CODE = Code({}, {}, {}, (), "")
"""A run without any code of the user's."""
