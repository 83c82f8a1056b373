from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.errors import CorruptArtifactError, RunError, UserError
from swamp_ray.storage.artifacts import STALE_S, ArtifactStore, Manifest
from tests.helpers import root_of
from tests.unit.storage.processes import REPOSITORY, run_python

NAME = "ab" * 32
OTHER = "cd" * 32
FILES = {"weights.safetensors": b"weights" * 100, "log": b""}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def folder_of(store: ArtifactStore, name: str = NAME) -> Path:
    return root_of(store) / "artifacts" / name[:2] / name


def payload_of(store: ArtifactStore, manifest: Manifest, file: str) -> Path:
    return next(folder_of(store, manifest.name).glob(manifest.files[file].sha256 + "*"))


def read_all(store: ArtifactStore, manifest: Manifest) -> dict[str, bytes]:
    return {file: store.read(manifest, file) for file in manifest.files}


def test_what_was_put_is_found_and_read(store: ArtifactStore) -> None:
    info = {"accuracy": 0.5, "trace": (1, 2), "text": "ä"}
    manifest = store.put(NAME, FILES, info)
    assert manifest.info == {"accuracy": 0.5, "trace": [1, 2], "text": "ä"}
    assert manifest.num_bytes == 700
    again = ArtifactStore(root_of(store))
    assert again.find(NAME) == manifest
    assert read_all(again, manifest) == FILES
    assert store.find(OTHER) is None
    assert store.find(NAME, "checkpoint") is None


def test_payloads_lie_under_the_digest_of_their_bytes(store: ArtifactStore) -> None:
    store.put(NAME, FILES, {})
    digest = hashlib.sha256(FILES["weights.safetensors"]).hexdigest()
    assert (folder_of(store) / f"{digest}.safetensors").read_bytes() == FILES["weights.safetensors"]


def test_a_storage_root_can_move(store: ArtifactStore, tmp_path: Path) -> None:
    manifest = store.put(NAME, FILES, {})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "artifacts", moved)
    assert read_all(ArtifactStore(moved), manifest) == FILES
    assert str(tmp_path) not in (folder_of(ArtifactStore(moved)) / "result.json").read_text()


def test_the_first_result_stays(store: ArtifactStore) -> None:
    first = store.put(NAME, FILES, {"writer": 1})
    assert store.put(NAME, {"weights.safetensors": b"other"}, {"writer": 2}) == first
    assert store.find(NAME) == first
    assert read_all(store, first) == FILES


def test_of_writers_at_the_same_time_one_wins_and_all_agree(store: ArtifactStore) -> None:
    for round_ in range(10):
        name = f"{round_:064x}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda writer, name=name: store.put(name, {"w": str(writer).encode() * 9},
                                                                    {"writer": writer}), range(8)))
        assert all(manifest == won[0] for manifest in won)
        assert store.find(name) == won[0]
        assert store.read(won[0], "w") == str(won[0].info["writer"]).encode() * 9


def test_writers_of_the_same_checkpoints_leave_one_that_is_whole(store: ArtifactStore) -> None:
    def train(_: int) -> None:
        for epoch in range(20):
            store.put(NAME, {"state": f"epoch {epoch}".encode()}, {"epoch": epoch}, slot="checkpoint")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    manifest = store.find(NAME, "checkpoint")
    assert manifest is not None
    assert manifest.info == {"epoch": 19}
    assert store.read(manifest, "state") == b"epoch 19"


def test_a_checkpoint_replaces_the_one_before_and_removes_only_its_bytes(store: ArtifactStore) -> None:
    result = store.put(NAME, {"w": b"shared", "r": b"result"}, {})
    store.put(NAME, {"w": b"shared", "a": b"first", "b": b"kept"}, {"epoch": 1}, slot="checkpoint")
    second = store.put(NAME, {"a": b"second", "b": b"kept"}, {"epoch": 2}, slot="checkpoint")
    assert store.find(NAME, "checkpoint") == second
    assert read_all(store, second) == {"a": b"second", "b": b"kept"}
    assert read_all(store, result) == {"w": b"shared", "r": b"result"}
    assert len(list(folder_of(store).iterdir())) == 2 + 4


def test_discarding_removes_a_slot_and_keeps_the_others(store: ArtifactStore) -> None:
    result = store.put(NAME, {"w": b"shared"}, {})
    store.put(NAME, {"w": b"shared", "s": b"state"}, {}, slot="checkpoint")
    store.discard(NAME, "checkpoint")
    store.discard(NAME, "checkpoint")
    store.discard(OTHER, "result")
    assert store.find(NAME, "checkpoint") is None
    assert read_all(store, result) == {"w": b"shared"}
    assert len(list(folder_of(store).iterdir())) == 2
    store.discard(NAME, "result")
    assert list(folder_of(store).iterdir()) == []


