"""Which training images the normalisation statistics of an evaluated network are taken from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import ArraySamples, Data
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.averaging import has_batchnorm

Statistics = Literal["augmented", "unaugmented", "none"]
"""``none``: the network has no statistics to be re-estimated."""

STATISTICS_SEED = derive_seed(0, "statistics")
"""The one draw of order and augmentation: the same for every network, run, analysis and study."""


def augments(data: Data) -> bool:
    """Whether training sees its samples otherwise than a plain pass over the training split does.

    What a dataset of the user's does when it is read cannot be seen; it counts as augmenting.
    """
    train = data.train
    if isinstance(train, ArraySamples):
        return train.plain is not None or (train.images is not None and (train.images.crop or train.images.flip))
    return train.train_transform is None or train.train_transform != train.eval_transform


def statistics_of(config: SwampConfig, data: Data, model: nn.Module, kept: Collection[str] = ()) -> Statistics:
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


def statistics_seed(statistics: Statistics) -> int | None:
    """Seed of the pass in which statistics are estimated; None: fixed order, no augmentation."""
    return STATISTICS_SEED if statistics == "augmented" else None
