"""The configuration of a run: one typed tree of sections. :mod:`swamp_ray.config.reading` reads and writes it.

:mod:`swamp_ray.config.sections` has the options, :mod:`swamp_ray.config.rules` what they must not say together.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from swamp_ray.config.fields import Section
from swamp_ray.config.rules import contradictions
from swamp_ray.config.sections import (
    AveragingConfig,
    DataConfig,
    DenseConfig,
    ExecutionConfig,
    IdentityConfig,
    KeepConfig,
    ModelConfig,
    ParticleConfig,
    ParticlesConfig,
    PruningConfig,
    RewindConfig,
    RoundConfig,
    StartFrom,
    TaskConfig,
    TrainingConfig,
)


class SwampConfig(Section):
    """One run: its recipe and how it is executed."""

    name: str | None = Field(default=None, description="Name of the run; default: the config file's name.")
    storage: str = Field(
        default="results", description="Root of artifacts and runs: a folder that all nodes share, or s3://, gs:// or az://."
    )
    seed: int = Field(default=0, ge=0, description="Initialisation, batch order, augmentation.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()
    dense: DenseConfig = DenseConfig()
    round: RoundConfig = RoundConfig()
    rewind: RewindConfig = RewindConfig()
    averaging: AveragingConfig = AveragingConfig()
    particle: ParticleConfig = ParticleConfig()
    particles: ParticlesConfig = ParticlesConfig()
    pruning: PruningConfig = PruningConfig()
    start_from: StartFrom | None = None
    execution: ExecutionConfig = ExecutionConfig()
    identity: IdentityConfig = IdentityConfig()
    keep: KeepConfig = KeepConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SwampConfig:
        for problem in contradictions(self):
            raise ValueError(problem)
        return self

    @property
    def brings_weights(self) -> bool:
        """Whether ``start_from`` gives the weights, in place of the initialisation and the dense phase."""
        return self.start_from is not None and self.start_from.take == "all"

    @property
    def first_round(self) -> int:
        """What the first round's seeds and schedule take it for."""
        return 0 if self.start_from is None else self.start_from.round

    @property
    def changes_mask(self) -> bool:
        """Whether the mask changes within the one training."""
        return self.pruning.when in ("gradual", "dynamic")

    @property
    def num_replicas(self) -> int:
        """How many particles such a training averages at each change of its mask; elsewhere 1."""
        return self.particles.count if self.changes_mask else 1

    def recipe(self) -> dict[str, Any]:
        """What decides the weights: the config without names, places, execution, and how networks are measured.

        The data's and a checkpoint's content decide as well; they are compared by their digests. So do the decisions
        that failures led to; each is recorded with the run when it is made, and holds whatever the policy is later.
        """
        return _without_neutral(self.full_recipe())

    def full_recipe(self) -> dict[str, Any]:
        """The recipe with every option spelled out, to be compared with another one option by option."""
        return self.model_dump(mode="json", exclude={
            "name": True, "storage": True, "execution": True, "identity": True, "keep": True,
            # Ranks are part of the arithmetic.
            "particle": True, "averaging": {"num_shards", "statistics"},
            "data": {"root", "download", "loader_workers", "limit_test"},
            "start_from": {"path"}, "particles": set(FAILURE_KEYS),
        })


def _without_neutral(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without those options of later versions that change nothing, so that its digest stays what it was."""
    neutral = SwampConfig().full_recipe()
    for key in NEUTRAL_KEYS:
        section, _, option = key.partition(".")
        if recipe[section][option] == neutral[section][option]:
            del recipe[section][option]
    return recipe


NEUTRAL_KEYS = ("pruning.when", "pruning.before", "pruning.updates", "pruning.structure", "training.sam_rho",
                "particles.fork_at")
"""Options that recipes did not have at first: they are named only where they are not the default."""
FAILURE_KEYS = ("on_failure", "max_reseeds", "min_count", "quorum", "deadline_s")
