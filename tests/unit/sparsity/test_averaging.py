from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swamp_ray.errors import RunError
from swamp_ray.sparsity.averaging import ExponentialMean, OrderedMean, SnapshotMean
from swamp_ray.sparsity.compact import CompactState

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def packed(*values: float, rest: tuple[float, ...] = ()) -> CompactState:
    return CompactState(np.array(values, np.float32), np.array(rest, np.float32))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0), nn.Conv2d(4, 3, 1),
                         nn.BatchNorm2d(3))


def batches(num: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, generator=generator) * (i + 1) + i for i in range(num)]


def snapshots(num: int) -> list[nn.Sequential]:
    models = []
    for index in range(num):
        model = net()
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        models.append(model)
    return models


class TestOrderedMean:
    @given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=9))
    def test_is_the_float64_mean_rounded_once(self, rows: list[list[float]]) -> None:
        mean = OrderedMean()
        for row in rows:
            mean.add(packed(*row[:2], rest=(row[2],)))
        oracle = [0.0] * 3
        for index in range(3):
            total = rows[0][index]
            for row in rows[1:]:
                total += row[index]  # Python's floats are float64
            oracle[index] = total / len(rows)
        found = mean.mean()
        assert found.values.dtype == found.rest.dtype == np.float32
        assert np.concatenate([found.values, found.rest]).tobytes() == np.array(oracle, np.float32).tobytes()
        assert mean.count == len(rows)

    def test_is_closer_than_a_float32_sum(self) -> None:
        rows = [1e8, 1.0, -1e8]
        mean = OrderedMean()
        for value in rows:
            mean.add(packed(value))
        assert mean.mean().values[0] == np.float32(1 / 3)
        assert np.float32(1e8) + np.float32(1.0) - np.float32(1e8) == 0

    def test_a_single_particle_is_its_own_mean_bit_for_bit(self) -> None:
        mean = OrderedMean()
        mean.add(packed(-0.0, 1e-45, 3.4e38))
        assert mean.mean().values.tobytes() == packed(-0.0, 1e-45, 3.4e38).values.tobytes()

    def test_only_reads_what_it_is_given(self) -> None:
        mean, given_arrays = OrderedMean(), [packed(1.0, rest=(2.0,)), packed(3.0, rest=(4.0,))]
        for one in given_arrays:
            one.values.flags.writeable = one.rest.flags.writeable = False
            mean.add(one)
        mean.mean().values[0] = 9.0
        assert (mean.mean().values[0], mean.mean().rest[0]) == (2.0, 3.0)
        assert given_arrays[0].values[0] == 1.0

    @pytest.mark.parametrize("wrong", [packed(1.0), packed(1.0, 2.0, rest=(1.0,))])
    def test_refuses_other_shapes(self, wrong: CompactState) -> None:
        mean = OrderedMean()
        mean.add(packed(1.0, 2.0))
        with pytest.raises(RunError, match="share their mask"):
            mean.add(wrong)
        assert mean.count == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_refused_particle_leaves_no_trace(self, bad: float) -> None:
        mean = OrderedMean()
        for wrong in (packed(bad), packed(1.0, 2.0, rest=(bad,))):
            with pytest.raises(RunError, match="not finite"):
                mean.add(wrong)
        mean.add(packed(1.0))
        assert mean.mean().values.tolist() == [1.0]

    @pytest.mark.parametrize("sizes", [(40, 30, 24), (40, 10, 40)])
    def test_rounds_in_kept_memory_are_those_in_memory_of_their_own(self, sizes: tuple[int, ...]) -> None:
        rng, kept, room = np.random.default_rng(0), OrderedMean(), None
        for size in sizes:
            drawn = [rng.standard_normal(size + 3, dtype=np.float32) for _ in range(3)]
            states = [CompactState(*np.split(one, [size])) for one in drawn]
            fresh = OrderedMean()
            kept.clear()
            for state in states:
                fresh.add(state)
                kept.add(state)
            mean = kept.mean(room)
            np.testing.assert_array_equal(mean.values, fresh.mean().values)
            np.testing.assert_array_equal(mean.rest, fresh.mean().rest)
            assert kept.squares == fresh.squares
            room = mean.values
            kept.borrow(size)[:] = np.nan

    def test_large_numbers_are_finite(self) -> None:
        huge = np.full(1 << 19, 3e38, np.float32)
        mean = OrderedMean()
        mean.add(CompactState(huge, huge[:5]))
        np.testing.assert_array_equal(mean.mean().values, huge)

    def test_nothing_has_no_mean(self) -> None:
        with pytest.raises(RunError, match="nothing to average"):
            OrderedMean().mean()


class TestSnapshotMean:
    def test_equals_torchs_averaged_model(self) -> None:
        models = snapshots(7)
        oracle, mean = AveragedModel(models[0]), SnapshotMean(list(models[0].parameters()))
        for model in models:
            oracle.update_parameters(model)
            mean.update(list(model.parameters()))
        result = net()
        mean.mean_into_(list(result.parameters()))
        for found, expected in zip(result.parameters(), oracle.module.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        exact = [np.mean([p.detach().double().numpy() for p in tensors], axis=0).astype(np.float32)
                 for tensors in zip(*(model.parameters() for model in models), strict=True)]
        for found, expected in zip(result.parameters(), exact, strict=True):
            np.testing.assert_array_max_ulp(found.detach().numpy(), expected, maxulp=1)

    def test_pruned_weights_stay_zero(self) -> None:
        weight = nn.Parameter(torch.tensor([0.0, 1.0]))
        mean = SnapshotMean([weight])
        for _ in range(3):
            mean.update([weight])
        mean.mean_into_([weight])
        assert weight.tolist() == [0.0, 1.0]

    def test_refuses_a_mean_of_nothing(self) -> None:
        with pytest.raises(RunError, match="no snapshot"):
            SnapshotMean([torch.zeros(1)]).mean_into_([torch.zeros(1)])


class TestExponentialMean:
    def test_equals_torchs_averaged_model(self) -> None:
        models = snapshots(6)
        oracle = AveragedModel(models[0], multi_avg_fn=get_ema_multi_avg_fn(0.9))
        mean = ExponentialMean(list(models[0].parameters()), 0.9)
        for model in models:
            oracle.update_parameters(model)
            mean.update(list(model.parameters()))
        result = net()
        mean.mean_into_(list(result.parameters()))
        for found, expected in zip(result.parameters(), oracle.module.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_starts_at_the_first_weights(self) -> None:
        mean, weight = ExponentialMean([torch.zeros(1)], 0.75), torch.zeros(1)
        mean.update([torch.tensor([4.0])])
        mean.update([torch.tensor([8.0])])
        mean.mean_into_([weight])
        assert weight.item() == 5.0


@pytest.mark.parametrize("make", [SnapshotMean, lambda params: ExponentialMean(params, 0.9)])
def test_a_checkpoint_is_a_copy_that_resumes_to_the_same_bits(make) -> None:
    models = [list(model.parameters()) for model in snapshots(5)]
    straight, first, second = make(models[0]), make(models[0]), make(models[0])
    for params in models:
        straight.update(params)
    for params in models[:2]:
        first.update(params)
    state, file = first.state_dict(), io.BytesIO()
    first.update(models[4])
    torch.save(state, file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for params in models[2:]:
        second.update(params)
    results = [[torch.empty_like(p) for p in models[0]] for _ in range(2)]
    straight.mean_into_(results[0])
    second.mean_into_(results[1])
    assert second.count == 5
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
