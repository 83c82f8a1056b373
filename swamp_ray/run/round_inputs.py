"""What the jobs of a run start from: weights, masks, surviving values. Each goes to the workers once, when needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.method.events import DENSE, MASK, Job
from swamp_ray.run.averager import read_mask
from swamp_ray.run.messages import Executor, Handle, Outcome
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.result_names import Origin, ResultNames
from swamp_ray.run.state import State
from swamp_ray.sparsity.compact import CompactState, compact_state, full_state
from swamp_ray.sparsity.masks import from_bits, to_bits
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.forks import read_fork
from swamp_ray.storage.own_masks import read_own_mask
from swamp_ray.storage.states import read_state, state_digest


@dataclass
class RoundInputs:
    """What the particles of a round share.

    Attributes:
        mask: bool ``[P]``.
        mask_digest: Its name in recipes.
        values_digest: Name of the surviving values, where nothing is rewound; else None.
        trunk: The trunk from which its particles part, once it is trained.
    """

    mask: np.ndarray
    mask_digest: str
    values_digest: str | None = None
    trunk: Outcome | None = None
    _values: CompactState | None = None
    _mask_handle: Handle | None = None
    _values_handle: Handle | None = None
    _fork_handle: Handle | None = None

    def mask_handle(self, executor: Executor) -> Handle:
        """The mask as bits, where the workers can read it."""
        if self._mask_handle is None:
            self._mask_handle = executor.put(to_bits(self.mask))
        return self._mask_handle

    def values_handle(self, executor: Executor) -> Handle | None:
        """The surviving values likewise; None where weights are rewound."""
        if self._values is not None and self._values_handle is None:
            self._values_handle = executor.put(self._values)
        return self._values_handle

    def fork_handle(self, executor: Executor, store: ArtifactStore) -> Handle:
        """Where the trunk has stopped, likewise.

        Raises:
            MissingPayloadError: Its state is not there any more.
            CorruptArtifactError: Its state is not what was written.
        """
        assert self.trunk is not None
        if self._fork_handle is None:
            manifest = store.find(self.trunk.name)
            if manifest is None:
                raise CorruptArtifactError(f"the trunk's result {self.trunk.name} has vanished from the storage")
            self._fork_handle = executor.put(read_fork(store, manifest))
        return self._fork_handle

    def forget_trunk(self) -> None:
        """The trunk has to be trained again."""
        self.trunk = None
        self._fork_handle = None


class Inputs:
    """Starts at the initialisation and a mask of ones, and follows the run.

    Args:
        prepared: The run.
        store: Artifacts of the storage root.
    """

    def __init__(self, prepared: Prepared, store: ArtifactStore) -> None:
        self._prepared = prepared
        self._store = store
        self._start: State | None = prepared.initial
        self._dense: str | None = None
        self._start_handle: Handle | None = None
        self._rounds = {0: self._of(prepared.first_mask)}
        self._first = self._rounds[0]
        self._ended: dict[int, RoundInputs] = {}
        self._whole: RoundInputs | None = None
        if prepared.dense is not None:
            self._whole = self._rounds[0] if prepared.first_mask.all() else self._of(prepared.whole_mask)
        self.start_digest = ResultNames(prepared).first_origin().start

    def of(self, job: Job) -> RoundInputs:
        """What a job shares with its round; the dense phase, which has no mask, often with round 0."""
        if job == DENSE:
            assert self._whole is not None
            return self._whole
        if job == MASK:
            return self._first
        if job.kind != "particle" and job.round in self._ended:
            return self._ended[job.round]
        return self._rounds[job.round]

    def end_with(self, job: Job, outcome: Outcome) -> None:
        """A particle is finished: where its mask has changed, average and evaluation are of the one that it has now.

        Raises:
            CorruptArtifactError: Its mask cannot be read.
        """
        if "mask" not in outcome.info:
            return
        manifest = self._store.find(outcome.name)
        if manifest is None:
            raise CorruptArtifactError(f"the result of {job} has vanished from the storage")
        mask = read_own_mask(self._store, manifest, self._prepared.layout.num_prunable)
        if mask is not None:
            self._ended[job.round] = self._of(mask)

    def origin(self, job: Job) -> Origin:
        """What a job's result is made from, as digests."""
        inputs = self.of(job)
        trunk = None if inputs.trunk is None or job.kind != "particle" else inputs.trunk.digest
        return Origin(self.start_digest, inputs.mask_digest, inputs.values_digest, trunk)

    def lacks_trunk(self, job: Job) -> bool:
        """Whether a job parts from a trunk that is not trained."""
        return (job.kind == "particle" and self._prepared.plan[job.round].has_trunk
                and self._rounds[job.round].trunk is None)

    def values_handle(self, executor: Executor, job: Job) -> Handle | None:
        """What a job starts from in place of the rewind weights; None where it starts from these.

        Raises:
            MissingPayloadError: The state of the trunk that it parts from is not there any more.
            CorruptArtifactError: That state is not what was written.
        """
        inputs = self.of(job)
        if job.kind == "particle" and inputs.trunk is not None:
            return inputs.fork_handle(executor, self._store)
        return inputs.values_handle(executor)

    def rewind_to(self, dense: Outcome) -> None:
        """The dense phase is finished: its weights are the rewind point."""
        self._dense = dense.name
        self._start = None
        self._start_handle = None
        self._whole = None
        self.start_digest = dense.digest

    def train_with(self, bits: np.ndarray) -> None:
        """The mask before training is chosen: it is the first round's."""
        self._rounds[0] = self._of(from_bits(bits, self._prepared.layout.num_prunable))

    def follow(self, index: int, average: Manifest) -> None:
        """A round is averaged: its average holds the next mask, unless it is the last one."""
        bits = read_mask(self._store, average)
        if bits is None:
            return
        following = self._of(from_bits(bits, self._prepared.layout.num_prunable))
        if self._prepared.config.rewind.weights == "none":
            layout = self._prepared.layout
            full = full_state(read_state(self._store, average), layout, self._rounds[index].mask)
            following.values_digest = state_digest(average.files)
            following._values = compact_state(full, layout, following.mask, drop_outside=True)
        self._rounds[index + 1] = following

    def release(self, index: int) -> None:
        """A round is recorded: its mask and values are not needed any more, here and in the object store."""
        del self._rounds[index]
        self._ended.pop(index, None)

    def start_handle(self, executor: Executor, job: Job | None = None) -> Handle:
        """The rewind weights, where the workers can read them; for the dense phase the initialisation."""
        if job == DENSE:
            return executor.put(self._prepared.initial)
        if self._start_handle is None:
            self._start_handle = executor.put(self._start_now())
        return self._start_handle

    def _of(self, mask: np.ndarray) -> RoundInputs:
        return RoundInputs(mask, self._prepared.recipes.mask_digest(mask))

    def _start_now(self) -> State:
        if self._start is None:
            assert self._dense is not None
            manifest = self._store.find(self._dense)
            if manifest is None:
                raise CorruptArtifactError("the dense phase's result has vanished from the storage")
            layout = self._prepared.layout
            dense = read_state(self._store, manifest)
            full = full_state(dense, layout, np.ones(layout.num_prunable, dtype=bool))
            self._start = State(full, self._prepared.initial.buffers)
        return self._start
