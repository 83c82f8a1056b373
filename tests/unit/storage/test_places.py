from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.storage.places import LocalPlace, Place, open_place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(tmp_path / "storage")


def test_what_is_written_is_read_and_listed(place: Place) -> None:
    assert place.write("a/b/one", b"1")
    assert place.write("a/two", b"22")
    assert place.read("a/b/one") == b"1"
    assert place.size("a/two") == 2
    assert [(entry.name, entry.size) for entry in place.entries("a")] == [("two", 2)]
    assert place.folders("a") == ["b"]
    assert place.folders("") == ["a"]


def test_what_is_not_there(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        place.read("a/b")
    assert place.size("a/b") is None
    assert place.entries("a") == []
    assert place.folders("a") == []
    place.remove("a/b")


def test_an_existing_object_is_kept_where_that_is_asked_for(place: Place) -> None:
    assert place.write("a", b"first", keep_existing=True)
    assert not place.write("a", b"second", keep_existing=True)
    assert place.read("a") == b"first"
    assert place.write("a", b"third")
    assert place.read("a") == b"third"


def test_a_swap_needs_what_it_expects(place: Place) -> None:
    assert not place.swap("a", b"new", expected=b"old")
    assert place.size("a") is None
    place.write("a", b"old")
    assert not place.swap("a", b"new", expected=b"other")
    assert place.read("a") == b"old"
    assert place.swap("a", b"new", expected=b"old")
    assert place.read("a") == b"new"


def test_of_swaps_at_the_same_time_one_wins(place: Place) -> None:
    for number in range(10):
        place.write("a", b"old")
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda writer: place.swap("a", str(writer).encode(), expected=b"old"), range(6)))
        assert sum(won) == 1, number
        assert place.read("a") == str(won.index(True)).encode()


@pytest.mark.parametrize("key", ["../a", "a/../b", "/a", "a//b", "a/", ".", "a b"])
def test_a_key_never_leads_out_of_the_place(place: Place, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        place.read(key)


def test_a_local_place_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_place("storage").uri == str(tmp_path / "storage")
    assert LocalPlace("storage").path("a/b") == tmp_path / "storage" / "a" / "b"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="storage"):
        open_place("ftp://somewhere/folder")
