from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.config.plain_values import import_path_of
from swamp_ray.errors import UserError
from swamp_ray.run.shared_code import NO_CODE, Code, adopt_path, own_path, take_up
from swamp_ray.storage.code_digest import digest_sources
from swamp_ray.user_code.importing import import_module, load_object
from swamp_ray.user_code.loading import freeze, frozen
from tests.unit.user_code.conftest import Write

PATH = "uc_net:value"


def value(anew: bool = True) -> Any:
    import_module("uc_net", "model.name", anew=anew)
    return load_object(PATH, "model.name")


def test_an_edited_module_is_imported_anew_for_the_next_run(write: Write) -> None:
    write({"uc_net.py": "value = 1\n"})
    assert value() == 1
    first = digest_sources(PATH)
    write({"uc_net.py": "value = 2\n"})  # of the same length, and within the same second
    assert value(anew=False) == 1
    assert digest_sources(PATH) == first
    assert value() == 2
    assert digest_sources(PATH) != first


@pytest.mark.parametrize("files", [
    {"uc_net.py": "from uc_a import f as value\n", "uc_a.py": "from uc_b import f\n", "uc_b.py": "f = {}\n"},
    {"uc_net.py": "import uc_b\nvalue = uc_b.f\n", "uc_b.py": "f = {}\n"},
    {"uc_net.py": "from uc_b.deep import f\nvalue = f\n", "uc_b/__init__.py": "", "uc_b/deep.py": "f = {}\n"},
    {"uc_net.py": "from uc_b import f as value\n", "uc_b/__init__.py": "from .deep import f\n",
     "uc_b/deep.py": "f = {}\n"},
])
def test_an_edited_helper_is_imported_anew_with_all_that_hold_it(write: Write, files: dict[str, str]) -> None:
    write({name: text.format(1) for name, text in files.items()})
    assert value() == 1
    write({name: text.format(2) for name, text in files.items()})
    assert value() == 2


def test_a_comment_imports_nothing_anew(write: Write) -> None:
    write({"uc_net.py": "value = object()\n"})
    first = value()
    write({"uc_net.py": "# why\nvalue = object()\n"})
    assert value() is first


def test_bytecode_of_the_same_second_and_size_is_not_taken(write: Write) -> None:
    root = write({"uc_net.py": "import uc_part\nvalue = uc_part.x\n", "uc_part.py": "x = 1\n"})
    dated = os.stat(root / "uc_part.py").st_mtime
    importlib.import_module("uc_part")  # Python's own import leaves bytecode behind, unless it is told not to
    if sys.dont_write_bytecode:
        import py_compile

        py_compile.compile(str(root / "uc_part.py"), doraise=True)
    del sys.modules["uc_part"]
    write({"uc_part.py": "x = 2\n"})
    os.utime(root / "uc_part.py", (dated, dated))
    assert value() == 2


def test_what_the_user_imported_before_an_edit_is_imported_anew(write: Write) -> None:
    write({"uc_net.py": "value = 1\n"})
    assert importlib.import_module("uc_net").value == 1
    write({"uc_net.py": "value = 2\n"})
    assert value() == 2


def test_what_the_user_has_reloaded_in_place_is_imported_anew_with_all_that_hold_it(write: Write) -> None:
    write({"uc_net.py": "from uc_b import f as value\n", "uc_b.py": "f = 1\n"})
    assert value() == 1
    write({"uc_b.py": "f = 2\n"})
    importlib.reload(sys.modules["uc_b"])
    assert sys.modules["uc_net"].value == 1
    assert value() == 2


def test_a_module_of_the_same_name_in_another_folder_counts_as_another(write: Write) -> None:
    write({"uc_net.py": "value = __file__\n"}, "one")
    first = value()
    write({"uc_net.py": "value = __file__\n"}, "two")
    assert value() != first


def test_modules_from_before_this_process_are_left_as_the_user_has_imported_them(tmp_path: Path) -> None:
    """Importing them once more would break classes that he holds."""
    (tmp_path / "uc_old.py").write_text("class Net:\n    pass\n")
    old = time.time() - 100
    os.utime(tmp_path / "uc_old.py", (old, old))
    script = textwrap.dedent("""
        import sys, time
        import uc_old
        import swamp_ray.user_code.loading as loading
        loading._MARGIN_S = -1e9  # as if the process had been started long after the file was written
        from swamp_ray.user_code.importing import import_module
        before = uc_old.Net
        assert import_module("uc_old", "model.name", anew=True).Net is before
    """)
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True,
                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_broken_edit_is_refused_and_leaves_the_module_as_it_was(write: Write) -> None:
    write({"uc_net.py": "value = 1\n"})
    assert value() == 1
    module = sys.modules["uc_net"]
    write({"uc_net.py": "value = (\n"})
    with pytest.raises(UserError, match="SyntaxError"):
        value()
    assert sys.modules["uc_net"] is module
    write({"uc_net.py": "value = 3\n"})
    assert value() == 3


