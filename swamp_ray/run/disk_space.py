"""The bytes that a run writes, before it writes them, against those that are free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swamp_ray.errors import SwampError
from swamp_ray.method.events import RoundPlan
from swamp_ray.run.averager import read_mask
from swamp_ray.run.capacity import pool_size, this_machine
from swamp_ray.run.lookup import find_named
from swamp_ray.run.object_store_memory import fork_bytes
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.result_names import NamedResult, ResultNames
from swamp_ray.sparsity.masks import from_bits
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.own_masks import read_own_mask
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import lacks_state, state_digest, state_files
from swamp_ray.training.program import Program

ARTIFACT_BYTES = 1_600
"""A manifest, and the recipe in the header of a state."""
EPOCH_BYTES = 500
"""What an epoch leaves in manifest, metrics, table, TensorBoard and log."""
RUN_BYTES = 16_000
RUN_FILES = 24
FILES_OF_A_ROUND = 16
FILES_OF_A_TRAINING = 8
"""Files and folders at most: records and logs of a run; average, evaluation and ticket; result, checkpoint and log."""
TENSOR_BYTES = 300
"""Name, shape and padding of one tensor in a file of tensors."""


@dataclass(frozen=True)
class Space:
    """Estimates for one run, shared artifacts included.

    Attributes:
        kept_bytes: What lies in the storage when it is complete.
        peak_bytes: The most that lies there at one time while it works, checkpoints included.
        present_bytes: What of it is there already.
        free_bytes: Free space of the storage; None if that cannot be known.
        num_files: Files that it writes at most, those that are there already included.
        free_inodes: How many more files the storage can hold; None if that cannot be known, or has no bound.
    """

    kept_bytes: int
    peak_bytes: int
    present_bytes: int
    free_bytes: int | None
    num_files: int = 0
    free_inodes: int | None = None

    @property
    def missing_bytes(self) -> int:
        """What is still to be written at the peak."""
        return max(0, self.peak_bytes - self.present_bytes)

    @property
    def fits(self) -> bool:
        """Whether the run can be expected to come to its end."""
        return self.lacks_no_files and (self.free_bytes is None or self.missing_bytes <= self.free_bytes)

    @property
    def lacks_no_files(self) -> bool:
        """Whether the file system can hold as many files, whatever their size; some may be there already."""
        return self.free_inodes is None or self.present_bytes > 0 or self.num_files <= self.free_inodes

    @property
    def advice(self) -> str:
        """What to say where it does not fit."""
        if not self.lacks_no_files:
            return (f"this will not fit: up to {self.num_files:,} files are to be written, and the file system holds "
                    f"{self.free_inodes or 0:,} more at most, whatever their size (its inodes are used up). Remove "
                    "small files there, or choose another storage root")
        return (f"this will not fit: about {self.missing_bytes / 1e6:,.1f} MB are still to be written at the peak, and "
                f"{(self.free_bytes or 0) / 1e6:,.1f} MB are free. Set keep.particles to last or none, make room "
                "(swamp prune-storage), or choose another storage root")


def estimate(prepared: Prepared) -> Space:
    """What a run writes under its policy ``keep``, and what of it is there already."""
    storage = prepared.config.storage
    kept, peak = _kept_and_peak(prepared)
    return Space(kept, peak, _present_bytes(prepared), free_bytes(storage), _num_files(prepared), free_inodes(storage))


def free_inodes(storage: str) -> int | None:
    """How many more files the file system of a storage root can hold; None for an object store, or without a bound."""
    return open_place(storage).free_files()


def _num_files(prepared: Prepared) -> int:
    """Folders count too: each takes an inode."""
    trainings = sum(plan.num_particles + plan.has_trunk for plan in prepared.plan) + (prepared.dense is not None)
    return RUN_FILES + FILES_OF_A_ROUND * len(prepared.plan) + FILES_OF_A_TRAINING * trainings


def free_bytes(storage: str) -> int | None:
    """Free bytes of the file system that a storage root lies on, or will lie on; None for an object store."""
    return open_place(storage).free_bytes()


def state_bytes(prepared: Prepared, survivors: int) -> int:
    """A stored particle or average: 4 x (survivors + other parameters), and what goes with it."""
    return 4 * (survivors + prepared.layout.num_rest) + ARTIFACT_BYTES


def checkpoint_bytes(prepared: Prepared, program: Program) -> int:
    """A checkpoint: whole weights and buffers, the optimiser's state, and in float64 the mean along the training."""
    training = prepared.config.training
    arrays = prepared.initial.parameters.values()
    parameters = sum(array.nbytes for array in arrays)
    moments = 2 if training.optimizer == "adamw" else int(training.momentum > 0)
    means = 0 if program.averaging == "none" else 2
    tensors = len(arrays) * (1 + moments + bool(means) + (training.optimizer == "adamw"))
    mask = 0 if program.mask_updates is None else math.ceil(prepared.layout.num_prunable / 8)
    each = prepared.initial.num_bytes + parameters * (moments + means) + tensors * TENSOR_BYTES + mask
    return program.num_replicas * each + ARTIFACT_BYTES


