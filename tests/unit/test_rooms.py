"""The package keeps to its rooms: a module imports only from its own room and from those before it, in no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "swamp_ray"

# In order: each room knows itself and the rooms before it. A trailing slash means a folder.
ROOMS: dict[str, tuple[str, ...]] = {
    "words": ("errors.py", "seeding.py", "credentials.py", "process_state.py", "random_state.py",
              "structure.py", "version.py", "former_modules.py"),
    "text": ("text/",),
    "user_code": ("user_code/",),
    "config": ("config/",),
    "sparsity": ("sparsity/",),
    "method": ("method/",),
    "data": ("data/",),
    "training": ("training/",),
    "storage": ("storage/",),
    "run": ("run/",),
    "on_ray": ("on_ray/",),
    "launch": ("launch.py",),
    "sweep": ("sweep/",),
    "submit": ("submit/",),
    "analysis": ("analysis/",),
    "report/load": ("report/load/",),
    "report/charts": ("report/charts/",),
    "report/page": ("report/page/", "report/__init__.py"),
    "commands": ("commands/",),
    "faces": ("api.py", "cli.py", "__init__.py", "__main__.py"),
}
ORDER = list(ROOMS)
KNOW_RAY = {"on_ray", "sweep", "submit"}

# Imported by `swamp --help`, which has to answer at once.
LIGHT = ("__init__.py", "__main__.py", "cli.py", "errors.py", "seeding.py", "credentials.py", "structure.py")
LIGHT_ROOMS = ("text", "config")
HEAVY = {"torch", "torchvision", "ray", "pandas", "pyarrow", "sklearn", "matplotlib"}


@dataclass(frozen=True)
class Import:
    """One imported module, as an absolute dotted name; `name` is what a `from` statement takes out of it."""

    module: str
    name: str | None
    line: int
    at_import_time: bool
    relative: bool = False

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = ("swamp_ray", *path.relative_to(PACKAGE).parent.parts)
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *([node.module] if node.module else [])))


def _is_deferred(node: ast.AST) -> bool:
    """Whether what stands inside does not run when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _by_name(node: ast.AST) -> str | None:
    """The module of `importlib.import_module("...")` or `__import__("...")`."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return None
    called = ast.unparse(node.func).rpartition(".")[2]
    value = node.args[0].value
    return value if called in ("import_module", "__import__") and isinstance(value, str) else None


def read_imports(path: Path) -> Iterator[Import]:
    """All imports of a file, those inside functions and for type checking too."""

    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, None, child.lineno, at_import_time) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = _absolute(child, path)
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, at_import_time, relative=child.level > 0)
            elif isinstance(child, ast.Call) and (named := _by_name(child)):
                yield Import(named, None, child.lineno, at_import_time)
            yield from walk(child, at_import_time and not _is_deferred(child))

    yield from walk(ast.parse(path.read_text(), str(path)), at_import_time=True)


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """The imports of a file, which is read once."""
    return tuple(read_imports(path))


def room_of(path: Path) -> str | None:
    inside = path.relative_to(PACKAGE).as_posix()
    for room, members in ROOMS.items():
        if any(inside.startswith(member) if member.endswith("/") else inside == member for member in members):
            return room
    return None


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of this package, None for anything else; a folder's `__init__.py` need not exist."""
    parts = module.split(".")
    if parts[0] != "swamp_ray":
        return None
    base = PACKAGE.joinpath(*parts[1:])
    if base.is_dir():
        return base / "__init__.py"
    file = base.parent / f"{base.name}.py"
    return file if file.is_file() else None


def target(found: Import) -> Path | None:
    """The file of this package that an import names: a submodule where it is one, else the module."""
    submodule = file_of(f"{found.module}.{found.name}") if found.name else None
    return submodule or file_of(found.module)


def loaded_at_import(path: Path) -> set[Path]:
    """The package's files that run when `path` is imported, packages on the way included."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        current = todo.pop()
        if current in seen or not current.is_file():
            continue
        seen.add(current)
        parents = current.relative_to(PACKAGE).parents
        todo.extend(PACKAGE / parent / "__init__.py" for parent in parents)
        for found in imports_of(current):
            own = target(found)
            if found.at_import_time and own is not None:
                todo.append(own)
    return seen


def circles(known: dict[str, set[str]]) -> list[list[str]]:
    """Circles among modules that name each other: each one as the modules on it, in the order of their imports."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(path[path.index(name):])
            return
        if name in done:
            return
        for other in sorted(known.get(name, ())):
            visit(other, [*path, name])
        done.add(name)

    for name in sorted(known):
        visit(name, [])
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def _where(path: Path, found: Import) -> str:
    return f"swamp_ray/{path.relative_to(PACKAGE).as_posix()}:{found.line}"


