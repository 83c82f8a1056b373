"""User code is imported from its source, and it is known what of it a process has imported.

Python takes a module from ``sys.modules`` whatever has become of its file, and bytecode from a cache that it compares
by whole seconds. Here every module of the user's project is compiled from the bytes that are digested. One that has
changed since it was imported is imported anew, together with the rest of its project. Where that is impossible, the
user is asked to start again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import BYTECODE_SUFFIXES, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from swamp_ray.errors import UserError
from swamp_ray.user_code.finding import ModuleLocation
from swamp_ray.user_code.project import Part, Project, explore
from swamp_ray.user_code.source_text import Text, understand

_MARGIN_S = 2.0
"""Files that are older than this process by so much have not changed since it was started."""
_TRIES = 3
_AGAIN = "Start Python anew (in a notebook: restart the kernel), and run it again."


class _State:
    """What this process knows of the user code that it has imported."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ran: WeakKeyDictionary[ModuleType, _Ran] = WeakKeyDictionary()
        self.projects: dict[str, Project] = {}
        self.watched: dict[str, Part] = {}
        self.frozen: list[Mapping[str, str]] = []
        self.releases: dict[str, str] = {}


class _Ran:
    """The source that a module was executed from; ``mixed``: from several, by a reload in place."""

    def __init__(self, digest: str, file: str) -> None:
        self.digest = digest
        self.file = file
        self.mixed = False


_state = _State()


def take_up(names: Iterable[str]) -> Project:
    """Make sure that what will be imported of user code is what its files hold now.

    Nothing is imported here. Modules that have changed since they were imported are taken out of ``sys.modules``, with
    all others of their project, so that the next import runs them anew.

    Args:
        names: The modules that an import path names.

    Returns:
        What they consist of; :func:`taken` gives it again.

    Raises:
        UserError: A changed module cannot be imported anew in this process.
    """
    names = list(names)
    with _state.lock:
        _install()
        project = explore(names)
        _state.watched.update(project.parts)
        _check_releases(project)
        stale = [name for name, part in project.parts.items() if not _is_current(name, part)]
        if stale:
            _refuse_while_frozen(stale, project)
            _forget(project, stale)
        for name in names:
            _state.projects[name] = project if len(names) == 1 else explore([name], _as_taken)
        return project


def taken(name: str) -> Project | None:
    """What a module consisted of when it was last taken up in this process; None if it never was."""
    return _state.projects.get(name)


def is_imported_as(project: Project) -> str | None:
    """The first module of a project that this process has imported in another version; None if there is none."""
    with _state.lock:
        return next((name for name, part in project.parts.items() if not _is_current(name, part)), None)


@contextlib.contextmanager
def restored_on_failure() -> Iterator[None]:
    """If the block raises, modules that it has lost stay as they were."""
    before = dict(sys.modules)
    try:
        yield
    except BaseException:
        for name in before.keys() - sys.modules.keys():
            sys.modules[name] = before[name]
        raise


@contextlib.contextmanager
def frozen(digests: Mapping[str, str]) -> Iterator[None]:
    """In this block no module of a project is imported in another version than this one.

    Args:
        digests: Of the modules, by name.
    """
    _state.frozen.append(digests)
    try:
        yield
    finally:
        _state.frozen.remove(digests)


def freeze(digests: Mapping[str, str]) -> None:
    """The same from now on, in a process that works for one run at a time: what it froze before may change again."""
    _state.frozen[:] = [digests]


def _as_taken(location: ModuleLocation) -> Text:
    part = _state.watched.get(location.name)
    return location.read() if part is None else part.text


def _refuse_while_frozen(stale: Sequence[str], project: Project) -> None:
    for name in stale:
        if any(name in digests for digests in _state.frozen):
            raise UserError(f"the module {name!r} has changed, and another run of this process is using it",
                            where=str(project.parts[name].location.file), do="Wait until that run has ended.")


def _check_releases(project: Project) -> None:
    """Refuse a package that was replaced on disk after this process had imported it."""
    for name, release in project.packages.items():
        earlier = _state.releases.setdefault(name, release)
        if earlier != release:
            raise UserError(f"the package {name} was installed in another version ({earlier} before, now {release}) "
                            "while this process was running", do=_AGAIN)


