"""A round's average and the global mask that follows from it, put together from the slices that shards hold.

The class knows no Ray; the pool lets it run in the first averaging actor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import RunError
from swamp_ray.run.messages import AverageSpec
from swamp_ray.run.shard import Closed, Shard
from swamp_ray.run.state import State
from swamp_ray.sparsity.bits import layer_counts
from swamp_ray.sparsity.compact import spans
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.selection import Ask, ask_all, select
from swamp_ray.sparsity.thin_layers import thin_layers
from swamp_ray.storage.arrays import arrays_from_bytes, arrays_to_bytes
from swamp_ray.storage.artifacts import ArtifactStore, FileEntry, Manifest
from swamp_ray.structure import NONE

MASK_FILE = "next_mask.safetensors"


class Averager:
    """Closes the rounds of one run.

    Args:
        config: The run.
        layout: Prunable weights and the rest.
        store: Artifacts of the storage root.
    """

    def __init__(self, config: SwampConfig, layout: Layout, store: ArtifactStore) -> None:
        self.config = config
        self.layout = layout
        self.store = store

    def finish(self, spec: AverageSpec, start: State, mask_bits: np.ndarray, shards: Sequence[Ask[Shard]]) -> str:
        """Store the round's average and, unless it is the last round, the next mask; returns the artifact's name.

        Args:
            spec: The round.
            start: The rewind weights.
            mask_bits: The round's mask.
            shards: All slices of the run, to which all particles have been added.

        Raises:
            RunError: Other particles were added than the round consists of, the mask has another size, or the next
                mask empties a layer and the config refuses that.
        """
        began = time.perf_counter()
        counts = layer_counts(self.layout, mask_bits)
        if sum(counts) != spec.survivors:
            raise RunError(f"round {spec.round} must average {spec.survivors} surviving weights, but its mask keeps "
                           f"{sum(counts)}")
        # As weights are pruned, there may be fewer slices than shards.
        shards = shards[:len(spans(spec.survivors + self.layout.num_rest, len(shards)))]
        closed = ask_all(shards, Shard.close, spec.round, spec.particles)
        info: dict[str, object] = {
            "particles": list(spec.particles),
            "layer_densities": {layer.name: count / layer.size
                                for layer, count in zip(self.layout.layers, counts, strict=True)},
            "spread": _spread(closed, len(spec.particles)),
        }
        files: dict[str, FileEntry] = {}
        if spec.next_survivors is not None:
            ask_all(shards, Shard.score, spec.seed, start, mask_bits)
            following = self._select(spec.next_survivors, mask_bits, shards, counts)
            info |= described_mask(self.config, self.layout, following, counts)
            files[MASK_FILE] = self.store.write(spec.named.name, MASK_FILE, arrays_to_bytes({"bits": following}))
        for written in ask_all(shards, Shard.write, spec.named):
            files |= written
        info["seconds"] = time.perf_counter() - began
        self.store.finish(spec.named.name, files, info)
        return spec.named.name

    def _select(
        self, k: int, mask_bits: np.ndarray, shards: Sequence[Ask[Shard]], counts: Sequence[int]
    ) -> np.ndarray:
        """Bits of the next mask, which keeps k weights."""
        pruning = self.config.pruning
        if pruning.structure == NONE:
            return select(self.layout, mask_bits, k, pruning.scope, shards, counts)
        [only] = shards  # units would lie in several
        return only(Shard.keep_units, k, mask_bits)()


def described_mask(config: SwampConfig, layout: Layout, following: np.ndarray, counts: Sequence[int]
                   ) -> dict[str, object]:
    """What is stored of a mask beside its bits: the layers that it empties, and those that it nearly empties.

    Args:
        config: The run.
        layout: The layers.
        following: Bits of the mask.
        counts: Survivors of each layer in the mask before it.

    Raises:
        RunError: The mask empties a layer and the config refuses that.
    """
    left = layer_counts(layout, following)
    both = zip(layout.layers, counts, left, strict=True)
    emptied = [layer.name for layer, before, after in both if before and not after]
    refuse_emptied(config.pruning.empty_layers, emptied)
    thin = thin_layers((layer.name, layer.size, count) for layer, count in zip(layout.layers, left, strict=True))
    return {"emptied_layers": emptied, "thin_layers": thin}


def refuse_emptied(empty_layers: str, emptied: Sequence[str]) -> None:
    """Refuse a mask that empties layers where ``pruning.empty_layers`` says so.

    Raises:
        RunError: It does.
    """
    if emptied and empty_layers == "refuse":
        raise RunError(f"the next mask would leave no weight in {', '.join(emptied)}. Lower pruning.target, set "
                       "pruning.scope to erk or uniform, or allow it with pruning.empty_layers: warn")


def read_mask(store: ArtifactStore, manifest: Manifest) -> np.ndarray | None:
    """Bits of the next mask of a stored average, or of one before training, ``uint8``; None after a last round."""
    if MASK_FILE not in manifest.files:
        return None
    return arrays_from_bytes(store.read(manifest, MASK_FILE))["bits"]


def _spread(closed: Sequence[Closed], count: int) -> float:
    """Root mean squared distance of the particles to their average, over the surviving weights.

    Sums go through the chunks in order, so that it has the same bits however they are divided.
    """
    squares = sum(part for one in closed for part in one.particles)
    average = sum(part for one in closed for part in one.average)
    return math.sqrt(max(0.0, squares / count - average))