def test_what_dead_writers_left_long_ago_goes_and_what_is_fresh_stays(store: ArtifactStore) -> None:
    store.put(NAME, {"s": b"1"}, {}, slot="checkpoint")
    folder = folder_of(store)
    old, fresh, foreign = folder / ("1" * 64), folder / ("2" * 64), folder / "notes.txt"
    torn = folder / ".result.json.123.tmp"
    for path in (old, fresh, foreign, torn):
        path.write_bytes(b"x")
    long_ago = time.time() - STALE_S - 60
    for path in (old, foreign, torn):
        os.utime(path, times=(long_ago, long_ago))
    store.put(NAME, {"s": b"2"}, {}, slot="checkpoint")
    assert [path.exists() for path in (old, torn, fresh, foreign)] == [False, False, True, True]


@pytest.mark.parametrize("damage", ["truncate", "extend", "flip", "remove", "empty"])
@pytest.mark.parametrize("file", ["weights.safetensors"])
def test_damaged_payloads_are_errors_that_say_what_to_do(store: ArtifactStore, damage: str, file: str) -> None:
    manifest = store.put(NAME, FILES, {})
    path = payload_of(store, manifest, file)
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[350] ^= 4 if damage == "flip" else 0
        path.write_bytes({"truncate": bytes(data[:-1]), "extend": bytes(data) + b"x", "flip": bytes(data),
                          "empty": b""}[damage])
    with pytest.raises(CorruptArtifactError, match=r"Delete the folder .* and run the same command again") as caught:
        store.read(manifest, file)
    assert str(path) in str(caught.value)


def test_a_damaged_result_can_be_discarded_and_put_again(store: ArtifactStore) -> None:
    manifest = store.put(NAME, FILES, {})
    payload_of(store, manifest, "weights.safetensors").write_bytes(b"x" * 700)
    store.discard(NAME, "result")
    assert read_all(store, store.put(NAME, FILES, {})) == FILES


def test_a_result_whose_payload_is_gone_is_put_anew(store: ArtifactStore) -> None:
    manifest = store.put(NAME, FILES, {})
    payload_of(store, manifest, "weights.safetensors").unlink()
    assert read_all(store, store.put(NAME, FILES, {})) == FILES


