"""How a network normalises: whose statistics training changes, and whether a prediction depends on its whole batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import ArraySamples, Data
from swamp_ray.data.trees import leaves, num_samples, tree_map
from swamp_ray.seeding import derive_seed
from swamp_ray.training.tasks import Batch

StatisticsSource = Literal["augmented", "unaugmented", "none"]
"""``none``: the network has no statistics to be re-estimated."""

STATISTICS_SEED = derive_seed(0, "statistics")
"""The one draw of order and augmentation: the same for every network, run, analysis and study."""






def forward_batch(config: SwampConfig) -> int:
    """Samples of a forward pass, in training and in evaluation."""
    return config.training.micro_batch or config.training.batch_size // config.particle.num_workers














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


def batch_statistics_warning(model: nn.Module, size: int) -> str:
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


def augments(data: Data) -> bool:
    """Whether training sees its samples otherwise than a plain pass over the training split does.

    What a dataset of the user's does when it is read cannot be seen; it counts as augmenting.
    """
    train = data.train
    if isinstance(train, ArraySamples):
        return train.plain is not None or (train.images is not None and (train.images.crop or train.images.flip))
    return train.train_transform is None or train.train_transform != train.eval_transform


def statistics_source(
    config: SwampConfig, data: Data, model: nn.Module, kept: Collection[str] = ()
) -> StatisticsSource:
    """What ``averaging.statistics`` means for these data and this network; equal values give equal numbers.

    Args:
        config: The run.
        data: Its data.
        model: Its network.
        kept: Names of normalisation modules that keep their statistics.
    """
    if not has_batchnorm(model, kept):
        return "none"
    return "augmented" if config.averaging.statistics == "augmented" and augments(data) else "unaugmented"


def statistics_seed(statistics: StatisticsSource) -> int | None:
    """Seed of the pass in which statistics are estimated; None: fixed order, no augmentation."""
    return STATISTICS_SEED if statistics == "augmented" else None


def norm_modules(model: nn.Module, kept: Collection[str] = ()) -> list[_NormBase]:
    """Modules with running statistics, apart from those of these names, which keep the statistics that they have."""
    return [module for name, module in model.named_modules()
            if isinstance(module, _NormBase) and module.running_mean is not None and name not in kept]


def reset_batchnorm(model: nn.Module, kept: Collection[str] = ()) -> None:
    """Set all running statistics to mean 0, variance 1, count 0, apart from those that are kept."""
    for module in norm_modules(model, kept):
        module.reset_running_stats()


def has_batchnorm(model: nn.Module, kept: Collection[str] = ()) -> bool:
    """Whether any module has running statistics that an average of weights makes stale."""
    return bool(norm_modules(model, kept))


class _CumulativeMomentum:
    """Before each forward pass: the momentum that makes the running mean cumulative.

    ``momentum = None`` would do the same in torch's batch normalisation alone: instance normalisation reads it as 0,
    and modules of other origin may compute with it.
    """

    def __init__(self) -> None:
        self._passes = 0

    def __call__(self, module: _NormBase, inputs: object) -> None:
        self._passes += 1
        module.momentum = 1.0 / self._passes


@contextmanager
def batchnorm_reestimation(model: nn.Module, kept: Collection[str] = ()) -> Iterator[None]:
    """Within the block, forward passes re-estimate running statistics as a cumulative mean over batches.

    The statistics are reset first. Only normalisation modules are in training mode, so that dropout is off; no
    gradients are recorded. Momenta and modes are restored afterwards.

    Args:
        model: The network.
        kept: Names of modules that keep their statistics; they stay in evaluation mode.
    """
    modes = {module: module.training for module in model.modules()}
    norms = norm_modules(model, kept)
    momenta = [module.momentum for module in norms]
    hooks = [module.register_forward_pre_hook(_CumulativeMomentum()) for module in norms]
    alone = [module for module in norms if isinstance(module, _BatchNorm)
             and getattr(module.forward, "__func__", None) is nn.SyncBatchNorm.forward]
    reset_batchnorm(model, kept)
    try:
        model.eval()
        for module in norms:
            # Not train(), which would also switch on dropout inside of the module.
            module.training = True
            module.momentum = None
        for module in alone:
            # One process re-estimates, and its own forward pass would wait for the others.
            vars(module)["forward"] = partial(_BatchNorm.forward, module)
        with torch.no_grad():
            yield
    finally:
        for module in alone:
            del vars(module)["forward"]
        for hook in hooks:
            hook.remove()
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
