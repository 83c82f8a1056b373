from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity.masks import (
    apply_mask_,
    check_support,
    clean_name,
    density,
    emptied_layers,
    find_prunable,
    flatten,
    from_bits,
    from_torch_prune,
    full_values,
    layer_densities,
    mask_tensors,
    overlap,
    prunable_tensors,
    split,
    to_bits,
    to_torch_prune,
)
from swamp_ray.training.model_tensors import prepare_tensors_

MASKS = st.lists(st.booleans(), min_size=1, max_size=70).map(lambda bits: np.array(bits, dtype=bool))


class Everything(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(8, 4, 2, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.embedding = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.cross = nn.MultiheadAttention(6, 2, kdim=3, vdim=5)
        self.layer_norm = nn.LayerNorm(6)
        self.rnn = nn.GRU(6, 3)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.head = nn.Linear(6, 7)


class Conv1D(nn.Module):
    """Shaped like Hugging Face's: weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(5))


def tied_linears() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    return model


def half_mask(num: int) -> np.ndarray:
    return np.random.default_rng(0).random(num) < 0.5


class TestFindPrunable:
    def test_takes_exactly_the_kinds_that_are_prunable(self) -> None:
        kinds = {layer.name: layer.kind for layer in find_prunable(Everything()).layers}
        assert kinds == {
            "conv.weight": "conv", "up.weight": "transposed_conv", "head.weight": "linear",
            "attention.in_proj_weight": "attention", "attention.out_proj.weight": "linear",
            "cross.q_proj_weight": "attention", "cross.k_proj_weight": "attention",
            "cross.v_proj_weight": "attention", "cross.out_proj.weight": "linear",
        }

    def test_layers_and_rest_together_are_all_parameters_in_order(self) -> None:
        model = Everything()
        layout = find_prunable(model)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        layers = [layer.name for layer in layout.layers]
        assert layers == [name for name in shapes if name in layers]
        assert [name for name, _ in layout.rest] == [name for name in shapes if name not in layers]
        assert layout.num_prunable + layout.num_rest == sum(p.numel() for p in model.parameters())
        assert all(layer.shape == shapes[layer.name] for layer in layout.layers)

    def test_flat_indices_count_through_the_layers_without_gaps(self) -> None:
        layout = find_prunable(Everything())
        places = np.concatenate([np.arange(layout.num_prunable)[layer.span] for layer in layout.layers])
        assert np.array_equal(places, np.arange(layout.num_prunable))

    def test_hugging_face_conv1d(self) -> None:
        (layer,) = find_prunable(nn.Sequential(Conv1D())).layers
        assert (layer.name, layer.kind) == ("0.weight", "conv1d")

    def test_tied_linears_count_once(self) -> None:
        layout = find_prunable(tied_linears())
        assert [layer.name for layer in layout.layers] == ["0.weight"]
        assert layout.num_prunable == 16

    @pytest.mark.parametrize("embedding_first", [True, False])
    def test_a_linear_weight_tied_to_an_embedding_is_not_prunable(self, embedding_first: bool) -> None:
        embedding, head, other = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 4, bias=False)
        head.weight = embedding.weight
        model = nn.ModuleList([embedding, head, other] if embedding_first else [head, embedding, other])
        assert [layer.name for layer in find_prunable(model).layers] == ["2.weight"]

    def test_wrappers_do_not_show_in_names(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        names = [layer.name for layer in find_prunable(model).layers]
        assert [layer.name for layer in find_prunable(nn.DataParallel(model)).layers] == names
        assert [layer.name for layer in find_prunable(torch.compile(model)).layers] == names  # pyright: ignore

    def test_patterns_choose(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        layout = find_prunable(model, include=["[01].*"], exclude=["1.weight"])
        assert [layer.name for layer in layout.layers] == ["0.weight"]
        assert ("1.weight", (2, 2)) in layout.rest

    def test_an_empty_weight_is_rest(self) -> None:
        with pytest.warns(UserWarning, match="zero-element"):
            model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 1))
        assert [layer.name for layer in find_prunable(model).layers] == ["1.weight"]


class TestFindPrunableRefuses:
    def test_a_pattern_without_a_match(self) -> None:
        with pytest.raises(UserError, match=r"pruning\.exclude.*'haed\.\*'"):
            find_prunable(nn.Sequential(nn.Linear(2, 1)), exclude=["haed.*"])

    def test_nothing_to_prune_and_says_what_is_there(self) -> None:
        with pytest.raises(UserError, match=r"no prunable weight.*Embedding"):
            find_prunable(nn.Sequential(nn.Embedding(2, 2)))
        with pytest.raises(UserError, match=r"no prunable weight.*0\.weight"):
            find_prunable(nn.Sequential(nn.Linear(2, 1)), exclude=["0.weight"])

    def test_other_precisions(self) -> None:
        with pytest.raises(UserError, match=r"0\.weight must be float32.*float64"):
            find_prunable(nn.Sequential(nn.Linear(2, 1)).double())

    def test_frozen_weights_unless_excluded(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        model[0].weight.requires_grad_(False)
        with pytest.raises(UserError, match=r"0\.weight is frozen"):
            find_prunable(model)
        assert find_prunable(model, exclude=["0.*"]).num_prunable == 2

    def test_parametrized_weights(self) -> None:
        with pytest.raises(UserError, match="'0' is parametrized"):
            find_prunable(nn.Sequential(parametrizations.orthogonal(nn.Linear(2, 2))))

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize(("kind", "layer", "name"), [
        ("weight", nn.Linear(2, 2), "weight"), ("spectral", nn.Linear(2, 2), "weight"),
        ("spectral", nn.Conv2d(2, 2, 3), "weight"), ("spectral", nn.Embedding(4, 2), "weight"),
        ("weight", nn.LSTM(2, 2), "weight_hh_l0"), ("spectral", nn.LSTM(2, 2), "weight_hh_l0"),
    ])
    def test_hooks_that_compute_the_weight(self, kind: str, layer: nn.Module, name: str) -> None:
        model = nn.Sequential(getattr(torch.nn.utils, f"{kind}_norm")(layer, name=name), nn.Linear(2, 2))
        for check in (find_prunable, prepare_tensors_):
            with pytest.raises(UserError, match=f"'0' has {kind} normalisation.*remove_{kind}_norm"):
                check(model)
        restored: Any = getattr(torch.nn.utils, f"remove_{kind}_norm")(layer, name)
        prepare_tensors_(nn.Sequential(restored))

    def test_torchs_pruning_form(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        prune.identity(model[0], "weight")
        with pytest.raises(UserError, match=r"torch\.nn\.utils\.prune"):
            find_prunable(model)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_lazy_layers(self) -> None:
        with pytest.raises(UserError, match=r"0\.weight of a lazy module"):
            find_prunable(nn.Sequential(nn.LazyLinear(2)))

    def test_names_that_collide_without_wrappers(self) -> None:
        model = nn.Linear(2, 2)
        model.module = nn.Linear(2, 2)
        with pytest.raises(UserError, match="two parameters are called"):
            find_prunable(model)


@pytest.mark.parametrize(("name", "clean"), [
    ("conv.weight", "conv.weight"), ("module.conv.weight", "conv.weight"), ("_orig_mod.w", "w"),
    ("module._orig_mod.a.b", "a.b"), ("a._orig_mod.b", "a.b"), ("modules.w", "modules.w"), ("module", "module"),
])
def test_clean_name(name: str, clean: str) -> None:
    assert clean_name(name) == clean


class TestBits:
    @given(MASKS)
    def test_round_trip_in_one_bit_a_weight(self, mask: np.ndarray) -> None:
        bits = to_bits(mask)
        assert bits.dtype == np.uint8
        assert bits.size == -(-mask.size // 8)
        back = from_bits(bits, mask.size)
        assert back.dtype == np.bool_
        assert np.array_equal(back, mask)

    @given(MASKS, st.integers(1, 7))
    def test_refuses_unused_bits_that_are_set(self, mask: np.ndarray, which: int) -> None:
        bits = to_bits(mask)
        unused = bits.size * 8 - mask.size
        if which <= unused:
            bits[-1] |= 1 << (which - 1)
            with pytest.raises(ValueError, match="unused"):
                from_bits(bits, mask.size)

    def test_refuses_another_length(self) -> None:
        with pytest.raises(ValueError, match="9 weights has 2 bytes"):
            from_bits(np.zeros(1, np.uint8), 9)


class TestNumbers:
    @given(MASKS)
    def test_overlap_is_the_jaccard_index(self, mask: np.ndarray) -> None:
        other = np.roll(mask, 1)
        a, b = set(np.flatnonzero(mask)), set(np.flatnonzero(other))
        assert overlap(mask, other) == (len(a & b) / len(a | b) if a | b else 1.0)
        assert overlap(mask, mask) == 1.0

    def test_densities(self) -> None:
        layout = find_prunable(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        mask = np.array([1, 0, 1, 1, 0, 0], dtype=bool)
        assert density(mask) == 0.5
        assert layer_densities(layout, mask) == {"0.weight": 0.75, "1.weight": 0.0}
        assert emptied_layers(layout, mask) == ["1.weight"]

    def test_split_gives_views_in_the_layers_shapes(self) -> None:
        layout = find_prunable(Everything())
        mask = half_mask(layout.num_prunable)
        parts = split(layout, mask)
        assert [part.shape for part in parts.values()] == [layer.shape for layer in layout.layers]
        assert all(np.shares_memory(part, mask) for part in parts.values())

    def test_full_values_refuses_another_count(self) -> None:
        with pytest.raises(ValueError, match="keeps 1 weights"):
            full_values(np.array([True, False]), np.zeros(2, np.float32))


class TestTensors:
    def test_flat_order_is_row_major_whatever_the_memory_format(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        layout = find_prunable(model)
        before = flatten(prunable_tensors(model, layout))
        model.to(memory_format=torch.channels_last)
        assert np.array_equal(flatten(prunable_tensors(model, layout)), before)
        assert np.array_equal(before, next(model.parameters()).detach().numpy().reshape(-1))

    def test_masks_take_over_the_memory_format(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
        layout = find_prunable(model)
        mask = half_mask(layout.num_prunable)
        weights = prunable_tensors(model, layout)
        (tensor,) = mask_tensors(layout, mask, device="cpu", like=weights)
        assert tensor.stride() == weights[0].stride()
        assert np.array_equal(tensor.numpy().reshape(-1), mask)

    def test_apply_mask_zeroes_what_is_pruned_and_nothing_else(self) -> None:
        model = Everything()
        layout = find_prunable(model)
        mask = half_mask(layout.num_prunable)
        weights = prunable_tensors(model, layout)
        before = flatten(weights)
        apply_mask_(weights, mask_tensors(layout, mask, device="cpu"))
        assert np.array_equal(flatten(weights), np.where(mask, before, 0))
        assert all(weight.requires_grad for weight in weights)
        apply_mask_([], [])

    def test_check_support_counts_what_is_outside(self) -> None:
        mask = np.array([True, False, False, False])
        check_support(np.array([0.0, 0.0, -0.0, 0.0], np.float32), mask)
        with pytest.raises(RunError, match="2 weights outside"):
            check_support(np.array([1.0, 1e-45, 0.0, np.nan], np.float32), mask)


class TestTorchPrune:
    @pytest.mark.parametrize("make", [Everything, tied_linears])
    def test_round_trip(self, make) -> None:
        model = make()
        layout = find_prunable(model)
        mask = half_mask(layout.num_prunable)
        assert to_torch_prune(model, layout, mask) is model
        found = from_torch_prune(model)
        assert found.keys() == {layer.name for layer in layout.layers}
        assert all(np.array_equal(found[name], part) for name, part in split(layout, mask).items())

    def test_the_pruned_model_computes_with_the_masked_weights(self) -> None:
        model, x = tied_linears(), torch.randn(3, 4)
        layout = find_prunable(model)
        mask = half_mask(layout.num_prunable)
        to_torch_prune(model, layout, mask)
        (original,) = model.parameters()
        weight = original * torch.from_numpy(mask).reshape(4, 4)
        expected: Tensor = (x @ weight.T).relu() @ weight.T
        assert torch.allclose(model(x), expected)
        assert model[0].weight_orig is model[2].weight_orig

    def test_other_buffers_that_are_called_mask_are_none(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_buffer("causal_mask", torch.ones(2, 2))
        assert from_torch_prune(model) == {}
