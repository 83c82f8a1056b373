"""The loss of a task in evaluation, for tasks whose metrics have none."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from swamp_ray.data.trees import leaves, tree_map
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.training.tasks import TASKS, Batch, Task
from swamp_ray.user_code.blaming import out_of_memory

LOSS = "loss"
Origin = Literal["metrics", "measured", "none"]


def loss_of(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of a batch: of ``loss``, or of ``training_step`` where a task has that alone."""
    if type(task).loss is Task.loss:
        return task.training_step(model, batch)[0]
    return task.loss(model, batch)


def evaluation_loss(task: Task, model: nn.Module, batch: Batch, number: int) -> Tensor:
    """The mean loss of a batch in evaluation, float64 without gradients.

    Random numbers of the loss depend on the batch's number alone; the global generators are restored.

    Args:
        task: The task.
        model: In evaluation mode.
        batch: Must not be read afterwards: a network may overwrite it.
        number: Of the batch in its pass.
    """
    seed = derive_seed(0, "evaluation loss", number)
    device = leaves(batch)[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), seeded(seed):
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        return loss_of(task, model, batch).detach().double()


def origin_of_loss(task: Task, model: nn.Module, batch: Batch) -> Origin:
    """Where the loss of an evaluation comes from.

    Args:
        task: The task.
        model: Any network of the run; its mode stays as it was.
        batch: Some samples.

    Returns:
        ``"metrics"``: the task's metrics have it. ``"measured"``: they do not, and the task's loss is measured.
        ``"none"``: it cannot be, as where it needs gradients or training mode.
    """
    if type(task) in TASKS.values():
        return "metrics"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), seeded(0):
            given = tree_map(torch.clone, batch)
            if LOSS in task.metrics(task.predict(model, given), given):
                return "metrics"
        found: Any = evaluation_loss(task, model, tree_map(torch.clone, batch), 0)
        return "measured" if found.ndim == 0 else "none"
    except Exception as error:
        if out_of_memory(error):
            raise
        return "none"
    finally:
        for module, training in modes:
            module.training = training
