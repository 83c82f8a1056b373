from __future__ import annotations

import py_compile
from pathlib import Path

import pytest

from swamp_ray.user_code.source_text import absolute, understand

CODE = '''
import os
from math import pi as number

class Net(Base, metaclass=Meta):
    width: int = 16
    def forward(self, x, *, scale=1.0, **more):
        return [f"{x!r:>{scale}} and {x}" for x in self.layers if x is not None] or 10**3

async def g():
    async with a as b, c:
        yield b"bytes", 1j, ..., -0.5, "text \\u00e9"
    match x:
        case {"a": [1, *rest]} | None:
            pass
try:
    import fast
except* ValueError:
    raise
else:
    x, *y = lambda z=1, /, *w: z
'''


def digest(text: str) -> str:
    return understand(text.encode(), ".py", "pkg").digest


def test_the_digest_is_the_same_in_every_version_of_python() -> None:
    """Pinned: CI tries it with several versions. If it changes, results are not found any more."""
    assert digest(CODE) == "c9958208f6463b77e750a72c85a064a7b278645e29d28c373bb2b4739e6f9eb7"


@pytest.mark.parametrize(("before", "after"), [
    ("x = 1\n", "# why\n\n\nx = 1  # because\n"),
    ("def f():\n    return 1\n", 'def f():\n    """What it gives."""\n    return 1\n'),
    ("class A:\n    x: int\n", 'class A:\n    """A.\n\n    More.\n    """\n\n    x: int\n    """Its x."""\n'),
    ("def f(): pass\n", 'def f():\n    "one line"\n'),
    ("import a\n", '"""Module."""\nimport a\n'),
    ("f(a, b)\n", "f(\n    a,\n    b,\n)\n"),
    ("x = 'a' 'b'\n", 'x = "ab"\n'),
    ("x = 1_000\n", "x = 1000\n"),
    ("x = (1)\r\n", "x = 1\n"),
    ("if a:\n    b\n", "if a:\n    b\nelse:\n    pass\n"),
    ("x = f'a{b}' 'c'\n", "x = f'a{b}c'\n"),
])
def test_comments_docstrings_and_layout_change_nothing(before: str, after: str) -> None:
    assert digest(before) == digest(after)


@pytest.mark.parametrize(("before", "after"), [
    ("x = 1\n", "x = 1.0\n"), ("x = 1\n", "x = True\n"), ("x = 'a'\n", "x = b'a'\n"), ("x = 0.0\n", "x = -0.0\n"),
    ("x = a + b\n", "x = b + a\n"), ("x = a - (b - c)\n", "x = a - b - c\n"), ("x = None\n", "x: int\n"),
    ("def f(a, b=1): ...\n", "def f(a, *, b=1): ...\n"), ("def f(a, /, b): ...\n", "def f(a, b): ...\n"),
    ("a: int = 1\n", "a: float = 1\n"), ("a = 'x'\n", "a = 'y'\n"), ("@d\ndef f(): ...\n", "def f(): ...\n"),
    ("if a:\n    b()\nc()\n", "if a:\n    b()\n    c()\n"), ("x = {**a, 'b': 1}\n", "x = {'b': 1, **a}\n"),
    ("from a import b\n", "from .a import b\n"), ("x = 'a', 'b'\n", "x = 'a' 'b'\n"),
    ("x = f'{a}'\n", "x = f'{a!r}'\n"), ("x = f'{a:3}'\n", "x = f'{a:4}'\n"), ("x = 'nn.ReLU'\n", "x = nn.ReLU\n"),
    ("try:\n    a()\nfinally:\n    b()\n", "try:\n    a()\nexcept E:\n    b()\n"), ("del a\n", "a\n"),
    ("def f():\n    x = 'not a docstring'\n", "def f():\n    x = 'nor this'\n"),
])
def test_whatever_else_differs_counts(before: str, after: str) -> None:
    assert digest(before) != digest(after)


def test_generated_code_of_any_depth_and_length_has_a_digest() -> None:
    long = "x = " + " + ".join(["a"] * 3000) + "\n"
    assert digest(long) != digest(long.replace("a\n", "b\n"))
    assert digest(f"x = {'9' * 5000}\n") != digest(f"x = {'9' * 4999}8\n")


@pytest.mark.parametrize(("text", "names"), [
    ("import a.b.c as d", {"a", "a.b", "a.b.c"}),
    ("from . import x", {"pkg", "pkg.x"}),
    ("from ..up import y", set()),
    ("def f():\n    from .late import y", {"pkg", "pkg.late", "pkg.late.y"}),
    ("import importlib\nimportlib.import_module('a.b')", {"importlib", "a", "a.b"}),
    ("from importlib import import_module as i, import_module\nimport_module('.x', __package__)",
     {"importlib", "importlib.import_module", "pkg", "pkg.x"}),
    ("__import__('a')", {"a"}),
    ("import_module('.x', 'other.pkg')", {"other", "other.pkg", "other.pkg.x"}),
    ("import_module(name)", set()),
    ("import_module(name, 'pkg')", set()),
])
def test_imports_are_seen_wherever_they_stand(text: str, names: set[str]) -> None:
    assert set(understand(text.encode(), ".py", "pkg").imports) == names


def test_a_star_and_what_is_exported_are_told() -> None:
    text = understand(b"from .a import *\n__all__ = ['b']\n__all__ += ['c']\n", ".py", "pkg")
    assert (text.stars, text.exports) == (("pkg.a",), ("b", "c"))


def test_bytecode_counts_without_its_date_and_tells_its_imports(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text("import a.b\ndef f():\n    from .c import d\n")
    py_compile.compile(str(source), str(tmp_path / "first.pyc"), doraise=True)
    first = (tmp_path / "first.pyc").read_bytes()
    found = understand(first, ".pyc", "pkg")
    assert {"a", "a.b", "pkg.c", "pkg.c.d"} <= set(found.imports)
    other = first[:8] + b"\1\2\3\4" + first[12:]
    assert understand(other, ".pyc", "pkg").digest == found.digest
    assert understand(first[:-1] + b"\7", ".pyc", "pkg").digest != found.digest


def test_other_files_count_as_they_are() -> None:
    assert understand(b"\x7fELF1", ".so", "").digest != understand(b"\x7fELF2", ".so", "").digest


@pytest.mark.parametrize(("package", "level", "module", "full"), [
    ("a.b", 0, "c", "c"), ("a.b", 1, "c", "a.b.c"), ("a.b", 2, "", "a"), ("a.b", 3, "c", ""), ("", 1, "c", ""),
])
def test_relative_names(package: str, level: int, module: str, full: str) -> None:
    assert absolute(package, level, module) == full


@pytest.mark.parametrize(("text", "unseen"), [
    ("import importlib\nimportlib.import_module('a' + 'b')", True), ("__import__(name)", True),
    ("from importlib import import_module\nimport_module(f'x.{kind}', __package__)", True),
    ("import importlib\nimportlib.import_module('a.b')", False), ("__import__('a')", False), ("import a", False),
])
def test_imports_that_nobody_can_follow_are_told(text: str, unseen: bool) -> None:
    assert understand(text.encode(), ".py", "pkg").unseen is unseen
