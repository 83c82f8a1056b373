"""Named arrays as bytes."""

from __future__ import annotations

import numpy as np
import pytest

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.storage.arrays import arrays_from_bytes, arrays_to_bytes


def test_arrays_come_back_as_they_were() -> None:
    arrays = {"mean": np.arange(3, dtype=np.float32), "count": np.array(7, dtype=np.int64),
              "strided": np.arange(12, dtype=np.float32).reshape(3, 4).T, "bits": np.zeros(0, np.uint8)}
    back = arrays_from_bytes(arrays_to_bytes(arrays))
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape


def test_equal_arrays_give_equal_bytes_whatever_their_order() -> None:
    first = {"a": np.ones(2, np.float32), "b": np.zeros(3, np.int64)}
    assert arrays_to_bytes(first) == arrays_to_bytes(dict(reversed(first.items())))


def test_other_bytes_are_refused() -> None:
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        arrays_from_bytes(b"no safetensors")
