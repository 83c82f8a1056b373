"""Named numpy arrays as safetensors bytes, for normalisation statistics and masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from swamp_ray.errors import CorruptArtifactError


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Safetensors bytes of named arrays; equal arrays give equal bytes."""
    return save({name: np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape) for name in sorted(arrays)})


def arrays_from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of :func:`arrays_to_bytes`.

    Raises:
        CorruptArtifactError: The bytes are not safetensors.
    """
    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptArtifactError(f"stored arrays cannot be read: {error}") from error
