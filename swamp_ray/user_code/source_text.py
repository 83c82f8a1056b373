"""What the bytes of a module say, whatever their comments, docstrings and layout: a digest, and what they import."""

from __future__ import annotations

import ast
import hashlib
import io
import marshal
import modulefinder
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

_PYC_HEADER_BYTES = 16
# What no statement does, or what only the reader of a file sees. Fields that are empty are left out as well, because
# each version of Python adds some.
_SKIPPED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_IMPORTERS = frozenset({"import_module", "__import__"})


@dataclass(frozen=True)
class Text:
    """What a module consists of.

    Attributes:
        digest: 64 hex digits. Comments, docstrings, blank lines and other layout do not change it.
        imports: Dotted names that an import statement may mean, wherever it stands; not each of them is a module.
        stars: Modules of which ``*`` is imported: what their ``__all__`` names may be modules too.
        exports: The texts in its own ``__all__``.
        unseen: Whether it imports by a name that is put together at run time, which nobody can follow here.
    """

    digest: str
    imports: tuple[str, ...] = ()
    stars: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    unseen: bool = False


def understand(data: bytes, suffix: str, package: str) -> Text:
    """Read a module. The result is remembered by the bytes themselves, so that it is never of an older file.

    Args:
        data: Content of its file.
        suffix: ``".py"`` for source, ``".pyc"`` for bytecode; anything else is taken as bytes.
        package: The package that its relative imports start from.
    """
    if suffix == ".pyc":
        return _of_bytecode(data, package)
    if suffix != ".py":
        return Text(hashlib.sha256(data).hexdigest())
    return _of_source(data, package)


@lru_cache(maxsize=8192)
def _of_source(data: bytes, package: str) -> Text:
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it cannot be imported, and says so itself then
        return Text(hashlib.sha256(data).hexdigest())
    found = _Imports(package)
    words = _words(tree, found)
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()
    return Text(digest, found.names, tuple(found.stars), tuple(found.exports), found.unseen)


def _words(tree: ast.AST, imports: _Imports) -> list[str]:
    """The syntax tree as a flat text, the same in every version of Python that knows its nodes.

    It keeps a stack of its own: generated code is deeper than Python lets functions call.
    """
    words: list[str] = []
    stack: list[Any] = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, _Word):
            words.append(item)
        elif isinstance(item, ast.Constant):
            words.append(_spelled(item.value))
        elif isinstance(item, ast.AST):
            kind = type(item)
            words.append(kind.__name__)
            stack.append(_END)
            for name, label in _FIELDS.get(kind) or _fields_of(kind):
                value = getattr(item, name, None)
                if value is None or value == [] or (value := _useful(item, name, value)) == []:
                    continue
                stack.append(value)
                stack.append(label)
            if kind in _READ:
                imports.read(item)
        elif isinstance(item, list):
            stack.append(_END)
            stack.extend(reversed(item))
            words.append("[")
        else:
            words.append(_spelled(item))
    return words


class _Word(str):
    """A word of the flat text that is no value of the tree."""

    __slots__ = ()


_END = _Word(")")
_FIELDS: dict[type[ast.AST], list[tuple[str, _Word]]] = {}
_READ = (ast.Import, ast.ImportFrom, ast.Call, ast.Assign, ast.AugAssign, ast.AnnAssign)


def _fields_of(kind: type[ast.AST]) -> list[tuple[str, _Word]]:
    """The fields of a kind of node that count, the last one first."""
    names = [name for name in reversed(kind._fields) if name not in _SKIPPED_FIELDS]
    return _FIELDS.setdefault(kind, [(name, _Word(f".{name}")) for name in names])


def _useful(node: ast.AST, name: str, value: Any) -> Any:
    """The value of a field without what does nothing."""
    if not isinstance(value, list):
        return value
    if isinstance(node, ast.JoinedStr):
        return _merged(value)
    return [item for item in value if not _does_nothing(item)] if name in _BLOCKS else value


_BLOCKS = frozenset({"body", "orelse", "finalbody"})


def _does_nothing(item: Any) -> bool:
    """Docstrings, texts that stand as comments, and ``pass``."""
    return isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))


def _merged(values: Any) -> list[Any]:
    """The parts of an f-string; how its plain texts are cut differs between versions of Python."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], ast.Constant):
            parts[-1] = ast.Constant(str(parts[-1].value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            parts.append(value)
    return parts


def _spelled(value: object) -> str:
    # Python refuses to write whole numbers of many digits in decimals.
    text = hex(value) if type(value) is int else repr(value)
    return f"{type(value).__name__} {text}"


class _Imports:
    """Collects what the nodes of a tree import."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._names: dict[str, None] = {}
        self.stars: list[str] = []
        self.exports: list[str] = []
        self.unseen = False

    @property
    def names(self) -> tuple[str, ...]:
        """Each name once, in the order of the text."""
        return tuple(self._names)

    def read(self, node: ast.AST) -> None:
        """Take in one node, not those below it."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            self.add_from(node.level, node.module or "", [alias.name for alias in node.names])
        elif isinstance(node, ast.Call):
            self._read_call(node)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            self._read_exports(node)

    def add_from(self, level: int, module: str, names: list[str]) -> None:
        """``from ..module import names``: each name may be a module."""
        base = absolute(self._package, level, module)
        if not base:
            return
        self._add(base)
        for name in names:
            if name == "*":
                self.stars.append(base)
            else:
                self._add(f"{base}.{name}")

    def _add(self, name: str) -> None:
        for known in (*parents(name), name):
            self._names[known] = None

    def _read_call(self, node: ast.Call) -> None:
        """``importlib.import_module("name")``, where the name is written out."""
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        texts = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if called not in _IMPORTERS or not node.args:
            return
        if not texts or texts[0] != getattr(node.args[0], "value", None):
            self.unseen = True
            return
        level = len(texts[0]) - len(texts[0].lstrip("."))
        package = texts[1] if len(texts) > 1 else self._package
        name = absolute(package, level, texts[0].lstrip("."))
        if name:
            self._add(name)

    def _read_exports(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is not None and any(getattr(target, "id", "") == "__all__" for target in targets):
            texts = [item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)]
            self.exports += [text for text in texts if isinstance(text, str)]


def parents(name: str) -> list[str]:
    """The packages that Python imports before a module."""
    words = name.split(".")
    return [".".join(words[:depth]) for depth in range(1, len(words))]


def absolute(package: str, level: int, module: str) -> str:
    """The full name of a module that is named relative to a package; empty where it would lie above the top."""
    if not level:
        return module
    words = package.split(".") if package else []
    keep = len(words) - level + 1
    if keep < 1:
        return ""
    return ".".join([*words[:keep], *filter(None, [module])])


def _of_bytecode(data: bytes, package: str) -> Text:
    """Bytecode without source: its bytes count, without the header that dates it."""
    body = data[_PYC_HEADER_BYTES:]
    found = _Imports(package)
    try:
        code = marshal.load(io.BytesIO(body))
        for kind, what in _scan(code):
            if kind == "absolute_import":
                found.add_from(0, what[1], list(what[0] or []))
            elif kind == "relative_import":
                found.add_from(what[0], what[2], list(what[1] or []))
    except (EOFError, ValueError, TypeError, AttributeError):  # of another version of Python: it cannot be imported
        pass
    return Text(hashlib.sha256(body).hexdigest(), found.names, tuple(found.stars))


def _scan(code: CodeType) -> Iterator[tuple[str, Any]]:
    yield from modulefinder.ModuleFinder().scan_opcodes(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _scan(constant)
