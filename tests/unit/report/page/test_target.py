"""Where a report is written: wrong names and full disks are told in words about the output, and harm nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.errors import UserError
from swamp_ray.report.page import target
from swamp_ray.report.page.target import target_of


@pytest.mark.parametrize(("output", "words"), [
    ("", "is a folder"), ("pages", "is a folder"), ("page.pdf", "Let its name end in .html"),
    ("page", "page.html"), (".html", "report.html"),
])
def test_names_that_are_no_page_are_refused_with_one_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    with pytest.raises(UserError, match=words):
        target_of([], output or ".")


def test_a_missing_folder_is_made_and_one_that_was_only_tried_is_not(tmp_path: Path) -> None:
    page = target_of([], tmp_path / "a" / "b" / "page.html")
    page.check_writable()
    assert list(tmp_path.iterdir()) == []
    page.write_all([("page/one.csv", b"1"), ("page.html", b"page")])
    assert (tmp_path / "a" / "b" / "page" / "one.csv").read_bytes() == b"1"
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"page", "page.html"}


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = target_of([], tmp_path / "page.html")
    page.write_all([("page/one.csv", b"old"), ("page.html", b"old")])
    write, written = target.write_atomic, []

    def full(path: Path, data: bytes, **values: Any) -> None:
        if len(written) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write(path, data, **values)

    monkeypatch.setattr(target, "write_atomic", full)
    with pytest.raises(UserError, match=r"page\.html \(No space left.*was there before is unharmed") as error:
        page.write_all([("page/one.csv", b"new"), ("page.html", b"new")])
    assert "--output" in str(error.value)
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "page" / "one.csv").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"page", "page.html"}


def test_a_file_in_place_of_the_folder_is_told_beforehand(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("mine")
    with pytest.raises(UserError, match="there is a file of its name"):
        target_of([], tmp_path / "page.html").check_writable()
    assert (tmp_path / "page").read_text() == "mine"


def test_where_nothing_may_be_written_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(target, "write_atomic", read_only)
    with pytest.raises(UserError, match=r"Read-only file system.*choose another file with --output"):
        target_of([], tmp_path / "page.html").check_writable()
