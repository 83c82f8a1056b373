from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn.utils import prune

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity import selection
from swamp_ray.sparsity.masks import Layer, Layout, find_prunable, flatten, from_torch_prune, prunable_tensors
from swamp_ray.sparsity.selection import (
    layer_budgets,
    make_score,
    plan_survivors,
    random_score,
    score_survivors,
    select,
    top_k,
)


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
            patch.setattr(selection, "_CHUNK", chunk)
            patch.setattr(selection, "_SAMPLE", sample)
            np.testing.assert_array_equal(top_k(scores, k), obvious_top_k(scores, k))

    @pytest.mark.parametrize("kind", [
        "distinct", "ties", "sorted", "reversed", "mostly zero", "one outlier", "periodic"])
    def test_more_scores_than_a_sample(self, kind: str) -> None:
        num = 5 * selection._SAMPLE + 3
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


class TestPlan:
    def test_by_hand(self) -> None:
        # 1000 * 0.8^r: 1000, 800, 640, 512 -> 500 is the target; 512 > 500 >= 409.6.
        assert plan_survivors(1000, 0.2, 0.5) == [1000, 800, 640, 512, 500]
        # 7 * 0.5^r: 3.5 rounds up, 1.75 to 2, 0.875 to 1; the goal is 0.7.
        assert plan_survivors(7, 0.5, 0.9) == [7, 4, 2, 1, 1]

    def test_a_rate_that_reaches_the_target_exactly(self) -> None:
        # In floating point 0.8^2 = 0.6400000000000001 > 0.64, which would add a round.
        assert plan_survivors(100, 0.2, 0.36) == [100, 80, 64]
        assert plan_survivors(1000, 0.1, 0.271) == [1000, 900, 810, 729]

    def test_one_shot(self) -> None:
        assert plan_survivors(1000, 0.9, 0.9) == [1000, 100]
        assert plan_survivors(1000, 0.99, 0.9) == [1000, 100]

    def test_target_zero_is_the_dense_network(self) -> None:
        assert plan_survivors(123, 0.2, 0.0) == [123]

    def test_from_a_ticket(self) -> None:
        assert plan_survivors(1000, 0.5, 0.9, start=400) == [400, 200, 100]
        assert plan_survivors(1000, 0.5, 0.9, start=100) == [100]
        assert plan_survivors(1000, 0.5, 0.9, start=101) == [101, 100]
        assert plan_survivors(1000, 0.5, 0.0, start=1000) == [1000]

    def test_a_ticket_sparser_than_the_target_is_refused_with_a_value_that_works(self) -> None:
        with pytest.raises(UserError, match="must not be denser") as error:
            plan_survivors(1_000_000, 0.2, 0.5, start=123_457)
        advised = float(str(error.value).split()[-1].rstrip("."))
        assert plan_survivors(1_000_000, 0.2, advised, start=123_457)[0] == 123_457

    @pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
    def test_rates_out_of_range(self, rate: float) -> None:
        with pytest.raises(UserError, match=r"pruning.rate: the rate must lie in \(0, 1\), but got"):
            plan_survivors(100, rate, 0.5)

    @pytest.mark.parametrize("target", [1, 1.0001, -0.1, float("nan")])
    def test_targets_out_of_range(self, target: float) -> None:
        with pytest.raises(UserError, match=r"pruning.target: the target sparsity must lie in \[0, 1\)"):
            plan_survivors(100, 0.2, target)

    def test_an_empty_network_is_refused(self) -> None:
        with pytest.raises(UserError, match="at least one of 100 weights"):
            plan_survivors(100, 0.2, 0.996)
        assert plan_survivors(100, 0.2, 0.995)[-1] == 1

    def test_a_plan_without_end_is_refused(self) -> None:
        with pytest.raises(UserError, match="the rate is too small to reach the target in 10000 rounds"):
            plan_survivors(1000, 1e-9, 0.5)

    rates = st.integers(1, 999).map(lambda n: n / 1000)
    targets = st.integers(0, 999).map(lambda n: n / 1000)

    @given(st.integers(1000, 10**8), st.integers(50, 999).map(lambda n: n / 1000), targets)
    def test_equals_the_formula_over_integers(self, num: int, rate: float, target: float) -> None:
        keep, left = 1000 - round(rate * 1000), 1000 - round(target * 1000)
        plan = plan_survivors(num, rate, target)
        last = len(plan) - 1
        for index, kept in enumerate(plan[:-1]):
            # floor(x + 1/2) with x = num * keep^r / 1000^r, in integers.
            assert kept == (2 * num * keep**index + 1000**index) // (2 * 1000**index)
            assert keep**index * 1000 > left * 1000**index
        assert plan[-1] == (2 * num * left + 1000) // 2000
        if plan[-1] != num:
            assert keep**last * 1000 <= left * 1000**last

    @given(st.integers(1000, 10**6), st.integers(50, 900).map(lambda n: n / 1000), targets, st.data())
    def test_never_grows_and_ends_at_the_target(
        self, num: int, rate: float, target: float, data: st.DataObject
    ) -> None:
        last = int(num * (1 - Fraction(str(target))) + Fraction(1, 2))
        start = data.draw(st.integers(last, num))
        plan = plan_survivors(num, rate, target, start=start)
        assert plan[0] == start
        assert plan[-1] == last
        assert plan == sorted(plan, reverse=True)


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
        chosen = select(layout, mask, scores, k, scope)
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
            select(layout_of((2, 2)), np.ones(4, bool), np.zeros(4, np.float32), 1, "globl")

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
        mask = select(layout, np.ones(num, bool), np.abs(values), num - pruned, "global")
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
            scores = score_survivors(layout, mask, values[mask], values[mask], make_score("magnitude", seed=0))
            mask = select(layout, mask, scores, after, "global")
            prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=before - after)
            theirs = from_torch_prune(model)
            np.testing.assert_array_equal(mask, np.concatenate([theirs[x.name].ravel() for x in layout.layers]))


