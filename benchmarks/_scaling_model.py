"""How a round grows beyond the machine that was measured: seconds and bytes from measured constants and stated links.

Nothing here was measured at that size. Links are taken at their full speed, averaging actors have a link and a core
each, and phases are taken one after the other, as for particles that all end at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from swamp_ray.run.shard import AUTO_ELEMENTS

COUNTS_BYTES = 2 * 65_536 * 8
"""What an averaging actor sends for the threshold of a group of survivors: two passes of 65,536 counts."""
GB = 1e9


@dataclass(frozen=True)
class Constants:
    """Seconds of one core, from a measured row with one averaging actor.

    Attributes:
        add: For a value of a particle.
        close: For a surviving weight.
        mask: For a weight; what averaging actors share among them.
        serial: For a weight; what the first averaging actor does alone.
    """

    add: float
    close: float
    mask: float
    serial: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> Constants:
        """From the medians of a row."""
        phases = {name: found["median"] for name, found in row["phases_s"].items()}
        shared = sum(seconds for name, seconds in phases.items() if name.startswith("mask/"))
        values = row["arriving_bytes"] / 4
        return cls(phases["average"] / values, phases["close"] / row["survivors"], shared / row["weights"],
                   max(0.0, phases["mask"] - shared) / row["weights"])


@dataclass(frozen=True)
class Growth:
    """A round of a large network, without its training.

    Attributes:
        weights: Prunable weights.
        sparsity: Share of them that is pruned.
        particles: N.
        link: Bytes a second of each node.
    """

    weights: float
    sparsity: float
    particles: int
    link: float

    @property
    def actors(self) -> int:
        """Averaging actors, as ``averaging.num_shards: auto`` gives them, but no more than there are chunks."""
        return min(ceil(self.weights / AUTO_ELEMENTS), ceil(self.state_bytes / (4 << 24)))

    @property
    def state_bytes(self) -> float:
        """What a particle sends."""
        return 4 * self.weights * (1 - self.sparsity)

    @property
    def mask_bytes(self) -> float:
        """What goes to each node."""
        return self.weights / 8

    @property
    def slice_bytes(self) -> float:
        """What arrives at each averaging actor in a round."""
        return self.particles * self.state_bytes / self.actors

    def seconds(self, constants: Constants) -> dict[str, float]:
        """Of each phase."""
        values = self.slice_bytes / 4
        return {
            "mask to a node": self.mask_bytes / self.link,
            "states to the actors": self.slice_bytes / self.link,
            "adding": values * constants.add,
            "closing and mask": values / self.particles * constants.close
            + self.weights * (constants.mask / self.actors + constants.serial),
        }


def measured(rows: list[dict[str, Any]], sparsity: float) -> dict[str, Any] | None:
    """The largest row of a sparsity with one averaging actor."""
    found = [row for row in rows if row["sparsity"] == sparsity and row["averaging_actors"] == 1]
    return max(found, key=lambda row: row["weights"], default=None)


def growth(rows: list[dict[str, Any]], weights: float = 1e10, particles: int = 256,
           gbits: tuple[float, ...] = (25, 100)) -> list[dict[str, Any]]:
    """A row for each sparsity that was measured and each link."""
    found = []
    for sparsity in (0.0, 0.9, 0.98):
        if (row := measured(rows, sparsity)) is None:
            continue
        for gbit in gbits:
            one = Growth(weights, sparsity, particles, gbit * GB / 8)
            seconds = one.seconds(Constants.of(row))
            found.append({"sparsity": sparsity, "gbit": gbit, "actors": one.actors, "state_gb": one.state_bytes / GB,
                          "slice_gb": one.slice_bytes / GB, "seconds": seconds, "from": row["weights"]})
    return found
