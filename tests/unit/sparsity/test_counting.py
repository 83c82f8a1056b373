from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from swamp_ray.sparsity.counting import NUM_COUNTS, keep, kth_half, lower_counts, thresholds, upper_counts

# Few distinct values make ties common; denormals, zeros of both signs, the largest number and infinity are among them.
ODD = [0.0, -0.0, 1e-45, 3e-45, 1e-40, 1.1754944e-38, 1.0, 1.0000001, 3.4028235e38, float("inf")]
odd_scores = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from(ODD).map(np.float32))
any_scores = arrays(np.float32, st.integers(1, 60), elements=st.floats(0, width=32, allow_nan=False))
equal_scores = st.builds(np.full, st.integers(1, 60), st.sampled_from(ODD).map(np.float32))


def kept_by_counts(parts: list[np.ndarray], k: int) -> np.ndarray:
    """What the shards keep, put together."""
    upper, above = kth_half(np.sum([upper_counts(part) for part in parts], axis=0), k)
    found = thresholds(upper, above, [lower_counts(part, upper) for part in parts], k)
    return np.concatenate([keep(part, one) for part, one in zip(parts, found, strict=True)])


def obvious(scores: np.ndarray, k: int) -> np.ndarray:
    """The slow twin: a stable sort of all scores in one place."""
    kept = np.zeros(len(scores), dtype=np.bool_)
    kept[sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]] = True
    return kept


@given(st.data(), st.one_of(odd_scores, any_scores, equal_scores))
def test_equals_a_stable_sort_of_all_scores(data: st.DataObject, scores: np.ndarray) -> None:
    k = data.draw(st.integers(1, len(scores)))
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=4))), len(scores)]
    parts = [scores[first:last] for first, last in pairwise(cuts)]
    np.testing.assert_array_equal(kept_by_counts(parts, k), obvious(scores, k))


def test_many_scores_that_differ_in_their_lower_half_alone() -> None:
    bits = np.uint32(0x3F800000) + np.random.default_rng(0).integers(0, NUM_COUNTS, 600_000).astype(np.uint32)
    scores = bits.view(np.float32)
    k = 123_457
    kept = kept_by_counts([scores[:200_000], scores[200_000:200_001], scores[200_001:]], k)
    expected = np.zeros(scores.size, dtype=np.bool_)
    expected[np.argsort(-scores, kind="stable")[:k]] = True
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("-inf")])
def test_what_has_no_such_order_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and not NaN"):
        upper_counts(np.array([1.0, bad, 2.0], dtype=np.float32))
