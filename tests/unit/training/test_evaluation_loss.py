"""The loss of tasks of one's own in evaluation, and errors of one's own code in each place where it runs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.analysis import items
from swamp_ray.analysis.bench import Bench
from swamp_ray.errors import LostRankError, RunError, UserError
from swamp_ray.launch import run
from swamp_ray.run.round_records import _over_particles
from swamp_ray.training.evaluation_loss import origin_of_loss
from swamp_ray.training.tasks import Classification, Regression, Task
from swamp_ray.training.trainer import evaluate
from swamp_ray.user_code.blaming import blamed
from swamp_ray.user_code.importing import own_traceback
from tests.helpers import tiny


class Own(Task):
    """A task whose metrics have no loss."""

    primary = "right"
    higher_is_better = True

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def metrics(self, prediction: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"right": (prediction.argmax(dim=1) == batch[1]).float()}


class OfSteps(Own):
    loss = Task.loss

    def training_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch[0]), batch[1]), {}


class NeedsGradients(Own):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        output = model(batch[0])
        [gradient] = torch.autograd.grad(output.sum(), list(model.parameters())[:1], create_graph=True)
        return output.mean() + gradient.square().sum()


class NeedsTraining(Own):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        assert model.training
        return super().loss(model, batch)


class OfSamples(Own):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Random(Own):
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch) + torch.rand(())

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]) + torch.randn(len(batch[0]), 3)


class Reports(Own):
    def metrics(self, prediction: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"loss": torch.zeros(len(prediction))}


BATCHES = [(torch.randn(size, 4, generator=torch.Generator().manual_seed(size)), torch.arange(size) % 3)
           for size in (5, 5, 2)]


def no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize(("task", "origin"), [
    (Own(), "measured"), (OfSteps(), "measured"), (Random(), "measured"), (NeedsGradients(), "none"),
    (NeedsTraining(), "none"), (OfSamples(), "none"), (Reports(), "metrics"), (Classification(), "metrics"),
    (Regression(), "metrics")])
def test_where_a_loss_comes_from(task: Task, origin: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    model[1].eval()
    assert origin_of_loss(task, model, BATCHES[0]) == origin
    assert [module.training for module in model] == [True, False]


@pytest.mark.parametrize("task", [Own(), OfSteps()])
def test_every_sample_weighs_the_same_in_a_loss(task: Task) -> None:
    model = nn.Linear(4, 3).eval()
    found = evaluate(model, task, iter(BATCHES), no_autocast, with_loss=True)
    inputs, labels = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(model(inputs), labels).detach()), rel=1e-6)


def test_a_measured_loss_leaves_other_metrics_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(inplace=True)).eval()
    torch.manual_seed(3)
    without = evaluate(model, Random(), iter(BATCHES), no_autocast)
    after = torch.rand(())
    torch.manual_seed(3)
    found = evaluate(model, Random(), iter(BATCHES), no_autocast, with_loss=True)
    assert torch.rand(()) == after
    assert found.pop("loss") > 0
    assert found == without


CODE = """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from swamp_ray import Task

    class Mine(Task):
        primary = "right"
        higher_is_better = True

        def __init__(self, fail=""):
            self.fail, self.count = fail, 0

        def check(self, place, model):
            self.count += self.fail == place
            if self.count > 12:
                raise ValueError(f"enough of {place}")

        def loss(self, model, batch):
            if model.training:
                self.check("training", model)
            return F.cross_entropy(model(batch[0]), batch[1])

        def predict(self, model, batch):
            self.check("predict", model)
            return model(batch[0])

        def metrics(self, prediction, batch):
            self.check("metrics", None)
            return {"right": (prediction.argmax(dim=1) == batch[1]).float()}

    class Fails(Mine):
        def loss(self, model, batch):
            if not model.training:
                raise ValueError("only in training")
            return super().loss(model, batch)

    class Odd(Mine):
        def __init__(self, at, what):
            super().__init__()
            self.at, self.what = at, what

        def loss(self, model, batch):
            if self.at == "loss":
                raise KeyError("no loss")
            return super().loss(model, batch)

        def predict(self, model, batch):
            if self.at == "predict":
                return model(batch[0][:, :, :2])  # the network itself fails
            return super().predict(model, batch)

        def metrics(self, prediction, batch):
            found = super().metrics(prediction, batch)
            if self.at == "metrics":
                self.helper(prediction)
            return {"list": [found], "float": {"right": 0.5}, "short": {"right": found["right"][1:]},
                    "scalar": {"right": found["right"].mean()}, "none": None}.get(self.what, found)

        def helper(self, prediction):
            return prediction[:, 99]

    class ByLoss(Mine):
        primary = "loss"
        higher_is_better = False

    calls = 0

    def score(weights, rewind):
        global calls
        calls += 1
        if calls > 9:
            raise KeyError("a layer")
        return weights.abs()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_losses.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_losses"
    sys.modules.pop("own_losses", None)


def test_tasks_of_ones_own_report_losses_and_are_analysed(tmp_path: Path, own: str) -> None:
    done = run(tiny(tmp_path / "a", task__name=f"{own}:Mine"))
    for found in (done.records[0].average, done.records[0].mean):
        assert set(found["test"]) == set(found["validation"]) == {"right", "loss"}
    bench = Bench(done.rundir)
    rows = [what.measure(bench, what.items(bench, [0])[0]) for what in (items.connectivity, items.landscape)]
    assert set(rows[0]["barrier"]["test"]) == {"loss"}
    assert rows[1]["at_the_average"]["test"] > 0


