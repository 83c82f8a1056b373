"""Losses and metrics against torch's own and against sums worked out by hand; tasks of one's own."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swamp_ray.config.sections import TaskConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.samples import ArraySamples
from swamp_ray.errors import UserError
from swamp_ray.training.tasks import Classification, Regression, build_task
from swamp_ray.training.trainer import evaluate

CPU = torch.device("cpu")


def build(name: str, **fields: Any) -> Any:
    return build_task(TaskConfig(name=name, **fields))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, generator=generator), torch.randint(0, 4, (7,), generator=generator)


def no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_smoothed_cross_entropy(smoothing: float, batch: Any) -> None:
    task = build("classification", label_smoothing=smoothing)
    inputs, labels = batch
    smooth = torch.full((7, 4), smoothing / 4)
    smooth[torch.arange(7), labels] += 1 - smoothing
    by_hand = -(smooth * (inputs.exp() / inputs.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    loss, metrics = task.training_step(nn.Identity(), batch)
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(loss) == float(F.cross_entropy(inputs, labels, label_smoothing=smoothing))
    assert float(task.loss(nn.Identity(), batch)) == float(loss)
    assert float(metrics["accuracy"]) == pytest.approx(float((inputs.argmax(1) == labels).double().mean()))


def test_reported_loss_has_no_smoothing(batch: Any) -> None:
    task = build("classification", label_smoothing=0.3)
    found = task.metrics(task.predict(nn.Identity(), batch), batch)["loss"]
    torch.testing.assert_close(found, F.cross_entropy(*batch, reduction="none"))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_sample_weighs_the_same_in_a_split(batch_size: int, batch: Any) -> None:
    inputs, labels = batch
    source = Batches(ArraySamples((inputs.numpy(), labels.numpy())), device=CPU, channels_last=False, on_device=False)
    found = evaluate(nn.Identity(), Classification(), source.one_pass(batch_size, seed=None, drop_last=False),
                     no_autocast)
    correct = [int(np.argmax(row) == label) for row, label in zip(inputs.numpy(), labels.numpy(), strict=True)]
    assert found["accuracy"] == sum(correct) / 7
    assert found["loss"] == pytest.approx(float(F.cross_entropy(inputs.double(), labels)), rel=1e-6)


def test_an_ensemble_averages_probabilities() -> None:
    probabilities = torch.tensor([[[0.7, 0.2, 0.1]], [[0.0, 0.9, 0.1]], [[0.3, 0.3, 0.4]]])
    members = list(probabilities.log())
    task = Classification()
    expected = [math.log(1.0 / 3), math.log(1.4 / 3), math.log(0.6 / 3)]
    assert task.combine(members)[0].tolist() == pytest.approx(expected)
    assert task.metrics(task.combine(members), (None, torch.tensor([1])))["accuracy"].tolist() == [1.0]
    assert torch.equal(task.combine(members[:1]), members[0])
    certain = torch.tensor([[0.0, -math.inf]])
    assert task.combine([certain, certain])[0].tolist() == [0.0, -math.inf]


def test_predictions_are_float32_log_probabilities(batch: Any) -> None:
    inputs, labels = batch
    found = Classification().predict(nn.Identity(), (inputs.bfloat16(), labels))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(7))


def test_better() -> None:
    assert Classification().better(0.9, 0.8)
    assert not Classification().better(0.8, 0.8)
    assert Regression().better(0.8, 0.9)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 2, 3)])
def test_regression_over_targets_of_any_shape(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    outputs, targets = torch.randn(6, math.prod(shape[1:]), generator=generator), torch.randn(shape)
    task = build("regression")
    by_hand = (outputs.reshape(shape) - targets).double().square()
    assert float(task.loss(nn.Identity(), (outputs, targets))) == pytest.approx(float(by_hand.mean()))
    metrics = task.metrics(task.predict(nn.Identity(), (outputs, targets)), (outputs, targets))
    assert metrics["loss"].shape == (6,)
    torch.testing.assert_close(metrics["loss"].double(), by_hand.reshape(6, -1).mean(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(task.combine([outputs, 3 * outputs]), 2 * outputs)


def test_whole_numbers_as_targets_of_a_regression() -> None:
    outputs = torch.tensor([[1.5], [2.0]], requires_grad=True)
    loss = Regression().loss(nn.Identity(), (outputs, torch.tensor([1, 4])))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.25 + 4) / 2)


@pytest.mark.parametrize(("fields", "text"), [
    ({"name": "clasification"}, "task.name: there is no such task, but got 'clasification'. Did you mean"),
    ({"name": "zzz"}, "but got 'zzz'. Known: classification, regression; or package.module:callable."),
    ({"name": "regression", "label_smoothing": 0.1}, "task.label_smoothing: label_smoothing is for classification"),
    ({"name": "torch.nn:Identity", "label_smoothing": 0.1}, "label_smoothing is for classification"),
    ({"name": "classification", "options": {"smoothing": 1}}, "task.options: the task classification takes no such "
                                                               "option, but got 'smoothing'"),
    ({"name": "regression", "options": {"weight": 1}}, "takes no such option"),
    ({"name": "torch.nn:Identity"}, "task.name: a task must subclass swamp_ray.Task, but got 'Identity'"),
    ({"name": "no_such_module_here:Task"}, "cannot be imported"),
])
def test_wrong_tasks(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        build(**fields)
    assert text in str(caught.value)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "their_tasks.py").write_text(textwrap.dedent("""
        from swamp_ray.errors import UserError
        from swamp_ray.training.tasks import Task

        class Mine(Task):
            def __init__(self, weight=1.0):
                self.weight = weight

        class Broken(Task):
            def __init__(self):
                self.weight = 1 / 0

        def refusing():
            raise UserError("not on a Sunday")

        ready = Mine(3.0)
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_tasks"
    sys.modules.pop("their_tasks", None)


def test_tasks_by_import_path(user_module: str) -> None:
    assert build(f"{user_module}:Mine", options={"weight": 2.0}).weight == 2.0
    assert build(f"{user_module}:ready").weight == 3.0


@pytest.mark.parametrize(("attribute", "options", "text"), [
    ("Broken", {}, r"(?s)^task\.name: the task their_tasks:Broken cannot be built with the options \[\]\. "
                   r"Its own error:.*their_tasks\.py.*self\.weight = 1 / 0.*ZeroDivisionError: division by zero$"),
    ("Mine", {"wieght": 1}, "unexpected keyword argument 'wieght'"),
    ("refusing", {}, "^not on a Sunday"),
    ("ready", {"weight": 1}, r"task\.options: their_tasks:ready is a finished task and takes no options"),
])
def test_wrong_tasks_of_ones_own(user_module: str, attribute: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        build(f"{user_module}:{attribute}", options=options)
    assert "tasks.py\", line" not in str(caught.value).replace("their_tasks.py", "")


class Doubled(Classification):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return 2.0 * super().loss(model, batch)


class Confident(Doubled):
    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().predict(model, batch)


class Stepping(Classification):
    def training_step(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = super().training_step(model, batch)
        return 2.0 * loss, metrics


@pytest.mark.parametrize("task", [Doubled(), Confident(label_smoothing=0.1), Stepping()])
def test_a_subclass_trains_with_its_own_loss(task: Classification, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = nn.Linear(4, 4)
    expected = 2.0 * F.cross_entropy(model(batch[0]), batch[1], label_smoothing=task.label_smoothing)
    torch.testing.assert_close(task.training_step(model, batch)[0], expected)
