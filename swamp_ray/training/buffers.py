"""Buffers of networks: normalisation statistics change in training, others must not."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from torch import Tensor, nn

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.training.records import Arrays


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers under their clean names, as in a network's state."""
    for name, buffer in model.named_buffers():
        yield clean_name(name), buffer


def refuse_stateful_buffers(model: nn.Module, before: Arrays, kept: Collection[str] = ()) -> None:
    """Raise UserError if training has changed a buffer that is no normalisation statistic.

    Args:
        model: After training.
        before: Its buffers before, by clean name; others are not looked at.
        kept: Names of normalisation modules whose statistics must not change either.
    """
    statistics: set[str] = set()
    constant: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        own = {clean_name(f"{name}.{buffer}" if name else buffer) for buffer, _ in module.named_buffers(recurse=False)}
        if name in kept:
            constant |= {one for one in own if one.endswith(("running_mean", "running_var"))}
        statistics |= own - constant
    for name, buffer in named_buffers(model):
        if name not in before or name in statistics:
            continue
        if np.array_equal(buffer.detach().cpu().numpy(), before[name], equal_nan=buffer.is_floating_point()):
            continue
        if name in constant:
            if np.allclose(buffer.detach().cpu().numpy(), before[name], rtol=1e-3, atol=1e-6, equal_nan=True):
                continue  # instance normalisation rounds even where its momentum is 0
            raise UserError(
                f"training changes the statistic {name!r} of a module that had left it as it was in a first step",
                do="Keep the module in evaluation mode for the whole training, or never.", where="model.name")
        raise UserError(
            f"training changes the buffer {name!r}, which is no normalisation statistic",
            do="Particles cannot be averaged over such state; make it a parameter or keep it constant.",
            where="model.name",
        )
