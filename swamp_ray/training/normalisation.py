"""Re-estimation of normalisation statistics, and what follows from how a network normalises.

Averaged weights have no statistics of their own: they are re-estimated in a pass over the training split
(:func:`reestimate_statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import ArraySamples, Data
from swamp_ray.data.trees import leaves, num_samples, with_leaves
from swamp_ray.seeding import derive_seed
from swamp_ray.training.tasks import Batch

StatisticsSource = Literal["augmented", "unaugmented", "none"]
"""Which training images statistics are taken from; ``none``: the network has no statistics to be re-estimated."""

STATISTICS_SEED = derive_seed(0, "statistics")
"""The one draw of order and augmentation: the same for every network, run, analysis and study."""


def norm_modules(model: nn.Module, kept: Collection[str] = ()) -> list[_NormBase]:
    """Modules with running statistics, apart from those of these names, which keep the statistics that they have."""
    return [module for name, module in model.named_modules()
            if isinstance(module, _NormBase) and module.running_mean is not None and name not in kept]


def has_batchnorm(model: nn.Module, kept: Collection[str] = ()) -> bool:
    """Whether any module has running statistics that an average of weights makes stale."""
    return bool(norm_modules(model, kept))


def reset_batchnorm(model: nn.Module, kept: Collection[str] = ()) -> None:
    """Set all running statistics to mean 0, variance 1, count 0, apart from those that are kept."""
    for module in norm_modules(model, kept):
        module.reset_running_stats()


def reestimate_statistics(
    model: nn.Module, batches: Iterable[Batch], predict: Callable[[Batch], object], kept: Collection[str] = ()
) -> None:
    """Replace running statistics by the cumulative mean over some batches.

    Args:
        model: The network.
        batches: Each one counts the same.
        predict: Passes a batch forward through the network.
        kept: Names of modules that keep their statistics.
    """
    with batchnorm_reestimation(model, kept):
        for batch in batches:
            predict(batch)


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
    synchronised = [module for module in norms if isinstance(module, _BatchNorm) and _has_sync_forward(module)]
    reset_batchnorm(model, kept)
    try:
        model.eval()
        for module in norms:
            # Not train(), which would also switch on dropout inside of the module.
            module.training = True
            module.momentum = None
        for module in synchronised:
            # One process re-estimates, and SyncBatchNorm's own forward pass would wait for the others.
            vars(module)["forward"] = partial(_BatchNorm.forward, module)
        with torch.no_grad():
            yield
    finally:
        for module in synchronised:
            del vars(module)["forward"]
        for hook in hooks:
            hook.remove()
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _has_sync_forward(module: _BatchNorm) -> bool:
    """Whether a module's forward pass is SyncBatchNorm's own."""
    return getattr(module.forward, "__func__", None) is nn.SyncBatchNorm.forward


def augments(data: Data) -> bool:
    """Whether training reads other values than a plain pass over the training split does.

    A user's dataset may augment inside its own code, which cannot be seen; it counts as augmenting.
    """
    train = data.train
    if not isinstance(train, ArraySamples):
        return train.train_transform is None or train.train_transform != train.eval_transform
    if train.plain is not None:
        return True
    return train.images is not None and (train.images.crop or train.images.flip)


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


def statistics_seed(source: StatisticsSource) -> int | None:
    """Seed of the pass in which statistics are estimated; None: fixed order, no augmentation."""
    return STATISTICS_SEED if source == "augmented" else None


def forward_batch(config: SwampConfig) -> int:
    """Samples of a forward pass, in training and in evaluation."""
    return config.training.micro_batch or config.training.batch_size // config.particle.num_workers


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether batch normalisation normalises by the batch at hand in evaluation too, as without running statistics.

    A prediction then depends on the other samples of its batch.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found = False
    for module in model.modules():
        # An overridden train() may keep a module in training mode.
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            found = True
    for module, mode in modes.items():
        module.training = mode
    return found


def batch_statistics_warning(model: nn.Module, size: int) -> str:
    """A warning about the metrics of a network that normalises by the batch at hand; empty for others.

    Args:
        model: The network.
        size: Samples of an evaluation's batch.
    """
    if not uses_batch_statistics(model):
        return ""
    return ("the network normalises by the batch at hand in evaluation too, so that its metrics depend on the batches: "
            f"they are measured over batches of {size} in a fixed order, as the split has them")


def normalisation_recipe(model: nn.Module, kept: Collection[str], config: SwampConfig, data: Data) -> dict[str, Any]:
    """The part of a result's recipe that tells a network's unusual normalisation; empty for most networks.

    Args:
        model: The network.
        kept: Names of modules that keep their statistics.
        config: The run.
        data: Its data.
    """
    recipe: dict[str, Any] = {}
    if kept:
        recipe["kept_statistics"] = sorted(kept)
    size = forward_batch(config)
    leaves_single = len(data.validation) % size == 1 or len(data.test) % size == 1
    if leaves_single and uses_batch_statistics(model):
        recipe["single_sample"] = "joined to the last batch"
    return recipe


def without_single(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, but a last one of a single sample joins the one before it: alone it has no variance."""
    previous: Batch | None = None
    for batch in batches:
        if previous is not None and num_samples(batch) == 1:
            joined = [torch.cat(pair) for pair in zip(leaves(previous), leaves(batch), strict=True)]
            yield with_leaves(previous, joined)
            return
        if previous is not None:
            yield previous
        previous = batch
    if previous is not None:
        yield previous