def test_particles_that_were_stored_without_a_loss_are_still_averaged() -> None:
    found = [{"test": {"loss": 1.0, "right": 0.5}}, {"test": {"right": 1.0}}]
    for metrics in (found, found[::-1]):
        assert _over_particles(metrics, fmean) == {"test": {"right": 0.75}}


def test_a_loss_can_be_what_decides(tmp_path: Path, own: str) -> None:
    done = run(tiny(tmp_path / "a", task__name=f"{own}:ByLoss", particles__combine="best", pruning__target=0.5))
    assert done.records[-1].average["test"]["loss"] > 0


def test_analyses_that_need_a_loss_are_refused_without_one(tmp_path: Path, own: str) -> None:
    done = run(tiny(tmp_path / "a", task__name=f"{own}:Fails", pruning__target=0.5))
    assert set(done.records[0].average["test"]) == {"right"}
    bench = Bench(done.rundir)
    for what in (items.connectivity, items.landscape):
        with pytest.raises(UserError, match=r"the task's loss cannot be computed outside of training"):
            what.measure(bench, what.items(bench, [0])[0])
    with pytest.raises(UserError, match=r"(?s)second derivatives.*ValueError: only in training$"):
        items.curvature.measure(bench, items.curvature.items(bench, [0])[0])


@pytest.mark.parametrize(("values", "text"), [
    ({"task__options": {"fail": "training"}}, r"^dense phase|^round \d.*failed in training step"),
    ({"task__options": {"fail": "predict"}}, "the model or the task failed in evaluation"),
    ({"task__options": {"fail": "metrics"}}, r"task.name: metrics\(\) of the task failed in evaluation"),
    ({"pruning__score": "own_losses:score"}, "the score failed on"),
])
def test_errors_of_ones_own_code_are_shown_alone(values: Any, text: str, tmp_path: Path, own: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        run(tiny(tmp_path / "a", task__name=f"{own}:Mine", **values))
    message = str(caught.value)
    assert "own_losses.py" in message
    assert "swamp_ray/" not in message
    assert "site-packages" not in message
    assert message.endswith(("enough of training", "enough of predict", "enough of metrics", "KeyError: 'a layer'"))


@pytest.mark.parametrize(("at", "what", "text"), [
    ("metrics", "", r"^task.name: metrics\(\) of the task 'own_losses:Odd' fails on a batch(.|\n)*own_losses"),
    ("loss", "", r"^task.name: loss\(\) of the task 'own_losses:Odd' fails(.|\n)*KeyError"),
    ("predict", "", r"^model.name: the model 'digits_cnn' and the task 'own_losses:Odd' fail"),
    ("", "list", r"^task.name: metrics\(\) of the task must return a mapping(.|\n)*list"),
    ("", "none", r"^task.name: metrics\(\) of the task must return a mapping(.|\n)*NoneType"),
    ("", "float", r"^task.name: the metric 'right' must be a tensor of one value a sample(.|\n)*float"),
    ("", "scalar", r"^task.name: the metric 'right' must be a tensor of one value a sample(.|\n)*shape \[\]"),
    ("", "short", r"^task.name: the metric 'right' must be a tensor of one value a sample(.|\n)*shape \[\d+\]"),
])
def test_what_a_task_of_ones_own_does_wrong_is_shown_under_its_option(
    tmp_path: Path, own: str, at: str, what: str, text: str
) -> None:
    config = tiny(tmp_path / "a", task__name=f"{own}:Odd", task__options={"at": at, "what": what})
    with pytest.raises(UserError, match=text):
        run(config)
    assert not (tmp_path / "a").exists()


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] not enough memory"),
    RuntimeError("Connection closed by peer [127.0.0.1]:9"), RuntimeError("CUDA error: an illegal memory access"),
    LostRankError("gone"), RunError("the image x.png cannot be read"), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_users_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, blamed("the task failed"):
        fails(error)
    assert caught.value is error


@pytest.mark.parametrize(("error", "last"), [
    (RuntimeError("sizes differ\nException raised from here (most recent call first):\nframe #0: x"),
     "RuntimeError: sizes differ"),
    (ValueError("\x1b[31mred\x1b[0m words\nin two lines"), "ValueError: red words\nin two lines"),
    (KeyError("x"), "KeyError: 'x'")])
def test_half_sentences_and_colours_do_not_shine_through(error: Exception, last: str) -> None:
    with pytest.raises(UserError) as caught, blamed("the task failed", "here"):
        fails(error)
    assert str(caught.value).startswith("here: the task failed. Its own error:\nTraceback (most recent call last):")
    assert str(caught.value).endswith(last)
    assert "\x1b" not in str(caught.value)


def test_frames_of_libraries_are_left_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(nn.Flatten(), nn.Linear(3, 2))(torch.zeros(2, 5))
    text = own_traceback(caught.value)
    assert "torch/nn" not in text
    assert "mat1 and mat2 shapes cannot be multiplied" in text
