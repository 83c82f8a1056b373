from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.user_code.importing import is_import_path, load_object


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Write a module into the current directory; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(name: str, body: str) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.mark.parametrize(("name", "means_code"), [
    ("resnet20", False), ("torchvision/resnet50", False), ("a.b:c", True)])
def test_is_import_path(name: str, means_code: bool) -> None:
    assert is_import_path(name) is means_code


def test_loads_from_the_current_directory(module: Callable[[str, str], None]) -> None:
    module("users_code", "def f():\n    return 3\nclass A:\n    class B:\n        c = 4\n")
    assert load_object("users_code:f", "model.name")() == 3
    assert load_object("users_code:A.B.c", "model.name") == 4


def test_loads_from_packages(module: Callable[[str, str], None]) -> None:
    module("users_package.inner.code", "x = 5\n")
    assert load_object("users_package.inner.code:x", "model.name") == 5
    assert load_object("os.path:join", "model.name") is __import__("os").path.join


@pytest.mark.parametrize("path", ["users_code:", ":f", ":", "users_code"])
def test_malformed_paths(path: str) -> None:
    with pytest.raises(UserError, match=r"model\.name: must be an import path, but got .*package\.module:attribute"):
        load_object(path, "model.name")


@pytest.mark.parametrize("path", [".relative:f", "..:f", "users code:f", "users-code:f", "a..b:f"])
def test_odd_module_names_are_explained(path: str, module: Callable[[str, str], None]) -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        load_object(path, "model.name")


def test_missing_module_is_named_without_a_traceback(module: Callable[[str, str], None]) -> None:
    with pytest.raises(UserError, match="the module 'users_nowhere' cannot be imported") as error:
        load_object("users_nowhere:f", "model.name")
    assert "No module named 'users_nowhere'" in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(("body", "own"), [
    ("import users_missing_dependency\n", "No module named 'users_missing_dependency'"),
    ("def f(:\n", "SyntaxError"), ("raise KeyError('at import')\n", "KeyError: 'at import'"),
    ("1 / 0\n", "ZeroDivisionError"),
])
def test_failing_module_shows_its_own_error(module: Callable[[str, str], None], body: str, own: str) -> None:
    module("users_broken", body)
    with pytest.raises(UserError, match="the module 'users_broken' cannot be imported") as error:
        load_object("users_broken:f", "data.name")
    assert own in str(error.value)
    assert "users_broken.py" in str(error.value)
    assert str(error.value).startswith("data.name: ")


def test_missing_attribute_names_the_nearest(module: Callable[[str, str], None]) -> None:
    module("users_code", "def score(w, w0):\n    return w\nclass A:\n    pass\n")
    with pytest.raises(UserError, match=r"'users_code' has no attribute 'scores'\. Did you mean 'score'\?"):
        load_object("users_code:scores", "pruning.score")
    with pytest.raises(UserError, match=r"has no attribute 'A\.b'"):
        load_object("users_code:A.b", "pruning.score")


def test_a_missing_module_needs_no_traceback_and_a_failing_one_shows_its_own(
    module: Callable[[str, str], None]
) -> None:
    with pytest.raises(UserError, match="No module named 'users_missing'") as caught:
        load_object("users_missing.inner:f", "model.name")
    assert "Traceback" not in str(caught.value)
    module("users_failing", "import json\n\njson.loads('{')\n")
    with pytest.raises(UserError, match=r"users_failing\.py\", line 3") as caught:
        load_object("users_failing:f", "model.name")
    text = str(caught.value)
    assert text.endswith("Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")
    assert "importlib" not in text
    assert "swamp_ray" not in text
