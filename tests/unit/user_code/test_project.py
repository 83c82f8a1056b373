from __future__ import annotations

import os
import py_compile
import sys
import zipfile
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.user_code.finding import find, release_of
from swamp_ray.user_code.project import explore
from tests.unit.user_code.conftest import Write


def distribution(root: Path, name: str, *, url: str = "", egg: bool = False) -> None:
    """Metadata of a distribution as an installer leaves them."""
    folder = root / (f"{name}.egg-info" if egg else f"{name}-1.2.dist-info")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("PKG-INFO" if egg else "METADATA")).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (folder / "top_level.txt").write_text(f"{name}\n")
    if url:
        (folder / "direct_url.json").write_text(url)


def parts(name: str) -> set[str]:
    return set(explore([name]).parts)


def test_helpers_in_other_folders_of_the_path_belong_to_it(write: Write) -> None:
    write({"uc_helper.py": "import uc_deep\n", "uc_deep/__init__.py": "", "uc_stranger.py": ""}, "library")
    write({"uc_net.py": "def f():\n    import uc_helper\n"})
    assert parts("uc_net") == {"uc_net", "uc_helper", "uc_deep"}


def test_namespace_packages_over_several_folders(write: Write) -> None:
    write({"uc_space/one.py": "from uc_space import two\nfrom uc_space.deep.er import three\n"}, "a")
    write({"uc_space/two.py": "", "uc_space/deep/er/three.py": ""}, "b")
    assert parts("uc_space.one") == {"uc_space.one", "uc_space.two", "uc_space.deep.er.three"}


def test_what_a_star_brings_and_what_is_imported_by_a_written_name(write: Write) -> None:
    write({"uc_p/__init__.py": "__all__ = ['one', 'value']\nvalue = 1\n", "uc_p/one.py": "", "uc_p/two.py": "",
           "uc_net.py": "from uc_p import *\nimport importlib\nx = importlib.import_module('uc_named')\n",
           "uc_named.py": ""})
    assert parts("uc_net") == {"uc_net", "uc_p", "uc_p.one", "uc_named"}


def test_a_module_that_has_the_name_of_one_of_pythons_is_seen(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"uc_net.py": "import colorsys, json, uc_net\n", "colorsys.py": "x = 1\n"})
    assert parts("uc_net") == {"uc_net", "colorsys"}


def test_links_are_followed_for_what_they_hold_and_not_for_whose_they_are(write: Write, tmp_path: Path) -> None:
    elsewhere = write({"real.py": "x = 1\n", "pkg/__init__.py": ""}, "elsewhere", on_path=False)
    root = write({"uc_net.py": "import uc_link, uc_pkg\n"})
    (root / "uc_link.py").symlink_to(elsewhere / "real.py")
    (root / "uc_pkg").symlink_to(elsewhere / "pkg")
    before = explore(["uc_net"])
    assert set(before.parts) == {"uc_net", "uc_link", "uc_pkg"}
    (elsewhere / "real.py").write_text("x = 2\n")
    assert explore(["uc_net"]).digest() != before.digest()


def test_archives_and_bytecode_without_source(write: Write, tmp_path: Path) -> None:
    root = write({"uc_net.py": "import uc_zipped.inner, uc_bytes\n", "uc_bytes.py": "import uc_below\n",
                  "uc_below.py": ""})
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("uc_zipped/__init__.py", "")
        file.writestr("uc_zipped/inner.py", "import uc_below\n")
    sys.path.insert(0, str(archive))
    py_compile.compile(str(root / "uc_bytes.py"), str(root / "uc_bytes.pyc"), doraise=True)
    (root / "uc_bytes.py").unlink()
    assert parts("uc_net") == {"uc_net", "uc_zipped", "uc_zipped.inner", "uc_bytes", "uc_below"}


def test_machine_code_counts_by_its_bytes(write: Write) -> None:
    root = write({"uc_net.py": "import uc_native\n"})
    native = root / "uc_native.so"
    native.write_bytes(b"\x7fELF one")
    before = explore(["uc_net"])
    assert set(before.parts) == {"uc_net", "uc_native"}
    native.write_bytes(b"\x7fELF two")
    assert explore(["uc_net"]).digest() != before.digest()


