from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity.masks import Layer, Layout
from swamp_ray.sparsity.scores import make_score, random_score, users_score
from tests.unit.sparsity.slices import scores_of


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    layers: list[Layer] = []
    for index, shape in enumerate(shapes):
        offset = layers[-1].offset + layers[-1].size if layers else 0
        layers.append(Layer(f"layer{index}", shape, "conv" if len(shape) > 2 else "linear", offset))
    return Layout(tuple(layers), ())


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
        return scores_of(self.layout, self.mask, self.values, self.rewind, make_score(name, seed=seed))

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
        full = scores_of(self.layout, np.ones(7, bool), np.ones(7, np.float32), np.ones(7, np.float32),
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
            scores_of(self.layout, self.mask, np.full(5, np.inf, np.float32), np.full(5, np.inf, np.float32),
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

        found = scores_of(self.layout, self.mask, self.values, self.rewind, users_score(transposed))
        np.testing.assert_array_equal(found, self.values)