def _all_imports() -> Iterable[tuple[Path, Import]]:
    for path in FILES:
        for found in imports_of(path):
            yield path, found


def test_every_file_belongs_to_a_room() -> None:
    outside = [str(path.relative_to(PACKAGE)) for path in FILES if room_of(path) is None]
    assert not outside, f"in no room: {outside}; add them to ROOMS, and to the table in CONTRIBUTING.md"


def test_imports_only_from_its_own_room_and_those_before() -> None:
    wrong = []
    for path, found in _all_imports():
        own, named = room_of(path), target(found)
        room = room_of(named) if named else None
        # `from swamp_ray import X` inside the package would tie every room to the last one.
        if named and own and (room is None or ORDER.index(room) > ORDER.index(own)):
            wrong.append(f"{_where(path, found)}: {own} must not know {room} ({found.module})")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    known: dict[str, set[str]] = {}
    for path, found in _all_imports():
        named = target(found)
        if named is not None and named != path and named.name != "__init__.py":
            name = path.relative_to(PACKAGE).as_posix()
            known.setdefault(name, set()).add(named.relative_to(PACKAGE).as_posix())
    assert circles(known) == []


def test_only_three_rooms_import_ray() -> None:
    wrong = [_where(path, found) for path, found in _all_imports()
             if found.top == "ray" and room_of(path) not in KNOW_RAY]
    assert not wrong, f"only {sorted(KNOW_RAY)} import Ray"


def test_only_the_object_store_imports_obstore() -> None:
    own = PACKAGE / "storage" / "object_store.py"
    wrong = [_where(path, found) for path, found in _all_imports() if found.top == "obstore" and path != own]
    assert not wrong, "only storage/object_store.py imports obstore"


def test_sparsity_takes_plain_arguments() -> None:
    wrong = [_where(path, found) for path, found in _all_imports()
             if room_of(path) == "sparsity" and found.module.startswith("swamp_ray.config")]
    assert not wrong, "sparsity/ takes plain arguments, never a config"


def test_imports_are_absolute() -> None:
    wrong = [_where(path, found) for path, found in _all_imports() if found.relative]
    assert not wrong, "one style of import: from swamp_ray.room.module import name"


def test_sources_hold_no_control_characters() -> None:
    allowed = {"\n"}
    wrong = []
    for path in FILES:
        odd = {character for character in path.read_text() if ord(character) < 32} - allowed
        if odd:
            wrong.append(f"{path.relative_to(PACKAGE)}: {sorted(odd)!r}")
    assert not wrong, "write control characters as escapes"


def test_help_answers_without_heavy_imports() -> None:
    light = [PACKAGE / name for name in LIGHT]
    light += [path for path in FILES if room_of(path) in LIGHT_ROOMS]
    wrong = set()
    for start in light:
        assert start.is_file()
        for path in loaded_at_import(start):
            for found in imports_of(path):
                if found.at_import_time and found.top in HEAVY:
                    wrong.add(_where(path, found))
    assert not wrong, "import it where it is used"


class TestTheReaderOfImports:
    """The tests above are worth as much as what they see."""

    @pytest.fixture
    def read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)

        def read(text: str, at: str = "sparsity/masks.py") -> list[tuple[str, str | None, bool]]:
            path = tmp_path / at
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return [(found.module, found.name, found.at_import_time) for found in read_imports(path)]

        return read

    def test_sees_imports_inside_functions(self, read) -> None:
        assert read("def f():\n    import ray.tune\n") == [("ray.tune", None, False)]

    def test_sees_imports_by_name(self, read) -> None:
        assert read("import importlib as i\ni.import_module('ray')")[1] == ("ray", None, True)

    def test_imports_for_type_checking_do_not_run(self, read) -> None:
        assert read("if TYPE_CHECKING:\n    import torch\n") == [("torch", None, False)]

    def test_imports_under_try_and_in_classes_run(self, read) -> None:
        assert read("try:\n    import torch\nexcept ImportError:\n    pass\n") == [("torch", None, True)]
        assert read("class A:\n    import torch\n") == [("torch", None, True)]

    @pytest.mark.parametrize(
        ("statement", "module"),
        [
            ("from . import x", "swamp_ray.sparsity"),
            ("from .x import y", "swamp_ray.sparsity.x"),
            ("from ..config import y", "swamp_ray.config"),
            ("from .. import config", "swamp_ray"),
        ],
    )
    def test_resolves_relative_imports(self, read, statement: str, module: str) -> None:
        assert read(statement)[0][0] == module

    def test_sees_circles_of_any_length(self) -> None:
        assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
        assert circles({"a": {"b", "c"}, "b": {"c"}}) == []
