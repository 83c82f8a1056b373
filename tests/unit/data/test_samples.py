"""Splits, limits and digests as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.samples import ImageSettings, channel_statistics, digest_of, image_pipeline
from swamp_ray.data.splits import class_counts, first_rows, hold_out, shuffled
from swamp_ray.errors import UserError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


@given(LABELS, st.data())
def test_class_counts_keep_the_shares(labels: np.ndarray, data: st.DataObject) -> None:
    total = data.draw(st.integers(0, len(labels)))
    counts = class_counts(labels, total)
    assert sum(counts.values()) == total
    for label, count in counts.items():
        assert abs(count - (labels == label).sum() * total / len(labels)) < 1


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 3), st.booleans())
def test_hold_out_is_an_exact_partition(labels: np.ndarray, share: float, seed: int, stratified: bool) -> None:
    num, known = len(labels), labels if stratified else None
    count = max(1, int(num * share + 0.5))
    if count >= num:
        with pytest.raises(UserError, match="too few"):
            hold_out(num, known, share, seed)
        return
    stays, held = hold_out(num, known, share, seed)
    assert sorted([*stays, *held]) == list(range(num))
    assert len(held) == count
    again = hold_out(num, known, share, seed)
    assert np.array_equal(stays, again[0])
    assert np.array_equal(held, again[1])


def test_limits_take_the_first_rows_where_classes_go_round() -> None:
    labels = np.arange(100) % 10
    assert first_rows(100, labels, 30).tolist() == list(range(30))
    assert first_rows(100, None, 7).tolist() == list(range(7))
    assert first_rows(100, labels, None).tolist() == list(range(100))
    by_class = np.repeat([0, 1], 50)
    assert first_rows(100, by_class, 4).tolist() == [0, 1, 50, 51]


def test_shuffling_is_frozen() -> None:
    # These bits name results that lie in storage; they must never change.
    assert shuffled(8, 0, "validation").tolist() == [0, 7, 4, 6, 2, 3, 1, 5]
    assert shuffled(50, 0, "validation").tolist() != shuffled(50, 0, "validation", 1).tolist()


def test_channel_statistics_are_those_of_numpy() -> None:
    images = np.random.RandomState(0).randint(0, 200, (7, 5, 4, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), atol=1e-6)
    assert channel_statistics(np.zeros((2, 3, 3, 1), np.uint8)) == ((0.0,), (1.0,))


@pytest.mark.parametrize(("augment", "default", "padding", "expected"), [
    ("auto", "crop_flip", 4, (4, True, True)),
    ("auto", "none", 4, (0, False, False)),
    ("crop", "none", 2, (2, False, True)),
    ("crop_flip", "none", 0, (0, True, False)),
    ("none", "crop_flip", 4, (0, False, False)),
])
def test_pipeline(augment: str, default: str, padding: int, expected: tuple[int, bool, bool]) -> None:
    config = DataConfig.model_validate({"augment": augment, "crop_padding": padding})
    images = image_pipeline(config, default, (0.5,), (0.2,))
    assert (images.crop_padding, images.flip, images.crop) == expected


def test_digest_tells_values_types_shapes_and_places_apart() -> None:
    base = np.arange(6, dtype=np.int32)
    nests = [base, base.reshape(2, 3), base.astype(np.int64), (base,), {"x": base}, (base, base), base[:0], base[::-1]]
    digests = {digest_of({"train": nest}, None) for nest in nests}
    digests |= {digest_of({"test": base}, None), digest_of({"train": base}, ImageSettings((0.5,), (0.2,)))}
    assert len(digests) == len(nests) + 2
    assert digest_of({"train": base}, None) == digest_of({"train": np.arange(12, dtype=np.int32)[:6]}, None)
