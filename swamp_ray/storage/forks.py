"""A trunk's state as the payload of an artifact: one file, named like other states, so that `keep` applies to it."""

from __future__ import annotations

from collections.abc import Mapping

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.sparsity.compact import from_bytes, to_bytes
from swamp_ray.storage.arrays import arrays_from_bytes
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.training.fork import ForkPoint

FILE = "state.safetensors"
WEIGHTS = ("values", "rest")


def put_fork(store: ArtifactStore, name: str, fork: ForkPoint, metadata: Mapping[str, object],
             info: Mapping[str, object]) -> Manifest:
    """Store where particles part; equal states give equal bytes."""
    entry = store.write(name, FILE, to_bytes(fork.weights, metadata, fork.arrays))
    return store.finish(name, {FILE: entry}, info)


def read_fork(store: ArtifactStore, manifest: Manifest) -> ForkPoint:
    """The verified state of a trunk.

    Raises:
        MissingPayloadError: It is not there any more.
        CorruptArtifactError: It is not what was written.
    """
    if FILE not in manifest.files:
        raise CorruptArtifactError(f"{manifest.name} holds no state of a trunk")
    data = store.read(manifest, FILE)
    weights, _ = from_bytes(data)
    others = {name: array for name, array in arrays_from_bytes(data).items() if name not in WEIGHTS}
    return ForkPoint(weights, others)
