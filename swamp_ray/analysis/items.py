"""How an analysis is divided into pieces of work that can be done anywhere, in any order, and put together again.

A piece has a name that follows from everything that decides its figures. What is stored under it is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from swamp_ray.analysis.bench import Bench, mean_point
from swamp_ray.analysis.paths import NUM_POINTS, Line, grid, line
from swamp_ray.analysis.sharpness import BATCH, NUM_DIRECTIONS, NUM_SAMPLES, SEED, longest_s, sharpness
from swamp_ray.errors import UserError
from swamp_ray.storage.names import name_of
from swamp_ray.user_code.blaming import blamed
from swamp_ray.version import __version__

Row = dict[str, Any]
Networks = tuple[tuple[int, int | None], ...]
"""Each by its round and its position among the particles, or None for the average."""
FORMAT = 1
"""To be raised when a change of the code alters figures."""
SPLITS = ("train", "test")
MAX_PAIRS = 6
"""Pairs of particles a round whose lines are measured: all of up to four particles."""
GRID = 15
MIDDLE = -1
"""In place of a row of the grid: what else is said of the plane."""


@dataclass(frozen=True)
class Item:
    """One piece of work.

    Attributes:
        what: The analysis.
        round: r.
        text: For people.
        settings: Plain values that say what of the round, and how, is measured.
        networks: Of which networks.
    """

    what: str
    round: int
    text: str
    settings: dict[str, Any]
    networks: Networks

    def key(self, bench: Bench) -> str:
        """The name of its figures, 64 hex digits."""
        return name_of("analysis", {
            "code": [__version__, FORMAT], "what": self.what, "round": self.round, "settings": self.settings,
            "networks": [bench.network_name(*network) for network in self.networks]})


@dataclass(frozen=True)
class Divided:
    """An analysis in pieces.

    Attributes:
        items: The pieces for some rounds, in the order of rows.
        measure: The figures of one, as plain values.
        gather: Rows from the figures of pieces, in order; what is not complete gives no row.
        longest_s: Seconds that a piece takes at most in this process; None where pieces are short.
    """

    items: Callable[[Bench, Sequence[int]], list[Item]]
    measure: Callable[[Bench, Item], Any]
    gather: Callable[[Bench, Sequence[Item], Sequence[Any]], list[Row]]
    longest_s: Callable[[Bench, Item], float] | None = None


def by_round(what: str, measure: Callable[[Bench, int], list[Row]], text: str,
             networks: Callable[[Bench, int], Networks] | None = None, **settings: Any) -> Divided:
    """An analysis whose pieces are rounds.

    Args:
        what: Its name.
        measure: Gives the rows of a round.
        text: What is measured of a round, for people.
        networks: Which of a round's networks are measured; default: all particles and the average.
        settings: Plain values besides them that decide the rows.
    """

    def items(bench: Bench, rounds: Sequence[int]) -> list[Item]:
        return [Item(what, index, f"round {index}: {text}", settings, (networks or all_networks)(bench, index))
                for index in rounds]

    return Divided(items, lambda bench, item: measure(bench, item.round),
                   lambda _bench, _items, parts: [row for part in parts for row in part])


def all_networks(bench: Bench, index: int) -> Networks:
    """A round's particles and its average."""
    return (*((index, position) for position in range(bench.num_particles(index))), (index, None))


def stored_networks(bench: Bench, index: int) -> Networks:
    """The same, or the average alone where the particles' states are gone."""
    return all_networks(bench, index) if bench.has_particles(index) else ((index, None),)


def _rows(_bench: Bench, _items: Sequence[Item], parts: Sequence[Any]) -> list[Row]:
    return list(parts)


# Lines between particles of a round, and between the averages of successive rounds


def _lines(bench: Bench, rounds: Sequence[int]) -> list[Item]:
    found = []
    for index in rounds:
        pairs = list(combinations(range(bench.num_particles(index)), 2))[:MAX_PAIRS]
        found += [_line_item("particles", index, (f"particle {a}", f"particle {b}"), ((index, a), (index, b)))
                  for a, b in pairs]
        if index + 1 in rounds:
            names = (f"average of round {index}", f"average of round {index + 1}")
            found.append(_line_item("rounds", index, names, ((index, None), (index + 1, None))))
    return found


def _line_item(kind: str, index: int, names: tuple[str, str], ends: Networks) -> Item:
    text = f"round {index}: line from {names[0]} to {names[1]}"
    return Item("connectivity", index, text, {"kind": kind, "names": list(names), "points": NUM_POINTS}, ends)


