"""The settings of a sweep, and the member runs that follow from them.

A *setting* gives a value to every entry of the space; a *member run* is one setting with one seed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from dataclasses import dataclass
from typing import Any

import yaml

from swamp_ray.config.budget import with_budget
from swamp_ray.config.paths import below
from swamp_ray.config.reading import with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep import SweepConfig
from swamp_ray.errors import UserError, nearest
from swamp_ray.seeding import derive_seed

Setting = dict[str, Any]
"""A value for each entry of the space; of named groups the name."""

MAX_SETTINGS = 10_000
MAX_LABEL = 120


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read, with its base run.

    Attributes:
        config: The sweep.
        base: The run that settings change; its ``storage`` is the sweep's.
        folder: What relative paths in the space are below; empty where the sweep runs elsewhere.
    """

    config: SweepConfig
    base: SwampConfig
    folder: str = ""

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.config.name or "sweep"

    def settings(self) -> list[Setting]:
        """All settings of a sweep that is not adaptive, in the order of the file.

        Draws are seeded, so that the same sweep has the same settings each time.

        Raises:
            UserError: There are too many.
        """
        space = self.config.space
        samples = self.config.num_samples
        grids = {entry: domain.values or () for entry, domain in space.items() if domain.grid is not None}
        drawn = len(grids) < len(space)
        count = math.prod(len(values) for values in grids.values()) * (samples if drawn else 1)
        if count > MAX_SETTINGS:
            raise UserError(f"a sweep must have at most {MAX_SETTINGS:,} settings", got=f"{count:,}", where="space")
        found: dict[str, Setting] = {}
        for sample in range(samples if drawn else 1):
            for number, point in enumerate(itertools.product(*grids.values())):
                fixed = dict(zip(grids, point, strict=True))
                setting: Setting = {}
                for entry in space:
                    setting[entry] = fixed[entry] if entry in fixed else self._draw(entry, sample, number)
                found.setdefault(setting_key(setting), setting)
        return list(found.values())

    def sample(self, count: int) -> list[Setting]:
        """Some settings at random, to see whether any is valid."""
        return [{entry: self._draw(entry, index, -1) for entry in self.config.space} for index in range(count)]

    def _draw(self, entry: str, *indices: int) -> Any:
        seed = derive_seed(self.config.search.seed, f"sweep {entry}", *(index + 1 for index in indices))
        return self.config.space[entry].draw(random.Random(seed))

    def overrides(self, setting: Setting) -> dict[str, Any]:
        """The options that a setting changes, by dotted key.

        Raises:
            UserError: The setting does not belong to the space.
        """
        values: dict[str, Any] = {}
        for entry, value in setting.items():
            domain = self.config.space.get(entry)
            if domain is None:
                raise UserError("there is no such entry in the space", got=entry, where="space",
                                do=nearest(entry, self.config.space))
            groups = domain.groups
            if groups is None:
                values[entry] = value
            elif value in groups:
                values |= groups[value]
            else:
                raise UserError(f"space.{entry} has no group of this name", got=value, where="space",
                                do=f"There are: {', '.join(groups)}.")
        return values

    def member(self, setting: Setting, seed: int) -> SwampConfig:
        """The run of a setting and a seed: what ``swamp run`` takes.

        Raises:
            UserError: The values contradict each other, or the base config.
        """
        options = self.overrides(setting)
        if self.folder:
            options = below(self.folder, options)
        values = {**options, "seed": seed, "name": self.member_name(setting, seed)}
        member = with_values(self.base, values)
        return member if self.config.budget is None else with_budget(member, self.config.budget)

    def member_name(self, setting: Setting, seed: int) -> str:
        """The name of the run of a setting and a seed."""
        return f"{self.name}-{label(setting)}-seed{seed}"

    def resolved(self) -> dict[str, Any]:
        """Plain values of the whole sweep, the base run included: build_sweep reads an equal one from them."""
        plain = self.config.model_dump(mode="json", exclude_none=True)
        plain["space"] = {entry: domain.model_dump(mode="json", exclude_none=True)
                          for entry, domain in self.config.space.items()}
        base = self.base.model_dump(mode="json")
        return {**plain, "name": self.name, "storage": self.base.storage, "base": base}

    def identity(self) -> dict[str, Any]:
        """What a sweep must have in common with an earlier one of its name: settings, seeds, what is compared."""
        plain = self.resolved()
        keys = ["space", "seeds", "metric", "mode", "at_sparsity", "search", "scheduler",
                *([] if self.config.is_adaptive else ["num_samples"])]
        return {"base": self.base.recipe() | {"seed": None}, "entries": list(self.config.space),
                **{key: plain[key] for key in keys},
                # Sweeps of before had none.
                **{key: plain[key] for key in ("budget",) if key in plain}}


def setting_key(setting: Setting) -> str:
    """A text that equal settings have in common."""
    return json.dumps(setting, sort_keys=True)


def label(setting: Setting) -> str:
    """A setting as a part of a file name, e.g. ``target0.95-count4``; different settings have different ones."""
    leaves = [entry.rpartition(".")[2] for entry in setting]
    parts = []
    for (entry, value), leaf in zip(setting.items(), leaves, strict=True):
        word = leaf if leaves.count(leaf) == 1 else entry
        parts.append(f"{word}{shown_value(value)}")
    found = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))
    if len(found) <= MAX_LABEL and all(_spells_out(value) for value in setting.values()):
        return found
    return f"{found[:MAX_LABEL]}-{hashlib.sha256(setting_key(setting).encode()).hexdigest()[:8]}"


def _spells_out(value: Any) -> bool:
    """Whether a value can be read back from its place in a label."""
    text = shown_value(value)
    if not re.fullmatch(r"[A-Za-z0-9._]+", text):
        return False
    try:
        read = yaml.safe_load(text)
    except ValueError:  # "0x_" looks like a number to YAML, and is none
        return False
    return type(read) is type(value) and read == value


def describe(setting: Setting) -> str:
    """A setting for people: ``pruning.target 0.95, particles.count 4``."""
    return ", ".join(f"{entry} {shown_value(value)}" for entry, value in setting.items())


def shown_value(value: Any) -> str:
    """A value for people: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
