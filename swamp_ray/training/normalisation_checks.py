"""Checks of a network's normalisation before a run: whose statistics training changes, and whether that can be redone.

Evaluations of averaged weights re-estimate running statistics. Modules whose statistics a training step leaves alone
are found here and keep them; networks whose statistics cannot be re-estimated are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.normalisation import batchnorm_reestimation, forward_batch, norm_modules
from swamp_ray.training.results import Arrays
from swamp_ray.training.tasks import Batch, Task
from swamp_ray.user_code.importing import is_import_path

MeanAndVariance = tuple[Tensor, Tensor]

_STARTS = ((3.0, 5.0), (-7.0, 2.0))
"""Means and variances from which a trial re-estimation starts; its result must not depend on them."""


def small_batch(config: SwampConfig, data: Data) -> Batch:
    """Two training samples on the CPU, or one where a forward pass of training sees no more."""
    batches = Batches(data.train, device=torch.device("cpu"), channels_last=False, on_device=False)
    size = min(2, forward_batch(config), len(data.train))
    return next(iter(batches.one_pass(size, seed=None, drop_last=False)))


def kept_statistics(model: nn.Module, config: SwampConfig, data: Data, task: Task) -> frozenset[str]:
    """Names of the modules whose running statistics a training step leaves as they are.

    These are modules that ``train()`` or the forward pass keeps in evaluation mode, whose momentum is 0, or whose own
    code only reads its statistics. Networks that come with swamp_ray or torchvision have none.

    Args:
        model: On the CPU; it is left alone.
        config: The run.
        data: Two of its training samples are looked at.
        task: Takes the step.
    """
    if not is_import_path(config.model.name) or not norm_modules(model):
        return frozenset()
    trial = copy.deepcopy(model).train()
    batch = small_batch(config, data)
    return _kept(trial, lambda: task.training_step(trial, batch))


def _kept(model: nn.Module, step: Callable[[], object]) -> frozenset[str]:
    """Names of kept modules of a model in training mode, which is changed by the step."""
    norms = _named_norms(model)
    kept = {name for name, module in norms.items() if not module.training}
    called: set[str] = set()
    hooks = []
    before = {}
    for name, module in norms.items():
        hooks.append(module.register_forward_pre_hook(partial(_note, called, name)))
        before[name] = _statistics(module)
    try:
        with seeded(0):
            step()
    finally:
        for hook in hooks:
            hook.remove()
    # A module that was not called may be skipped at random, so that only its mode, seen above, says whether it is kept.
    for name in called:
        if _same(before[name], _statistics(norms[name])):
            kept.add(name)
    return frozenset(kept)


def _named_norms(model: nn.Module) -> dict[str, _NormBase]:
    with_statistics = {id(module) for module in norm_modules(model)}
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _NormBase) and id(module) in with_statistics}


def _note(called: set[str], name: str, module: nn.Module, inputs: object) -> None:
    called.add(name)


def check_statistics(model: nn.Module, kept: Collection[str], task: Task, batch: Batch) -> None:
    """Refuse normalisation whose statistics could not be re-estimated for averaged weights.

    Args:
        model: On the CPU; its statistics are changed.
        kept: Names of modules that keep theirs.
        task: Predicts, and takes a training step.
        batch: Some training samples.

    Raises:
        UserError: It names the module.
    """
    names = {id(module): name for name, module in model.named_modules()}
    reestimated = norm_modules(model, kept)
    model.train()
    with seeded(0):
        changed = [module for module in reestimated if not _is_fresh(module)]
        _check_unread(model, changed, names, task, batch)
    # torch's own modules need no trial.
    custom = [module for module in reestimated if not type(module).__module__.startswith("torch.nn.")]
    first, second = (_reestimated(model, kept, custom, start, task, batch) for start in _STARTS)
    for module, one, other in zip(custom, first, second, strict=True):
        if not _close(one, other):
            raise UserError(
                f"the statistics of {names[id(module)]!r} ({type(module).__name__}) are not moved by its momentum, so "
                "that they cannot be re-estimated for averaged weights", where="model.name",
                do="Let its forward pass use self.momentum as torch.nn.BatchNorm2d does, or keep them constant.")


def _check_unread(
    model: nn.Module, modules: Sequence[_NormBase], names: dict[int, str], task: Task, batch: Batch
) -> None:
    """Refuse statistics that the training of a network reads without calling their module, and leaves as they are."""
    if not modules:
        return
    before = [_statistics(module) for module in modules]
    has_failed = _is_nan(task.training_step(model, batch)[0])
    unchanged = [module for module, old in zip(modules, before, strict=True) if _same(old, _statistics(module))]
    for module in unchanged:
        # Whether the loss becomes NaN where the mean is NaN tells whether it is read.
        mean, _ = _buffers(module)
        value = mean.clone()
        mean.fill_(float("nan"))
        is_read = _is_nan(task.training_step(model, batch)[0]) and not has_failed
        mean.copy_(value)
        if is_read:
            raise UserError(
                f"training reads the statistics of {names[id(module)]!r} and never changes them, though the module is "
                "in training mode, so that it is not clear whether they are to be kept", where="model.name",
                do="Put it into evaluation mode in an overridden train(), or call the module itself.")


def _reestimated(
    model: nn.Module, kept: Collection[str], modules: Sequence[_NormBase], start: tuple[float, float], task: Task,
    batch: Batch,
) -> list[MeanAndVariance]:
    """Statistics of modules after the first batch of a re-estimation that began at these values."""
    with seeded(0), batchnorm_reestimation(model, kept):
        for module in modules:
            mean, var = _buffers(module)
            mean.fill_(start[0])
            var.fill_(start[1])
        task.predict(model, batch)
        return [_statistics(module) for module in modules]


def refuse_stateful_buffers(model: nn.Module, before: Arrays, kept: Collection[str] = ()) -> None:
    """Raise UserError if training has changed a buffer that is no normalisation statistic.

    Args:
        model: After training.
        before: Its buffers before, by clean name; others are not looked at.
        kept: Names of normalisation modules whose statistics must not change either.
    """
    changing, constant = _statistics_buffers(model, kept)
    for name, buffer in named_buffers(model):
        if name not in before or name in changing:
            continue
        value = buffer.detach().cpu().numpy()
        if np.array_equal(value, before[name], equal_nan=buffer.is_floating_point()):
            continue
        if name not in constant:
            raise UserError(
                f"training changes the buffer {name!r}, which is no normalisation statistic",
                do="Particles cannot be averaged over such state; make it a parameter or keep it constant.",
                where="model.name")
        # Instance normalisation rounds even where its momentum is 0.
        if not np.allclose(value, before[name], rtol=1e-3, atol=1e-6, equal_nan=True):
            raise UserError(
                f"training changes the statistic {name!r} of a module that had left it as it was in a first step",
                do="Keep the module in evaluation mode for the whole training, or never.", where="model.name")


def _statistics_buffers(model: nn.Module, kept: Collection[str]) -> tuple[set[str], set[str]]:
    """Clean names of normalisation modules' buffers: those that training may change, and the kept statistics."""
    changing: set[str] = set()
    constant: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        for key, _ in module.named_buffers(recurse=False):
            name = clean_name(f"{path}.{key}" if path else key)
            if path in kept and name.endswith(("running_mean", "running_var")):
                constant.add(name)
            else:
                changing.add(name)
    return changing - constant, constant


def _buffers(module: _NormBase) -> MeanAndVariance:
    """A module's running statistics, in its own memory."""
    assert module.running_mean is not None
    assert module.running_var is not None
    return module.running_mean, module.running_var


def _statistics(module: _NormBase) -> MeanAndVariance:
    """Copies of a module's running statistics."""
    mean, var = _buffers(module)
    return mean.detach().clone(), var.detach().clone()


def _same(one: MeanAndVariance, other: MeanAndVariance) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def _close(one: MeanAndVariance, other: MeanAndVariance) -> bool:
    return (torch.allclose(one[0], other[0], equal_nan=True)
            and torch.allclose(one[1], other[1], equal_nan=True))


def _is_fresh(module: _NormBase) -> bool:
    """Whether statistics are as a new module's: mean 0, variance 1."""
    mean, var = _buffers(module)
    return not bool(mean.any()) and bool((var == 1).all())


def _is_nan(loss: Tensor) -> bool:
    return bool(loss.detach().isnan().any())
