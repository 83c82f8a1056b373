from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swamp_ray.storage.names import canonical_json, digest_arrays, digest_bytes, format_of, name_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner), max_leaves=10)


@given(json_values)
def test_json_round_trips_and_its_spelling_is_a_fixed_point(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


def test_the_spelling_is_sorted_compact_and_exact() -> None:
    value = {"b": (1, 2.5, None), "a": {"ä": True, "Z": 0.1}}
    assert canonical_json(value) == '{"a":{"Z":0.1,"ä":true},"b":[1,2.5,null]}'.encode()
    assert canonical_json(1) != canonical_json(1.0)


@pytest.mark.parametrize("value", [{"a": {1, 2}}, {"a": [b"x"]}, {1: "a"}, {"a": {None: 1}}, {"a": np.int64(1)},
                                   {"a": np.zeros(1)}, object()])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_refusal_says_where() -> None:
    with pytest.raises(TypeError, match=r"training\.steps\[1\] must be JSON, but is set"):
        canonical_json({"training": {"steps": [1, {2}]}})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], "\ud800"])
def test_numbers_and_text_without_a_spelling_are_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        canonical_json(value)


def test_digest_bytes_is_sha256() -> None:
    assert digest_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


arrays = hnp.arrays(st.sampled_from(["f4", "f8", "i8", "u1", "b1", "f2"]), hnp.array_shapes(min_dims=0, min_side=0))


@given(arrays, arrays)
def test_arrays_have_equal_digests_exactly_if_they_are_equal_bit_by_bit(one: Any, two: Any) -> None:
    same = (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    assert (digest_arrays({"a": one}) == digest_arrays({"a": two})) == same


def test_order_strides_and_byte_order_do_not_matter() -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3)
    digest = digest_arrays({"a": a, "b": b})
    assert digest_arrays({"b": b, "a": a}) == digest
    assert digest_arrays({"a": np.asfortranarray(a), "b": b}) == digest
    assert digest_arrays({"a": np.repeat(a, 2, axis=0)[::2], "b": b.astype(">i8")}) == digest


def test_names_dtypes_shapes_and_values_matter() -> None:
    a = np.zeros((2, 3), np.float32)
    others = [{"b": a}, {"a": a.reshape(3, 2)}, {"a": a.view(np.int32)}, {"a": -a}, {"a": a, "b": np.zeros(0)}, {}]
    assert len({digest_arrays({"a": a}), *map(digest_arrays, others)}) == 1 + len(others)


def test_arrays_of_objects_are_refused() -> None:
    for array in (np.array([{}]), np.zeros(1, dtype=[("x", "f4")])):
        with pytest.raises(TypeError, match="'a'"):
            digest_arrays({"a": array})


def test_names_depend_on_kind_and_content_only() -> None:
    name = name_of("particle", {"seed": 1, "lr": 0.1})
    assert name == name_of("particle", {"lr": 0.1, "seed": 1})
    whole = {"format": format_of("particle"), "kind": "particle", "lr": 0.1, "seed": 1}
    assert name == digest_bytes(canonical_json(whole))
    assert name != name_of("particle", {"seed": 1, "lr": 0.1}, version=format_of("particle") - 1)
    assert len({name, name_of("round", {"seed": 1, "lr": 0.1}), name_of("particle", {"seed": 2, "lr": 0.1})}) == 3
    with pytest.raises(ValueError, match="kind"):
        name_of("particle", {"kind": "round"})
