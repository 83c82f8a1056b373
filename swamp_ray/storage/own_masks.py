"""The mask that a training ended with, where it is not the one that it began with: a payload of its result."""

from __future__ import annotations

from typing import Any

import numpy as np

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.sparsity.masks import from_bits, to_bits
from swamp_ray.storage.arrays import arrays_from_bytes, arrays_to_bytes
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.names import digest_bytes

MASK_FILE = "mask.safetensors"


def own_mask_payload(mask: np.ndarray) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The payload of a mask by file name, and what the result's manifest says of it."""
    bits = to_bits(mask)
    about = {"kept": int(np.count_nonzero(mask)), "sha256": digest_bytes(bits.tobytes())}
    return {MASK_FILE: arrays_to_bytes({"bits": bits})}, about


def own_mask_files(manifest: Manifest) -> list[str]:
    """Those of a result's files that hold a mask of its own."""
    return [MASK_FILE] if MASK_FILE in manifest.files else []


def read_own_mask(store: ArtifactStore, manifest: Manifest, num_prunable: int) -> np.ndarray | None:
    """The mask of a stored result, bool ``[P]``; None where it is the one that its training began with.

    Raises:
        CorruptArtifactError: It is not what was written.
    """
    if MASK_FILE not in manifest.files:
        return None
    bits = arrays_from_bytes(store.read(manifest, MASK_FILE))["bits"]
    about = manifest.info.get("mask", {})
    try:
        mask = from_bits(bits, num_prunable)
    except ValueError as error:
        raise CorruptArtifactError(f"the mask of {manifest.name} does not fit: {error}") from error
    if digest_bytes(bits.tobytes()) != about.get("sha256") or int(np.count_nonzero(mask)) != about.get("kept"):
        raise CorruptArtifactError(f"the mask of {manifest.name} is not the one that its manifest names")
    return mask