def _kept_and_peak(prepared: Prepared) -> tuple[int, int]:
    """Bytes that stay, and bytes at the peak. A round's states are deleted once the next round has been trained."""
    policy = prepared.config.keep.particles
    states = [plan.num_particles * state_bytes(prepared, plan.survivors) + trunk_bytes(prepared, plan)
              for plan in prepared.plan]
    permanent = RUN_BYTES
    peak = 0
    if prepared.dense is not None:
        permanent += state_bytes(prepared, prepared.layout.num_prunable) + _epochs(prepared.dense)
        peak = RUN_BYTES + _particle_bytes(prepared, prepared.dense, prepared.layout.num_prunable)
    lags = {"all": len(states), "last": 2, "none": 1}[policy]
    for index, plan in enumerate(prepared.plan):
        before = permanent + sum(states[max(0, index - lags):index])
        permanent += round_bytes(prepared, plan)
        after = permanent + sum(states[max(0, index - lags):index + 1])
        peak = max(peak, before + _working_bytes(prepared, plan), after)
    left = {"all": sum(states), "last": states[-1], "none": 0}[policy]
    # A manifest stays where its state goes.
    trainings = sum(plan.num_particles + plan.has_trunk for plan in prepared.plan)
    left += 0 if policy == "all" else ARTIFACT_BYTES // 2 * trainings
    return permanent + left, max(peak, permanent + left)


def round_bytes(prepared: Prepared, plan: RoundPlan) -> int:
    """What a round leaves for good, its particles' states aside: average, next mask, evaluation, ticket, records."""
    mask = math.ceil(prepared.layout.num_prunable / 8)
    tied = sum(prepared.initial.parameters[name].nbytes for name in prepared.tied.values())
    buffers = sum(array.nbytes for array in prepared.initial.buffers.values())
    tensors = len(prepared.initial.parameters) + len(prepared.initial.buffers)
    ticket = prepared.initial.num_bytes + tied + mask + tensors * TENSOR_BYTES // 2
    epochs = sum(_epochs(prepared.program(plan.index, particle)) for particle in range(plan.num_particles))
    trunk = prepared.trunk(plan.index)
    if trunk is not None:
        epochs += _epochs(trunk)
    changes = prepared.program(plan.index, 0).mask_updates is not None
    next_mask = mask if plan.next_survivors is not None or changes else 0
    return state_bytes(prepared, plan.survivors) + next_mask + buffers + ticket + epochs + 2 * ARTIFACT_BYTES


def _working_bytes(prepared: Prepared, plan: RoundPlan) -> int:
    """The most that a round's particles take up while they train."""
    state = state_bytes(prepared, plan.survivors)
    most = plan.num_particles
    busy = min(most, _side_by_side(prepared, most))
    programs = [prepared.program(plan.index, particle) for particle in range(most)]
    largest = max(_particle_bytes(prepared, one, plan.survivors) for one in programs)
    return trunk_bytes(prepared, plan) + (most - busy) * state + busy * largest


