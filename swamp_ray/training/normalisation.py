"""How a network normalises: whose statistics training changes, and whether a prediction depends on its whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.datasets import Data, Feed
from swamp_ray.data.trees import leaves, num_samples, tree_map
from swamp_ray.errors import UserError
from swamp_ray.reproducible import seeded
from swamp_ray.sparsity.averaging import batchnorm_reestimation, norm_modules
from swamp_ray.training.tasks import Batch, Task
from swamp_ray.user_code.importing import is_import_path

Statistics = tuple[Tensor, Tensor]


def small_batch(config: SwampConfig, data: Data) -> Batch:
    """Two training samples on the CPU, or one where a forward pass of training sees no more."""
    feed = Feed(data.train, device=torch.device("cpu"), channels_last=False, on_device=False)
    size = min(2, forward_batch(config), len(data.train))
    return next(iter(feed.batches(size, seed=None, drop_last=False)))


def forward_batch(config: SwampConfig) -> int:
    """Samples of a forward pass, in training and in evaluation."""
    return config.training.micro_batch or config.training.batch_size // config.particle.num_workers


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
    hooks = [module.register_forward_pre_hook(partial(_note, called, name)) for name, module in norms.items()]
    before = {name: _statistics(module) for name, module in norms.items()}
    try:
        with seeded(0):
            step()
    finally:
        for hook in hooks:
            hook.remove()
    # A module that was not called may be one that is skipped at random: it is believed what train() says of it.
    kept |= {name for name in called if _same(before[name], _statistics(norms[name]))}
    return frozenset(kept)


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
    live = norm_modules(model, kept)
    model.train()
    with seeded(0):
        _check_unread(model, [module for module in live if not _is_fresh(module)], names, task, batch)
    own = [module for module in live if not type(module).__module__.startswith("torch.nn.")]
    found = [_reestimated(model, kept, own, start, task, batch) for start in ((3.0, 5.0), (-7.0, 2.0))]
    for module, one, other in zip(own, *found, strict=True):
        if not all(torch.allclose(a, b, equal_nan=True) for a, b in zip(one, other, strict=True)):
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
    constant = [module for module, one in zip(modules, before, strict=True) if _same(one, _statistics(module))]
    for module in constant:
        mean, _ = _statistics(module, copied=False)
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
) -> list[Statistics]:
    """Statistics of modules after the first batch of a re-estimation that began at these values."""
    with seeded(0), batchnorm_reestimation(model, kept):
        for module in modules:
            mean, var = _statistics(module, copied=False)
            mean.fill_(start[0])
            var.fill_(start[1])
        task.predict(model, batch)
        return [_statistics(module) for module in modules]


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether batch normalisation normalises by the batch at hand in evaluation too, as without running statistics.

    A prediction then depends on the samples that it is made together with.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    found = any(isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
                for module in model.modules())
    for module, mode in modes:
        module.training = mode
    return found


def caution(model: nn.Module, size: int) -> str:
    """What the user of a network that normalises by the batch at hand has to know of its metrics; empty for others.

    Args:
        model: The network.
        size: Samples of an evaluation's batch.
    """
    if not uses_batch_statistics(model):
        return ""
    return ("the network normalises by the batch at hand in evaluation too, so that its metrics depend on the batches: "
            f"they are measured over batches of {size} in a fixed order, as the split has them")


def normalisation_recipe(model: nn.Module, kept: Collection[str], config: SwampConfig, data: Data) -> dict[str, Any]:
    """What of a network's normalisation decides results in another way than in most networks; for their names.

    Args:
        model: The network.
        kept: Names of modules that keep their statistics.
        config: The run.
        data: Its data.
    """
    recipe: dict[str, Any] = {"kept_statistics": sorted(kept)} if kept else {}
    left = [len(split) % forward_batch(config) for split in (data.validation, data.test)]
    if 1 in left and uses_batch_statistics(model):
        recipe["single_sample"] = "joined to the last batch"
    return recipe


def without_single(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, but a last one of a single sample joins the one before it: alone it has no variance."""
    waiting: Batch | None = None
    for batch in batches:
        if waiting is not None and num_samples(batch) == 1:
            rows = iter([torch.cat(pair) for pair in zip(leaves(waiting), leaves(batch), strict=True)])
            yield tree_map(lambda _, rows=rows: next(rows), waiting)
            return
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting


def _named_norms(model: nn.Module) -> dict[str, _NormBase]:
    norms = {id(module) for module in norm_modules(model)}
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _NormBase) and id(module) in norms}


def _statistics(module: _NormBase, copied: bool = True) -> Statistics:
    mean, var = module.running_mean, module.running_var
    assert mean is not None
    assert var is not None
    return (mean.detach().clone(), var.detach().clone()) if copied else (mean, var)


def _same(one: Statistics, other: Statistics) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _is_fresh(module: _NormBase) -> bool:
    mean, var = _statistics(module)
    return not bool(mean.any()) and bool((var == 1).all())


def _is_nan(loss: Tensor) -> bool:
    return bool(loss.detach().isnan().any())
