"""The package keeps to its rooms: a module imports only from its own room and from those before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "swamp_ray"

# In order: each room knows itself and the rooms before it. A trailing slash means a folder.
ROOMS: dict[str, tuple[str, ...]] = {
    "words": ("config.py", "config_fields.py", "config_files.py", "config_paths.py", "config_reading.py",
              "config_rules.py", "credentials.py", "errors.py", "importing.py", "metric_names.py", "plain_values.py",
              "seeding.py",
              "sweep_config.py", "sweep_reading.py", "sweep_space.py", "yaml_reading.py", "usercode/__init__.py",
              "usercode/code.py", "usercode/finding.py", "usercode/loading.py", "usercode/project.py",
              "usercode/script.py", "usercode/text.py"),
    "sparsity": ("sparsity/",),
    "training": ("training/",),
    "storage": ("storage/",),
    "method": ("round_messages.py", "rounds.py", "thin_layers.py"),
    "orchestration": ("orchestration/",),
    "people": (
        "analysis/", "report/", "api.py", "cli.py", "console.py", "csv_text.py", "doctor.py", "evaluation.py",
        "locating.py",
        "output.py", "planning.py", "pruning_storage.py", "status.py", "submitting.py", "sweep_console.py",
        "sweep_records.py", "sweep_results.py", "sweep_status.py", "tables.py", "__init__.py", "__main__.py",
    ),
}
ORDER = list(ROOMS)

# Imported by `swamp --help`, which has to answer at once.
LIGHT = ("__init__.py", "__main__.py", "cli.py", *ROOMS["words"])
HEAVY = {"torch", "torchvision", "ray", "pandas", "pyarrow", "sklearn", "matplotlib"}


@dataclass(frozen=True)
class Import:
    """One imported module, as an absolute dotted name; `name` is what a `from` statement takes out of it."""

    module: str
    name: str | None
    line: int
    at_import_time: bool

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


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, those inside functions and for type checking too."""

    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, None, child.lineno, at_import_time) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = _absolute(child, path)
                yield from (Import(module, alias.name, child.lineno, at_import_time) for alias in child.names)
            elif isinstance(child, ast.Call) and (named := _by_name(child)):
                yield Import(named, None, child.lineno, at_import_time)
            yield from walk(child, at_import_time and not _is_deferred(child))

    yield from walk(ast.parse(path.read_text(), str(path)), at_import_time=True)


def room_of(path: Path) -> str | None:
    inside = path.relative_to(PACKAGE).as_posix()
    for room, members in ROOMS.items():
        if any(inside.startswith(member) if member.endswith("/") else inside == member for member in members):
            return room
    return None


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


def targets(found: Import) -> list[Path]:
    """The files of this package that an import names: a submodule where it is one, else the module."""
    submodule = file_of(f"{found.module}.{found.name}") if found.name else None
    own = submodule or file_of(found.module)
    return [own] if own else []


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
        todo.extend(target for found in imports_of(current) if found.at_import_time for target in targets(found))
    return seen


FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def _where(path: Path, found: Import) -> str:
    return f"swamp_ray/{path.relative_to(PACKAGE).as_posix()}:{found.line}"


@each_file
def test_every_file_belongs_to_a_room(path: Path) -> None:
    empty_marker = path.name == "__init__.py" and not path.read_text().strip()
    assert room_of(path) or empty_marker, f"{path.name} is in no room: add it to ROOMS, and to the table in the docs"


@each_file
def test_imports_only_from_its_own_room_and_those_before(path: Path) -> None:
    own = room_of(path)
    assert own
    for found in imports_of(path):
        for target in targets(found):
            room = room_of(target)
            assert room, f"{_where(path, found)} imports {found.module}, which is in no room"
            # `from swamp_ray import X` inside the package would tie every room to the last one.
            assert ORDER.index(room) <= ORDER.index(own), (
                f"{_where(path, found)}: {own} must not know {room} ({found.module})"
            )


@each_file
def test_only_orchestration_imports_ray(path: Path) -> None:
    found = [_where(path, found) for found in imports_of(path) if found.top == "ray"]
    assert not found or room_of(path) == "orchestration", f"only orchestration/ imports Ray: {found}"


@each_file
def test_only_the_object_store_imports_obstore(path: Path) -> None:
    found = [_where(path, found) for found in imports_of(path) if found.top == "obstore"]
    assert not found or path == PACKAGE / "storage" / "object_store.py", f"only storage/object_store.py may: {found}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("sparsity/**/*.py")), ids=lambda path: path.name)
def test_sparsity_takes_plain_arguments(path: Path) -> None:
    wrong = [_where(path, found) for found in imports_of(path) if PACKAGE / "config.py" in targets(found)]
    assert not wrong, f"sparsity/ takes plain arguments, never a config: {wrong}"


@pytest.mark.parametrize("name", LIGHT)
def test_help_answers_without_heavy_imports(name: str) -> None:
    if not (PACKAGE / name).is_file():
        pytest.fail(f"swamp_ray/{name} does not exist")
    for path in sorted(loaded_at_import(PACKAGE / name)):
        heavy = [_where(path, found) for found in imports_of(path) if found.at_import_time and found.top in HEAVY]
        assert not heavy, f"importing swamp_ray/{name} loads {heavy}: import it where it is used"


class TestTheReaderOfImports:
    """The tests above are worth as much as what they see."""

    @pytest.fixture
    def read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)

        def read(text: str, at: str = "sparsity/masks.py") -> list[tuple[str, str | None, bool]]:
            path = tmp_path / at
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return [(found.module, found.name, found.at_import_time) for found in imports_of(path)]

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
