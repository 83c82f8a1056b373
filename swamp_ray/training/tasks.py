"""Tasks: a loss to train on and metrics to report.

A batch may be any tree of tensors: nested tuples, lists and mappings. :class:`Classification` and :class:`Regression`
read a pair ``(inputs, targets)``; a task of your own subclasses :class:`Task` and reads whatever your data gives.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.config.sections import TaskConfig
from swamp_ray.data.pairs import built_in_pair
from swamp_ray.errors import UserError, nearest
from swamp_ray.text.metric_names import MAX_DIGITS, is_style
from swamp_ray.user_code.importing import is_import_path, load_object, own_traceback

Batch = Any


class Task:
    """A loss and named metrics.

    Attributes:
        primary: Name of the metric that decides and is shown.
        higher_is_better: Direction of the primary metric.
        shown_as: How metrics are written, by name: ``"percent"`` (a share, in percent with two decimals) or the number
            of decimals. Others get four significant digits; ``accuracy`` is in percent.
    """

    primary: str = "loss"
    higher_is_better: bool = False
    shown_as: Mapping[str, str | int] = {}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar tensor that can be differentiated."""
        raise NotImplementedError

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and metrics that the same pass gives for free: means over the batch, detached, in new tensors."""
        return self.loss(model, batch), {}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The predictions that the metrics are computed from, one row a sample: ``[B, ...]``."""
        raise NotImplementedError

    def metrics(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Metrics of each sample, ``[B]`` each; their means over a split are reported."""
        raise NotImplementedError

    def combine(self, predictions: Sequence[Tensor]) -> Tensor:
        """The prediction of an ensemble; by default the mean of its members' predictions."""
        return torch.stack(list(predictions)).mean(dim=0)

    @property
    def has_own_loss(self) -> bool:
        """Whether training takes the ``loss`` of a subclass where a built-in task would take its own."""
        return False

    def better(self, a: float, b: float) -> bool:
        """Whether a value of the primary metric is strictly better than another."""
        return a > b if self.higher_is_better else a < b


class Classification(Task):
    """Cross-entropy over classes; metrics ``accuracy`` and ``loss`` (negative log-likelihood, without smoothing).

    A batch is ``(inputs, labels)``, or a mapping of them (``inputs``, ``image`` or ``pixel_values``; ``labels`` or
    ``label``), with integer labels ``[B]``; the model returns logits ``[B, classes]``.
    Predictions are log-probabilities in float32; an ensemble averages the probabilities.
    """

    primary = "accuracy"
    higher_is_better = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def training_step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with smoothing, and the accuracy of the same forward pass; a subclass's own ``loss`` if any."""
        if self.has_own_loss:
            return self.loss(model, batch), {}
        loss, logits, labels = self._measured(model, batch)
        return loss, {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    @property
    def has_own_loss(self) -> bool:
        """Whether this is a subclass with a ``loss`` of its own."""
        return type(self).loss is not Classification.loss

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy with smoothing."""
        return self._measured(model, batch)[0]

    def _measured(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        inputs, labels = built_in_pair(batch, "data.name")
        logits = model(inputs)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing), logits, labels

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities ``[B, classes]``."""
        return F.log_softmax(model(built_in_pair(batch, "data.name")[0]).float(), dim=1)

    def metrics(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Whether the first largest entry is the label, and its negative log-likelihood."""
        labels = built_in_pair(batch, "data.name")[1]
        return {
            "accuracy": (prediction.argmax(dim=1) == labels).float(),
            "loss": F.nll_loss(prediction, labels, reduction="none"),
        }

    def combine(self, predictions: Sequence[Tensor]) -> Tensor:
        """Logarithm of the mean probability, computed in float64."""
        stacked = torch.stack(list(predictions)).double()
        return (torch.logsumexp(stacked, dim=0) - math.log(len(predictions))).float()


class Regression(Task):
    """Mean squared error; metric ``loss`` (squared error, averaged over the target's dimensions).

    A batch is ``(inputs, targets)``; the model returns what has the target's shape.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over samples and the target's dimensions."""
        inputs, targets = built_in_pair(batch, "data.name")
        return F.mse_loss(model(inputs).float().reshape(targets.shape), targets.float())

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output in float32."""
        return model(built_in_pair(batch, "data.name")[0]).float()

    def metrics(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared errors, averaged over the target's dimensions."""
        targets = built_in_pair(batch, "data.name")[1]
        errors = prediction.reshape(targets.shape) - targets
        return {"loss": errors.square().reshape(len(targets), -1).mean(dim=1)}


TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression}


def build_task(config: TaskConfig) -> Task:
    """The task that a config names.

    Raises:
        UserError: The name is unknown, or the import path gives nothing that can serve as a task.
    """
    if config.label_smoothing and config.name != "classification":
        raise UserError("label_smoothing is for classification", got=config.name, where="task.label_smoothing",
                        do="Give it to a task of your own through task.options.")
    if is_import_path(config.name):
        return _user_task(config)
    if config.name not in TASKS:
        known = f"Known: {', '.join(TASKS)}; or package.module:callable."
        raise UserError("there is no such task", got=config.name, where="task.name",
                        do=f"{nearest(config.name, TASKS)} {known}".lstrip())
    kind = TASKS[config.name]
    options = dict(config.options)
    if kind is Classification:
        options.setdefault("label_smoothing", config.label_smoothing)
    unknown = set(options) - set(inspect.signature(kind).parameters)
    if unknown:
        raise UserError(f"the task {config.name} takes no such option", got=", ".join(sorted(unknown)),
                        where="task.options")
    return kind(**options)


def check_metrics(task: Task, metrics: Any, size: int) -> None:
    """Refuse the result of a task's ``metrics()`` where it is not one value a sample for each metric.

    Raises:
        UserError: It is no mapping, or a metric has not one value a sample.
    """
    if not isinstance(metrics, Mapping):
        raise UserError("metrics() of the task must return a mapping of names to values", got=type(metrics).__name__,
                        where="task.name", do='Return e.g. {"accuracy": correct}, with one value a sample.')
    for name, values in metrics.items():
        shape = list(values.shape) if isinstance(values, Tensor) else None
        if shape != [size]:
            raise UserError(f"the metric {name!r} must be a tensor of one value a sample, [{size}] for {size} samples",
                            got=type(values).__name__ if shape is None else f"shape {shape}", where="task.name",
                            do="Take the mean over all other dimensions.")


def check_shown_as(task: Task, metrics: Collection[str]) -> None:
    """Refuse a task's ``shown_as`` that names no metric or no style.

    Raises:
        UserError: It is no mapping, names no metric of the task, or names no style.
    """
    known = [*dict.fromkeys([*metrics, "loss"])]
    shown_as: Any = task.shown_as
    if not isinstance(shown_as, Mapping):
        raise UserError("a task's shown_as must be a mapping of metrics to how they are written",
                        got=type(shown_as).__name__, where="task.name", do='Write e.g. shown_as = {"iou": "percent"}.')
    for name, style in shown_as.items():
        if name not in known:
            raise UserError("the task's shown_as names a metric that the task does not have", got=str(name),
                            where="task.name", do=f"{nearest(str(name), known)} There are: {', '.join(known)}.".strip())
        if not is_style(style):
            raise UserError(f"the task's shown_as must say of {name!r} how it is written", got=repr(style),
                            where="task.name", do=f'Give it "percent", or a number of decimals from 0 to {MAX_DIGITS}.')


def _user_task(config: TaskConfig) -> Task:
    made = load_object(config.name, "task.name")
    try:
        task = made(**config.options) if callable(made) else made
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the task {config.name} cannot be built with the options {sorted(config.options)}",
                        where="task.name", do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(task, Task):
        raise UserError("a task must subclass swamp_ray.Task", got=type(task).__name__, where="task.name",
                        do="Give it loss(model, batch), predict(model, batch) and metrics(prediction, batch).")
    if task is made and config.options:
        raise UserError(f"{config.name} is a finished task and takes no options", got=", ".join(config.options),
                        where="task.options", do="Name its class or a function that makes it.")
    return task
