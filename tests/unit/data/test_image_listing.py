"""Odd things among image files: named, never waited for, never read twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swamp_ray.data.image_listing import list_images
from swamp_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def links_to_each_other(path: Path) -> None:
    path.symlink_to("other.png")
    (path.parent / "other.png").symlink_to(path.name)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("name", "make", "text"), [
    ("x.png", lambda path: path.symlink_to("/nowhere/x"), r"x\.png: this link leads nowhere \(to /nowhere/x\)"),
    ("more", lambda path: path.symlink_to("/nowhere/more"), r"more: this link leads nowhere"),
    ("x.png", link_to_itself, r"x\.png: this link leads in a circle"),
    ("x.jpg", links_to_each_other, r"(x\.jpg|other\.png): this link leads in a circle"),
    ("up", lambda path: path.symlink_to(".."), r"up(/cat)?: this link leads back to a folder above it"),
    ("here", lambda path: path.symlink_to("."), r"here: this link leads back"),
    ("x.png", os.mkfifo, r"x\.png: this is a pipe \(FIFO\), named like an image"),
    ("x.TIFF", make_socket, r"x\.TIFF: this is a socket"),
    ("x.png", lambda path: path.symlink_to("/dev/zero"), r"x\.png: this is a device"),
    ("x.png", Path.mkdir, r"x\.png: this is a folder without images, named like an image"),
    ("x.png", lambda path: path.write_bytes(b""), r"x\.png: this image file is empty"),
])
def test_what_is_no_image_is_named(folder: Path, name: str, make: Callable[[Path], Any], text: str) -> None:
    make(folder / "cat" / name)
    with pytest.raises(UserError, match=text):
        list_images(folder)


def test_a_class_that_leads_nowhere_is_named(folder: Path) -> None:
    (folder / "bird").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"bird: this link leads nowhere"):
        list_images(folder)


def test_a_link_to_a_pipe_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "cat" / "x.png").symlink_to("../pipe")
    with pytest.raises(UserError, match=r"x\.png: this is a pipe"):
        list_images(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
@pytest.mark.parametrize("name", ["cat/1.png", "dog"])
def test_what_may_not_be_read_is_named(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    with pytest.raises(UserError, match=f"{name}: .*Permission denied"):
        list_images(folder)
    (folder / name).chmod(0o755)


def test_folders_and_links_that_lead_somewhere_are_read(folder: Path) -> None:
    (folder / "cat" / "slide.tiff").mkdir()
    (folder / "cat" / "slide.tiff" / "tile.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    (folder / "cat" / "again.png").symlink_to("0.png")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "0.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    (folder / "cat" / "linked").symlink_to("../elsewhere")
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    listing = list_images(folder)
    assert [os.fsdecode(name) for name in listing.files[listing.labels == 0]] == [
        "cat/0.png", "cat/1.png", "cat/again.png", "cat/linked/0.png", "cat/slide.tiff/tile.png"]
