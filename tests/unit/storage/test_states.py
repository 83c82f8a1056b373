from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swamp_ray.errors import CorruptArtifactError, MissingPayloadError
from swamp_ray.sparsity import compact as packing
from swamp_ray.sparsity.compact import CompactState, chunks, spans, to_bytes
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.states import (
    delete_state,
    lacks_state,
    put_state,
    read_state,
    state_digest,
    state_files,
    state_payloads,
)
from tests.helpers import artifacts_of

NAME = "ab" * 32


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", 10)


def state(num_values: int = 24, num_rest: int = 9) -> CompactState:
    numbers = np.arange(num_values + num_rest, dtype=np.float32)
    return CompactState(numbers[:num_values], numbers[num_values:])


def equal(one: CompactState, other: CompactState) -> bool:
    return np.array_equal(one.values, other.values) and np.array_equal(one.rest, other.rest)


@pytest.mark.parametrize(("num_values", "num_rest"), [(24, 9), (20, 10), (0, 33), (33, 0), (1, 0), (0, 0), (10, 0)])
def test_what_was_put_is_read(tmp_path: Path, num_values: int, num_rest: int) -> None:
    store, whole = ArtifactStore(tmp_path), state(num_values, num_rest)
    manifest = put_state(store, NAME, whole, {"recipe": 1}, {"fact": 2}, {"other.bin": b"x"})
    assert equal(read_state(store, manifest), whole)
    assert len(state_files(manifest.files)) == max(1, -(-whole.size // 10))
    assert manifest.info == {"fact": 2}
    assert store.read(manifest, "other.bin") == b"x"


def test_a_state_of_one_chunk_is_one_file_of_that_name(tmp_path: Path) -> None:
    store, whole = ArtifactStore(tmp_path), state(6, 3)
    manifest = put_state(store, NAME, whole, {"recipe": 1}, {})
    assert list(manifest.files) == ["state.safetensors"]
    assert store.read(manifest, "state.safetensors") == to_bytes(whole, {"recipe": 1})
    assert state_digest(manifest.files) == manifest.files["state.safetensors"].sha256


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 7])
def test_slices_are_whole_chunks_and_make_the_whole(tmp_path: Path, num_shards: int) -> None:
    store, whole = ArtifactStore(tmp_path), state()
    manifest = put_state(store, NAME, whole, {}, {})
    parts = [read_state(store, manifest, span) for span in spans(whole.size, num_shards)]
    assert len(parts) == min(num_shards, len(chunks(whole.size)))
    assert equal(packing.joined(parts), whole)
    assert all(equal(part, whole.part(*span)) for part, span in zip(parts, spans(whole.size, num_shards), strict=True))


@pytest.mark.parametrize("num_shards", [2, 3])
def test_slices_that_are_written_apart_have_the_name_of_the_whole(tmp_path: Path, num_shards: int) -> None:
    whole, meta = state(), {"recipe": 1}
    together = put_state(ArtifactStore(tmp_path / "together"), NAME, whole, meta, {})
    apart, files = ArtifactStore(tmp_path / "apart"), {}
    for first, last in reversed(spans(whole.size, num_shards)):
        for file, data in state_payloads(whole.part(first, last), meta, first, whole.size):
            files[file] = apart.write(NAME, file, data)
    assert apart.find(NAME) is None, "nothing exists before it is finished"
    manifest = apart.finish(NAME, files, {})
    assert state_digest(manifest.files) == state_digest(together.files)
    assert equal(read_state(apart, manifest), whole)


def test_the_digest_depends_on_every_chunk_and_their_order(tmp_path: Path) -> None:
    def digest(whole: CompactState, name: str) -> str:
        return state_digest(put_state(ArtifactStore(tmp_path), name, whole, {}, {}).files)

    values = state(40, 0).values
    swapped = np.concatenate([values[10:20], values[:10], values[20:]])
    changed = values.copy()
    changed[35] += 1
    rest = np.zeros(0, np.float32)
    assert len({digest(CompactState(array, rest), f"{index:x}" * 64)
                for index, array in enumerate([values, swapped, changed])}) == 3


def test_an_evaluation_has_no_state(tmp_path: Path) -> None:
    manifest = ArtifactStore(tmp_path).put(NAME, {"buffers.safetensors": b"x"}, {})
    assert state_digest(manifest.files) == ""


def damaged(store: ArtifactStore, manifest: Manifest, index: int) -> Path:
    entry = manifest.files[state_files(manifest.files)[index]]
    return artifacts_of(store) / NAME[:2] / NAME / f"{entry.sha256}.safetensors"


def test_damage_concerns_the_slices_that_hold_it(tmp_path: Path) -> None:
    store, whole = ArtifactStore(tmp_path), state()
    manifest = put_state(store, NAME, whole, {}, {})
    path = damaged(store, manifest, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="have changed"):
        read_state(store, manifest, (10, 20))
    with pytest.raises(CorruptArtifactError):
        read_state(store, manifest)
    assert equal(read_state(store, manifest, (20, 33)), whole.part(20, 33))


def test_a_state_of_another_size_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    manifest = put_state(store, NAME, state(), {}, {})
    with pytest.raises(CorruptArtifactError, match="has 4 chunks instead of at least 5"):
        read_state(store, manifest, (20, 45))
    with pytest.raises(CorruptArtifactError, match="hold 3 elements instead of 9"):
        read_state(store, manifest, (30, 39))


def test_what_was_let_go_is_lacking_and_can_be_put_again(tmp_path: Path) -> None:
    store, whole = ArtifactStore(tmp_path), state()
    manifest = put_state(store, NAME, whole, {}, {"fact": 1})
    assert not lacks_state(store, NAME)
    delete_state(store, NAME)
    assert lacks_state(store, NAME)
    with pytest.raises(MissingPayloadError):
        read_state(store, manifest)
    put_state(store, NAME, whole, {}, {"fact": 1})
    assert not lacks_state(store, NAME)
    assert not lacks_state(store, "cd" * 32), "what was never finished lacks nothing"


def test_the_first_writer_of_a_result_wins(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = put_state(store, NAME, state(), {}, {"writer": 1})
    assert put_state(store, NAME, state(23, 10), {}, {"writer": 2}) == first
    assert equal(read_state(store, first), state())
