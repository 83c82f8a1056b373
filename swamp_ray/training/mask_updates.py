"""At which steps a training changes its mask, and by how much: a frozen value of its program."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import floor
from typing import Any, Literal

from swamp_ray.config.fields import exact
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.sparsity.schedule import survivors_at

Method = Literal["prune", "random", "gradient"]


@dataclass(frozen=True)
class MaskUpdates:
    """The changes of the mask in one training.

    Attributes:
        method: ``prune``: fewer weights at each update (gradual magnitude pruning). ``random``, ``gradient``: each
            layer drops and grows equally many (SET, RigL).
        every: Steps between updates.
        begin: No update before so many finished steps.
        end: prune: so many finished steps are the last update. Others: all updates come before.
        share: random, gradient: share of a layer's kept weights that the first update would exchange at step 0.
        target: prune: sparsity after the last update.
        scope: prune: which weights compete: global, uniform or erk.
        replicas: So many replicas, averaged at each update, train together.
    """

    method: Method
    every: int
    begin: int
    end: int
    share: float = 0.0
    target: float = 0.0
    scope: str = "global"
    replicas: int = 1

    @property
    def needs_gradient(self) -> bool:
        """Whether an update needs a batch's dense gradient; it then takes the place of that batch's step."""
        return self.method == "gradient"

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of finished steps at which the mask changes, increasing."""
        if self.method == "prune":
            before = range(self.begin, self.end, self.every)
            # At the beginning the schedule still has the density of the start.
            return (*(step for step in before if step > self.begin), self.end)
        first = max(1, math.ceil(self.begin / self.every)) * self.every
        return tuple(range(first, self.end, self.every))

    @property
    def last(self) -> int:
        """The number of finished steps at the last update."""
        return self.steps[-1]

    def is_due(self, done: int) -> bool:
        """Whether the mask changes once ``done`` steps are finished."""
        if self.method == "prune":
            if done == self.end:
                return True
            return self.begin < done < self.end and (done - self.begin) % self.every == 0
        return max(1, self.begin) <= done < self.end and done % self.every == 0

    def share_at(self, done: int) -> float:
        """Share of a layer's kept weights that is exchanged: ``a/2 (1 + cos(pi t / T_end))`` (Evci et al., 2020)."""
        return self.share / 2 * (1 + math.cos(math.pi * done / self.end))

    def survivors_at(self, done: int, num_prunable: int, first: int) -> int:
        """How many weights the mask keeps from this update on.

        Zhu and Gupta (2018): the sparsity is ``s_f + (s_i - s_f) (1 - x)^3`` at the share x of the schedule. With it
        the number of weights falls from the first to the last number along the same cubic, in exact arithmetic.

        Args:
            done: Finished steps.
            num_prunable: P.
            first: Weights that the training began with.
        """
        last = survivors_at(num_prunable, self.target, first)
        if done >= self.end:
            return last
        passed = Fraction(max(0, done - self.begin), self.end - self.begin)
        return floor(last + (first - last) * (1 - passed) ** 3 + Fraction(1, 2))

    def density_at(self, done: int) -> float:
        """Density from this update of gradual pruning on, of a training that begins with every weight."""
        passed = min(1.0, max(0, done - self.begin) / max(1, self.end - self.begin))
        return 1 - self.target + self.target * (1 - passed) ** 3

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the recipe; a single replica is not named."""
        fields = asdict(self)
        if self.replicas == 1:
            del fields["replicas"]
        return fields


def mask_updates_of(config: SwampConfig, num_steps: int, steps_per_epoch: int) -> MaskUpdates | None:
    """The changes of the mask in a training of so many steps; None where its mask is fixed.

    Raises:
        UserError: The training is too short for a change and a step after it.
    """
    pruning = config.pruning
    if not config.changes_mask:
        return None
    options = pruning.updates
    every = options.every.steps(steps_per_epoch)
    begin = floor(exact(options.begin) * num_steps + Fraction(1, 2))
    end = floor(exact(options.until) * num_steps + Fraction(1, 2))
    if every < 1:
        raise UserError("the mask must change at most once a step", got=str(options.every),
                        where="pruning.updates.every")
    if not 0 < end < num_steps:
        raise UserError("the training must go on after the last change of the mask, and before the first one",
                        got=f"a last change after step {end} of {num_steps}", where="pruning.updates.until",
                        do="Change it, or train longer with round.length.")
    if every == 1 and pruning.when == "dynamic" and options.grow == "gradient":
        raise UserError("growth by the gradient takes the place of a step, so that there must be steps in between",
                        got=str(options.every), where="pruning.updates.every", do="Set it to at least 2 steps.")
    replicas = config.num_replicas
    if pruning.when == "gradual":
        gradual = MaskUpdates("prune", every, begin, end, target=pruning.target, scope=pruning.scope, replicas=replicas)
        if begin < end and len(gradual.steps) < 2:
            raise UserError("the training must be long enough for two changes of the mask, or all weights go at once",
                            got=f"a change every {every} steps from step {begin} to step {end}",
                            where="pruning.updates.every",
                            do="Lower it, or train longer with round.length; or set pruning.updates.begin equal to "
                               "until, where one change is meant.")
        return gradual
    updates = MaskUpdates(options.grow, every, begin, end, share=options.drop_share, replicas=replicas)
    if not updates.steps:
        raise UserError("the training must be long enough for one change of the mask",
                        got=f"a change every {every} steps from step {begin} to before step {end}",
                        where="pruning.updates.every", do="Lower it, or train longer with round.length.")
    return updates
