"""Artifacts in a bucket: the same promises as in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.run_folder import RunDir
from tests.unit.storage.processes import REPOSITORY, run_python

NAME = "ab" * 32
OTHER = "cd" * 32
FILES = {"weights.safetensors": b"weights" * 100, "log": b""}
FOLDER = f"artifacts/{NAME[:2]}/{NAME}"


@pytest.fixture
def store(remote: str) -> ArtifactStore:
    return ArtifactStore(remote)


def read_all(store: ArtifactStore, manifest: Manifest) -> dict[str, bytes]:
    return {file: store.read(manifest, file) for file in manifest.files}


def objects(store: ArtifactStore) -> list[str]:
    return [entry.name for entry in store.place.entries(FOLDER)]


def test_what_was_put_is_found_and_the_first_result_stays(store: ArtifactStore, remote: str) -> None:
    first = store.put(NAME, FILES, {"writer": 1})
    assert store.put(NAME, {"weights.safetensors": b"other"}, {"writer": 2}) == first
    again = ArtifactStore(remote)
    assert again.find(NAME) == first
    assert read_all(again, first) == FILES
    assert again.find(OTHER) is None
    assert again.find(NAME, "checkpoint") is None


def test_of_writers_at_the_same_time_one_wins_and_all_agree(store: ArtifactStore) -> None:
    for round_ in range(4):
        name = f"{round_:064x}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda writer, name=name: store.put(name, {"w": str(writer).encode() * 9},
                                                                    {"writer": writer}), range(8)))
        assert all(manifest == won[0] for manifest in won)
        assert store.find(name) == won[0]
        assert store.read(won[0], "w") == str(won[0].info["writer"]).encode() * 9


def test_a_checkpoint_replaces_the_one_before_and_is_discarded(store: ArtifactStore) -> None:
    result = store.put(NAME, {"w": b"shared", "r": b"result"}, {})
    store.put(NAME, {"w": b"shared", "a": b"first"}, {"epoch": 1}, slot="checkpoint")
    second = store.put(NAME, {"a": b"second"}, {"epoch": 2}, slot="checkpoint")
    assert read_all(store, second) == {"a": b"second"}
    assert len(objects(store)) == 2 + 3
    store.discard(NAME, "checkpoint")
    assert store.find(NAME, "checkpoint") is None
    assert read_all(store, result) == {"w": b"shared", "r": b"result"}
    assert len(objects(store)) == 1 + 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_payloads_are_errors_with_their_url(store: ArtifactStore, remote: str, damage: str) -> None:
    manifest = store.put(NAME, FILES, {})
    key = f"{FOLDER}/{manifest.files['weights.safetensors'].sha256}.safetensors"
    data = FILES["weights.safetensors"]
    if damage == "remove":
        store.place.remove(key)
    else:
        store.place.write(key, data[:-1] if damage == "truncate" else b"W" + data[1:])
    with pytest.raises(CorruptArtifactError, match=rf"{remote}/{key}: .*Delete the folder {remote}/{FOLDER} "):
        store.read(manifest, "weights.safetensors")
    store.discard(NAME, "result")
    assert read_all(store, store.put(NAME, FILES, {})) == FILES


def test_a_damaged_manifest_is_an_error(store: ArtifactStore) -> None:
    store.put(NAME, FILES, {})
    key = f"{FOLDER}/result.json"
    whole = store.place.read(key)
    store.place.write(key, whole[:-5])
    with pytest.raises(CorruptArtifactError, match=r"result\.json"):
        store.find(NAME)


def test_check_writable(store: ArtifactStore) -> None:
    store.check_writable()
    assert store.place.folders("") == []
    with pytest.raises(UserError, match=r"storage: .*there is no bucket 'nowhere'"):
        ArtifactStore("s3://nowhere/x").check_writable()


def test_nothing_of_an_object_store_is_a_file_or_a_folder(store: ArtifactStore, remote: str) -> None:
    rundir = RunDir(remote, "r")
    assert str(rundir.config) == f"{remote}/runs/r/config.yaml"
    assert rundir.place.path_of(rundir.config.key) is None
    assert rundir.place.made_folder("tensorboard") is None
    assert (store.place.free_bytes(), store.place.free_files(), store.place.has_locks) == (None, None, False)


KILLED_BEFORE_EVERY_OPERATION = """
import os, signal, sys
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.places import open_place

NAME = "ab" * 32
OLD = {"w": b"old " * 5000, "s": b"same"}
NEW = {"w": b"new " * 5000, "s": b"same"}


class Deadly:
    def __init__(self, inner, left):
        self._inner, self._left = inner, left

    def __getattr__(self, name):
        if name in ("write", "remove", "read", "size", "entries"):
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._inner, name)


def in_child(act):
    # The client must not live through a fork: every step has a process of its own.
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.WIFSIGNALED(status), os.WIFEXITED(status) and os.WEXITSTATUS(status)
    os._exit(act())


def content(store, slot):
    manifest = store.find(NAME, slot)
    return manifest and (manifest.info["v"], {file: store.read(manifest, file) for file in manifest.files})


def examine(root, slot, before):
    store = ArtifactStore(root)
    found = content(store, slot)
    if found not in (("new", NEW), before and ("old", before)):
        return 3
    store.put(NAME, NEW, {"v": "new"}, slot=slot)
    if content(store, slot) != ("new", NEW):
        return 4
    return 1 if found and found[0] == "new" else 2


def put(place, files, word, slot):
    ArtifactStore(place).put(NAME, files, {"v": word}, slot=slot)
    return 0


for slot, before in (("result", None), ("checkpoint", OLD)):
    step, killed, seen = 0, True, []
    while killed:
        root = f"{sys.argv[1]}/{slot}-{step}"
        if before:
            in_child(lambda: put(root, before, "old", slot))
        killed, _ = in_child(lambda: put(Deadly(open_place(root), step), NEW, "new", slot))
        seen.append(in_child(lambda: examine(root, slot, before))[1])
        step += 1
    assert set(seen) == {1, 2} and seen == sorted(seen, reverse=True), seen
    print(slot, seen)
"""


@pytest.mark.chaos
def test_a_writer_killed_before_any_request_leaves_old_or_new_and_can_be_repeated(remote: str) -> None:
    done = run_python(KILLED_BEFORE_EVERY_OPERATION, remote)
    assert done.returncode == 0, done.stderr + done.stdout


ENDLESS_WRITER = """
import sys
from swamp_ray.storage.artifacts import ArtifactStore
from tests.helpers import root_of
store = ArtifactStore(sys.argv[1])
number = int(sys.argv[2])
while True:
    number += 1
    store.put("ab" * 32, {"w": str(number).encode() * 300_000}, {"number": number}, slot="checkpoint")
    print(number, flush=True)
"""


@pytest.mark.chaos
def test_a_writer_killed_in_the_middle_of_a_put_leaves_a_whole_checkpoint(store: ArtifactStore, remote: str) -> None:
    last = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, remote, str(last)], cwd=REPOSITORY,
                                  stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        manifest = store.find(NAME, "checkpoint")
        assert manifest is not None
        last = manifest.info["number"]
        assert int(rest[-1] if rest else first) <= last
        assert store.read(manifest, "w") == str(last).encode() * 300_000
