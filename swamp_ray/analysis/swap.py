"""The masks of two runs, swapped: each mask, and a shuffled one of the same densities, trained in either run's way.

Every cell is a run of its own, of one round: it begins at the rewind point that both runs share, under a mask that is
given, and trains what a round of one of the two runs trains. What is stored already is not trained again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.analysis.rewinding import Side, check_pair, side_of
from swamp_ray.config.reading import with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.launch import one_cluster, run
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.signals import Stopping, handled
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.masks import Layout, split
from swamp_ray.storage.find import config_of
from swamp_ray.storage.place import Place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import ticket_bytes
from swamp_ray.text.metric_names import shown_primary
from swamp_ray.training.arithmetic import form_and_width

Row = dict[str, Any]
SIDES: tuple[str, str] = ("first", "second")


@dataclass(frozen=True)
class Cell:
    """A mask and a way of training it.

    Attributes:
        mask: Whose mask, ``"first"`` or ``"second"``.
        shuffled: Whether it is shuffled within each layer.
        training: Whose training.
    """

    mask: str
    shuffled: bool
    training: str

    @property
    def is_own(self) -> bool:
        """Whether it is a round of one of the runs itself."""
        return self.mask == self.training and not self.shuffled

    def name(self, first: str, second: str, index: int) -> str:
        """Of its run."""
        kind = "-shuffled" if self.shuffled else ""
        return f"{first}-swap-{second}-round-{index}-mask-{self.mask}{kind}-training-{self.training}"


CELLS = tuple(sorted((Cell(mask, shuffled, training) for shuffled in (False, True) for mask in SIDES
                      for training in SIDES), key=lambda cell: not cell.is_own))
"""What the runs themselves have comes first; then the masks are swapped, then shuffled."""


@dataclass(frozen=True)
class Swap:
    """What was found.

    Attributes:
        rows: One a round and cell: metrics of its network by split, their ``difference`` to those of the training's own
            mask, ``trained`` (dense phases and particles that were not in the storage), and the ``seed``.
        effects: One a round, of the test split's primary metric, see :func:`effects`.
        primary: The metric.
        spot: Where both are written.
    """

    rows: list[Row]
    effects: list[Row]
    primary: str
    spot: str


def swap(
    first: RunDir,
    second: RunDir,
    rounds: Sequence[int] = (),
    *,
    execution: Mapping[str, Any] | None = None,
    reporter: Callable[[], Reporter] = Reporter,
    say: Callable[[str], None] = lambda _: None,
    stopping: Stopping | None = None,
) -> Swap:
    """Train every mask in both ways, as far as that is not stored, and compare.

    Args:
        first: A finished run; the cells' runs go into its storage.
        second: One with the same data, network and rewind point.
        rounds: Of the first run; default: the sparsest one whose sparsity the second run has too.
        execution: Options of ``execution`` that replace those of the runs, e.g. ``{"executor": "inline"}``.
        reporter: Makes the watcher of each cell's run.
        say: Told which cell is next.
        stopping: As for :func:`swamp_ray.launch.run`.

    Raises:
        UserError: The runs cannot be swapped, or there is no such round.
        RunError: Something failed for good; the same call goes on.
        Interrupted: The user or the system asked it to stop; the same call goes on.
    """
    values = {f"execution.{key}": value for key, value in (execution or {}).items()}
    config = with_values(config_of(first), values)
    rows: list[Row] = []
    with handled(stopping) as stopping, one_cluster(config.execution) as executor:
        one = side_of(first, values)
        other = side_of(second, values, one.prepared.data if one.config.data == config_of(second).data else None)
        check_pair(one, other)
        pairs = common_rounds(one, other, rounds)
        for number, pair in enumerate(pairs):
            swapped = _Swapped(one, other, pair)
            for place, cell in enumerate(CELLS):
                say(f"{number * len(CELLS) + place + 1}/{len(pairs) * len(CELLS)}: {swapped.words(cell)}")
                done = run(swapped.prepare(cell), reporter(), stopping, executor)
                rows.append(swapped.row(cell, done.rundir))
    primary = shown_primary(one.prepared.task)
    rows = [row | {"difference": _differences(row, rows)} for row in rows]
    found = effects(rows, primary)
    return Swap(rows, found, primary, _write(first, rows, found))


def common_rounds(first: Side, second: Side, asked: Sequence[int]) -> list[tuple[int, int]]:
    """Rounds of both runs that keep equally many weights, as asked for, or the sparsest.

    Raises:
        UserError: There is none, or one that was asked for has no mask or no partner.
    """
    partners = {record["survivors"]: index for index, record in second.records.items()}
    num = first.prepared.layout.num_prunable
    common = [(index, partners[record["survivors"]]) for index, record in first.records.items()
              if record["survivors"] in partners and record["survivors"] < num]
    if not common:
        raise UserError(f"{first.name} and {second.name} have no sparsity in common at which they have masks",
                        where="RUN", do="Give them the same pruning.rate, and let both reach it.")
    there = ", ".join(str(index) for index, _ in common)
    wrong = sorted(set(asked) - {index for index, _ in common})
    if wrong:
        raise UserError(f"{second.name} has no mask of the sparsity that this round of {first.name} has",
                        got=wrong[0], where="--round", do=f"Rounds with a partner: {there}.")
    return [pair for pair in common if pair[0] in asked] if asked else [max(common)]


def shuffled(layout: Layout, mask: np.ndarray, seed: int) -> np.ndarray:
    """The mask with its entries permuted within each layer, bool ``[P]``; layers keep their densities.

    Masks that are shuffled with one seed overlap as much as before.
    """
    found = np.empty_like(mask)
    for index, layer in enumerate(layout.layers):
        generator = np.random.default_rng(derive_seed(seed, "shuffled mask", index))
        found[layer.span] = generator.permutation(mask[layer.span])
    return found


def _write(rundir: RunDir, rows: list[Row], found: list[Row]) -> str:
    """Into the file beside the first run; what it has of other rounds and other partners stays."""
    spot = rundir.analysis("swap")
    new = {(row["second"], row["round"]) for row in rows}
    merged: dict[str, list[Row]] = {}
    for key, added in (("rows", rows), ("effects", found)):
        older: list[Row] = []
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged file is written anew
            older = [row for row in json.loads(spot.read() or b"{}")[key] if (row["second"], row["round"]) not in new]
        merged[key] = [*older, *added]
    spot.write((json.dumps({"run": rundir.name, "analysis": "swap", **merged}, indent=1) + "\n").encode())
    return str(spot)


class _Swapped:
    """A round of either run, and the cells that follow from them."""

    def __init__(self, first: Side, second: Side, pair: tuple[int, int]) -> None:
        self._sides = {"first": first, "second": second}
        self._index = dict(zip(SIDES, pair, strict=True))
        self._layout = first.prepared.layout
        self._masks = {side: self._sides[side].mask(self._index[side]) for side in SIDES}

    def words(self, cell: Cell) -> str:
        """For people."""
        kind = "shuffled mask" if cell.shuffled else "mask"
        return f"{kind} of {self._sides[cell.mask].name}, training of {self._sides[cell.training].name}"

    def prepare(self, cell: Cell) -> SwampConfig:
        """The cell's run: its ticket is written, unless it is there."""
        rundir = self._rundir(cell)
        data = self._ticket(cell)
        if rundir.start.read() != data:
            rundir.start.write(data)
        return self._config(cell, rundir)

    def row(self, cell: Cell, rundir: RunDir) -> Row:
        """What came out of it."""
        record = rundir.read_rounds()[-1]
        side = self._sides[cell.training]
        attempts = (rundir.read_run() or {})["attempts"]
        return {
            "round": self._index["first"], "sparsity": record["sparsity"], "survivors": record["survivors"],
            "first": self._sides["first"].name, "second": self._sides["second"].name, **asdict(cell),
            "mask_of": self._sides[cell.mask].name, "training_of": side.name, "seed": side.config.seed,
            "num_particles": record["num_particles"], "run": rundir.name, "average": record["average"],
            "particles_mean": record["mean"],
            "trained": sum(attempt["trained"] for attempt in attempts),
        }

    @property
    def _place(self) -> Place:
        return self._sides["first"].rundir.place

    def _rundir(self, cell: Cell) -> RunDir:
        name = cell.name(self._sides["first"].name, self._sides["second"].name, self._index["first"])
        return RunDir(self._place, name)

    def _mask(self, cell: Cell) -> np.ndarray:
        mask = self._masks[cell.mask]
        return shuffled(self._layout, mask, self._sides["first"].config.seed) if cell.shuffled else mask

    def _ticket(self, cell: Cell) -> bytes:
        """The rewind weights under the cell's mask."""
        prepared = self._sides["first"].prepared
        mask = self._mask(cell)
        weights = self._sides["first"].rewind.parameters
        parts = split(self._layout, mask)
        state = {name: array * parts[name] if name in parts else array for name, array in weights.items()}
        state |= prepared.initial.buffers
        meta = {"survivors": int(mask.sum()), **prepared.use}
        return ticket_bytes(prepared.tensors(state), {name: torch.tensor(part) for name, part in parts.items()}, meta)

    def _config(self, cell: Cell, rundir: RunDir) -> SwampConfig:
        """The training's own config, from the ticket's mask on, for a single round."""
        side = self._sides[cell.training]
        index = self._index[cell.training]
        take = "all" if side.config.brings_weights else "mask"
        number = index + side.config.first_round
        return with_values(side.config, {
            "name": rundir.name, "storage": self._place.uri, "pruning.target": side.records[index]["sparsity"],
            "start_from": {"path": str(rundir.start.location), "take": take, "round": number},
            **_packing(side)})


