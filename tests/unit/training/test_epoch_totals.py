"""What steps report is what comes out, summed as if it had been added up step by step."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from swamp_ray.training.epoch_totals import EpochTotals

NUM = 600  # more than are kept one by one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("cut", [0, 1, 300, NUM])
def test_sums_are_those_of_adding_at_every_step(dtype: torch.dtype, cut: int) -> None:
    generator = torch.Generator().manual_seed(2)
    losses = torch.rand(NUM, generator=generator).log()
    metrics = (100 * torch.rand(NUM, generator=generator)).to(dtype)
    before = EpochTotals()
    for loss, metric in zip(losses[:cut], metrics[:cut], strict=True):
        before.add(loss, {"metric": metric})
    tally = EpochTotals(before.losses(), before.sums())
    for loss, metric in zip(losses[cut:], metrics[cut:], strict=True):
        tally.add(loss, {"metric": metric})
    expected = metrics[0]
    for metric in metrics[1:]:
        expected = expected + metric
    assert torch.equal(tally.losses(), losses)
    assert torch.equal(tally.sums()["metric"], expected)
    assert tally.sums()["metric"].dtype == dtype


def test_a_metric_may_come_late_or_as_a_number() -> None:
    tally = EpochTotals()
    assert len(tally.losses()) == 0
    assert tally.sums() == {}
    tally.add(torch.tensor(1.0, dtype=torch.bfloat16), {})
    tally.add(torch.tensor(2.0), {"hits": cast(Any, 0.5)})
    tally.add(torch.tensor(3.0), {"hits": cast(Any, 0.25)})
    assert tally.losses().tolist() == [1.0, 2.0, 3.0]
    assert float(tally.sums()["hits"]) == 0.75