def trunk_bytes(prepared: Prepared, plan: RoundPlan) -> int:
    """The stored state of a round's trunk; 0 without one."""
    if not plan.has_trunk:
        return 0
    moments = len(prepared.initial.parameters) * TENSOR_BYTES
    return fork_bytes(prepared, plan) + moments + ARTIFACT_BYTES


def _particle_bytes(prepared: Prepared, program: Program, survivors: int) -> int:
    """The most that one training run takes up: the old and the new checkpoint coexist for a moment."""
    every = int(prepared.config.execution.checkpoint_every.amount)
    count = (program.num_epochs - 1) // every if every else 0
    checkpoint = checkpoint_bytes(prepared, program)
    state = state_bytes(prepared, survivors)
    return max(min(2, count) * checkpoint, min(1, count) * checkpoint + state)


def _epochs(program: Program) -> int:
    return program.num_epochs * EPOCH_BYTES


def _side_by_side(prepared: Prepared, most: int) -> int:
    execution = prepared.config.execution
    width = prepared.arithmetic.width
    if execution.executor == "inline":
        return width
    if execution.address is not None:
        return most
    try:
        workers = pool_size(execution, prepared.arithmetic.device, prepared.most_packs, [this_machine()],
                            prepared.arithmetic.ranks)
        return min(most, workers * width)
    except SwampError:
        return most


def _present_bytes(prepared: Prepared) -> int:
    """Bytes of the run's artifacts and tickets that are there; what cannot be read counts as missing."""
    config = prepared.config
    total = 0
    try:
        store = ArtifactStore(config.storage)
        rundir = RunDir(config.storage, config.name or "run")
        for manifest in _stored(prepared, store):
            gone = state_files(manifest.files) if lacks_state(store, manifest.name) else []
            total += manifest.num_bytes - sum(manifest.files[file].size for file in gone)
        for ticket in rundir.tickets([plan.sparsity for plan in prepared.plan]):
            total += ticket.place.size(ticket.key) or 0
    except (SwampError, OSError, KeyError):
        pass
    return total


class _Stored:
    """A run's results that are in the storage; which of several particles go on is not worked out beforehand."""

    def __init__(self, prepared: Prepared, store: ArtifactStore) -> None:
        self._prepared = prepared
        self._store = store

    def find(self, result: NamedResult) -> Manifest | None:
        """The manifest of a result."""
        return find_named(self._store, result.named)

    def state(self, result: NamedResult) -> str | None:
        """Digest of a stored state."""
        manifest = self.find(result)
        return None if manifest is None else state_digest(manifest.files)

    def best(self, states: Sequence[str]) -> str | None:
        """Not known."""
        return None

    def soup(self, states: Sequence[str]) -> str | None:
        """Not known."""
        return None

    def own_mask(self, particle: NamedResult) -> str | None:
        """Digest of the stored mask that a training has ended with."""
        manifest = self.find(particle)
        mask = None if manifest is None else read_own_mask(self._store, manifest, self._prepared.layout.num_prunable)
        return None if mask is None else self._prepared.recipes.mask_digest(mask)

    def next_mask(self, result: NamedResult) -> str | None:
        """Digest of a stored mask; None after the last round."""
        manifest = self.find(result)
        bits = None if manifest is None else read_mask(self._store, manifest)
        if bits is None:
            return None
        return self._prepared.recipes.mask_digest(from_bits(bits, self._prepared.layout.num_prunable))


def _stored(prepared: Prepared, store: ArtifactStore) -> Iterator[Manifest]:
    """The run's stored results, as far as their names follow from one another."""
    known = _Stored(prepared, store)
    for result in ResultNames(prepared).in_order(known):
        manifest = known.find(result)
        if manifest is not None:
            yield manifest
