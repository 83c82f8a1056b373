"""Normalisation statistics are re-estimated as the cumulative mean over batches, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from swamp_ray.training.normalisation import batchnorm_reestimation, has_batchnorm, reset_batchnorm


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0), nn.Conv2d(4, 3, 1),
                         nn.BatchNorm2d(3))


def batches(num: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, generator=generator) * (i + 1) + i for i in range(num)]


class TestBatchnorm:
    def test_has_batchnorm(self) -> None:
        assert has_batchnorm(net())
        assert has_batchnorm(nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True)))
        assert not has_batchnorm(nn.Sequential(nn.LayerNorm(2), nn.InstanceNorm1d(2),
                                               nn.BatchNorm1d(2, track_running_stats=False)))

    def test_reset(self) -> None:
        model = net()
        model(batches()[0])
        reset_batchnorm(model)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), net().buffers(), strict=True))

    def test_equals_torchs_update_bn_bit_for_bit(self) -> None:
        ours, oracle = net(), net()
        ours(batches()[0] + 7)  # stale statistics must not enter
        update_bn(batches(), oracle)
        with batchnorm_reestimation(ours):
            for batch in batches():
                ours(batch)
        for (name, a), b in zip(ours.named_buffers(), oracle.buffers(), strict=True):
            assert torch.equal(a, b), name

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, momentum=0.3),
                                      nn.InstanceNorm2d(2, momentum=0.3, track_running_stats=True)])
    def test_is_the_mean_of_the_batches_statistics(self, norm: nn.Module) -> None:
        instance = isinstance(norm, nn.InstanceNorm2d)
        with batchnorm_reestimation(norm):
            for batch in batches():
                norm(batch)
        wide = [batch.double() for batch in batches()]
        dims = (2, 3) if instance else (0, 2, 3)
        means = [b.mean(dims).mean(0) if instance else b.mean(dims) for b in wide]
        variances = [b.var(dims).mean(0) if instance else b.var(dims) for b in wide]
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0).float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0).float(), rtol=1e-5, atol=1e-5)

    def test_everything_but_the_statistics_is_left_as_it_was(self) -> None:
        model = net().train()
        model[0].eval()
        modes = [module.training for module in model.modules()]
        weights = [parameter.clone() for parameter in model.parameters()]

        def fail_inside() -> None:
            with batchnorm_reestimation(model):
                assert not model(batches()[0]).requires_grad
                raise KeyError

        with pytest.raises(KeyError):
            fail_inside()
        assert [module.training for module in model.modules()] == modes
        assert model[1].momentum == model[5].momentum == 0.1
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert model(batches()[0]).requires_grad

    def test_dropout_is_off_inside_of_a_normalisation_module_too(self) -> None:
        class NormAndDrop(nn.BatchNorm1d):
            def __init__(self) -> None:
                super().__init__(3)
                self.drop = nn.Dropout(0.9)

            def forward(self, input: Tensor) -> Tensor:
                return self.drop(super().forward(input))

        norm, x = NormAndDrop(), torch.randn(16, 3)
        with batchnorm_reestimation(norm):
            torch.testing.assert_close(norm(x), nn.functional.batch_norm(x, None, None, training=True))
        assert norm.drop.training
