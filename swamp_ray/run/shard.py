"""One slice of a round's average, and its part in choosing the next mask.

A state's elements are divided into as many slices as there are averaging actors. No process holds more than its slice,
and what they exchange for the mask are counts. The class knows no Ray; the pool wraps it into an actor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.run.prepare import State
from swamp_ray.sparsity.averaging import OrderedMean, square_sums
from swamp_ray.sparsity.bits import between, choose, layer_counts
from swamp_ray.sparsity.compact import Packed, chunks, pack_state, spans
from swamp_ray.sparsity.counting import Threshold, keep, lower_counts, upper_counts
from swamp_ray.sparsity.masks import Layer, Layout, from_bits
from swamp_ray.sparsity.selection import make_score, score_survivors, top_k
from swamp_ray.storage.artifacts import ArtifactStore, FileEntry
from swamp_ray.storage.places import open_place
from swamp_ray.storage.recipes import Named, average_recipe
from swamp_ray.storage.states import read_state, state_digest, state_payloads
from swamp_ray.user_code.importing import is_import_path

AUTO_ELEMENTS = 1 << 28
"""So many elements an averaging actor, unless the config says how many actors there are; it takes about 4 GB."""


def num_shards(config: SwampConfig, layout: Layout) -> int:
    """How many averaging actors a run has; a slice is at least one chunk of a state.

    A score of the user's own sees whole layers, and so all weights are in one place.
    """
    size = layout.num_prunable + layout.num_rest
    asked = config.averaging.num_shards
    if asked == "auto":
        asked = 1 if is_import_path(config.pruning.score) else ceil(size / AUTO_ELEMENTS)
    return min(asked, len(chunks(size)))


@dataclass(frozen=True)
class Group:
    """Survivors ``first`` to ``last - 1``, of which the next mask keeps ``k``."""

    first: int
    last: int
    k: int


@dataclass(frozen=True)
class Closed:
    """A slice's average: sums of squares of its surviving weights by chunk, of all particles and of their mean."""

    particles: list[float]
    average: list[float]


