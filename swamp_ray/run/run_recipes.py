"""The names of a run's results, made from what was loaded and built for it."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.sparsity.masks import Layout
from swamp_ray.storage.code_digest import former_digest
from swamp_ray.storage.former_names import Before
from swamp_ray.storage.recipes import DataDigests, Recipes
from swamp_ray.training.arithmetic import Arithmetic
from swamp_ray.training.normalisation import augments, normalisation_recipe, statistics_source
from swamp_ray.training.tasks import Task


def recipes_of(
    config: SwampConfig,
    data: Data,
    model: nn.Module,
    task: Task,
    kept: Collection[str],
    layout: Layout,
    arithmetic: Arithmetic,
    facts: dict[str, str],
) -> Recipes:
    """The names of a run's results.

    Args:
        config: The run.
        data: Its decoded data.
        model: Its network at the initialisation; only its kind matters.
        task: Its task; only its kind matters.
        kept: Names of its normalisation modules that keep their statistics.
        layout: Prunable weights and the rest.
        arithmetic: As resolved when the run started.
        facts: Library versions and hardware models.
    """
    before = Before(
        config, data=(data.digest,), statistics=statistics_source(config, data, model, kept), augments=augments(data),
        trains_alike=_trained_alike(model) and not task.has_own_loss, code=former_digest)
    digests = DataDigests(data.training_digest or data.digest, data.digest, data.decoder)
    return Recipes(config, digests, layout, arithmetic.as_dict(), facts, before,
                   normalisation_recipe(model, kept, config, data))


def with_data_digests(recipes: Recipes, digests: tuple[str, ...]) -> Recipes:
    """The same names, and further digests that earlier versions gave to the same training samples."""
    found = copy.copy(recipes)
    found.before = replace(recipes.before, data=tuple(dict.fromkeys([*recipes.before.data, *digests])))
    return found


def _trained_alike(model: nn.Module) -> bool:
    """Whether format 1 trained such parameters to the same numbers.

    It did not take them for what they are where they are views of something larger, share memory or are not float32.
    Nor did it call the ``loss`` of a subclass of the built-in classification (``Task.has_own_loss``).
    What was wrong with some networks' normalisation has an entry in recipes, which format 1 did not know.
    """
    for parameter in model.parameters():
        whole = parameter.untyped_storage().nbytes()
        if parameter.dtype != torch.float32 or whole != parameter.numel() * parameter.element_size():
            return False
    return True
