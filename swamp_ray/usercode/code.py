"""A run's user code, as the process that drives the run has it: all others compare theirs before they train."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from swamp_ray.config import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.importing import import_module, is_import_path
from swamp_ray.usercode.loading import hold, taken
from swamp_ray.usercode.project import explore


@dataclass(frozen=True)
class Module:
    """A module as one process has it: the digest of its code, and its file."""

    digest: str
    file: str


@dataclass(frozen=True)
class Code:
    """What user code consists of in one process.

    Attributes:
        names: Modules that import paths name, by option.
        modules: All modules of their projects by name.
        packages: Installed distributions that these import, ``"name==version"`` by name.
        search: The folders in which this process looks for modules, libraries left out.
        host: Where it runs.
    """

    names: Mapping[str, str]
    modules: Mapping[str, Module]
    packages: Mapping[str, str]
    search: tuple[str, ...]
    host: str

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each module."""
        return {name: module.digest for name, module in self.modules.items()}

    def only(self, options: Iterable[str]) -> Code:
        """The part of it that some options name."""
        wanted = set(options)
        return _code({option: name for option, name in self.names.items() if option in wanted})

    def check_unchanged(self) -> None:
        """Make sure that the files still hold what was imported.

        Raises:
            UserError: It names the module that has changed meanwhile.
        """
        project = explore(self.names.values())
        for name, module in self.modules.items():
            part = project.parts.get(name)
            if part is None or part.text.digest != module.digest:
                raise UserError(f"the module {name!r} has changed while the run was being prepared", where=module.file,
                                do="Start it again.")

    def take_over(self) -> None:
        """Import the same code in this process, and hold on to it.

        Folders of the process that drives the run come first on the import path, in its order.

        Raises:
            UserError: A module cannot be imported here, or is another one; both places are named.
        """
        hold({})
        adopt_path(self.search)
        here = take_up(self.names)
        self.compare(here)
        hold(here.digests)

    def compare(self, here: Code) -> None:
        """Refuse user code that differs from this.

        Raises:
            UserError: It names the first module, or package, that does.
        """
        for name in sorted(self.modules.keys() | here.modules.keys()):
            expected, found = self.modules.get(name), here.modules.get(name)
            if expected is None or found is None or expected.digest != found.digest:
                raise UserError(
                    f"the module {name!r} is not the same on the worker as where the run was started: "
                    f"{_place(expected, self.host)} there, {_place(found, here.host)} on the worker",
                    do="If it was changed meanwhile, start the run again. Else let all nodes see the same files, or "
                       "submit the run with 'swamp submit', which takes the code along.")
        for name in sorted(self.packages.keys() | here.packages.keys()):
            expected, found = self.packages.get(name, "none"), here.packages.get(name, "none")
            if expected != found:
                raise UserError(f"the package {name} is not the same on the worker as where the run was started: "
                                f"{expected} on {self.host}, {found} on {here.host}",
                                do="Install the same version on all nodes.")


def _place(module: Module | None, host: str) -> str:
    return f"none on {host}" if module is None else f"{module.file} on {host}"


def import_paths(config: SwampConfig) -> dict[str, str]:
    """Import paths of the user's code in a run's config, by the option that names them."""
    named = {"data.name": config.data.name, "model.name": config.model.name, "task.name": config.task.name,
             "pruning.score": config.pruning.score}
    return {option: path for option, path in named.items() if is_import_path(path)}


def code_of(config: SwampConfig) -> Code:
    """Import the user code of a run as its files are now, and say what it is.

    Raises:
        UserError: A module cannot be imported.
    """
    paths = import_paths(config)
    return take_up({option: path.partition(":")[0] for option, path in paths.items()})


def take_up(names: Mapping[str, str]) -> Code:
    """Import modules as their files are now; changed ones are imported anew, with their whole project.

    Args:
        names: Modules by the option that names them.

    Raises:
        UserError: One cannot be imported, or not anew.
    """
    for option, name in names.items():
        import_module(name, option, anew=True)
    return _code(names)


def _code(names: Mapping[str, str]) -> Code:
    modules: dict[str, Module] = {}
    packages: dict[str, str] = {}
    for name in names.values():
        project = taken(name)
        if project is not None:
            modules |= {one: Module(part.text.digest, str(part.found.file)) for one, part in project.parts.items()}
            packages |= project.packages
    return Code(dict(names), modules, packages, own_path(), socket.gethostname())


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


def with_lazy_data(code: Code, is_lazy: bool) -> Code:
    """The code that workers run: that of the data only where samples are read while training."""
    if is_lazy or "data.name" not in code.names:
        return code
    return replace(code.only(option for option in code.names if option != "data.name"), search=code.search)