class Shard:
    """Holds one float64 accumulator of its slice, whatever the number of particles.

    Args:
        config: The run.
        layout: Prunable weights and the rest.
        storage: Storage root.
        index: Which of the run's slices it is.
    """

    def __init__(self, config: SwampConfig, layout: Layout, storage: str, index: int = 0) -> None:
        self.config, self.layout, self.index = config, layout, index
        self.num_shards = num_shards(config, layout)
        self.store = ArtifactStore(open_place(storage, config.execution.storage_patience_s))
        self.store.place.pin()
        self._round: int | None = None
        self._mean = OrderedMean()
        self._added: list[int] = []
        self._span, self._size = (0, 0), 0
        self._average = Packed(np.zeros(0, np.float32), np.zeros(0, np.float32))
        self._scores = np.zeros(0, np.float32)

    def add(self, round_index: int, particle: int, name: str, digest: str, size: int, packed: Packed | None) -> None:
        """Let a particle's slice enter the average of its round; particles come in index order.

        Args:
            round_index: A new one starts a new average, and so does a particle that is not after the last one.
            particle: Index of the particle.
            name: Its artifact, read where ``packed`` is None.
            digest: What names the state that must be averaged.
            size: Elements of the whole state.
            packed: Its slice, if that is still in memory.
        """
        if self._round != round_index or (self._added and particle <= self._added[-1]):
            self._mean.clear()
            self._round, self._added = round_index, []
            self._span, self._size = spans(size, self.num_shards)[self.index], size
        self._mean.add(self._read(name, digest) if packed is None else packed)
        self._added.append(particle)

    def close(self, round_index: int, particles: Sequence[int]) -> Closed:
        """Compute the slice's average.

        Raises:
            RunError: Other particles were added than the round consists of.
        """
        if self._round != round_index or self._added != list(particles):
            raise RunError(f"round {round_index} consists of particles {tuple(particles)}, but {self._added} "
                           f"of round {self._round} were added")
        last = self._average.values  # nobody reads the last round's average any more
        self._average = self._mean.mean(last if last.base is None else last.base)
        closed = Closed(self._mean.squares, square_sums(self._average.values))
        self._round = None
        self._mean.clear()
        return closed

    def write(self, named: Named) -> dict[str, FileEntry]:
        """Store the slice's average; the payloads by file name."""
        payloads = state_payloads(self._average, average_recipe(named), self._span[0], self._size)
        return {file: self.store.write(named.name, file, data) for file, data in payloads}

    def score(self, seed: int, start: State, mask_bits: np.ndarray) -> None:
        """Compute the scores of the slice's survivors.

        Raises:
            RunError: A score is NaN.
        """
        self._scores = self._make_scores(seed, start, mask_bits)
        if self._scores.size and np.isnan(self._scores.max()):
            raise RunError("a score is NaN")

    def upper_counts(self, group: Group) -> np.ndarray:
        """How many scores of a group have each upper half of their bits, int64 ``[65536]``."""
        return upper_counts(self._of(group))

    def lower_counts(self, group: Group, upper: int) -> np.ndarray:
        """How many scores of a group with this upper half have each lower half, int64 ``[65536]``."""
        return lower_counts(self._of(group), upper)

    def choose(
        self, groups: Sequence[Group], thresholds: Sequence[Threshold] | None, mask_bits: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """The slice's part of the next mask: where it begins in the mask's bytes, and its bytes.

        Args:
            groups: All survivors, in order.
            thresholds: For each group; None where this is the only slice and can tell by itself.
            mask_bits: The present mask.
        """
        if thresholds is None:
            parts = [top_k(self._of(group), group.k) for group in groups]
        else:
            parts = [keep(self._of(group), one) for group, one in zip(groups, thresholds, strict=True)]
        self._scores = np.zeros(0, np.float32)
        chosen = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.bool_), *parts])
        return choose(mask_bits, self._span[0], chosen)

    def _of(self, group: Group) -> np.ndarray:
        """Those of a group's scores that lie in the slice; a view."""
        first = self._span[0]
        return self._scores[max(0, group.first - first):max(0, group.last - first)]

    def _read(self, name: str, digest: str) -> Packed:
        manifest = self.store.find(name)
        if manifest is None or state_digest(manifest.files) != digest:
            raise CorruptArtifactError(f"the state {digest[:12]} of particle {name} is not in the storage any more. "
                                       "Run the same command again: it is trained anew")
        return read_state(self.store, manifest, self._span)

    def _make_scores(self, seed: int, start: State, mask_bits: np.ndarray) -> np.ndarray:
        values, name = self._average.values, self.config.pruning.score
        if name == "magnitude":
            return np.abs(values, out=self._mean.borrow(values.size))
        if name == "movement":
            rewind = self._of_survivors(mask_bits, lambda layer: start.parameters[layer.name].reshape(-1))
            return np.abs(values - rewind)
        if name == "random":
            generator = torch.Generator().manual_seed(seed)
            return self._of_survivors(mask_bits, lambda layer: torch.rand(layer.size, generator=generator).numpy())
        mask = from_bits(mask_bits, self.layout.num_prunable)
        rewind = pack_state(start.parameters, self.layout, mask, drop_outside=True).values
        return score_survivors(self.layout, mask, values, rewind, make_score(name, seed=seed))

    def _of_survivors(self, mask_bits: np.ndarray, of_layer: Callable[[Layer], np.ndarray]) -> np.ndarray:
        """Values of whole layers at the slice's survivors, float32; one layer at a time is held."""
        first, last = self._span[0], self._span[0] + self._average.values.size
        parts = [np.zeros(0, np.float32)]
        before = 0
        for layer, count in zip(self.layout.layers, layer_counts(self.layout, mask_bits), strict=True):
            values = of_layer(layer)
            if before < last and first < before + count:
                kept = values[between(mask_bits, layer.offset, layer.offset + layer.size)]
                parts.append(kept[max(0, first - before):last - before])
            before += count
        return np.concatenate(parts)
