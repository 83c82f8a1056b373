"""Drop and grow against a slow twin: the numbers of weights are exact, whatever is equal or in the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swamp_ray.sparsity.dynamic import drop_and_grow, exchange_layers, num_exchanged, prune_to, random_growth
from swamp_ray.sparsity.masks import find_prunable

FEW = st.sampled_from([0.0, 0.5, 1.0, 2.0])
"""So few values that most of them are equal."""
WEIGHTS = st.lists(st.tuples(FEW, st.booleans(), FEW), min_size=1, max_size=30)


def slow_twin(magnitudes: list[float], kept: list[bool], growth: list[float], num: int) -> tuple[set[int], set[int]]:
    """The new mask and what continues, by sorting pairs."""
    present = [index for index, keep in enumerate(kept) if keep]
    ordered = sorted(present, key=lambda index: (-magnitudes[index], index))
    continuing = set(ordered[:len(present) - num])
    candidates = [index for index in range(len(kept)) if index not in continuing]
    grown = sorted(candidates, key=lambda index: (-growth[index], index))[:num]
    return continuing | set(grown), continuing


@given(WEIGHTS, st.floats(0, 1))
def test_the_smallest_go_and_the_largest_gradients_come(weights: list[tuple[float, bool, float]], share: float) -> None:
    magnitudes, kept, growth = (list(column) for column in zip(*weights, strict=True))
    num = num_exchanged(sum(kept), len(kept), share)
    found = drop_and_grow(np.array(magnitudes, np.float32), np.array(kept), np.array(growth, np.float32), num)
    mask, continuing = slow_twin(magnitudes, kept, growth, num)
    assert set(np.flatnonzero(found.kept)) == mask
    assert set(np.flatnonzero(found.continuing)) == continuing
    assert found.kept.sum() == sum(kept), "as many as before"


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_no_more_are_exchanged_than_are_pruned(num_kept: int, num_pruned: int, share: float) -> None:
    num = num_exchanged(num_kept, num_kept + num_pruned, share)
    assert 0 <= num <= min(num_kept, num_pruned)
    assert num in (int(share * num_kept), num_pruned)


def test_a_full_layer_keeps_its_weights_and_others_move() -> None:
    layout = find_prunable(nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)))
    mask = np.array([True] * 8 + [True, True, False, False, True, False])
    magnitudes = np.arange(14, dtype=np.float32)
    growth = np.array([9.0] * 8 + [0, 0, 1, 3, 0, 2], np.float32)
    found = exchange_layers(layout, mask, magnitudes, growth, 0.5)
    assert found.kept[:8].all()
    assert found.continuing[:8].all(), "with no weight to grow, none is dropped"
    # Of weights 8, 9 and 12 one is dropped, the smallest; the largest gradient, at 11, grows.
    assert list(np.flatnonzero(found.kept[8:])) == [1, 3, 4]


def test_a_dropped_weight_of_the_largest_gradient_grows_anew() -> None:
    kept = np.array([True, True, False])
    found = drop_and_grow(np.array([1, 2, 0], np.float32), kept, np.array([9, 0, 1], np.float32), 1)
    assert list(found.kept) == [True, True, False]
    assert list(found.continuing) == [False, True, False], "and loses its value"


def test_bad_numbers_are_refused() -> None:
    kept = np.array([True, False])
    numbers = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="can be dropped"):
        drop_and_grow(numbers, kept, numbers, 2)
    with pytest.raises(ValueError, match="NaN"):
        drop_and_grow(numbers, kept, np.array([0, np.nan], np.float32), 1)


def test_random_growth_depends_on_its_seed_alone() -> None:
    layout = find_prunable(nn.Sequential(nn.Linear(40, 20), nn.Linear(20, 3)))
    once = random_growth(layout, 5)
    assert once.shape == (layout.num_prunable,)
    assert np.array_equal(once, random_growth(layout, 5))
    assert not np.array_equal(once, random_growth(layout, 6))
    assert 0 <= once.min() < 0.01 < 0.99 < once.max() < 1


def test_pruning_keeps_exactly_the_largest_in_all_or_by_layer() -> None:
    layout = find_prunable(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)))
    magnitudes = np.array([5, 1, 1, 1, 9, 0, 2, 2, 2, 7], np.float32)
    mask = np.ones(10, dtype=bool)
    mask[4] = False
    assert list(np.flatnonzero(prune_to(layout, mask, magnitudes, 4))) == [0, 6, 7, 9]
    by_layer = prune_to(layout, mask, magnitudes, [3, 1])
    assert list(np.flatnonzero(by_layer)) == [0, 1, 2, 9]
    with pytest.raises(ValueError, match="k must lie"):
        prune_to(layout, mask, magnitudes, 10)
