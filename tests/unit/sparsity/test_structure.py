"""Masks with structure: exactly N in every M, whole channels, whole blocks; as an obvious twin chooses them."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity.masks import Layer, Layout, find_prunable, from_bits, to_bits
from swamp_ray.sparsity.schedule import plan_survivors
from swamp_ray.sparsity.selection import layer_shares
from swamp_ray.sparsity.structure import check_structure, unit_indices
from swamp_ray.sparsity.unit_selection import plan_units, select_units, units_by_layer
from swamp_ray.structure import Structure, parse_structure

Shapes = list[tuple[str, tuple[int, ...]]]


def structure(text: str) -> Structure:
    found = parse_structure(text)
    assert found is not None
    return found


def layout_of(*layers: tuple[str, tuple[int, ...]]) -> Layout:
    found: list[Layer] = []
    offset = 0
    for index, (kind, shape) in enumerate(layers):
        found.append(Layer(f"layer{index}.weight", shape, kind, offset))
        offset += found[-1].size
    return Layout(tuple(found), ())


def everything(layout: Layout) -> np.ndarray:
    return np.ones(layout.num_prunable, dtype=bool)


def chosen(layout: Layout, mask: np.ndarray, k: int, scope: str, text: str, scores: np.ndarray) -> np.ndarray:
    bits = select_units(layout, to_bits(mask), k, scope, structure(text), scores[mask])
    return from_bits(bits, layout.num_prunable)


def element(layer: Layer, output: int, inputs: int, position: tuple[int, ...]) -> int:
    """The flat index of one weight, as the layer's kind orders it."""
    place = (inputs, output) if layer.kind == "conv1d" else (output, inputs, *position)
    return layer.offset + int(np.ravel_multi_index(place, layer.shape))


def obvious_units(layer: Layer, of: Structure) -> list[list[int]]:
    """Flat indices of each unit, one weight at a time, in the order of their first weights."""
    outputs, inputs = layer.shape[:2] if layer.kind != "conv1d" else layer.shape[::-1]
    positions = list(np.ndindex(*layer.shape[2:]))
    units: dict[tuple[int, ...], list[int]] = {}
    for output in range(outputs):
        for place in range(inputs):
            for index, position in enumerate(positions):
                if of.kind == "pattern":
                    key = (output, place // of.second, index)
                elif of.kind == "channels":
                    key = (output,)
                else:
                    key = (output // of.first, place // of.second, index)
                units.setdefault(key, []).append(element(layer, output, place, position))
    return sorted(sorted(unit) for unit in units.values())


def obvious_pattern(layout: Layout, mask: np.ndarray, of: Structure, num: int, scores: np.ndarray) -> np.ndarray:
    following = np.zeros_like(mask)
    for layer in layout.layers:
        for group in obvious_units(layer, of):
            alive = [index for index in group if mask[index]]
            following[sorted(alive, key=lambda index: (-scores[index], index))[:num]] = True
    return following


def obvious_whole(
    layout: Layout, mask: np.ndarray, of: Structure, budgets: int | list[int], scores: np.ndarray
) -> np.ndarray:
    """Over all layers for a number of units, by layer for a list of them."""
    pools: list[list[list[int]]] = []
    for layer in layout.layers:
        pools.append([unit for unit in obvious_units(layer, of) if mask[unit].all()])
    if isinstance(budgets, int):
        together = [unit for pool in pools for unit in pool]
        pools, budgets = [together], [budgets]
    following = np.zeros_like(mask)
    for pool, budget in zip(pools, budgets, strict=True):
        # Whole numbers as scores: their sums are exact in any order.
        for unit in sorted(pool, key=lambda unit: (-scores[unit].astype(np.float64).sum(), unit[0]))[:budget]:
            following[unit] = True
    return following


LAYERS = st.lists(st.one_of(
    st.tuples(st.just("linear"), st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 12]))),
    st.tuples(st.just("conv1d"), st.tuples(st.sampled_from([4, 8]), st.integers(1, 5))),
    st.tuples(st.just("conv"), st.tuples(st.integers(1, 4), st.sampled_from([4, 8]), st.integers(1, 3),
                                         st.integers(1, 2))),
), min_size=1, max_size=4)
TILED = st.lists(st.one_of(
    st.tuples(st.just("linear"), st.tuples(st.sampled_from([2, 4, 6]), st.sampled_from([4, 8]))),
    st.tuples(st.just("conv1d"), st.tuples(st.sampled_from([4, 8]), st.sampled_from([2, 6]))),
    st.tuples(st.just("conv"), st.tuples(st.sampled_from([2, 4]), st.sampled_from([4, 8]), st.integers(1, 2),
                                         st.integers(1, 2))),
), min_size=1, max_size=3)