def test_machine_code_that_was_built_anew_is_refused(write: Write) -> None:
    root = write({"uc_net.py": "import uc_native\nvalue = 1\n"})
    (root / "uc_native.so").write_bytes(b"one")
    module = type(sys)("uc_native")
    module.__file__ = str(root / "uc_native.so")
    sys.modules["uc_native"] = module
    with pytest.raises(UserError, match=r"'uc_native' was built anew.*restart the kernel"):
        value()


def test_in_the_course_of_a_run_no_other_version_is_imported(write: Write) -> None:
    write({"uc_net.py": "def value():\n    import uc_late\n    return uc_late.x\n", "uc_late.py": "x = 1\n"})
    code = take_up({"model.name": PATH})
    write({"uc_late.py": "x = 2\n"})
    with frozen(code.digests), pytest.raises(UserError, match="'uc_late' was changed while a run"):
        load_object(PATH, "model.name")()
    write({"uc_net.py": "value = 3\n"})
    with frozen(code.digests), pytest.raises(UserError, match="another run of this process"):
        take_up({"model.name": PATH})
    assert take_up({"model.name": PATH}).digests != code.digests


def test_a_file_that_changes_while_a_run_is_prepared_is_noticed(write: Write) -> None:
    write({"uc_net.py": "value = 1\n"})
    code = take_up({"model.name": PATH})
    code.check_unchanged()
    write({"uc_net.py": "# a comment\nvalue = 1\n"})
    code.check_unchanged()
    write({"uc_net.py": "value = 2\n"})
    with pytest.raises(UserError, match="'uc_net' has changed while the run was being prepared"):
        code.check_unchanged()


@pytest.mark.parametrize(("change", "words"), [
    ({"uc_net.py": "import uc_part\nvalue = 2\n"}, "'uc_net' has changed since the run was started"),
    ({"uc_part.py": "x = 2\n"}, "'uc_part' has changed"),
    ({"uc_net.py": "value = 1\n"}, "'uc_net'"),
])
def test_a_worker_refuses_other_code(write: Write, change: dict[str, str], words: str) -> None:
    write({"uc_net.py": "import uc_part\nvalue = 1\n", "uc_part.py": "x = 1\n"})
    code = take_up({"model.name": PATH})
    try:
        code.take_over()
        write(change)
        with pytest.raises(UserError, match=words):
            code.take_over()
    finally:
        freeze({})


def test_a_worker_on_another_machine_names_both_places() -> None:
    from swamp_ray.run.shared_code import Module

    modules = {"a": Module("1", "/home/a.py"), "b": Module("2", "/home/b.py")}
    driver = Code({}, modules, {"timm": "timm==1.0"}, (), "one")
    with pytest.raises(UserError, match=r"'a'.*/home/a\.py on one there, /opt/a\.py on two on the worker"):
        driver.compare(Code({}, {"a": Module("3", "/opt/a.py")}, {}, (), "two"))
    with pytest.raises(UserError, match=r"'b'.*none on two"):
        driver.compare(Code({}, {"a": Module("1", "/opt/a.py")}, {}, (), "two"))
    with pytest.raises(UserError, match=r"package timm.*timm==1\.0 on one, timm==1\.1 on two"):
        driver.compare(Code({}, driver.modules, {"timm": "timm==1.1"}, (), "two"))
    driver.compare(Code({}, driver.modules, driver.packages, ("/elsewhere",), "two"))


def test_the_drivers_folders_come_first_on_a_workers_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", ["/worker", *sys.path])
    libraries = [entry for entry in sys.path if "site-packages" in entry]
    adopt_path([str(tmp_path), "/second", *libraries])
    assert sys.path[:3] == [str(tmp_path), "/second", "/worker"]
    assert own_path()[:3] == (str(tmp_path), "/second", "/worker")
    assert not any("site-packages" in entry or entry.endswith("lib-dynload") for entry in own_path())


def test_without_user_code_there_is_nothing_to_compare() -> None:
    NO_CODE.check_unchanged()
    assert take_up({}).modules == {}
    NO_CODE.take_over()
    freeze({})


def test_a_function_from_before_an_edit_is_not_taken_for_the_new_one(write: Write) -> None:
    write({"uc_net.py": "def value():\n    return 1\n"})
    old = value()
    assert import_path_of(old, "model.name") == PATH
    write({"uc_net.py": "def value():\n    return 2\n"})
    take_up({"model.name": PATH})
    with pytest.raises(UserError, match=r"imported anew since .*from uc_net import value"):
        import_path_of(old, "model.name")


def test_code_that_no_digest_sees_is_told_unless_a_version_is_declared(write: Write) -> None:
    write({"uc_net.py": "from uc_kind import value\n",
           "uc_kind.py": "import importlib\nvalue = importlib.import_module('uc_' + 'part').value\n",
           "uc_part.py": "value = 1\n"})
    code = take_up({"model.name": PATH, "data.name": PATH})
    [text] = code.notes({"model.name": None})
    assert text.startswith("uc_kind imports by a name that is put together at run time")
    assert code.notes({"model.name": "3"}) == ()
    assert code.without("model.name").notes({"model.name": None}) == ()
