from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.sparsity import bits as bits_module
from swamp_ray.sparsity.bits import between, choose, layer_counts, num_kept
from swamp_ray.sparsity.masks import Layer, Layout, to_bits


def drawn_mask(data: st.DataObject, most: int = 200) -> np.ndarray:
    return np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=most)), dtype=np.bool_)


def large_mask(num: int, density: float) -> np.ndarray:
    """More bytes than a block has, with long stretches of either kind."""
    mask = np.random.default_rng(0).random(num) < density
    mask[num // 3:num // 2] = False
    mask[num // 2:num // 2 + num // 8] = True
    return mask


@given(st.data())
def test_counts_and_stretches_are_those_of_the_mask(data: st.DataObject) -> None:
    mask = drawn_mask(data)
    first = data.draw(st.integers(0, len(mask)))
    last = data.draw(st.integers(first, len(mask)))
    assert num_kept(to_bits(mask)) == mask.sum()
    np.testing.assert_array_equal(between(to_bits(mask), first, last), mask[first:last])


@given(st.data())
def test_layers_begin_and_end_within_bytes(data: st.DataObject) -> None:
    mask = drawn_mask(data)
    cuts = sorted({0, len(mask), *data.draw(st.lists(st.integers(0, len(mask)), max_size=4))})
    layers = tuple(Layer(f"layer{first}", (last - first,), "linear", first)
                   for first, last in pairwise(cuts))
    layout = Layout(layers, ())
    assert layer_counts(layout, to_bits(mask)) == [int(mask[layer.span].sum()) for layer in layers]


@given(st.data())
def test_choices_of_neighbouring_slices_make_the_mask(data: st.DataObject) -> None:
    mask = drawn_mask(data)
    chosen = np.array([data.draw(st.booleans()) for _ in range(int(mask.sum()))], dtype=np.bool_)
    cuts = sorted(data.draw(st.lists(st.integers(0, chosen.size), max_size=3)))
    found = np.zeros_like(to_bits(mask))
    for first, last in zip([0, *cuts], [*cuts, chosen.size], strict=True):
        begin, part = choose(to_bits(mask), first, chosen[first:last])
        assert not (found[begin:begin + part.size] & part).any(), "a slice must say nothing of another one's survivors"
        found[begin:begin + part.size] |= part
    expected = np.zeros_like(mask)
    expected[mask] = chosen
    np.testing.assert_array_equal(found, to_bits(expected))


@pytest.mark.parametrize("density", [0.02, 0.5, 0.98, 1.0])
def test_masks_of_many_blocks(density: float) -> None:
    mask = large_mask(8 * bits_module._BLOCK * 3 + 5, density)
    chosen = np.random.default_rng(1).random(int(mask.sum())) < 0.8
    middle = chosen.size // 2
    found = np.zeros_like(to_bits(mask))
    for first, last in ((0, middle), (middle, chosen.size)):
        begin, part = choose(to_bits(mask), first, chosen[first:last])
        found[begin:begin + part.size] |= part
    expected = np.zeros_like(mask)
    expected[mask] = chosen
    np.testing.assert_array_equal(found, to_bits(expected))
    assert num_kept(to_bits(mask)) == mask.sum()


def test_a_survivor_that_does_not_exist() -> None:
    bits = to_bits(np.array([True, False, True]))
    with pytest.raises(ValueError, match="keeps 2 weights, but survivor 2 was asked for"):
        choose(bits, 2, np.array([True]))
    with pytest.raises(ValueError, match="keeps 2 of these weights, but 3 choices were given"):
        choose(bits, 1, np.array([True, True]))