def _measure_line(bench: Bench, item: Item) -> Row:
    first, second = (_network(bench, *network) for network in item.networks)
    check_loss(bench)
    found = line(bench.measure, first, second, item.settings["points"])
    names = item.settings["names"]
    return {"kind": item.settings["kind"], "round": item.round, "sparsity": bench.sparsity(item.round),
            "first": names[0], "second": names[1], "positions": list(found.positions), **_along(found)}


def check_loss(bench: Bench) -> None:
    """Refuse a run whose task gives no loss outside of training.

    Raises:
        UserError: It is one.
    """
    if not bench.trainer.gives_loss:
        raise UserError("this is measured by the loss, and the task's loss cannot be computed outside of training",
                        got=bench.config.task.name, where="task.name",
                        do="Let loss(model, batch) work in evaluation mode without gradients, or metrics give 'loss'.")


def _network(bench: Bench, index: int, position: int | None) -> Any:
    return bench.average(index) if position is None else bench.particle(index, position)


def _along(found: Line) -> Row:
    """Values and barriers of the metrics of which less is better."""
    names = ["loss", *(["error"] if "accuracy" in found.metrics[0]["test"] else [])]
    return {"values": {split: {name: found.values(split, name).tolist() for name in names} for split in SPLITS},
            "barrier": {split: {name: found.barrier(split, name) for name in names} for split in SPLITS}}


# The plane through the first three particles of a round


def _plane_rows(bench: Bench, rounds: Sequence[int]) -> list[Item]:
    found = []
    for index in rounds:
        if bench.num_particles(index) < 3:
            continue
        corners = ((index, 0), (index, 1), (index, 2))
        for row in (MIDDLE, *range(GRID)):
            part = "average" if row == MIDDLE else f"row {row + 1} of {GRID}"
            text = f"round {index}: {part} of the plane"
            found.append(Item("landscape", index, text, {"points": GRID, "row": row}, corners))
    if not found:
        raise UserError("a plane needs three particles, and no round has as many", where="RUN",
                        do="Analyse a run with particles.count of 3 or more.")
    return found


def _measure_plane_row(bench: Bench, item: Item) -> Row:
    networks = [_network(bench, *network) for network in item.networks]
    check_loss(bench)
    points = grid(networks, item.settings["points"])
    if item.settings["row"] == MIDDLE:
        middle = bench.measure(mean_point(networks))
        return {"corners": points.corners.tolist(), "first": points.first.tolist(), "second": points.second.tolist(),
                "at_the_average": {split: middle[split]["loss"] for split in SPLITS}}
    found = [bench.measure(point) for point in points.row(item.settings["row"])]
    return {split: [one[split]["loss"] for one in found] for split in SPLITS}


def _gather_planes(bench: Bench, items: Sequence[Item], parts: Sequence[Any]) -> list[Row]:
    rows: dict[int, Row] = {}
    for item, part in zip(items, parts, strict=True):
        if item.settings["row"] == MIDDLE:
            rows[item.round] = {"round": item.round, "sparsity": bench.sparsity(item.round), **part,
                                "loss": {split: [] for split in SPLITS}}
        elif item.round in rows:
            for split in SPLITS:
                rows[item.round]["loss"][split].append(part[split])
    return [row for row in rows.values() if all(len(found) == GRID for found in row["loss"].values())]


# Curvature at each round's first particle and at its average


def _networks(bench: Bench, rounds: Sequence[int]) -> list[Item]:
    settings = {"samples": NUM_SAMPLES, "directions": NUM_DIRECTIONS, "batch": BATCH, "seed": SEED}
    return [Item("curvature", index, f"round {index}: curvature at {name}", {"network": name, **settings},
                 ((index, position),))
            for index in rounds for name, position in (("particle 0", 0), ("average", None))]


def _measure_curvature(bench: Bench, item: Item) -> Row:
    [network] = item.networks
    with blamed("the curvature needs second derivatives of the task's loss, which cannot be computed", "task.name"):
        found = sharpness(bench, item.round, _network(bench, *network), item.settings["samples"],
                          item.settings["directions"])
    return {"round": item.round, "sparsity": bench.sparsity(item.round), "network": item.settings["network"],
            **found.as_dict()}


def _longest_curvature_s(bench: Bench, item: Item) -> float:
    [network] = item.networks
    with blamed("the curvature needs second derivatives of the task's loss, which cannot be computed", "task.name"):
        return longest_s(bench, item.round, _network(bench, *network), item.settings["samples"],
                         item.settings["directions"])


connectivity = Divided(_lines, _measure_line, _rows)
landscape = Divided(_plane_rows, _measure_plane_row, _gather_planes)
curvature = Divided(_networks, _measure_curvature, _rows, _longest_curvature_s)
