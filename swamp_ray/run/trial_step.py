"""One training step and one evaluation before any work: what does not fit together is refused, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.data.trees import num_samples, split_batch
from swamp_ray.errors import UserError, first_line
from swamp_ray.random_state import seeded
from swamp_ray.run.state import state_of
from swamp_ray.sparsity.masks import Layout
from swamp_ray.training.evaluation_loss import LOSS, origin_of_loss
from swamp_ray.training.factory_checks import InitialValues, disturb_
from swamp_ray.training.flops import CountedFlops, count_flops
from swamp_ray.training.hidden_state import refuse_hidden_state, refuse_random_constants, refuse_unregistered
from swamp_ray.training.model_tensors import refuse_odd_gradients
from swamp_ray.training.models import check_outputs, image_advice
from swamp_ray.training.normalisation import uses_batch_statistics
from swamp_ray.training.normalisation_checks import (
    check_statistics,
    kept_statistics,
    refuse_stateful_buffers,
    small_batch,
)
from swamp_ray.training.prunable_warnings import prunable_warnings
from swamp_ray.training.state_dict import (
    extra_state,
    refuse_moving_extra_state,
)
from swamp_ray.training.tasks import Classification, check_metrics, check_shown_as
from swamp_ray.training.trainer import initial_model
from swamp_ray.user_code.blaming import failed_method
from swamp_ray.user_code.importing import is_import_path, own_traceback


def try_out(
    config: SwampConfig, data: Data, model: nn.Module, task: Any, layout: Layout
) -> tuple[tuple[str, ...], frozenset[str], tuple[str, ...], CountedFlops, nn.Module]:
    """Check a training step with a network, and that its factory gives an equal one afterwards.

    Returns:
        What :func:`_check_training_step` gives, what is odd about the prunable weights, the network's FLOPs, and that
        next network, which nothing has happened to.
    """
    fresh = InitialValues(model)
    found = _check_training_step(config, data, model, task)
    fresh.refuse_changed(model, [layer.name for layer in layout.layers])
    notes = prunable_warnings(model, layout)
    flops = count_flops(model, task, small_batch(config, data), layout)
    disturb_(model)
    again = initial_model(config, data)
    fresh.compare(again, config.model.name)
    refuse_random_constants(again, lambda: initial_model(config.model_copy(update={"seed": config.seed + 1}), data))
    return *found, notes, flops, again


def _check_training_step(
    config: SwampConfig, data: Data, model: nn.Module, task: Any
) -> tuple[tuple[str, ...], frozenset[str]]:
    """One step on two samples (one, where the batch is one): what does not fit together is refused before any work.

    Returns:
        Names of the task's metrics, and of the modules that keep their normalisation statistics.
    """
    batch = small_batch(config, data)
    if isinstance(task, Classification) and data.num_classes is not None:
        check_outputs(model, batch, data.num_classes)
    loss, metrics, kept = _trial_step(config, data, model, task)
    check_metrics(task, metrics, num_samples(batch))
    if origin_of_loss(task, model, batch) == "measured":
        metrics = {**metrics, LOSS: torch.zeros(num_samples(batch))}
    _check_normalisation(config, data, kept, model, task)
    if loss.ndim != 0:
        raise UserError("the task's loss must be a scalar", got=f"shape {tuple(loss.shape)}", where="task.name")
    if task.primary not in metrics:
        raise UserError(f"the task's metrics must contain its primary metric {task.primary!r}",
                        got=", ".join(metrics), where="task.name")
    check_shown_as(task, metrics)
    return tuple(metrics), kept


def _check_normalisation(config: SwampConfig, data: Data, kept: frozenset[str], model: nn.Module, task: Any) -> None:
    """Refuse statistics that cannot be re-estimated, and splits that a network without any cannot be evaluated on."""
    batch = small_batch(config, data)
    if is_import_path(config.model.name):
        try:
            check_statistics(model, kept, task, batch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the normalisation statistics of {config.model.name!r} cannot be re-estimated: "
                f"{type(error).__name__}: {error}", where="model.name") from error
    short = [split for split in ("validation", "test") if len(getattr(data, split)) == 1]
    if short and uses_batch_statistics(model):
        try:
            with torch.no_grad(), seeded(0):
                task.predict(model.eval(), split_batch(batch, 1)[0])
        except ValueError as error:
            raise UserError(
                f"the model {config.model.name!r} normalises by the batch at hand in evaluation too, and cannot be "
                f"evaluated on a single sample: {first_line(error)}", got=f"one sample for {' and '.join(short)}",
                where="data", do="Give the split more samples, or let normalisation keep statistics.") from error


def _trial_step(
    config: SwampConfig, data: Data, model: nn.Module, task: Any
) -> tuple[Tensor, dict[str, Any], frozenset[str]]:
    """Loss, metrics and the modules that keep their statistics; refuses what training cannot handle by name."""
    batch = small_batch(config, data)
    before = state_of(model).buffers
    kept = frozenset[str]()
    extra = extra_state(model)

    def step() -> Tensor:
        with seeded(0):
            model.train()
            loss = task.training_step(model, batch)[0]
            _refuse_odd_loss(config, loss)
            loss.backward()
        return loss

    try:
        kept = kept_statistics(model, config, data, task)
        loss = step()
        refuse_unregistered(model, loss)
        refuse_odd_gradients(model)
        refuse_hidden_state(model, step)
        model.eval()
        with torch.no_grad():
            metrics = task.metrics(task.predict(model, batch), batch)
    except UserError:
        raise
    except Exception as error:
        method = failed_method(error, model, task) if is_import_path(config.task.name) else ""
        if method:
            raise UserError(f"{method}() of the task {config.task.name!r} fails on a batch of {num_samples(batch)}: "
                            f"{type(error).__name__}: {first_line(error)}", where="task.name",
                            do=f"The whole error:\n{own_traceback(error)}") from error
        advice = image_advice(batch) or "Check model.options, task and data against each other."
        raise UserError(
            f"the model {config.model.name!r} and the task {config.task.name!r} fail on a training batch of "
            f"{num_samples(batch)}: {type(error).__name__}: {first_line(error)}", where="model.name",
            do=f"{advice} The whole error:\n{own_traceback(error)}") from error
    refuse_stateful_buffers(model, before, kept)
    refuse_moving_extra_state(model, extra)
    return loss, metrics, kept


def _refuse_odd_loss(config: SwampConfig, loss: Any) -> None:
    if not isinstance(loss, Tensor):
        got = type(loss).__name__
    elif loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}"
    else:
        return
    raise UserError(f"loss() of the task {config.task.name!r} must return a tensor with a single number", got=got,
                    where="task.name", do="Return the mean over the batch, e.g. with .mean().")
