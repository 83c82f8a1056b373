"""Real images, a real network: ResNet-20 on CIFAR-10, minutes on two cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray import load_config, load_ticket
from swamp_ray.config.reading import with_values
from swamp_ray.launch import run
from tests.helpers import ticket_digests

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "cifar10_resnet20.yaml"


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10_root")
def test_two_rounds_of_resnet20_learn_and_prune(tmp_path: Path) -> None:
    base = with_values(load_config(CONFIG), {
        "name": "slow", "data.limit_train": 3000, "data.limit_test": 1000, "data.download": False,
        "dense.length": "1 epoch", "round.length": "3 epochs", "averaging.start": 0.6, "particles.count": 2,
        "training.batch_size": 64, "pruning.target": 0.5, "pruning.rate": 0.5, "execution.device": "cpu"})
    done = run(with_values(base, {"storage": str(tmp_path / "ray")}))
    assert [record.sparsity for record in done.records] == pytest.approx([0.0, 0.5], abs=1e-5)
    for record in done.records:
        assert record.average["test"]["accuracy"] > 0.2, "ten classes, chance is 0.1"
        assert load_ticket(tmp_path / "ray" / record.ticket).sparsity == pytest.approx(record.sparsity)
    run(with_values(base, {"storage": str(tmp_path / "inline"), "execution.executor": "inline"}))
    assert ticket_digests(tmp_path / "inline", "slow") == ticket_digests(tmp_path / "ray", "slow")
