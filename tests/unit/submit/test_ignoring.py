"""Ignore files: the rules of git, held against git itself where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from swamp_ray.submit.ignoring import parse_rule
from swamp_ray.submit.upload import select_files

FILES = (
    "a.txt", "b.log", "keep.log", "sub/b.log", "sub/deep/c.txt", "sub/deep/keep.log", "build/x.py", "src/build/y.py",
    "src/build.py", "docs/a/b/c.md", "docs/c.md", "data1/x", "data2/x", "dataset/x", "#odd", "!odd", "a[1].py",
    "space ", "only_here/z.py", "sub/only_here/z.py", "temp/one/two/three.txt", "x/foo/bar", "foo/bar", "e1.py",
    "e2.py",
)

IGNORES = {
    "names and stars": {".gitignore": "*.log\n!keep.log\n# a comment\n\n"},
    "folders": {".gitignore": "build/\n"},
    "anchored": {".gitignore": "/only_here\nsrc/build.py\n"},
    "double stars": {".gitignore": "docs/**/c.md\n**/foo/bar\ntemp/**\n"},
    "question marks and brackets": {".gitignore": "data?\ne[!1].py\na\\[1\\].py\n"},
    "escapes": {".gitignore": "\\#odd\n\\!odd\nspace\\ \n"},
    "trailing spaces": {".gitignore": "a.txt   \n"},
    "nested files win": {".gitignore": "*.log\n", "sub/.gitignore": "!*.log\n/deep/c.txt\n"},
    "nothing comes back out of an ignored folder": {".gitignore": "sub/\n!sub/b.log\n"},
    "a star does not cross a slash": {".gitignore": "docs/*/c.md\n"},
    "everything but": {".gitignore": "/*\n!/src\n"},
}


def make(folder: Path, ignores: dict[str, str]) -> None:
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name, text in ignores.items():
        (folder / name).write_text(text)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the yardstick")
@pytest.mark.parametrize("ignores", IGNORES.values(), ids=IGNORES)
@pytest.mark.parametrize("is_repository", [True, False], ids=["repository", "plain folder"])
def test_takes_what_git_would_take(tmp_path: Path, ignores: dict[str, str], is_repository: bool) -> None:
    for name in ("yardstick", "tried"):
        make(tmp_path / name, ignores)
    repositories = ["yardstick", "tried"] if is_repository else ["yardstick"]
    for name in repositories:
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
    listed = subprocess.run(["git", "ls-files", "-z", "--others", "--exclude-standard"], cwd=tmp_path / "yardstick",
                            capture_output=True, text=True, check=True).stdout
    wanted = {name for name in listed.split("\0") if name and not name.endswith(".gitignore")}
    assert set(select_files(tmp_path / "tried", {}).sizes) == wanted


def test_rules_of_the_repository_hold_in_a_folder_below(tmp_path: Path) -> None:
    make(tmp_path, {".gitignore": "*.log\n/sub/deep/c.txt\n/b.log\n"})
    (tmp_path / ".git").mkdir()
    assert set(select_files(tmp_path / "sub", {}).sizes) == {"only_here/z.py"}


@pytest.mark.parametrize("line", ["", "   ", "# comment", "/", "!", "[z-a]"])
def test_lines_that_say_nothing(line: str) -> None:
    assert parse_rule(line) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is what tracks")
def test_what_git_tracks_comes_along_in_spite_of_gitignore_but_not_of_rayignore(tmp_path: Path) -> None:
    make(tmp_path, {".gitignore": "*.log\nbuild/\n"})
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "add", "-f", "keep.log", "build/x.py"], cwd=tmp_path, check=True)
    (tmp_path / "build" / "untracked.py").write_text("")
    found = set(select_files(tmp_path, {}).sizes)
    assert {"keep.log", "build/x.py"} <= found
    assert not {"b.log", "build/untracked.py"} & found
    (tmp_path / ".rayignore").write_text("keep.log\n")
    assert "keep.log" not in select_files(tmp_path, {}).sizes
