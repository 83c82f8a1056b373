from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.local import local_folder, write_atomic
from tests.unit.storage.processes import run_python


def test_bytes_replace_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    assert write_atomic(path, b"one")
    assert write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_an_existing_file_is_kept_when_asked(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / "file", b"first", keep_existing=True)
    assert not write_atomic(tmp_path / "file", b"second", keep_existing=True)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_a_group_can_share_the_files(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o664


def test_no_room_is_an_error_that_names_the_file_and_the_space_and_harms_nothing(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old")
    done = run_python("""
        import resource, sys
        from pathlib import Path
        from swamp_ray.errors import RunError
        from swamp_ray.storage.local import write_atomic
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomic(Path(sys.argv[1]), bytes(100_000))
        except RunError as error:
            print(error)
        """, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "file") in done.stdout
    assert "MiB free" in done.stdout
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not be written"):
        write_atomic(tmp_path / "file" / "below", b"x")


def test_storage_is_a_folder_and_not_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("store") == tmp_path / "store"
    assert local_folder("~/store") == Path.home() / "store"
    for wrong in ("s3://bucket/store", "gs://b", ""):
        with pytest.raises(UserError, match="storage"):
            local_folder(wrong)
