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
    first = num_prunable if start is None else start
    last = survivors_at(num_prunable, target, first)
    keep = 1 - Fraction(repr(float(rate)))
    goal = _goal(num_prunable, target)
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


def survivors_at(num_prunable: int, target: float, start: int | None = None) -> int:
    """How many weights a mask of the target sparsity keeps: ``floor(P (1 - target) + 1/2)``, exactly.

    Args:
        num_prunable: P.
        target: The sparsity, in [0, 1).
        start: Weights that the mask is chosen from; default P.

    Raises:
        UserError: The target is out of range, nothing would be left, or the start is sparser than the target.
    """
    if not 0 <= target < 1:
        raise UserError("the target sparsity must lie in [0, 1)", got=target, where="pruning.target")
    first = num_prunable if start is None else start
    last = floor(_goal(num_prunable, target) + Fraction(1, 2))
    if last == 0:
        raise UserError(f"the target must leave at least one of {num_prunable} weights", got=target,
                        where="pruning.target", do="Lower it, or prune a larger network.")
    if last > first:
        raise UserError(f"the target must not be denser than the ticket that is pruned further ({first} of "
                        f"{num_prunable} weights)", got=target, where="pruning.target",
                        do=f"Set it to at least {ceil(10_000 * (1 - Fraction(first, num_prunable))) / 10_000}.")
    return last


def falling_densities(first: int, last: int, steps: int) -> list[int]:
    """How many weights each mask of a schedule keeps, from the one after ``first`` to ``last``.

    Each step keeps the same share of the weights (Tanaka et al., 2020): ``first (last / first)^(i / steps)``, rounded.

    Args:
        first: Weights before the first step, at least ``last``.
        last: Weights after the last step, at least 1.
        steps: How many steps.
    """
    counts = []
    for step in range(1, steps):
        exact = first * (last / first) ** (step / steps)
        counts.append(min(first, max(last, floor(exact + 0.5))))
    return [*counts, last]


def _goal(num_prunable: int, target: float) -> Fraction:
    """The target's share of the weights, exactly."""
    return num_prunable * (1 - Fraction(repr(float(target))))