def test_every_torn_or_flipped_manifest_is_noticed(store: ArtifactStore) -> None:
    manifest = store.put(NAME, FILES, {"accuracy": 0.97, "text": "abc"})
    path = folder_of(store) / "result.json"
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert store.find(NAME) is None
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptArtifactError, match=r"result\.json"):
            store.find(NAME)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptArtifactError):
            store.find(NAME)
    for end in (b" ", b"\n", b"\0"):
        path.write_bytes(whole + end)
        with pytest.raises(CorruptArtifactError):
            store.find(NAME)
    assert store.put(NAME, FILES, {"accuracy": 0.97, "text": "abc"}) == manifest
    assert store.find(NAME) == manifest


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b"{}", b"null", b"1", b"[" * 100_000, b'{"check": 1}']))
def test_hostile_manifests_are_errors(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        folder_of(store).mkdir(parents=True)
        (folder_of(store) / "result.json").write_bytes(data)
        if data:
            with pytest.raises(CorruptArtifactError):
                store.find(NAME)
        else:
            assert store.find(NAME) is None


@pytest.mark.parametrize("change", [
    {"files": {"../../x": {"sha256": "0" * 64, "size": 1}}},
    {"files": {"w./../x": {"sha256": "0" * 64, "size": 1}}},
    {"files": {"w": {"sha256": "../" * 20 + "abcd", "size": 1}}},
    {"files": {"w": {"sha256": "0" * 64, "size": "1"}}},
    {"files": {"w": {"sha256": 5, "size": 1}}},
    {"files": [1]}, {"info": 3}, {"format": 99}, {"name": OTHER}, {"slot": "checkpoint"},
])
def test_a_forged_manifest_with_a_fitting_checksum_does_not_lead_out_of_its_folder(
    store: ArtifactStore, change: dict[str, object]
) -> None:
    store.put(NAME, FILES, {})
    path = folder_of(store) / "result.json"
    body = json.loads(path.read_bytes()) | change
    del body["check"]

    def spell(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    path.write_bytes(spell({**body, "check": hashlib.sha256(spell(body)).hexdigest()}))
    with pytest.raises(CorruptArtifactError):
        store.find(NAME)


@pytest.mark.parametrize("name", ["", "AB" * 32, "ab" * 31, "../" + "a" * 61])
def test_names_are_digests(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        store.put(name, {}, {})


@pytest.mark.parametrize("slot", ["", "../x", "A", "a" * 33])
def test_slots_are_words(store: ArtifactStore, slot: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        store.find(NAME, slot)


def test_a_file_name_with_a_path_in_it_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="impossible file"):
        store.put(NAME, {"../x": b""}, {})


def test_check_writable(tmp_path: Path) -> None:
    ArtifactStore(tmp_path / "new").check_writable()
    assert list((tmp_path / "new" / "artifacts").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"storage: .*--storage"):
        ArtifactStore(tmp_path / "file").check_writable()


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from swamp_ray.storage.artifacts import ArtifactStore

NAME = "ab" * 32
OLD = {"w": b"old " * 5000, "s": b"same"}
NEW = {"w": b"new " * 5000, "s": b"same"}
slot = sys.argv[2]
# What a file operation announces about itself lets the process die between any two of them.
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir")


def killed_after(step, root):
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [step]
    def count(event, args):
        # A name without a slash lies in a folder that was opened before.
        if event in EVENTS and (str(root) in str(args[0]) or "/" not in str(args[0])):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    ArtifactStore(root).put(NAME, NEW, {"v": "new"}, slot=slot)
    os._exit(0)


def content(store):
    manifest = store.find(NAME, slot)
    return manifest and (manifest.info["v"], {file: store.read(manifest, file) for file in manifest.files})


for before in (None, OLD):
    if before and slot == "result":
        break
    step, killed, seen = 0, True, []
    while killed:
        root = f"{sys.argv[1]}/{slot}-{bool(before)}-{step}"
        store = ArtifactStore(root)
        if before:
            store.put(NAME, before, {"v": "old"}, slot=slot)
        killed = killed_after(step, root)
        found = content(store)
        assert found in (("new", NEW), before and ("old", before)), (step, found)
        seen.append(found and found[0])
        store.put(NAME, NEW, {"v": "new"}, slot=slot)
        assert content(store) == ("new", NEW), step
        step += 1
    assert step > 8 and seen[0] == (before and "old") and seen[-1] == "new", seen
    print(slot, seen)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("slot", ["result", "checkpoint"])
def test_a_writer_killed_before_any_file_operation_leaves_old_or_new_and_can_be_repeated(
    tmp_path: Path, slot: str
) -> None:
    done = run_python(KILLED_AT_EVERY_STEP, tmp_path, slot)
    assert done.returncode == 0, done.stderr


ENDLESS_WRITER = """
import sys
from swamp_ray.storage.artifacts import ArtifactStore
from tests.helpers import folder_of, root_of
store = ArtifactStore(sys.argv[1])
number = int(sys.argv[2])
while True:
    number += 1
    store.put("ab" * 32, {"w": str(number).encode() * 200_000, "s": b"same"}, {"number": number}, slot="checkpoint")
    print(number, flush=True)
"""


@pytest.mark.chaos
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_no_older_than_the_last_finished(
    store: ArtifactStore,
) -> None:
    pauses = random.Random(0)
    last = 0
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(root_of(store)), str(last)],
                                  cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(pauses.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        manifest = store.find(NAME, "checkpoint")
        assert manifest is not None
        last = manifest.info["number"]
        assert int(rest[-1] if rest else first) <= last
        assert store.read(manifest, "w") == str(last).encode() * 200_000


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("slot", ["result", "checkpoint"])
def test_a_full_disk_is_an_error_with_the_space_and_harms_nothing(tiny_disk: Path, slot: str) -> None:
    store = ArtifactStore(tiny_disk)
    kept = store.put(NAME, {"w": b"x" * 100_000}, {}, slot="checkpoint")
    with pytest.raises(RunError, match="MiB free") as caught:
        store.put(NAME, {"v": b"small", "w": b"y" * 200_000}, {}, slot=slot)
    assert str(tiny_disk) in str(caught.value)
    assert store.find(NAME, "checkpoint") == kept
    assert store.read(kept, "w") == b"x" * 100_000
    assert store.find(NAME, "result") is None
    assert not list(folder_of(store).glob(".*"))


def test_a_limit_on_file_size_is_an_error_and_harms_nothing(store: ArtifactStore) -> None:
    kept = store.put(NAME, {"w": b"x" * 5000}, {}, slot="checkpoint")
    done = run_python("""
        import resource, sys
        from swamp_ray.errors import RunError
        from swamp_ray.storage.artifacts import ArtifactStore
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            ArtifactStore(sys.argv[1]).put("ab" * 32, {"w": b"y" * 100_000}, {}, slot="checkpoint")
        except RunError as error:
            print(error)
        """, root_of(store))
    assert "could not be written" in done.stdout, done.stderr
    assert store.find(NAME, "checkpoint") == kept
    assert store.read(kept, "w") == b"x" * 5000
