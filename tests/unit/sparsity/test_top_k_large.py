"""``top_k`` on more scores than fit its direct path, where a sample brackets the threshold first."""

from __future__ import annotations

import numpy as np
import pytest

from swamp_ray.sparsity.top_k import top_k

NUM = 1_200_000


def oracle(scores: np.ndarray, k: int) -> np.ndarray:
    """The first k of a stable sort, largest first; -0.0 equals 0.0."""
    keep = np.zeros(scores.size, dtype=bool)
    keep[np.argsort(-scores, kind="stable")[:k]] = True
    return keep


def scores_of(kind: str) -> np.ndarray:
    generator = np.random.default_rng(7)
    normal = generator.standard_normal(NUM, dtype=np.float32)
    match kind:
        case "magnitudes":
            return np.abs(normal)
        case "signed float64":
            return normal.astype(np.float64)
        case "few values":
            return np.round(np.abs(normal), 1)
        case "mostly zeros":
            return np.where(generator.random(NUM) < 0.7, np.float32(0), np.abs(normal))
        case "signed zeros":
            return np.where(generator.random(NUM) < 0.5, np.float32(0), np.float32(-0.0))
        case "infinities":
            return np.where(generator.random(NUM) < 0.3, np.float32(np.inf), np.where(normal < 0, -np.inf, normal))
        case "denormals":
            return (generator.integers(0, 50, NUM) * 1e-45).astype(np.float32)
        case "columns":  # a matrix whose columns have scales of their own
            return (np.abs(normal).reshape(-1, 400) * np.linspace(1e-3, 1, 400, dtype=np.float32)).reshape(-1)
        case _:
            return np.full(NUM, 0.5, dtype=np.float32)


@pytest.mark.parametrize("kind", ["magnitudes", "signed float64", "few values", "mostly zeros", "signed zeros",
                                  "infinities", "denormals", "columns", "equal"])
def test_the_k_largest_with_ties_to_the_lower_index(kind: str) -> None:
    scores = scores_of(kind)
    order = np.argsort(-scores, kind="stable")
    for k in (1, 2, NUM // 50, NUM // 3, NUM * 4 // 5, NUM - 1):
        expected = np.zeros(NUM, dtype=bool)
        expected[order[:k]] = True
        assert np.array_equal(top_k(scores, k), expected), k


def test_a_sample_that_misleads_changes_nothing() -> None:
    # Large where the sample looks, small elsewhere: its bracket cannot hold the threshold.
    scores = -np.abs(scores_of("magnitudes")) - 1
    seen = np.random.default_rng(0).integers(NUM, size=1 << 16)
    scores[seen] *= -1
    for k in (NUM // 2, NUM - 5):
        assert np.array_equal(top_k(scores, k), oracle(scores, k))


def test_the_scores_are_only_read() -> None:
    scores = scores_of("few values")
    before = scores.copy()
    scores.flags.writeable = False
    top_k(scores, NUM // 2)
    assert np.array_equal(scores, before)


def test_a_single_nan_is_refused() -> None:
    scores = scores_of("magnitudes")
    scores[NUM // 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        top_k(scores, 5)
