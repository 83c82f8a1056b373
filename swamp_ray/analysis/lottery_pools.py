"""Lottery Pools (Yin et al., 2023): a round's ticket, interpolated with those of its neighbours, without training.

The pool begins as the round's averaged network. The other rounds are tried in the order of their distance, the denser
one of two first: with each of some coefficients c the network ``(1 - c) pool + c neighbour`` is pruned to the ticket's
number of weights by magnitude, as the run prunes, and measured on the validation split. The best of them becomes the
pool if it is better there than the pool was. The test split is measured at the start and at the end alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from swamp_ray.analysis.bench import Bench, Point
from swamp_ray.analysis.paths import between
from swamp_ray.sparsity.masks import from_bits, split, to_bits
from swamp_ray.sparsity.selection import ScoredSlice, here, select
from swamp_ray.sparsity.unit_selection import select_units
from swamp_ray.storage.places import Spot
from swamp_ray.storage.ticket_fit import own_names
from swamp_ray.storage.tickets import ticket_bytes
from swamp_ray.structure import parse_structure
from swamp_ray.training.arithmetic import applied

WHAT = "lottery-pools"
COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SPLITS = ("validation", "test")

Member = dict[str, Any]
"""A neighbour that has entered a pool: its ``round``, and its ``coefficient``."""


def neighbours(bench: Bench, index: int) -> list[int]:
    """The other rounds of a run, the nearest first, of two at one distance the denser."""
    others = [other for other in bench.rounds if other != index]
    return sorted(others, key=lambda other: (abs(other - index), other))


def pool_networks(bench: Bench, index: int) -> tuple[tuple[int, int | None], ...]:
    """Averages of all rounds, in the order in which a round's pool reads them."""
    return tuple((one, None) for one in [index, *neighbours(bench, index)])


def lottery_pool(bench: Bench, index: int) -> dict[str, Any]:
    """The pool of a round, as plain values: who entered, and metrics before and after."""
    survivors = int(np.count_nonzero(bench.mask(index)))
    pool = bench.average(index)
    before = bench.measure(pool, SPLITS)
    best = _score(bench, before)
    members: list[Member] = []
    for other in neighbours(bench, index):
        found, coefficient, score = _best_on_line(bench, pool, bench.average(other), survivors)
        # Strictly better: also false where a score is NaN.
        if score > best:
            pool = found
            best = score
            members.append({"round": other, "coefficient": coefficient})
    after = bench.measure(pool, SPLITS) if members else before
    return {"round": index, "sparsity": bench.sparsity(index), "survivors": survivors, "members": members,
            "before": before, "after": after, "ticket": pool_spot(bench, index).key}


def _best_on_line(bench: Bench, pool: Point, other: Point, survivors: int) -> tuple[Point, float, float]:
    """Of the pruned points between two networks the best on validation: its weights, coefficient and score."""
    best = pool
    best_coefficient = 0.0
    best_score = -np.inf
    for coefficient in COEFFICIENTS:
        point, _ = pruned(bench, between(pool, other, coefficient), survivors)
        score = _score(bench, bench.measure(point, ("validation",)))
        if score > best_score:
            best = point
            best_coefficient = coefficient
            best_score = score
    return best, best_coefficient, float(best_score)


def _score(bench: Bench, metrics: dict[str, dict[str, float]]) -> float:
    """The primary metric on validation, higher is better."""
    value = metrics["validation"][bench.task.primary]
    return value if bench.task.higher_is_better else -value


def pruned(bench: Bench, point: Point, survivors: int) -> tuple[Point, np.ndarray]:
    """A network without its prunable weights of smallest magnitude, in the scope and structure of the run.

    Returns:
        The weights, and the mask of those that are left, bool ``[P]``.
    """
    num = bench.layout.num_prunable
    whole = np.ones(num, dtype=bool)
    if survivors == num:
        return point, whole
    pruning = bench.config.pruning
    structure = parse_structure(pruning.structure)
    everything = to_bits(whole)
    scores = np.abs(point[:num])
    if structure is None:
        bits = select(bench.layout, everything, survivors, pruning.scope, [here(ScoredSlice(0, scores))])
    else:
        bits = select_units(bench.layout, everything, survivors, pruning.scope, structure, scores)
    mask = from_bits(bits, num)
    found = point.copy()
    found[:num][~mask] = 0
    return found, mask


def pool_network(bench: Bench, index: int, members: Sequence[Member]) -> tuple[Point, np.ndarray]:
    """The weights and the mask of a round's pool, from who entered it; without any it is the ticket."""
    mask = bench.mask(index)
    survivors = int(np.count_nonzero(mask))
    pool = bench.average(index)
    for member in members:
        other = bench.average(int(member["round"]))
        pool, mask = pruned(bench, between(pool, other, float(member["coefficient"])), survivors)
    return pool, mask


def pool_spot(bench: Bench, index: int) -> Spot:
    """Where the ticket of a round's pool lies, beside the run's analyses."""
    return bench.rundir.analysis_ticket(WHAT, bench.ticket_folder(index))


def keep_pool(bench: Bench, row: dict[str, Any]) -> Spot:
    """Write a pool as a ticket, with normalisation statistics of its own, unless it is there; where it lies."""
    index = int(row["round"])
    ticket = bench.ticket(index)
    point, mask = pool_network(bench, index, row["members"])
    with applied(bench.arithmetic):
        bench.put(point)
    model = bench.trainer.model
    values = model.state_dict()
    own = own_names(model)
    state = dict(ticket.state)
    for name in state:
        if name in own and isinstance(values[own[name]], torch.Tensor):
            state[name] = values[own[name]].detach().cpu().contiguous().clone()
    meta = {key: value for key, value in ticket.meta.items() if key != "average"}
    masks = {name: torch.tensor(part) for name, part in split(bench.layout, mask).items()}
    data = ticket_bytes(state, masks, {**meta, "lottery_pool": row["members"]})
    spot = pool_spot(bench, index)
    if spot.read() != data:
        spot.write(data)
    return spot