@pytest.fixture
def user_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module of the user's; returns the import path of its function."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body: str) -> str:
        (tmp_path / "users_scores.py").write_text(f"import torch\n{body}\n")
        monkeypatch.delitem(sys.modules, "users_scores", raising=False)
        return "users_scores:score"

    return write


class TestScores:
    layout = layout_of((2, 2), (1, 3))
    mask = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    values = np.array([1, -2, 3, -4, 5], np.float32)
    rewind = np.array([1, 2, 5, -4.5, -5], np.float32)

    def scores(self, name: str, seed: int = 0) -> np.ndarray:
        return score_survivors(self.layout, self.mask, self.values, self.rewind, make_score(name, seed=seed))

    def test_magnitude_and_movement(self) -> None:
        assert self.scores("magnitude").tolist() == [1, 2, 3, 4, 5]
        assert self.scores("movement").tolist() == [0, 4, 2, 0.5, 10]
        assert self.values.tolist() == [1, -2, 3, -4, 5]

    def test_random_is_seeded_and_of_its_own_generator(self) -> None:
        state = torch.random.get_rng_state()
        first, again, other = self.scores("random", 3), self.scores("random", 3), self.scores("random", 4)
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_a_weights_random_score_does_not_depend_on_the_mask(self) -> None:
        full = score_survivors(self.layout, np.ones(7, bool), np.ones(7, np.float32), np.ones(7, np.float32),
                               random_score(3))
        np.testing.assert_array_equal(full[self.mask], self.scores("random", 3))

    def test_users_score_sees_whole_layers(self, user_scores: Callable[[str], str]) -> None:
        path = user_scores("def score(w, w0):\n    assert w.dtype == torch.float32\n"
                           "    return w * 10 + (w0 != 0) + w.shape[0] * 100")
        assert self.scores(path).tolist() == [211, 181, 231, 61, 151]

    def test_users_score_cannot_change_the_weights(self, user_scores: Callable[[str], str]) -> None:
        values = self.values.copy()
        self.scores(user_scores("def score(w, w0):\n    w0.zero_()\n    return w.zero_()"))
        np.testing.assert_array_equal(self.values, values)
        assert self.rewind[0] == 1

    def test_infinite_and_integer_scores_are_allowed(self, user_scores: Callable[[str], str]) -> None:
        assert np.isinf(self.scores(user_scores("def score(w, w0):\n    return w / 0"))).all()
        assert self.scores(user_scores("def score(w, w0):\n    return w > 0")).tolist() == [1, 0, 1, 0, 1]

    def test_scores_of_pruned_weights_are_ignored(self, user_scores: Callable[[str], str]) -> None:
        path = user_scores("def score(w, w0):\n    return torch.where(w == 0, torch.nan, w)")
        np.testing.assert_array_equal(self.scores(path), self.values)

    def test_failing_score_shows_its_own_error(self, user_scores: Callable[[str], str]) -> None:
        with pytest.raises(UserError, match=r"(?s)pruning\.score: the score failed on layer0.*KeyError: 'fisher'"):
            self.scores(user_scores("def score(w, w0):\n    return {}['fisher']"))

    @pytest.mark.parametrize(
        ("returns", "got"), [("w.flatten()", "(4,)"), ("1.0", "float"), ("w.numpy()", "ndarray"), ("None", "NoneType")]
    )
    def test_wrong_shape_is_refused_by_layer(
        self, user_scores: Callable[[str], str], returns: str, got: str
    ) -> None:
        with pytest.raises(UserError, match="the score of layer0 must be a tensor of shape") as error:
            self.scores(user_scores(f"def score(w, w0):\n    return {returns}"))
        assert got in str(error.value)

    def test_nan_is_refused_by_layer(self, user_scores: Callable[[str], str]) -> None:
        path = user_scores("def score(w, w0):\n    return w * torch.nan if w.shape == (1, 3) else w")
        with pytest.raises(RunError, match=r"the score is NaN in layer1$"):
            self.scores(path)
        with pytest.raises(RunError, match="the score is NaN in layer0"):
            score_survivors(self.layout, self.mask, np.full(5, np.inf, np.float32), np.full(5, np.inf, np.float32),
                            make_score("movement", seed=0))

    def test_unknown_names(self, user_scores: Callable[[str], str]) -> None:
        with pytest.raises(UserError, match=r"no such score, but got 'magnitud'\. Did you mean 'magnitude'\?"):
            make_score("magnitud", seed=0)
        with pytest.raises(UserError, match="cannot be imported"):
            make_score("no_such_module_at_all:score", seed=0)
        with pytest.raises(UserError, match="has no attribute 'score'"):
            make_score(user_scores("def scores(w, w0):\n    return w"), seed=0)
        with pytest.raises(UserError, match="a score must be a function, but got 'int'"):
            make_score(user_scores("score = 3"), seed=0)

    def test_custom_scores_follow_memory_order_of_the_layer(self) -> None:
        def transposed(weights: Tensor, rewind_weights: Tensor) -> Tensor:
            return weights.t().contiguous().t()

        found = score_survivors(self.layout, self.mask, self.values, self.rewind, transposed)
        np.testing.assert_array_equal(found, self.values)
