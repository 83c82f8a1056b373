"""What a round keeps in the nodes' object stores, beforehand, and how many finished states may wait there.

Ray writes to disk what does not fit, which is slow and not an error, so that nothing here refuses a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from swamp_ray.data.samples import ArraySamples, Data
from swamp_ray.data.trees import leaves
from swamp_ray.method.events import RoundPlan
from swamp_ray.run.prepare import Prepared

USABLE = 0.8
"""Share of an object store that is counted on: Ray begins to write to disk at this point."""


@dataclass(frozen=True)
class RoundBytes:
    """What a round of one run keeps in an object store.

    Attributes:
        fixed: Data, rewind weights, masks of this round and the one before it, surviving values where they travel.
        state: A particle's state.
    """

    fixed: int
    state: int

    def needed(self, workers: int, waiting: int) -> int:
        """Bytes on a node on which so many workers hand over their states while as many others wait.

        One more is on its way to the averaging actor.
        """
        return self.fixed + (workers + waiting + 1) * self.state

    def room_for_states(self, store_bytes: float, workers: int, asked: int) -> int:
        """How many states may wait on such a node without being written to disk, at most as many as were asked for."""
        if self.state == 0:
            return asked
        left = USABLE * store_bytes - self.needed(workers, 0)
        return max(0, min(asked, int(left / self.state)))


def round_bytes(prepared: Prepared, plan: RoundPlan) -> RoundBytes:
    """What a round keeps in an object store."""
    state = 4 * (plan.survivors + prepared.layout.num_rest)
    masks = 2 * ceil(prepared.layout.num_prunable / 8)
    values = state if prepared.config.rewind.weights == "none" else 0
    fork = fork_bytes(prepared, plan) if plan.has_trunk else 0
    return RoundBytes(data_bytes(prepared.data) + prepared.initial.num_bytes + masks + values + fork, state)


def fork_bytes(prepared: Prepared, plan: RoundPlan) -> int:
    """What particles part from: the trunk's weights, the optimiser's state, an exponential mean in float64, buffers."""
    config = prepared.config
    state = 4 * (plan.survivors + prepared.layout.num_rest)
    moments = 2 if config.training.optimizer == "adamw" else int(config.training.momentum > 0)
    means = 2 if config.averaging.within == "ema" else 0
    buffers = sum(array.nbytes for array in prepared.initial.buffers.values())
    return state * (1 + moments + means) + buffers


def data_bytes(data: Data) -> int:
    """Bytes of the samples that are held in memory."""
    splits = [part for part in (data.train, data.validation, data.test) if isinstance(part, ArraySamples)]
    return sum(np.asarray(leaf).nbytes for part in splits for leaf in leaves(part.arrays))


def shortage(needed: int, store_bytes: float) -> str | None:
    """What to say where a node's object store is too small for a round; None where it is not."""
    if needed <= USABLE * store_bytes:
        return None
    return (f"a round needs about {needed / 1e9:,.2f} GB in the object store of a node, which has "
            f"{store_bytes / 1e9:,.2f} GB: Ray will write to disk what does not fit, which is slow. Start Ray with a "
            "larger --object-store-memory, or lower execution.num_workers")