def _packing(side: Side) -> dict[str, Any]:
    """As the run was packed, where that was left to a measurement: particles' names depend on it."""
    if side.packing is None or side.config.execution.particles_per_worker != "auto":
        return {}
    form, width = form_and_width(side.packing)
    return {"execution.particles_per_worker": width, "execution.packing": "auto" if form == "single" else form}


def _differences(row: Row, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """A cell's metrics minus those of its training's own mask."""
    own = next(one for one in rows if one["round"] == row["round"] and one["training"] == row["training"]
               and one["mask"] == one["training"] and not one["shuffled"])
    return {split_: {name: value - own["average"][split_][name] for name, value in values.items()}
            for split_, values in row["average"].items()}


def effects(rows: Sequence[Row], metric: str, data_split: str = "test") -> list[Row]:
    """What the mask and the training do to a metric, each as second run minus first, by round.

    ``mask``: mean over both trainings; ``training``: mean over both masks; ``interaction``: how much more the mask does
    under the second training than under the first; ``shuffled``: by mask what its places add to its densities, its
    value minus that of the shuffled one, mean over both trainings. One pair of runs gives no interval: pair several
    seeds' effects, see :func:`swamp_ray.analysis.statistics.paired`.
    """
    found = []
    for index in dict.fromkeys(row["round"] for row in rows):
        own = [row for row in rows if row["round"] == index]
        value = {(row["mask"], row["shuffled"], row["training"]): row["average"][data_split][metric] for row in own}
        by_training = [value["second", False, side] - value["first", False, side] for side in SIDES]
        by_mask = [value[side, False, "second"] - value[side, False, "first"] for side in SIDES]
        places = {side: sum(value[side, False, one] - value[side, True, one] for one in SIDES) / 2 for side in SIDES}
        found.append({"round": index, "sparsity": own[0]["sparsity"], "first": own[0]["first"],
                      "second": own[0]["second"], "metric": metric, "mask": sum(by_training) / 2,
                      "training": sum(by_mask) / 2, "interaction": by_training[1] - by_training[0],
                      "shuffled": places})
    return found
