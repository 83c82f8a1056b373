from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from torch import nn

from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.sparsity.compact import (
    CompactState,
    compact_model,
    compact_state,
    from_bytes,
    full_state,
    load_compact_,
    to_bytes,
)
from swamp_ray.sparsity.masks import Layout, apply_mask_, find_prunable, mask_tensors, prunable_tensors


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, groups=2))


def channels_last() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    return model.to(memory_format=torch.channels_last)


def tied_linears() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def tied_embedding() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    model[2].weight = model[0].weight
    return model


def attention() -> nn.Module:
    return nn.ModuleList([nn.MultiheadAttention(6, 2), nn.LayerNorm(6), nn.MultiheadAttention(6, 2, kdim=3, vdim=5)])


def no_rest() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3, bias=False))


MODELS = [grouped, channels_last, tied_linears, tied_embedding, attention, no_rest]
each_model = pytest.mark.parametrize("make", MODELS)


def pruned(make, seed: int = 0) -> tuple[nn.Module, Layout, np.ndarray]:
    """A model with random parameters that are zero outside of a random mask."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    layout = find_prunable(model)
    mask = np.random.default_rng(seed).random(layout.num_prunable) < 0.4
    apply_mask_(prunable_tensors(model, layout), mask_tensors(layout, mask, device="cpu"))
    return model, layout, mask


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


@each_model
def test_a_model_comes_back_from_its_compact_form(make) -> None:
    model, layout, mask = pruned(make)
    packed = compact_model(model, layout, mask)
    assert packed.values.shape == (mask.sum(),)
    assert packed.rest.shape == (layout.num_rest,)
    assert packed.nbytes == 4 * (int(mask.sum()) + layout.num_rest)
    other, _, _ = pruned(make, seed=1)
    strides = [parameter.stride() for parameter in other.parameters()]
    load_compact_(other, layout, mask, packed)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [parameter.stride() for parameter in other.parameters()] == strides
    assert all(parameter.requires_grad for parameter in other.parameters())


@each_model
def test_model_and_arrays_pack_alike_and_unpack_to_the_arrays(make) -> None:
    model, layout, mask = pruned(make)
    state = arrays(model)
    packed, from_state = compact_model(model, layout, mask), compact_state(state, layout, mask)
    from_tensors = compact_state(model.state_dict(), layout, mask)
    for other in (from_state, from_tensors):
        assert np.array_equal(packed.values, other.values)
        assert np.array_equal(packed.rest, other.rest)
    full = full_state(packed, layout, mask)
    assert full.keys() == state.keys()
    assert all(np.array_equal(full[name], state[name]) for name in state)


@each_model
def test_values_are_in_flat_order_and_do_not_hold_on_to_the_model(make) -> None:
    model, layout, mask = pruned(make)
    state = arrays(model)
    packed = compact_model(model, layout, mask)
    flat = np.concatenate([state[layer.name].ravel() for layer in layout.layers])
    assert np.array_equal(packed.values, flat[mask])
    assert packed.values.base is None
    assert packed.rest.base is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(packed.values, flat[mask])


class TestSupport:
    def test_weights_outside_the_mask_are_refused(self) -> None:
        model, layout, mask = pruned(grouped)
        smaller = mask.copy()
        smaller[np.flatnonzero(mask)[:3]] = False
        with pytest.raises(RunError, match="3 weights outside"):
            compact_model(model, layout, smaller)
        with pytest.raises(RunError, match="3 weights outside"):
            compact_state(arrays(model), layout, smaller)

    def test_rewinding_drops_them(self) -> None:
        model, layout, mask = pruned(grouped)
        smaller = mask & (np.arange(mask.size) % 2 == 0)
        full = full_state(compact_state(arrays(model), layout, smaller, drop_outside=True), layout, smaller)
        state = arrays(model)
        flat = np.concatenate([state[layer.name].ravel() for layer in layout.layers])
        found = np.concatenate([full[layer.name].ravel() for layer in layout.layers])
        assert np.array_equal(found, np.where(smaller, flat, 0))


class TestWrongShapes:
    def test_a_state_that_does_not_fit_is_named(self) -> None:
        model, layout, mask = pruned(grouped)
        state = arrays(model)
        del state["0.bias"]
        state["0.weight"] = state["0.weight"].reshape(8, 9)
        with pytest.raises(RunError, match=r"0\.weight, 0\.bias"):
            compact_state(state, layout, mask)

    def test_another_mask_is_refused(self) -> None:
        model, layout, mask = pruned(grouped)
        packed = compact_model(model, layout, mask)
        with pytest.raises(ValueError, match="keeps"):
            full_state(packed, layout, np.ones_like(mask))
        with pytest.raises(ValueError, match="mask must be over"):
            full_state(packed, layout, mask[:-1])
        with pytest.raises(ValueError, match="rest must have"):
            full_state(CompactState(packed.values, packed.rest[1:]), layout, mask)


META = {"format": 1, "b": {"z": 0.1, "a": [1, "é"]}}


class TestBytes:
    @given(st.lists(st.floats(width=32)), st.lists(st.floats(width=32)))
    def test_round_trip_keeps_every_bit(self, values: list[float], rest: list[float]) -> None:
        packed = CompactState(np.array(values, np.float32), np.array(rest, np.float32))
        found, meta = from_bytes(to_bytes(packed, META))
        assert found.values.tobytes() == packed.values.tobytes()
        assert found.rest.tobytes() == packed.rest.tobytes()
        assert meta == META

    def test_equal_content_gives_equal_bytes(self) -> None:
        values = np.arange(12, dtype=np.float32)
        reordered = dict(reversed(META.items()))
        first = to_bytes(CompactState(values[::2].copy(), values), META)
        assert to_bytes(CompactState(values[::2], values), reordered) == first

    def test_there_is_one_metadata_key(self) -> None:
        data = to_bytes(CompactState(np.ones(2, np.float32), np.ones(1, np.float32)), META)
        (length,) = struct.unpack("<Q", data[:8])
        assert list(json.loads(data[8:8 + length])["__metadata__"]) == ["swamp"]

    def test_metadata_without_a_json_form_is_refused(self) -> None:
        with pytest.raises(ValueError, match="JSON"):
            to_bytes(CompactState(np.ones(1, np.float32), np.ones(1, np.float32)), {"loss": float("nan")})

    def test_foreign_and_damaged_bytes_are_refused(self) -> None:
        ones = np.ones(2, np.float32)
        good = to_bytes(CompactState(ones, ones), {})
        foreign = [b"", b"junk" * 9, good[:-1], good[:20], save({"values": ones, "rest": ones}),
                   save({"values": ones}, {"swamp": "{}"}),
                   save({"values": ones.astype(np.float64), "rest": ones}, {"swamp": "{}"}),
                   save({"values": ones.reshape(1, 2), "rest": ones}, {"swamp": "{}"})]
        for data in foreign:
            with pytest.raises(CorruptArtifactError):
                from_bytes(data)
