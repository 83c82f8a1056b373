from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot, as_spot, open_place, working_folder
from tests.unit.storage.processes import REPOSITORY, run_python


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(tmp_path / "storage" if request.param == "local" else request.getfixturevalue("remote"))


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


def test_what_grows_is_read_from_any_byte_on(place: Place) -> None:
    assert place.read_appended("r/a.log") == b""
    for text in (b"one\n", b"two\n"):
        lines = place.appender("r/a.log")
        lines.append(text)
        lines.close()
    for start in range(10):
        assert place.read_appended("r/a.log", start) == b"one\ntwo\n"[start:]
    assert [name for name, _ in place.appended("r")] == ["a.log"]
    is_rewritten = place.rewrite_appended("r/a.log", b"three\n")
    assert is_rewritten == place.has_locks, "several objects cannot be replaced at once"
    assert place.read_appended("r/a.log") == (b"three\n" if is_rewritten else b"one\ntwo\n")
    place.remove_appended("r/a.log")
    assert place.appended("r") == []


def test_lines_wait_for_others_where_each_write_is_an_object(place: Place) -> None:
    lines = place.appender("r/a.log")
    waits = not place.has_locks
    lines.append(b"one\n")
    lines.flush_if_due()
    lines.append(b"two\n")
    lines.flush_if_due(3600)
    assert place.read_appended("r/a.log") == (b"one\n" if waits else b"one\ntwo\n")
    lines.append(b"three\n")
    lines.flush_if_due(0)
    assert place.read_appended("r/a.log") == b"one\ntwo\nthree\n"


def test_files_of_another_library_come_to_where_they_belong(place: Place) -> None:
    with working_folder(Spot(place, "runs/r/events"), keep=True) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"events")
    assert place.read("runs/r/events/sub/file") == b"events"


def test_a_place_on_trial_leaves_nothing_of_itself_behind(tmp_path: Path) -> None:
    place = open_place(tmp_path / "new")
    with place.on_trial():
        place.write("a/probe", b"")
        place.remove("a/probe")
    assert not (tmp_path / "new").exists()
    with place.on_trial():
        place.write("a/stays", b"")
    assert place.read("a/stays") == b""
    with place.on_trial():
        place.remove("a/stays")
    assert (tmp_path / "new").exists(), "it was there before"


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


def test_listings_are_sorted_and_know_when_an_object_was_written(place: Place) -> None:
    for key in ("f/b", "f/a", "f/c/1", "f/a.x/1", "g"):
        place.write(key, b"x")
    assert [entry.name for entry in place.entries("f")] == ["a", "b"]
    assert place.folders("f") == ["a.x", "c"]
    assert [entry.name for entry in place.entries("")] == ["g"]
    assert all(abs(entry.modified_s - time.time()) < 600 for entry in place.entries("f"))
    place.remove("f/a")
    place.remove("f/c/1", durable=False)
    assert [entry.name for entry in place.entries("f")] == ["b"]


@pytest.mark.parametrize("size", [0, 1, 40 << 20])
def test_objects_of_any_size_come_back(place: Place, size: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    place.write("a", data)
    assert place.size("a") == size
    assert place.read("a") == data
    assert place.swap("a", b"short", expected=data)


RACER = """
import sys
from swamp_ray.storage.places import open_place
place, own = open_place(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < 15:
    old = place.read("counter")
    won += place.swap("counter", str(int(old) + 1).encode(), expected=old)
"""


def test_two_processes_that_swap_never_lose_each_others_writes(place: Place) -> None:
    place.write("counter", b"0")
    racers = [subprocess.Popen([sys.executable, "-c", RACER, place.uri, str(number)], cwd=REPOSITORY, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=240)
        assert racer.returncode == 0
    assert place.read("counter") == b"30"


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


def test_a_place_is_written_as_it_is_opened_again(place: Place) -> None:
    place.write("a/b", b"1")
    assert open_place(place.uri).read("a/b") == b"1"
    assert str(place.locate("a/b")) == f"{place.uri}/a/b"
    assert as_spot(str(place.locate("a/b"))).read() == b"1"
    assert as_spot(str(place.locate("a/c"))).read() is None


@pytest.mark.parametrize("url", ["s3://", "s3:///folder", "s3://bucket/../x", "s3://bucket/a b", "gs://b?c"])
def test_a_malformed_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UserError, match="s3://bucket/folder"):
        open_place(url)


def test_a_bucket_that_does_not_exist_is_named(s3: str) -> None:
    place = open_place("s3://no-such-bucket/folder")
    for act in (lambda: place.read("a"), lambda: place.write("a", b""), lambda: place.entries("")):
        with pytest.raises(RunError, match="there is no bucket 'no-such-bucket'"):
            act()


def test_without_obstore_an_object_store_is_refused_and_a_folder_is_not(tmp_path: Path) -> None:
    done = run_python("""
        import sys
        sys.modules["obstore"] = None
        from swamp_ray.errors import UserError
        from swamp_ray.storage.places import open_place
        open_place(sys.argv[1]).write("a", b"1")
        try:
            open_place("s3://bucket/folder")
        except UserError as error:
            print(error)
        """, tmp_path)
    assert "pip install obstore" in done.stdout, done.stderr


def test_a_missing_account_is_named_at_once() -> None:
    done = run_python("""
        import os
        for name in list(os.environ):
            if name.startswith("AZURE"):
                del os.environ[name]
        from swamp_ray.errors import UserError
        from swamp_ray.storage.places import open_place
        try:
            open_place("az://container/folder")
        except UserError as error:
            print(error)
        """)
    assert "Account must be specified" in done.stdout
    assert "AZURE_STORAGE_ACCOUNT_NAME" in done.stdout, done.stderr