def scores_for(layout: Layout, seed: int, distinct: int) -> np.ndarray:
    """Few distinct values, so that there are ties."""
    return np.random.default_rng(seed).integers(0, distinct, layout.num_prunable).astype(np.float32)


class TestPattern:
    @given(LAYERS, st.sampled_from(["2:4", "1:4", "3:4", "1:2"]), st.integers(0, 99), st.sampled_from([2, 5, 1000]))
    @settings(max_examples=60, deadline=None)
    def test_every_round_keeps_exactly_as_many_of_every_group_and_the_twin_s(
        self, layers: Shapes, text: str, seed: int, distinct: int
    ) -> None:
        layout = layout_of(*layers)
        of, mask = structure(text), everything(layout)
        planned = plan_units(layout, of, "global", 0.2, of.target, mask)
        for number, k in enumerate(planned[1:]):
            scores = scores_for(layout, seed + number, distinct)
            following = chosen(layout, mask, k, "global", text, scores)
            num = k * of.second // layout.num_prunable
            for layer in layout.layers:
                for group in obvious_units(layer, of):
                    assert following[group].sum() == num
            assert np.array_equal(following, obvious_pattern(layout, mask, of, num, scores))
            assert not np.any(following & ~mask)
            mask = following
        assert mask.sum() * of.second == layout.num_prunable * of.first

    def test_the_rounds_of_2_4_and_of_2_8(self) -> None:
        layout = layout_of(("linear", (3, 8)))
        assert plan_units(layout, structure("2:4"), "global", 0.2, 0.5, everything(layout)) == [24, 18, 12]
        of_eight = plan_units(layout, structure("2:8"), "global", 0.2, 0.75, everything(layout))
        assert [3 * 8 - kept for kept in of_eight] == [0, 6, 9, 12, 15, 18]  # groups of 8, 6, 5, 4, 3, 2
        assert plan_units(layout, structure("2:4"), "global", 0.5, 0.5, everything(layout)) == [24, 12]

    def test_a_linear_layer_is_what_torch_reads_as_semi_structured(self) -> None:
        """Groups are four neighbours of a row; of a convolution, four input channels at one position."""
        torch.manual_seed(0)
        linear, conv = nn.Linear(8, 3, bias=False), nn.Conv2d(4, 2, 3, bias=False)
        layout = find_prunable(nn.Sequential(linear, conv))
        flat = np.concatenate([linear.weight.detach().numpy().ravel(), conv.weight.detach().numpy().ravel()])
        following = chosen(layout, everything(layout), layout.num_prunable // 2, "global", "2:4", np.abs(flat))
        rows = following[:24].reshape(3, 2, 4)
        assert (rows.sum(axis=-1) == 2).all()
        positions = following[24:].reshape(2, 4, 3, 3)
        assert (positions.sum(axis=1) == 2).all()
        matrix = conv.weight.detach().permute(0, 2, 3, 1).reshape(2, -1)  # outputs x (position, input), as kernels do
        kept = torch.from_numpy(positions).permute(0, 2, 3, 1).reshape(2, -1, 4)
        top = matrix.reshape(2, -1, 4).abs().topk(2, dim=-1).indices
        assert torch.equal(kept.nonzero()[:, 2].reshape(2, -1, 2), top.sort(dim=-1).values)

    def test_of_equal_scores_the_lower_index_stays(self) -> None:
        layout = layout_of(("linear", (1, 4)), ("conv", (1, 4, 1, 2)))
        following = chosen(layout, everything(layout), 6, "global", "2:4", np.ones(12, np.float32))
        assert following.astype(int).tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]

    def test_a_survivor_of_the_lowest_score_comes_before_a_pruned_weight(self) -> None:
        layout = layout_of(("linear", (1, 4)))
        mask = np.array([False, True, True, True])
        scores = np.array([9, -np.inf, 1, -np.inf], dtype=np.float32)
        assert chosen(layout, mask, 2, "global", "2:4", scores).tolist() == [False, True, True, False]

    def test_another_structure_of_the_present_mask_is_refused(self) -> None:
        layout = layout_of(("linear", (2, 4)))
        mask = np.array([True] * 5 + [False] * 3)
        with pytest.raises(RunError, match=r"groups of 4 inputs keep 1 to 4 weights, e.g. in layer0.weight"):
            chosen(layout, mask, 4, "global", "2:4", np.ones(8, np.float32))
        with pytest.raises(UserError, match=r"the ticket's mask has not the structure 2:4"):
            plan_units(layout, structure("2:4"), "global", 0.2, 0.5, mask)
        sparse = np.array([True, False, False, False] * 2)
        with pytest.raises(UserError, match="keeps 1 weights of each group, fewer than 2:4 does"):
            plan_units(layout, structure("2:4"), "global", 0.2, 0.5, sparse)

    def test_a_ticket_of_the_structure_is_pruned_further(self) -> None:
        layout = layout_of(("linear", (2, 8)))
        half = np.tile([True, False, True, False], 4)
        assert plan_units(layout, structure("1:4"), "global", 0.2, 0.75, half) == [8, 4]


