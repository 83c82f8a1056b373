"""Storage that fails for a while, or for good."""

from __future__ import annotations

import errno
import logging
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.errors import RunError
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.job_log import JobLog
from swamp_ray.storage.json_lines import Lines, read_lines
from swamp_ray.storage.local import write_error
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.places import Spot, open_place
from swamp_ray.storage.retrying import PassingError, Patience, PatientPlace, storage_error
from tests.s3_server import fail

NAME = "ab" * 32
FILES = {"w.safetensors": b"weights" * 100, "log": b""}
FOR_EVER = 10**9


class FakeTime:
    """A clock that stands still but for what is slept."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


class Flaky:
    """A real place whose next operations fail."""

    def __init__(self, inner: LocalPlace, error: Callable[[], Exception]) -> None:
        self._inner, self._error = inner, error
        self.left = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return found if name in ("uri", "locate") else self._fail_or(found)

    def _fail_or(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*args: Any, **kwargs: Any) -> Any:
            if self.left > 0:
                self.left -= 1
                raise self._error()
            return operation(*args, **kwargs)

        return operate


def passing() -> Exception:
    return storage_error("/disk/x: could not be written", OSError(errno.EIO, "Input/output error"))


def patient(folder: Path, error: Callable[[], Exception] = passing) -> tuple[Flaky, PatientPlace, FakeTime]:
    flaky, time = Flaky(LocalPlace(folder), error), FakeTime()
    inner: Any = flaky
    return flaky, PatientPlace(inner, Patience(60, time.clock, time.sleep)), time


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR])
def test_what_may_pass_is_tried_again(number: int) -> None:
    assert isinstance(storage_error("x", OSError(number, "words")), PassingError)
    assert isinstance(write_error(Path("x"), OSError(number, "words")), PassingError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_stays_ends_at_once(tmp_path: Path, number: int) -> None:
    assert not isinstance(write_error(tmp_path, OSError(number, "words")), PassingError)
    flaky, place, time = patient(tmp_path, lambda: storage_error("x", OSError(number, "the reason")))
    flaky.left = 1
    with pytest.raises(RunError, match="the reason"):
        place.write("a", b"1")
    assert time.pauses == []


def test_an_artifact_is_stored_and_read_while_the_storage_fails_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flaky, place, time = patient(tmp_path)
    store = ArtifactStore(place)
    flaky.left = 4
    with caplog.at_level(logging.WARNING, "swamp_ray.storage"):
        manifest = store.put(NAME, FILES, {"epoch": 3}, slot="checkpoint")
    assert len(time.pauses) == 4
    assert caplog.text.count("trying again for up to 60 s") == 1, "said once, not at every try"
    flaky.left = 2
    assert store.find(NAME, "checkpoint") == manifest
    flaky.left = 3
    assert {file: store.read(manifest, file) for file in FILES} == FILES
    flaky.left = 1
    store.discard(NAME, "checkpoint")
    assert store.find(NAME, "checkpoint") is None


def test_pauses_grow_and_end(tmp_path: Path) -> None:
    flaky, place, time = patient(tmp_path)
    flaky.left = FOR_EVER
    with pytest.raises(RunError, match=r"/disk/x: could not be written: Input/output error.* tried \d+ times in \d+ s "
                                       r"\(execution.storage_patience_s\).*same command again: it goes on"):
        place.read("a")
    assert sum(time.pauses) <= 60
    assert sum(time.pauses) > 50
    assert time.pauses[0] <= 0.1
    assert max(time.pauses) <= 5
    assert sum(time.pauses[-3:]) > sum(time.pauses[:3])


def test_after_an_outage_nobody_waits_again_until_the_storage_is_back(tmp_path: Path) -> None:
    flaky, place, time = patient(tmp_path)
    flaky.left = FOR_EVER
    with pytest.raises(RunError):
        place.read("a")
    before = len(time.pauses)
    with pytest.raises(RunError, match="tried 1 time in 0 s"):
        place.write("a", b"")
    assert len(time.pauses) == before
    flaky.left = 0
    place.write("a", b"1")
    flaky.left = 2
    assert place.read("a") == b"1"


def test_pauses_do_not_draw_from_the_generator_that_decides_a_training(tmp_path: Path) -> None:
    random.seed(5)
    expected = random.random()
    flaky, place, _ = patient(tmp_path)
    flaky.left = 3
    random.seed(5)
    place.write("a", b"1")
    assert random.random() == expected


def test_the_error_travels_between_processes() -> None:
    error = PassingError("s3://b/x: could not be read")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_server_that_fails_some_requests_only_slows(s3: str, remote: str, mode: str) -> None:
    place = open_place(remote)
    store = ArtifactStore(place)
    for number in (1, 3):
        fail(s3, number, mode)
        name = f"{number:064x}"
        manifest = store.put(name, FILES, {"writer": number})
        assert manifest.info == {"writer": number}
        fail(s3, number, mode)
        assert {file: store.read(manifest, file) for file in FILES} == FILES


def test_a_write_whose_answer_was_lost_is_known_to_have_happened(s3: str, remote: str) -> None:
    place = open_place(remote)
    fail(s3, 1, "after")
    assert place.write("a", b"mine", keep_existing=True)
    place.write("b", b"old")
    fail(s3, 1, "after", skip=1)  # a swap reads, and then puts
    assert place.swap("b", b"new", expected=b"old")
    assert place.read("b") == b"new"
    fail(s3, 1, "after")
    assert not place.swap("b", b"other", expected=b"old")
    fail(s3, 1, "after")
    assert not place.write("a", b"theirs", keep_existing=True)
    assert place.read("a") == b"mine"


def test_a_server_that_fails_for_good_is_an_error_after_the_configured_time(s3: str, remote: str) -> None:
    place = open_place(remote, patience_s=0.5)
    fail(s3, FOR_EVER)
    try:
        with pytest.raises(RunError, match=rf"{remote}/a: could not be written: .*503.*execution.storage_patience_s"):
            place.write("a", b"1")
    finally:
        fail(s3, 0)
    place.write("a", b"1")


def test_lines_that_grow_on_a_server_that_fails_are_all_there_once(s3: str, remote: str) -> None:
    spot = Spot(open_place(remote), "runs/r/rounds.jsonl")
    for number in range(4):
        lines = Lines(spot, durable=True)
        fail(s3, 2, "before" if number % 2 else "after")
        lines.append({"round": number})
        lines.close()
    assert read_lines(spot) == [{"round": number} for number in range(4)]


def test_a_log_never_waits_and_never_fails(s3: str, remote: str) -> None:
    place = open_place(remote)
    log = JobLog(place, "logs/a.log")
    fail(s3, 1)
    log("first")
    log("second")
    log.close()
    text = b"".join(place.read(f"logs/a.log/{entry.name}") for entry in place.entries("logs/a.log")).decode()
    assert [line.split()[-1] for line in text.splitlines()] == ["first", "second"]
