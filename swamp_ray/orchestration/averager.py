"""The averaging actor's work: the running mean of a round's particles, and the global mask that follows from it.

The class knows no Ray; the pool wraps it into an actor.
"""

from __future__ import annotations

import math
import time

import numpy as np

from swamp_ray.config import SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.orchestration.messages import AverageSpec
from swamp_ray.orchestration.preparation import State
from swamp_ray.orchestration.worker import STATE_FILE, read_packed
from swamp_ray.sparsity.averaging import OrderedMean
from swamp_ray.sparsity.masks import Layout, emptied_layers, from_bits, layer_densities, to_bits
from swamp_ray.sparsity.packing import Packed, pack_state, to_bytes
from swamp_ray.sparsity.selection import make_score, score_survivors, select
from swamp_ray.storage.arrays import arrays_from_bytes, arrays_to_bytes
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.places import open_place
from swamp_ray.storage.recipes import average_recipe

MASK_FILE = "next_mask.safetensors"


class Averager:
    """Holds one float64 accumulator, whatever the number of particles.

    Args:
        config: The run.
        layout: Prunable weights and the rest.
        storage: Storage root.
    """

    def __init__(self, config: SwampConfig, layout: Layout, storage: str) -> None:
        self.config, self.layout = config, layout
        self.store = ArtifactStore(open_place(storage, config.execution.storage_patience_s))
        self._round: int | None = None
        self._mean = OrderedMean()
        self._added: list[int] = []
        self._squares = 0.0

    def add(self, round_index: int, particle: int, name: str, digest: str, packed: Packed | None) -> None:
        """Let a particle enter the average of its round; particles come in index order.

        Args:
            round_index: A new one starts a new average, and so does a particle that is not after the last one.
            particle: Index of the particle.
            name: Its artifact, read where ``packed`` is None.
            digest: SHA-256 of the payload that must be averaged.
            packed: Its state, if it is still in memory.
        """
        if self._round != round_index or (self._added and particle <= self._added[-1]):
            self._round, self._mean, self._added, self._squares = round_index, OrderedMean(), [], 0.0
        packed = self._read(name, digest) if packed is None else packed
        self._mean.add(packed)
        self._squares += _square_sum(packed.values)
        self._added.append(particle)

    def finish(self, spec: AverageSpec, start: State, mask_bits: np.ndarray) -> str:
        """Store the round's average and, unless it is the last round, the next mask; returns the artifact's name.

        Raises:
            RunError: Other particles were added than the round consists of, a state's support is not the mask, or
                the next mask empties a layer and the config refuses that.
        """
        if self._round != spec.round or tuple(self._added) != spec.particles:
            raise RunError(f"round {spec.round} consists of particles {spec.particles}, but {self._added} "
                           f"of round {self._round} were added")
        began = time.perf_counter()
        mask = from_bits(mask_bits, self.layout.num_prunable)
        average = self._mean.mean()
        if len(average.values) != spec.survivors or int(mask.sum()) != spec.survivors:
            raise RunError(f"round {spec.round} must average {spec.survivors} surviving weights, but the states have "
                           f"{len(average.values)} and the mask {int(mask.sum())}")
        info: dict[str, object] = {
            "particles": list(spec.particles),
            "layer_densities": layer_densities(self.layout, mask),
            "spread": self._spread(average),
        }
        files = {STATE_FILE: to_bytes(average, average_recipe(spec.named))}
        if spec.next_survivors is not None:
            following = self._next_mask(spec, average, start, mask)
            info["emptied_layers"] = self._emptied(following, mask)
            files[MASK_FILE] = arrays_to_bytes({"bits": to_bits(following)})
        info["seconds"] = time.perf_counter() - began
        self.store.put(spec.named.name, files, info)
        return spec.named.name

    def _read(self, name: str, digest: str) -> Packed:
        manifest = self.store.find(name)
        if manifest is None or manifest.files[STATE_FILE].sha256 != digest:
            raise CorruptArtifactError(f"the state {digest[:12]} of particle {name} is not in the storage any more. "
                                       "Run the same command again: it is trained anew")
        return read_packed(self.store, manifest)

    def _next_mask(self, spec: AverageSpec, average: Packed, start: State, mask: np.ndarray) -> np.ndarray:
        assert spec.next_survivors is not None
        pruning = self.config.pruning
        rewind = pack_state(start.parameters, self.layout, mask, drop_outside=True).values
        scores = score_survivors(self.layout, mask, average.values, rewind, make_score(pruning.score, seed=spec.seed))
        return select(self.layout, mask, scores, spec.next_survivors, pruning.scope)

    def _emptied(self, following: np.ndarray, mask: np.ndarray) -> list[str]:
        before = set(emptied_layers(self.layout, mask))
        emptied = [name for name in emptied_layers(self.layout, following) if name not in before]
        if emptied and self.config.pruning.empty_layers == "refuse":
            raise RunError(f"the next mask would leave no weight in {', '.join(emptied)}. Lower pruning.target, set "
                           "pruning.scope to erk or uniform, or allow it with pruning.empty_layers: warn")
        return emptied

    def _spread(self, average: Packed) -> float:
        """Root mean squared distance of the particles to their average, over the surviving weights."""
        variance = self._squares / len(self._added) - _square_sum(average.values)
        return math.sqrt(max(0.0, variance))


def read_mask(store: ArtifactStore, manifest: Manifest) -> np.ndarray | None:
    """Bits of the next mask of a stored average, ``uint8``; None after a last round."""
    if MASK_FILE not in manifest.files:
        return None
    return arrays_from_bytes(store.read(manifest, MASK_FILE))["bits"]


def _square_sum(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)