class TestUnits:
    @given(TILED, st.sampled_from(["blocks:2x4", "blocks:1x4", "blocks:2x2", "blocks:2x1"]), st.integers(0, 99),
           st.sampled_from([2, 1000]))
    @settings(max_examples=60, deadline=None)
    def test_blocks_of_all_layers_are_the_twin_s(self, layers: Shapes, text: str, seed: int, distinct: int) -> None:
        layout = layout_of(*layers)
        of, mask = structure(text), everything(layout)
        size = of.first * of.second
        num = layout.num_prunable // size
        target = 1 - 1 / num
        planned = plan_units(layout, of, "global", 0.3, target, mask)
        units = list(dict.fromkeys(plan_survivors(num, 0.3, target)))
        assert planned == [size * count for count in units]
        for number, k in enumerate(planned[1:]):
            scores = scores_for(layout, seed + number, distinct)
            following = chosen(layout, mask, k, "global", text, scores)
            assert following.sum() == k
            assert np.array_equal(following, obvious_whole(layout, mask, of, k // size, scores))
            mask = following

    @given(TILED, st.sampled_from(["channels", "blocks:2x2"]), st.sampled_from(["uniform", "erk"]),
           st.floats(0.3, 0.8), st.integers(0, 99), st.sampled_from([2, 1000]))
    @settings(max_examples=60, deadline=None)
    def test_by_layer_every_layer_keeps_its_share_in_whole_units(
        self, layers: Shapes, text: str, scope: str, target: float, seed: int, distinct: int
    ) -> None:
        layout = layout_of(*layers)
        of, mask = structure(text), everything(layout)
        target = round(target, 3)
        sizes = [layer.size for layer in layout.layers]
        exact = plan_survivors(layout.num_prunable, 0.25, target)[-1]
        nearest = []
        for layer, share in zip(layout.layers, layer_shares(layout, sizes, exact, scope), strict=True):
            own = obvious_units(layer, of)
            nearest.append(floor(Fraction(share) / len(own[0]) + Fraction(1, 2)))
        if not any(nearest):
            with pytest.raises(UserError, match="leaves no whole unit"):
                plan_units(layout, of, scope, 0.25, target, mask)
            return
        planned = plan_units(layout, of, scope, 0.25, target, mask)
        assert all(before > after for before, after in pairwise(planned))
        for number, k in enumerate(planned[1:]):
            budgets = units_by_layer(layout, of, scope, k)
            scores = scores_for(layout, seed + number, distinct)
            following = chosen(layout, mask, k, scope, text, scores)
            assert following.sum() == k
            assert np.array_equal(following, obvious_whole(layout, mask, of, budgets, scores))
            mask = following
        if len(planned) > 1:
            assert units_by_layer(layout, of, scope, planned[-1]) == nearest

    @given(LAYERS, st.sampled_from(["2:4", "channels", "blocks:1x2"]))
    @settings(max_examples=40, deadline=None)
    def test_units_divide_a_layer_in_order(self, layers: Shapes, text: str) -> None:
        for layer in layout_of(*layers).layers:
            found = layer.offset + unit_indices(layer, structure(text))
            assert found.tolist() == obvious_units(layer, structure(text))

    def test_channels_of_different_sizes_do_not_compete(self) -> None:
        layout = layout_of(("linear", (4, 8)), ("linear", (4, 4)))
        with pytest.raises(UserError, match=r"different sizes cannot compete.*Set pruning.scope: uniform or erk"):
            plan_units(layout, structure("channels"), "global", 0.2, 0.5, everything(layout))
        alike = layout_of(("linear", (4, 8)), ("conv", (4, 2, 2, 2)))
        assert plan_units(alike, structure("channels"), "global", 0.5, 0.5, everything(alike)) == [64, 32]

    def test_a_mask_of_parts_is_refused(self) -> None:
        layout = layout_of(("linear", (2, 4)))
        mask = np.array([True] * 7 + [False])
        with pytest.raises(UserError, match=r"the mask keeps parts of channels in layer0.weight"):
            plan_units(layout, structure("channels"), "uniform", 0.2, 0.5, mask)
        with pytest.raises(RunError, match=r"the mask keeps parts of blocks in layer0.weight"):
            chosen(layout, mask, 4, "global", "blocks:1x2", np.ones(8, np.float32))

    def test_what_leaves_no_unit_is_refused(self) -> None:
        layout = layout_of(("linear", (2, 8)), ("linear", (2, 8)))
        with pytest.raises(UserError, match="leaves no whole unit of channels"):
            plan_units(layout, structure("channels"), "uniform", 0.5, 0.9, everything(layout))

    def test_a_ticket_of_another_scope_is_refused(self) -> None:
        layout = layout_of(("linear", (4, 4)), ("linear", (4, 4)))
        mask = np.array([True] * 4 + [False] * 12 + [True] * 16)
        with pytest.raises(UserError, match=r"keeps 1 channels of layer0.weight, fewer than the next round's 2"):
            plan_units(layout, structure("channels"), "uniform", 0.2, 0.5, mask)


class TestNames:
    @pytest.mark.parametrize("text", ["4:2", "4:4", "0:4", "2:4:8", "rows", "blocks", "blocks:0x4", "blocks:1x1", ""])
    def test_what_is_no_structure_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^must "):
            parse_structure(text)

    def test_what_a_structure_does_not_divide_is_named(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 4, 2), nn.Linear(6, 5))
        layout = find_prunable(model)
        with pytest.raises(UserError) as refused:
            check_structure(layout, structure("2:4"))
        text = str(refused.value)
        assert "0.weight (3 inputs, which 4 does not divide)" in text
        assert "2.weight (a transposed convolution" in text
        assert "3.weight (6 inputs, which 4 does not divide)" in text
        assert "1.weight" not in text
        assert "pruning.exclude: ['0.weight', '2.weight', '3.weight']" in text
        with pytest.raises(UserError, match=r"3.weight \(5 outputs, which 4 does not divide\)"):
            check_structure(find_prunable(nn.Sequential(*model)), structure("blocks:4x1"))
        check_structure(find_prunable(model, exclude=("0.*", "2.*", "3.*")), structure("2:4"))
