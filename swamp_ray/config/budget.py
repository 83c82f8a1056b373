"""Lengths of rounds with which a run costs what a sweep's budget says."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from swamp_ray.config.fields import Length, Section, exact
from swamp_ray.config.reading import with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import PruningConfig
from swamp_ray.errors import UserError

MAX_ROUNDS = 10_000


class Budget(Section):
    """Every setting costs the same: its rounds get the lengths that make it so."""

    epochs: float = Field(gt=0.0, description="Epochs of a run, its dense phase included; lengths of rounds are scaled "
                          "alike until the run takes so many.")
    of: Literal["total", "critical"] = Field(
        default="total", description="total: epochs of all particles; critical: epochs one after the other."
    )


def with_budget(config: SwampConfig, budget: Budget) -> SwampConfig:
    """The run with ``round.length``, ``round.retrain_length`` and ``particles.vary.length`` scaled by one factor.

    Steps and trunks have whole numbers: a run misses its budget by at most half a step for each training, and with
    ``particles.fork_at`` by as much as parting between two epochs asks.

    Raises:
        UserError: A length is given in steps, the number of rounds is not known, or the budget leaves nothing to train.
    """
    _check(config)
    once = _epochs(config, 1.0, budget.of)
    # All trainings grow with the factor; the dense phase, and what a continued schedule leaves out, do not.
    growing = _epochs(config, 2.0, budget.of) - once
    factor = (budget.epochs - (once - growing)) / growing
    if factor <= 0:
        raise UserError("the budget leaves no epochs for the rounds", got=budget.epochs, where="budget.epochs",
                        do=f"Raise it: the dense phase takes {once - growing:g}.")
    if config.particles.fork_at and budget.of == "total" and config.round.schedule == "full":
        factor = _whole_trunk(config, budget, factor)
    return with_values(config, _scaled(config, factor))


def _check(config: SwampConfig) -> None:
    lengths = {"dense.length": config.dense.length, "round.length": config.round.length,
               "round.retrain_length": config.round.retrain_length}
    for number, length in enumerate(config.particles.vary.length):
        lengths[f"particles.vary.length[{number}]"] = length
    for option, length in lengths.items():
        if length is not None and length.unit == "steps" and length.amount:
            raise UserError("a sweep's budget needs lengths in epochs", got=str(length), where=option,
                            do="Give it in epochs, or leave budget out.")
    if config.pruning.structure != PruningConfig().structure:
        raise UserError("a sweep's budget cannot be met where pruning.structure decides how many rounds there are",
                        got=config.pruning.structure, where="pruning.structure",
                        do="Leave budget out, and give lengths.")
    if config.start_from is not None:
        raise UserError("a sweep's budget cannot be met from a given start, whose mask decides how many rounds there "
                        "are", where="start_from", do="Leave budget out, and give lengths.")


def _scaled(config: SwampConfig, factor: float) -> Mapping[str, Any]:
    """The options that change, by dotted key."""
    values: dict[str, Any] = {"round.length": str(_times(config.round.length, factor))}
    if config.round.retrain_length is not None:
        values["round.retrain_length"] = str(_times(config.round.retrain_length, factor))
    if config.particles.vary.length:
        values["particles.vary.length"] = [str(_times(one, factor)) for one in config.particles.vary.length]
    return values


def _times(length: Length, factor: float) -> Length:
    return Length(length.amount * factor, length.unit)


def _epochs(config: SwampConfig, factor: float, of: str) -> float:
    """What a run costs whose lengths are multiplied by a factor."""
    has_dense = not config.brings_weights and config.rewind.weights != "init"
    epochs = config.dense.length.amount if has_dense else 0.0
    left_out = config.dense.length.amount if config.rewind.schedule == "continue" else 0.0
    for index, sparsity in enumerate(_sparsities(config)):
        count = config.particles.at(sparsity, 1e-9)
        lengths = [factor * _length(config, index, particle) - left_out for particle in range(count)]
        if of == "critical" and not config.changes_mask:
            epochs += max(lengths)
        else:
            # Of a mask that changes, one worker trains all particles in turn.
            shared = config.particles.fork_at * lengths[0]
            epochs += shared + sum(length - shared for length in lengths)
    return epochs * config.training.gradients_per_step


def _length(config: SwampConfig, index: int, particle: int) -> float:
    """Epochs of a particle's training, as the program of a round has them."""
    round_ = config.round
    varied = config.particles.vary.length
    if varied:
        return varied[particle % len(varied)].amount
    if round_.schedule == "retrain" and config.first_round + index > 0:
        return round_.length.amount / 4 if round_.retrain_length is None else round_.retrain_length.amount
    return round_.length.amount


def _sparsities(config: SwampConfig) -> list[float]:
    """Of each round, but for rounding to whole weights."""
    pruning = config.pruning
    if pruning.when != "rounds":
        return [pruning.target]
    found = [0.0]
    density = Fraction(1)
    while density > 1 - exact(pruning.target) and len(found) < MAX_ROUNDS:
        density *= 1 - exact(pruning.rate)
        found.append(float(1 - density))
    found[-1] = pruning.target
    return found


def _whole_trunk(config: SwampConfig, budget: Budget, factor: float) -> float:
    """The factor near another one with which the budget is met by a trunk of whole epochs."""
    counts = [config.particles.at(sparsity, 1e-9) for sparsity in _sparsities(config)]
    share = config.particles.fork_at
    gradients = config.training.gradients_per_step
    dense = config.dense.length.amount if config.rewind.weights != "init" else 0.0
    rest = budget.epochs / gradients - dense
    near = round(share * factor * config.round.length.amount)
    for trunk in sorted(range(1, 2 * near + 2), key=lambda one: abs(one - near)):
        # Each round takes trunk + count (length - trunk).
        length = (rest + trunk * sum(count - 1 for count in counts)) / sum(counts)
        if length >= 2 and round(share * length) == trunk and trunk < length:
            return length / config.round.length.amount
    return factor
