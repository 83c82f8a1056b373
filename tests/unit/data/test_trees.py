"""Nests keep their form."""

from __future__ import annotations

from typing import NamedTuple

from swamp_ray.data.trees import leaves, named_leaves, num_samples, tree_map


class Pair(NamedTuple):
    left: list[int]
    right: list[int]


def test_map_keeps_the_form() -> None:
    nest = {"a": (1, [2, 3]), "b": 4}
    assert tree_map(lambda leaf: leaf * 10, nest) == {"a": (10, [20, 30]), "b": 40}
    assert isinstance(tree_map(lambda leaf: leaf, Pair([1], [2])), Pair)


def test_leaves_in_order_with_their_paths() -> None:
    assert leaves(({"b": 1, "a": 2}, 3)) == [1, 2, 3]
    assert [path for path, _ in named_leaves((1, {"mask": 2}))] == ["0", "1.mask"]
    assert named_leaves(5) == [("", 5)]


def test_number_of_samples() -> None:
    assert num_samples(({"x": "abc"}, "abc")) == 3
