from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from swamp_ray.sparsity import top_k as module
from swamp_ray.sparsity.top_k import top_k


def obvious_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The slow twin: a stable sort."""
    keep = np.zeros(len(scores), dtype=bool)
    keep[sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]] = True
    return keep


# Few distinct values make ties common; denormals, both zeros and both infinities are among them.
ODD = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, 1.0000001, -1.0, 3.4e38, float("inf"), float("-inf")]
odd_scores = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from(ODD).map(np.float32))
any_scores = arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False))
wide_scores = arrays(np.float64, st.integers(1, 60), elements=st.floats(allow_nan=False))


class TestTopK:
    @given(st.data(), st.one_of(odd_scores, any_scores, wide_scores))
    def test_equals_a_stable_sort(self, data: st.DataObject, scores: np.ndarray) -> None:
        k = data.draw(st.integers(0, len(scores)))
        before = scores.copy()
        keep = top_k(scores, k)
        assert keep.dtype == bool
        assert int(keep.sum()) == k
        np.testing.assert_array_equal(keep, obvious_top_k(scores, k))
        np.testing.assert_array_equal(scores, before)

    @pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1.0, float("inf"), float("-inf")])
    def test_all_equal_keeps_the_first(self, value: float) -> None:
        for k in range(8):
            assert top_k(np.full(7, value, np.float32), k).tolist() == [index < k for index in range(7)]

    def test_both_zeros_are_equal(self) -> None:
        assert top_k(np.array([-0.0, 0.0, -0.0, 0.0], np.float32), 2).tolist() == [True, True, False, False]

    def test_denormals_are_told_apart_and_from_zero(self) -> None:
        assert top_k(np.array([0.0, 1e-45, 3e-45, 0.0], np.float32), 1).tolist() == [False, False, True, False]
        assert top_k(np.array([0.0, 1e-45, 3e-45, 0.0], np.float32), 2).tolist() == [False, True, True, False]

    @given(st.data(), st.one_of(odd_scores, any_scores, wide_scores), st.integers(1, 8), st.integers(1, 12))
    def test_chunks_and_samples_decide_nothing(
        self, data: st.DataObject, scores: np.ndarray, chunk: int, sample: int
    ) -> None:
        """Tiny ones take small arrays through the passes that only millions of weights go through."""
        k = data.draw(st.integers(0, len(scores)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_CHUNK", chunk)
            patch.setattr(module, "_SAMPLE", sample)
            np.testing.assert_array_equal(top_k(scores, k), obvious_top_k(scores, k))

    @pytest.mark.parametrize("kind", [
        "distinct", "ties", "sorted", "reversed", "mostly zero", "one outlier", "periodic"])
    def test_more_scores_than_a_sample(self, kind: str) -> None:
        num = 5 * module._SAMPLE + 3
        scores = np.abs(np.random.default_rng(1).standard_normal(num, dtype=np.float32))
        match kind:
            case "ties":
                scores = np.round(scores, 1)
            case "sorted":
                scores.sort()
            case "reversed":
                scores = np.sort(scores)[::-1]
            case "mostly zero":
                scores[scores < 2] = 0
            case "one outlier":
                scores[:] = 1
                scores[num // 2] = np.inf
            case "periodic":
                scores = np.resize(np.arange(64, dtype=np.float32), num)
        order = np.argsort(-scores, kind="stable")
        for k in (1, 2, 100, num // 20, num // 2, num - 100, num - 1):
            expected = np.zeros(num, bool)
            expected[order[:k]] = True
            np.testing.assert_array_equal(top_k(scores, k), expected)

    def test_reads_only(self) -> None:
        scores = np.arange(9, dtype=np.float32)[::-1]
        scores.flags.writeable = False
        assert top_k(scores, 4).tolist() == [True] * 4 + [False] * 5

    @pytest.mark.parametrize("k", [0, 1, 3])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_nan_is_refused(self, k: int, place: int) -> None:
        scores = np.array([1, float("inf"), 2], np.float32)
        scores[place] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            top_k(scores, k)

    @pytest.mark.parametrize("k", [-1, 4])
    def test_k_out_of_range_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=r"k must lie in \[0, 3\]"):
            top_k(np.zeros(3, np.float32), k)
