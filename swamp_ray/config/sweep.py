"""The configuration of a sweep: a base run, a space of settings, and how they are searched."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from pydantic import Field, field_validator, model_validator

from swamp_ray.config.budget import Budget
from swamp_ray.config.fields import Options, Section, Sparsity
from swamp_ray.config.option_errors import unknown_key

RESERVED = {
    "seed": "List seeds under seeds: every setting is run with all of them.",
    "name": "Member runs are named after their settings.",
    "storage": "A sweep has one storage root: set storage beside the space.",
    "execution.executor": "Set it in the base config.",
    "execution.address": "Give --address, or set it in the base config.",
    "execution.storage_patience_s": "Set it in the base config.",
    "particle.num_workers": "Every particle of a sweep trains in one process.",
    "keep": "Set it in the base config.",
}
KINDS = ("grid", "choice", "uniform", "loguniform")
DECIDES = ("pruning.target", "pruning.rate", "pruning.include", "pruning.exclude", "model", "start_from")
"""Options on which the sparsities of a run's rounds depend."""
SEARCHES = ("optuna", "hyperopt")
"""Search algorithms that draw one setting after the other."""
MAX_SEEDS = 1_000


class Domain(Section):
    """The values of one entry of the space: exactly one of these."""

    grid: tuple[Any, ...] | dict[str, Options] | None = Field(
        default=None, description="Every value once; or named groups of options that are set together."
    )
    choice: tuple[Any, ...] | dict[str, Options] | None = Field(
        default=None, description="One of these values, or of these named groups, drawn for each sample."
    )
    uniform: tuple[float, float] | None = Field(default=None, description="A number between these two.")
    loguniform: tuple[float, float] | None = Field(
        default=None, description="A number between these two, evenly over orders of magnitude."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of {', '.join(KINDS)}, but got {', '.join(given) or 'none'}")
        bounds = self.uniform or self.loguniform
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} must go from a smaller to a larger number, but got {list(bounds)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform must start above 0, but got {self.loguniform[0]:g}")
        values = self.values
        if self.groups is not None and not all(name.strip() for name in self.groups):
            raise ValueError(f"{given[0]} must give every group a name")
        if values is not None and not values:
            raise ValueError(f"{given[0]} must list at least one value")
        if values is not None and len({_key(value) for value in values}) < len(values):
            raise ValueError(f"{given[0]} must list each value once, but got {list(values)}")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The listed values, or the names of the groups; None for a range of numbers."""
        found = self.grid if self.grid is not None else self.choice
        return None if found is None else tuple(found)

    @property
    def groups(self) -> dict[str, dict[str, Any]] | None:
        """Options by the name of their group; None where values are listed."""
        found = self.grid if self.grid is not None else self.choice
        return found if isinstance(found, dict) else None

    def draw(self, random_: random.Random) -> Any:
        """One value at random."""
        if self.values is not None:
            return random_.choice(self.values)
        if self.uniform is not None:
            return random_.uniform(*self.uniform)
        assert self.loguniform is not None
        low, high = self.loguniform
        return min(high, max(low, math.exp(random_.uniform(math.log(low), math.log(high)))))


class SearchConfig(Section):
    """Where settings come from."""

    name: str = Field(default="random", description="random (grids in full, the rest drawn), optuna, hyperopt, or "
                      "package.module:function that returns a searcher of Ray Tune.")
    seed: int = Field(default=0, ge=0, description="Seed of the draws and of the search.")
    options: Options = Field(default_factory=dict, description="Keyword arguments of the search algorithm.")


class SchedulerConfig(Section):
    """Which settings are stopped early."""

    name: str = Field(default="none", description="none, asha, median, or package.module:function that returns a "
                      "scheduler of Ray Tune.")
    options: Options = Field(default_factory=dict, description="asha: reduction_factor, grace_period; median: "
                             "grace_period, min_samples_required, hard_stop; counted in milestones.")


class SweepExecution(Section):
    """How the settings share the cluster."""

    max_concurrent: int | None = Field(default=None, gt=0, description="Settings at a time; default: as many as fit.")
    max_failures: int = Field(default=2, ge=0, description="How often a setting is started again after the process "
                              "that drives it was lost.")
    worker_deadline_s: float = Field(default=600.0, gt=0.0, description="A setting fails, and can be resumed, once "
                                     "it has been without any worker for so long.")


class SweepConfig(Section):
    """One sweep: every setting of the space, or a search over it, each with all seeds."""

    name: str | None = Field(default=None, description="Name of the sweep; default: the file's name.")
    storage: str | None = Field(default=None, description="Storage root; default: the base config's.")
    base: str | dict[str, Any] = Field(description="The run that the settings change: a config file, relative to this "
                                       "one, or its sections.")
    space: dict[str, Domain] = Field(description="Option paths such as pruning.target, and the values of each; an "
                                     "entry with named groups may have any name.")
    budget: Budget | None = Field(default=None, description="What every setting costs; default: as its lengths say.")
    seeds: tuple[int, ...] = Field(default=(0,), description="Seeds of each setting: a list, or how many from 0 on.")
    metric: str = Field(default="average/validation/accuracy", description="What is compared: NETWORK/SPLIT/METRIC, "
                        "a mean over seeds; NETWORK is average, particles_mean or particles_std.")
    mode: str = Field(default="max", pattern="^(max|min)$", description="max or min.")
    num_samples: int = Field(default=1, gt=0, description="random: draws for each point of the grid; else: settings.")
    at_sparsity: tuple[Sparsity, ...] = Field(default=(), description="Milestones: sparsities at which settings are "
                                              "compared. Default: every round, where all settings share them.")
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    execution: SweepExecution = SweepExecution()
    callbacks: dict[str, Options] = Field(default_factory=dict, description="mlflow, wandb: keyword arguments of Ray "
                                          "Tune's callback.")

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if value < 1:
            raise ValueError("must be a list of seeds, or how many there are")
        if value > MAX_SEEDS:
            raise ValueError(f"must be at most {MAX_SEEDS:,}")
        return tuple(range(value))

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("must list at least one seed, each once and none negative")
        return value

    @field_validator("mode", mode="before")
    @classmethod
    def _mode(cls, value: Any) -> Any:
        if value not in ("max", "min"):
            raise ValueError("must be max or min")
        return value

    @field_validator("at_sparsity")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must increase")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if not self.space:
            raise ValueError("space must have at least one entry, such as pruning.target: {grid: [0.9, 0.95]}")
        owners: dict[str, str] = {}
        for entry, domain in self.space.items():
            for key in _keys_of(entry, domain):
                _check_key(key, entry)
                for other, owner in owners.items():
                    if owner != entry and _overlap(key, other):
                        raise ValueError(f"space.{entry} and space.{owner} both set {max(key, other, key=len)}")
                owners[key] = entry
        adaptive = self.is_adaptive
        grids = [entry for entry, domain in self.space.items() if domain.grid is not None]
        if len(grids) == len(self.space) and not adaptive and self.num_samples > 1:
            raise ValueError("num_samples has no effect where every entry is a grid: each point is run once. List more "
                             "seeds, or use choice, uniform or loguniform")
        if adaptive and grids and (self.search.name in SEARCHES or ":" in self.search.name):
            raise ValueError(f"search.name: {self.search.name} draws values one at a time, but space.{grids[0]} is a "
                             "grid. Use choice in its place")
        varied = self.varied
        if self.compares and varied and not self.at_sparsity:
            what = "scheduler" if self.scheduler.name != "none" else "search"
            raise ValueError(
                f"the {what} compares settings, but {', '.join(varied)} changes the sparsities that they reach: the "
                "densest network would win. Set at_sparsity to sparsities that all settings reach")
        if self.compares and "/test/" in self.metric:
            raise ValueError(f"metric must be measured on validation, because settings are chosen by it, but got "
                             f"{self.metric!r}. The test set is only reported")
        return self

    @property
    def varied(self) -> list[str]:
        """Options of the space on which the sparsities of the rounds depend."""
        found = []
        for entry, domain in self.space.items():
            for key in _keys_of(entry, domain):
                if any(_overlap(key, decides) for decides in DECIDES):
                    found.append(key)
        return found

    @property
    def is_adaptive(self) -> bool:
        """Whether settings depend on the results of earlier ones."""
        return self.search.name != "random"

    @property
    def compares(self) -> bool:
        """Whether a search or a scheduler reads the results while the sweep runs."""
        return self.is_adaptive or self.scheduler.name != "none"


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _keys_of(entry: str, domain: Domain) -> list[str]:
    """The options that an entry of the space sets."""
    groups = domain.groups
    if groups is None:
        return [entry]
    keys: dict[str, None] = {}
    for group in groups.values():
        keys |= dict.fromkeys(group)
    return list(keys)


def _check_key(key: str, entry: str) -> None:
    where = f"space.{entry}" if key == entry else f"space.{entry}, {key}"
    problem = unknown_key(key)
    if problem is not None:
        raise ValueError(f"{where}: {problem}")
    advice = reserved(key)
    if advice is not None:
        raise ValueError(f"{where} cannot be part of a space. {advice}")


def reserved(key: str) -> str | None:
    """What to do instead of sweeping an option that no space may hold; None for any other option."""
    for option, advice in RESERVED.items():
        if _overlap(key, option):
            return advice
    return None


def _overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is a section that holds the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
