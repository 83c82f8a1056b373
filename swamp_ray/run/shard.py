"""One slice of a round's average, and its part in choosing the next mask.

A state's elements are divided into as many slices as there are averaging actors. No process holds more than its slice,
and what they exchange for the mask are counts. The class knows no Ray; the pool wraps it into an actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.run.state import State
from swamp_ray.sparsity.averaging import OrderedMean, square_sums
from swamp_ray.sparsity.compact import CompactState, chunks, spans
from swamp_ray.sparsity.masks import Layout
from swamp_ray.sparsity.scores import Survivors, checked_scores, make_score
from swamp_ray.sparsity.selection import ScoredSlice
from swamp_ray.sparsity.unit_selection import select_units
from swamp_ray.storage.artifacts import ArtifactStore, FileEntry
from swamp_ray.storage.places import open_place
from swamp_ray.storage.recipes import Named, average_recipe
from swamp_ray.storage.states import read_state, state_digest, state_payloads
from swamp_ray.structure import NONE, parse_structure
from swamp_ray.user_code.importing import is_import_path

AUTO_ELEMENTS = 1 << 28
"""So many elements an averaging actor, unless the config says how many actors there are; it takes about 4 GB."""


def num_shards(config: SwampConfig, layout: Layout) -> int:
    """How many averaging actors a run has; a slice is at least one chunk of a state.

    A score of the user's own sees whole layers, and a structure chooses whole units: all weights are in one place then.
    """
    size = layout.num_prunable + layout.num_rest
    asked = config.averaging.num_shards
    if asked == "auto":
        sees_layers = config.pruning.when == "rounds" and is_import_path(config.pruning.score)
        has_units = config.pruning.structure != NONE
        asked = 1 if sees_layers or has_units else ceil(size / AUTO_ELEMENTS)
    return min(asked, len(chunks(size)))


@dataclass(frozen=True)
class Closed:
    """A slice's average: sums of squares of its surviving weights by chunk, of all particles and of their mean."""

    particles: list[float]
    average: list[float]


class Shard(ScoredSlice):
    """A slice of a run's averages: one float64 accumulator, whatever the number of particles, then its scores.

    Args:
        config: The run.
        layout: Prunable weights and the rest.
        storage: Storage root.
        index: Which of the run's slices it is.
    """

    def __init__(self, config: SwampConfig, layout: Layout, storage: str, index: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.index = index
        self.num_shards = num_shards(config, layout)
        self.store = ArtifactStore(open_place(storage, config.execution.storage_patience_s))
        self.store.place.pin()
        self._round: int | None = None
        self._mean = OrderedMean()
        self._added: list[int] = []
        self._span = (0, 0)
        self._size = 0
        self._average = CompactState(np.zeros(0, np.float32), np.zeros(0, np.float32))

    def add(self, round_index: int, particle: int, name: str, digest: str, size: int,
            compact: CompactState | None) -> None:
        """Let a particle's slice enter the average of its round; particles come in index order.

        Args:
            round_index: A new one starts a new average, and so does a particle that is not after the last one.
            particle: Index of the particle.
            name: Its artifact, read where ``compact`` is None.
            digest: What names the state that must be averaged.
            size: Elements of the whole state.
            compact: Its slice, if that is still in memory.
        """
        if self._round != round_index or (self._added and particle <= self._added[-1]):
            self._mean.clear()
            self._round = round_index
            self._added = []
            self._span = spans(size, self.num_shards)[self.index]
            self._size = size
        self._mean.add(self._read(name, digest) if compact is None else compact)
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
            UserError: A score of the user's own fails.
            RunError: A score is NaN.
        """
        values = self._average.values
        self.first = self._span[0]
        survivors = Survivors(self.layout, mask_bits, values, lambda layer: start.parameters[layer.name], self.first,
                              self._mean.borrow)
        self.scores = checked_scores(make_score(self.config.pruning.score, seed=seed), survivors)

    def keep_units(self, k: int, mask_bits: np.ndarray) -> np.ndarray:
        """The bits of the next mask of the run's structure, where this is the only slice; its scores are released.

        Raises:
            RunError: No mask of the structure keeps k weights.
        """
        pruning = self.config.pruning
        structure = parse_structure(pruning.structure)
        assert structure is not None
        following = select_units(self.layout, mask_bits, k, pruning.scope, structure, self.scores)
        self.scores = np.zeros(0, np.float32)
        return following

    def _read(self, name: str, digest: str) -> CompactState:
        manifest = self.store.find(name)
        if manifest is None or state_digest(manifest.files) != digest:
            raise CorruptArtifactError(f"the state {digest[:12]} of particle {name} is not in the storage any more. "
                                       "Run the same command again: it is trained anew")
        return read_state(self.store, manifest, self._span)
