from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.storage.names import source_digest

PROJECT = {
    "mine/__init__.py": "",
    "mine/models/__init__.py": "from .net import Net\n",
    "mine/models/net.py": "import math\nimport numpy\nfrom . import blocks\nfrom ..util import helper as h\n",
    "mine/models/blocks.py": "def f():\n    from mine.lazy import late\n",
    "mine/models/unused.py": "x = 1\n",
    "mine/util.py": "import mine.deep.er\nhelper = 1\n",
    "mine/lazy.py": "late = 1\n",
    "mine/deep/er.py": "from mine.models import net\n",
    "mine/other.py": "",
    "script.py": "import beside\nimport mine.util\ndef make(): ...\n",
    "beside.py": "",
    "stranger.py": "",
}
PATH = "mine.models.net:Net"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    for name, text in PROJECT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(root))
    return root


def changes(project: Path, import_path: str) -> set[str]:
    """The files whose change of code changes the digest."""
    before = source_digest(import_path, None)
    found: set[str] = set()
    for name in PROJECT:
        path = project / name
        text = path.read_text()
        path.write_text(text + "\nchanged = True\n")
        if source_digest(import_path, None) != before:
            found.add(name)
        path.write_text(text)
    assert source_digest(import_path, None) == before
    return found


def test_the_module_and_what_it_imports_from_its_package_count_and_nothing_else(project: Path) -> None:
    assert changes(project, PATH) == {"mine/__init__.py", "mine/models/__init__.py", "mine/models/net.py",
                                      "mine/models/blocks.py", "mine/util.py", "mine/lazy.py", "mine/deep/er.py"}


def test_a_re_exported_attribute_counts_with_its_own_module(project: Path) -> None:
    assert "mine/models/net.py" in changes(project, "mine.models:Net")


def test_modules_beside_a_script_count(project: Path) -> None:
    found = changes(project, "script:make")
    assert {"script.py", "beside.py", "mine/util.py"} <= found
    assert not {"stranger.py", "mine/other.py", "mine/models/unused.py"} & found


def test_helpers_in_another_folder_of_the_path_count(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "sources_helper.py").write_text("import torch, yaml\nx = 1\n")
    monkeypatch.syspath_prepend(str(library))
    (project / "beside.py").write_text("from sources_helper import x\n")
    before = source_digest("script:make", None)
    assert before["packages"].startswith("pyyaml==")
    (library / "sources_helper.py").write_text("import torch, yaml\nx = 2\n")
    assert source_digest("script:make", None) != before


@pytest.mark.parametrize("change", [
    lambda text: f"# a comment\n\n{text}", lambda text: f'"""What it is."""\n{text}',
    lambda text: text.replace("helper as h", "(\n    helper as h,\n)"),
])
def test_comments_docstrings_and_layout_do_not_count(project: Path, change: Callable[[str], str]) -> None:
    before = source_digest(PATH, None)
    path = project / "mine/models/net.py"
    path.write_text(change(path.read_text()))
    assert source_digest(PATH, None) == before


def test_a_new_helper_and_a_removed_one_count(project: Path) -> None:
    before = source_digest("script:make", None)
    (project / "beside.py").unlink()
    without = source_digest("script:make", None)
    (project / "beside.py").write_text("")
    assert without != before == source_digest("script:make", None)


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text,
])
def test_line_ends_and_dates_do_not_count(project: Path, change: Callable[[str], str]) -> None:
    before = source_digest(PATH, None)
    path = project / "mine/models/net.py"
    path.write_bytes(change(path.read_text()).encode())
    assert source_digest(PATH, None) == before


def test_the_place_of_the_project_does_not_count(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_digest(PATH, None)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert source_digest(PATH, None) == before


def test_user_code_is_not_run(project: Path) -> None:
    for name in ("mine/__init__.py", "mine/models/net.py"):
        (project / name).write_text("raise RuntimeError\n")
    source_digest(PATH, None)
    assert "mine" not in sys.modules


def test_code_that_does_not_parse_still_has_a_digest(project: Path) -> None:
    before = source_digest(PATH, None)
    (project / "mine/util.py").write_text("def (\n")
    assert source_digest(PATH, None) != before


def test_a_declared_version_stands_for_the_code(project: Path) -> None:
    assert source_digest(PATH, "1.2") == {"version": "1.2"}
    assert source_digest(PATH, "") == {"version": ""}


def test_an_installed_package_is_known_by_its_distribution() -> None:
    found = source_digest("numpy.linalg:norm", None)
    import numpy

    assert found["distribution"] == f"numpy=={numpy.__version__}"
    assert len(found["source"]) == 64


@pytest.mark.parametrize("path", ["nowhere_at_all:f", "mine.nothing:f", "mine.util.nothing:f", "sys:path", "mine",
                                  "mine.util:", ":f", "mine/util:f", "a:b:c", "..mine:f"])
def test_paths_without_a_source_are_refused(project: Path, path: str) -> None:
    with pytest.raises(UserError):
        source_digest(path, None)