def _is_current(name: str, part: Part) -> bool:
    """Whether an import of a module would give what its file holds."""
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return True
    file = str(getattr(module, "__file__", None) or "")
    ran = _state.ran.get(module)
    if ran is None:
        if not (_same_file(file, part.location) and _is_old(module, part.location)):
            return False
        _state.ran[module] = _Ran(part.text.digest, file)
        return True
    return ran.digest == part.text.digest and not ran.mixed and _same_file(file, part.location)


def _same_file(file: str, location: ModuleLocation) -> bool:
    return file == str(location.file) or os.path.realpath(file) == os.path.realpath(location.file)


def _is_old(module: ModuleType, location: ModuleLocation) -> bool:
    """Whether a module that the user imported himself has certainly been read from what its file holds now."""
    started = _started_s()
    changed = _changed_ns(location.file)
    if started is None or changed is None or changed / 1e9 > started - _MARGIN_S:
        return False
    cached = str(getattr(module, "__cached__", None) or "")
    if not cached.endswith(tuple(BYTECODE_SUFFIXES)) or location.file.suffix != ".py":
        return True
    with contextlib.suppress(OSError):
        # Bytecode that is older than its source was taken only because both fell into the same second.
        return os.stat(cached).st_mtime_ns >= changed
    return True


def _changed_ns(file: Path) -> int | None:
    """When a module's file, or a link on the way to it, was changed last; None if that cannot be known."""
    way = [path for path in (file, *file.parents) if path.is_symlink()]
    there = next((path for path in (file, *file.parents) if path.is_file()), None)
    try:
        stats = [path.lstat() for path in way] + ([] if there is None else [there.stat()])
    except OSError:
        return None
    return None if there is None else max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _started_s() -> float | None:
    """Unix time at which this process was started; None where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks)
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _forget(project: Project, stale: Sequence[str]) -> None:
    """Take the modules of a project out of ``sys.modules``."""
    for name in stale:
        if project.parts[name].location.is_compiled:
            raise UserError(f"the module {name!r} was built anew after this process had imported it, and machine code "
                            "cannot be imported twice", where=str(project.parts[name].location.file), do=_AGAIN)
    if "__main__" in project.parts:
        raise UserError(f"the module {stale[0]!r} has changed since this script imported it, and the script holds what "
                        "it was before", where=str(project.parts[stale[0]].location.file),
                        do=f"{_AGAIN} Or put the network into a module of its own.")
    for name in project.parts:
        module = sys.modules.pop(name, None)
        package, _, word = name.rpartition(".")
        owner = sys.modules.get(package)
        if owner is not None and getattr(owner, word, None) is module:
            with contextlib.suppress(AttributeError):
                delattr(owner, word)
    importlib.invalidate_caches()


class _Finder(MetaPathFinder):
    """Lets the modules of known projects be compiled from their source; the others are none of its business."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
                  ) -> ModuleSpec | None:
        """Where the next finder has found it, with a loader of ours where it would be Python's own."""
        if fullname not in _state.watched:
            return None
        for finder in sys.meta_path:
            search = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if search is None else search(fullname, path, target)
            if spec is not None:
                if type(spec.loader) is SourceFileLoader:
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


class _Loader(SourceFileLoader):
    """Python's own, but for the cache of bytecode; it notes what it has run."""

    digest = ""

    def get_code(self, fullname: str) -> CodeType:
        """The code of a module, compiled from its source.

        Raises:
            UserError: It is another one than what a run that is going on was named by.
        """
        path = self.get_filename(fullname)
        data = self.get_data(path)
        package = fullname if self.is_package(fullname) else fullname.rpartition(".")[0]
        self.digest = understand(data, ".py", package).digest
        for digests in _state.frozen:
            if digests.get(fullname, self.digest) != self.digest:
                raise UserError(f"the module {fullname!r} was changed while a run that uses it was going on",
                                where=path, do="Start the run again; what was trained with the code before is kept.")
        code: Any = self.source_to_code(data, path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        before = _state.ran.get(module)
        try:
            super().exec_module(module)
        finally:
            ran = _Ran(self.digest, str(module.__file__))
            ran.mixed = before is not None and (before.mixed or before.digest != ran.digest)
            _state.ran[module] = ran


_FINDER = _Finder()


def _install() -> None:
    """Be asked first by every import from now on."""
    if not sys.meta_path or sys.meta_path[0] is not _FINDER:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(_FINDER)
        sys.meta_path.insert(0, _FINDER)
