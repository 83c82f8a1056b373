"""A network's compact state as payloads of an artifact: one file, or one for each chunk of 64 MB.

Chunks are written and read apart, so that whoever averages a slice of a large network reads and holds that slice alone.
A state of one chunk is the one file ``state.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.sparsity.compact import CompactState, chunks, from_bytes, joined, to_bytes
from swamp_ray.storage.artifacts import ArtifactStore, FileEntry, Manifest
from swamp_ray.storage.names import canonical_json, digest_bytes

_FILE = re.compile(r"state(-\d{5})?\.safetensors")


def state_files(files: Iterable[str]) -> list[str]:
    """Those of an artifact's files that hold its state, in order; none for an evaluation."""
    return sorted(file for file in files if _FILE.fullmatch(file))


def state_digest(files: Mapping[str, FileEntry]) -> str:
    """What names a stored state: the SHA-256 of its payload, or of the list of its chunks' digests; "" without one."""
    digests = [files[file].sha256 for file in state_files(files)]
    if len(digests) < 2:
        return "".join(digests)
    return digest_bytes(canonical_json(digests))


def state_payloads(
    compact: CompactState, metadata: Mapping[str, object], first: int, size: int
) -> Iterator[tuple[str, bytes]]:
    """File names and payloads of a state, or of a slice of it that begins and ends with a chunk.

    Args:
        compact: The state, or the slice.
        metadata: As for `compact.to_bytes`; every chunk has it.
        first: Which element of the whole state the slice begins with.
        size: Elements of the whole state.
    """
    whole = chunks(size)
    for index, (begin, end) in enumerate(whole):
        if first <= begin and end <= first + compact.size:
            file = "state.safetensors" if len(whole) == 1 else f"state-{index:05d}.safetensors"
            yield file, to_bytes(compact.part(begin - first, end - first), metadata)


def put_state(store: ArtifactStore, name: str, compact: CompactState, metadata: Mapping[str, object],
              info: Mapping[str, object], others: Mapping[str, bytes] | None = None) -> Manifest:
    """Store a whole state, and perhaps other payloads, as an artifact; a chunk at a time is in memory twice."""
    entries = {file: store.write(name, file, data) for file, data in state_payloads(compact, metadata, 0, compact.size)}
    entries |= {file: store.write(name, file, data) for file, data in (others or {}).items()}
    return store.finish(name, entries, info)


def read_state(store: ArtifactStore, manifest: Manifest, span: tuple[int, int] | None = None) -> CompactState:
    """The verified state of a particle or an average.

    Args:
        store: Where it is.
        manifest: Its artifact.
        span: First and last element (exclusive), at the bounds of chunks; default: all.

    Raises:
        MissingPayloadError: It is not there any more.
        CorruptArtifactError: It is not what was written, or not a state of such a size.
    """
    files = state_files(manifest.files)
    if span is not None:
        bounds = chunks(span[1])
        if len(files) < len(bounds):
            raise CorruptArtifactError(f"{manifest.name} has {len(files)} chunks instead of at least {len(bounds)}")
        files = [file for file, (first, _) in zip(files, bounds, strict=False) if first >= span[0]]
    return _checked(joined([from_bytes(store.read(manifest, file))[0] for file in files]), files, span)


def lacks_state(store: ArtifactStore, name: str) -> bool:
    """Whether a result is finished but (some of) its state is not there any more."""
    return any(store.lacks(name, file) for file in state_files(store.file_names(name)))


def delete_state(store: ArtifactStore, name: str) -> None:
    """Delete the state of a result, and keep what its manifest says."""
    for file in state_files(store.file_names(name)):
        store.delete_payload(name, file)


def _checked(compact: CompactState, files: Sequence[str], span: tuple[int, int] | None) -> CompactState:
    if span is not None and compact.size != span[1] - span[0]:
        raise CorruptArtifactError(f"{', '.join(files)} hold {compact.size} elements instead of {span[1] - span[0]}")
    return compact
