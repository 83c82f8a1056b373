"""How many weights the mask of each round keeps."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, log, log1p

from swamp_ray.errors import UserError

MAX_ROUNDS = 10_000


def plan_survivors(num_prunable: int, rate: float, target: float, start: int | None = None) -> list[int]:
    """How many weights the mask of each round keeps: ``[k_0, ..., k_R]``, in exact rational arithmetic.

    ``k_r = floor(start (1 - rate)^r + 1/2)``; R is the smallest r with ``start (1 - rate)^r <= P (1 - target)``,
    and ``k_R = floor(P (1 - target) + 1/2)``.

    Args:
        num_prunable: P.
        rate: Share of the surviving weights that each round prunes, in (0, 1).
        target: Sparsity of the last round, in [0, 1).
        start: Weights that the first mask keeps; default P.

    Raises:
        UserError: A value is out of range, nothing would be left, the start is sparser than the target, or it
            would take more than 10,000 rounds.
    """
    if not 0 < rate < 1:
        raise UserError("the rate must lie in (0, 1)", got=rate, where="pruning.rate")
    if not 0 <= target < 1:
        raise UserError("the target sparsity must lie in [0, 1)", got=target, where="pruning.target")
    first = num_prunable if start is None else start
    keep = 1 - Fraction(repr(float(rate)))
    goal = num_prunable * (1 - Fraction(repr(float(target))))
    last = floor(goal + Fraction(1, 2))
    if last == 0:
        raise UserError(f"the target must leave at least one of {num_prunable} weights", got=target,
                        where="pruning.target", do="Lower it, or prune a larger network.")
    if last > first:
        raise UserError(f"the target must not be denser than the ticket that is pruned further ({first} of "
                        f"{num_prunable} weights)", got=target, where="pruning.target",
                        do=f"Set it to at least {ceil(10_000 * (1 - Fraction(first, num_prunable))) / 10_000}.")
    if log(last / first) < MAX_ROUNDS * log1p(-rate):
        raise UserError(f"the rate is too small to reach the target in {MAX_ROUNDS} rounds", got=rate,
                        where="pruning.rate", do="Raise it.")
    survivors = [first]
    exact = Fraction(first)
    if last == first:
        return survivors
    while exact > goal:
        exact *= keep
        survivors.append(max(last, floor(exact + Fraction(1, 2))))
    survivors[-1] = last
    return survivors
