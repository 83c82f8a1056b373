from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn.utils import prune

from swamp_ray.sparsity.masks import (
    Layer,
    Layout,
    find_prunable,
    flatten,
    from_bits,
    from_torch_prune,
    prunable_tensors,
    to_bits,
)
from swamp_ray.sparsity.schedule import plan_survivors
from swamp_ray.sparsity.scores import magnitude
from swamp_ray.sparsity.selection import ScoredSlice, here, layer_budgets, select
from tests.unit.sparsity.slices import mask_of, scores_of


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    layers: list[Layer] = []
    for index, shape in enumerate(shapes):
        offset = layers[-1].offset + layers[-1].size if layers else 0
        layers.append(Layer(f"layer{index}", shape, "conv" if len(shape) > 2 else "linear", offset))
    return Layout(tuple(layers), ())


def obvious_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The slow twin: a stable sort."""
    keep = np.zeros(len(scores), dtype=bool)
    keep[sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]] = True
    return keep


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1, max_size=6,
)


class TestBudgets:
    @given(shapes, st.sampled_from(["uniform", "erk"]), st.data())
    def test_sum_caps_and_determinism(self, shapes: list[tuple[int, ...]], scope: str, data: st.DataObject) -> None:
        layout = layout_of(*shapes)
        counts = [data.draw(st.integers(0, layer.size)) for layer in layout.layers]
        k = data.draw(st.integers(0, sum(counts)))
        budgets = layer_budgets(layout, counts, k, scope)
        assert sum(budgets) == k
        assert all(0 <= budget <= count for budget, count in zip(budgets, counts, strict=True))
        assert budgets == layer_budgets(layout, counts, k, scope)

    @given(shapes, st.sampled_from(["uniform", "erk"]), st.data())
    def test_free_layers_keep_the_proportion(
        self, shapes: list[tuple[int, ...]], scope: str, data: st.DataObject
    ) -> None:
        layout = layout_of(*shapes)
        counts = [layer.size for layer in layout.layers]
        k = data.draw(st.integers(1, sum(counts)))
        budgets = layer_budgets(layout, counts, k, scope)
        weights = [layer.size if scope == "uniform" else sum(layer.shape) for layer in layout.layers]
        # One factor explains every layer: budget = min(count, weight * factor), rounded up or down.
        low, high = Fraction(0), Fraction(10**9)
        for budget, count, weight in zip(budgets, counts, weights, strict=True):
            low = max(low, Fraction(budget - 1, weight))
            high = min(high, Fraction(budget + 1, weight)) if budget < count else high
        assert low < high

    def test_uniform_is_the_same_density(self) -> None:
        assert layer_budgets(layout_of((10, 10), (20, 10), (5, 2)), [100, 200, 10], 155, "uniform") == [50, 100, 5]

    def test_equal_remainders_go_to_the_earlier_layer(self) -> None:
        assert layer_budgets(layout_of((3, 1), (3, 1), (3, 1), (3, 1)), [3] * 4, 6, "uniform") == [2, 2, 1, 1]

    def test_erk_by_hand_as_rigl_does(self) -> None:
        # Evci et al., 2020: density = eps * sum(shape) / prod(shape), layers above 1 are kept whole and eps is
        # solved again for the others. Sums: 8+1+3+3 = 15, 16+8+3+3 = 30, 10+64 = 74; sizes 72, 1152, 640; k = 466.
        # With all layers eps = 466 / 119: densities 0.816, 0.102, 0.708; nothing above 1.
        layout = layout_of((8, 1, 3, 3), (16, 8, 3, 3), (10, 64))
        counts = [72, 1152, 640]
        assert layer_budgets(layout, counts, 466, "erk") == [59, 117, 290]
        # k = 932: the first layer would have density 1.632. Whole, it leaves 860 for sums of 104: 248.1 and 611.9.
        assert layer_budgets(layout, counts, 932, "erk") == [72, 248, 612]

    def test_erk_keeps_whole_one_layer_after_another(self) -> None:
        # k = 600: eps = 5.042, densities 1.05, 0.131, 0.913. The first is whole; eps = 528 / 104 = 5.077.
        # Third: 375.7, second: 152.3.
        layout = layout_of((8, 1, 3, 3), (16, 8, 3, 3), (10, 64))
        assert layer_budgets(layout, [72, 1152, 640], 600, "erk") == [72, 152, 376]

    def test_more_than_there_is_is_refused(self) -> None:
        with pytest.raises(ValueError, match="survivors, but got 6"):
            layer_budgets(layout_of((3, 3)), [5], 6, "erk")


class TestSelect:
    @given(shapes, st.sampled_from(["global", "uniform", "erk"]), st.data())
    def test_nested_and_exact(self, shapes: list[tuple[int, ...]], scope: str, data: st.DataObject) -> None:
        layout = layout_of(*shapes)
        mask = data.draw(arrays(bool, layout.num_prunable))
        count = int(mask.sum())
        k = data.draw(st.integers(0, count))
        scores = data.draw(arrays(np.float32, count, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
        chosen = mask_of(layout, mask, scores, k, scope)
        assert int(chosen.sum()) == k
        assert not (chosen & ~mask).any()
        full = np.full(layout.num_prunable, -1.0)
        full[mask] = scores
        if scope == "global":
            np.testing.assert_array_equal(chosen, obvious_top_k(full, k))
        for layer in layout.layers:
            part = chosen[layer.span]
            np.testing.assert_array_equal(part, obvious_top_k(full[layer.span], int(part.sum())))

    def test_unknown_scope(self) -> None:
        with pytest.raises(ValueError, match="must be one of"):
            mask_of(layout_of((2, 2)), np.ones(4, bool), np.zeros(4, np.float32), 1, "globl")

    @given(st.integers(0, 2**31), st.floats(0.0, 0.95))
    def test_equals_torch_prune(self, seed: int, amount: float) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 5))
        layout = find_prunable(model)
        values = flatten(prunable_tensors(model, layout))
        # Torch does not say which of two equal weights goes.
        if len(np.unique(np.abs(values))) < len(values):
            return
        pruned = round(amount * layout.num_prunable)
        num = layout.num_prunable
        mask = mask_of(layout, np.ones(num, bool), np.abs(values), num - pruned, "global")
        if pruned:
            pairs = [(model[index], "weight") for index in (0, 1, 3)]
            prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=pruned)
            theirs = from_torch_prune(model)
            np.testing.assert_array_equal(mask, np.concatenate([theirs[x.name].ravel() for x in layout.layers]))

    def test_equals_torch_prune_round_after_round(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20), nn.Linear(20, 7))
        layout = find_prunable(model)
        values = flatten(prunable_tensors(model, layout))
        plan = plan_survivors(layout.num_prunable, 0.2, 0.95)
        mask = np.ones(layout.num_prunable, bool)
        pairs = [(model[index], "weight") for index in range(3)]
        for before, after in pairwise(plan):
            scores = scores_of(layout, mask, values[mask], values[mask], magnitude)
            mask = mask_of(layout, mask, scores, after, "global")
            prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=before - after)
            theirs = from_torch_prune(model)
            np.testing.assert_array_equal(mask, np.concatenate([theirs[x.name].ravel() for x in layout.layers]))

    @given(shapes, st.sampled_from(["global", "uniform", "erk"]), st.data())
    def test_slices_together_find_the_same_mask(
        self, shapes: list[tuple[int, ...]], scope: str, data: st.DataObject
    ) -> None:
        layout = layout_of(*shapes)
        mask = data.draw(arrays(bool, layout.num_prunable))
        count = int(mask.sum())
        k = data.draw(st.integers(0, count))
        scores = data.draw(arrays(np.float32, count, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
        cuts = [0, *sorted(data.draw(st.lists(st.integers(0, count), min_size=1, max_size=4))), count]
        slices = [here(ScoredSlice(first, scores[first:last])) for first, last in pairwise(cuts)]
        found = from_bits(select(layout, to_bits(mask), k, scope, slices), layout.num_prunable)
        np.testing.assert_array_equal(found, mask_of(layout, mask, scores, k, scope))