@pytest.mark.parametrize("statement", ["import uc_release", "import uc_release.deep.er", "from uc_release import x"])
def test_an_installed_release_counts_by_name_and_version(write: Write, statement: str) -> None:
    root = write({"uc_release/__init__.py": "import uc_beside\n", "uc_release/deep.py": "", "uc_beside.py": ""},
                 "site-packages")
    distribution(root, "UC.Release")
    distribution(root, "uc_release")
    write({"uc_net.py": f"{statement}\n"})
    found = explore(["uc_net"])
    assert set(found.parts) == {"uc_net"}
    assert found.digest()["packages"] == "uc-release==1.2"
    (root / "uc_release-1.2.dist-info").rename(root / "uc_release-1.3.dist-info")
    (root / "uc_release-1.3.dist-info" / "METADATA").write_text("Name: uc_release\nVersion: 1.3\n")
    assert explore(["uc_net"]).digest()["packages"] == "uc-release==1.3"


def test_what_has_a_place_of_its_own_is_not_named_once_more(write: Write) -> None:
    write({"uc_net.py": "import torch, numpy as np, swamp_ray, torchvision.models, yaml, PIL.Image\n"})
    assert set(explore(["uc_net"]).packages) == {"torchvision", "pyyaml", "pillow"}


@pytest.mark.parametrize("url", [
    '{"url": "file:///home/me/uc", "dir_info": {"editable": true}}', '{"url": "file:///home/me/uc", "dir_info": {}}',
    '{"url": "file:///tmp/uc-1.2.whl", "archive_info": {}}',
])
def test_what_was_installed_from_this_machine_is_source(write: Write, url: str) -> None:
    root = write({"uc_local/__init__.py": ""}, "site-packages")
    distribution(root, "uc_local", url=url)
    write({"uc_net.py": "import uc_local\n"})
    assert parts("uc_net") == {"uc_net", "uc_local"}


def test_a_release_of_a_version_control_system_counts_with_its_commit(write: Write) -> None:
    root = write({"uc_git.py": ""}, "site-packages")
    distribution(root, "uc_git", url='{"url": "https://host/uc", "vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    found = find("uc_git")
    assert found is not None
    assert release_of(found) == "uc-git==1.2@abc"


def test_an_egg_beside_the_sources_does_not_make_them_a_release(write: Write) -> None:
    root = write({"uc_built/__init__.py": ""})
    distribution(root, "uc_built", egg=True)
    assert parts("uc_built") == {"uc_built"}
    installed = write({"uc_old/__init__.py": ""}, "dist-packages")
    distribution(installed, "uc_old", egg=True)
    assert parts("uc_old") == set()


def test_a_file_of_nobodys_among_the_libraries_is_source(write: Write) -> None:
    root = write({"uc_dropped.py": "", "uc_other.py": ""}, "site-packages")
    distribution(root, "uc_other")
    assert parts("uc_dropped") == {"uc_dropped"}


def test_editable_finders_are_asked(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"src/code/__init__.py": "from uc_mapped import sub\n", "src/code/sub.py": ""}, on_path=False)
    from importlib.machinery import ModuleSpec
    from importlib.util import spec_from_file_location

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if name != "uc_mapped":
                return None
            return spec_from_file_location(name, root / "src/code/__init__.py",
                                           submodule_search_locations=[str(root / "src/code")])

    Finder.__module__ = "__editable___uc_finder"
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert parts("uc_mapped") == {"uc_mapped", "uc_mapped.sub"}


def test_a_source_that_cannot_be_read_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"uc_net.py": ""})

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"'uc_net' could not be read: Permission denied") as caught:
        explore(["uc_net"])
    assert str(root) in str(caught.value)


def test_the_working_folder_need_not_be_on_the_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"uc_here.py": ""}, on_path=False)
    monkeypatch.chdir(root)
    assert parts("uc_here") == {"uc_here"}
    assert os.fspath(explore(["uc_here"]).parts["uc_here"].location.file) == str(root / "uc_here.py")
