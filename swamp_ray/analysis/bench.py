"""The networks of a finished run, and a place where any weights can be measured as the run measured its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.errors import MissingPayloadError, UserError
from swamp_ray.run.prepare import code_of_workers, device_kind, take_up_code
from swamp_ray.run.run_recipes import recipes_of
from swamp_ray.run.state import state_of
from swamp_ray.sparsity.compact import CompactState
from swamp_ray.sparsity.masks import find_prunable, full_values
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.find import config_of
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import lacks_state, read_state, state_digest
from swamp_ray.storage.tickets import Ticket, load_round_ticket
from swamp_ray.training.arithmetic import applied, machine_facts, resolve_arithmetic
from swamp_ray.training.normalisation import StatisticsSource
from swamp_ray.training.normalisation_checks import kept_statistics
from swamp_ray.training.tasks import build_task
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.user_code.blaming import blamed

Point = np.ndarray
"""All weights of a network: float32 ``[P + rest]``, prunable ones first, pruned ones 0."""
Metrics = dict[str, dict[str, float]]
PREDICTION_BATCH = 128


class Bench:
    """A run's networks by round and particle, and its network to measure them in.

    Args:
        rundir: The run; its tickets and the states of its particles are read from its storage.
        data: Its decoded data, where somebody has them.
        device: Kind of device that decides the arithmetic; default: as the config says, or what this machine has.

    Raises:
        UserError: The run has no finished round, or its data are others now.
    """

    def __init__(self, rundir: RunDir, data: Data | None = None, device: str | None = None) -> None:
        self.rundir = rundir
        self.config = config_of(rundir)
        self._records = {record["round"]: record for record in rundir.read_rounds()}
        if not self._records:
            raise UserError(f"the run {rundir.name!r} has no finished round yet", where="RUN")
        code = take_up_code(self.config, data)
        self.data = data or load_data(self.config.data, self.config.task)
        self.code = code_of_workers(code, self.config, self.data)
        _check_data(rundir, self.data)
        model = initial_model(self.config, self.data)
        initial = state_of(model)
        self._buffers = initial.buffers
        self.layout = find_prunable(model, self.config.pruning.include, self.config.pruning.exclude)
        self.arithmetic = resolve_arithmetic(self.config.execution, device or device_kind(self.config), model)
        self.task = build_task(self.config.task)
        kept = kept_statistics(model, self.config, self.data, self.task)
        self._recipes = recipes_of(self.config, self.data, model, self.task, kept, self.layout, self.arithmetic,
                                   machine_facts())
        self._start = self._recipes.state_digest({}, initial.buffers)
        self._store = ArtifactStore(rundir.place)
        self._masks: dict[int, np.ndarray] = {}

    @cached_property
    def trainer(self) -> ParticleTrainer:
        """The network on the device; built when something is measured."""
        return ParticleTrainer(self.config, self.data, self.arithmetic)

    @property
    def rounds(self) -> list[int]:
        """Indices of the finished rounds, in order."""
        return sorted(self._records)

    def sparsity(self, index: int) -> float:
        """Of a round's mask."""
        return float(self._record(index)["sparsity"])

    def mask(self, index: int) -> np.ndarray:
        """A round's mask, bool ``[P]``."""
        if index not in self._masks:
            ticket = self.ticket(index)
            parts = [ticket.masks[layer.name].numpy().reshape(-1) for layer in self.layout.layers]
            self._masks[index] = np.concatenate(parts)
        return self._masks[index]

    def ticket(self, index: int) -> Ticket:
        """A round's ticket."""
        return load_round_ticket(self.rundir, self._record(index))

    def ticket_folder(self, index: int) -> str:
        """The name of the folder that a round's ticket lies in, which says its sparsity."""
        return PurePosixPath(self._record(index)["ticket"]).parent.name

    def average(self, index: int) -> Point:
        """A round's averaged network."""
        return self._point(self._manifest(self._average_name(index), index), index)

    def particles(self, index: int) -> list[Point]:
        """The particles that entered a round's average, in order.

        Raises:
            UserError: Their states were not kept.
        """
        return [self.particle(index, position) for position in range(self.num_particles(index))]

    def num_particles(self, index: int) -> int:
        """How many entered a round's average."""
        return len(self._record(index)["combined"])

    def has_particles(self, index: int) -> bool:
        """Whether the states of all of them are stored."""
        names = [self._particle_name(index, position) for position in range(self.num_particles(index))]
        return not any(self._store.find(name) is None or lacks_state(self._store, name) for name in names)

    def particle(self, index: int, position: int) -> Point:
        """One of them, counted from 0.

        Raises:
            UserError: Its state was not kept.
        """
        return self._point(self._manifest(self._particle_name(index, position), index), index)

    def network_name(self, index: int, position: int | None) -> str:
        """What decides all that can be measured at a particle, or (None) at a round's average: a digest.

        Of its weights and its mask, the data, the code of network and task, and the arithmetic.

        Raises:
            UserError: Its artifact is not in the storage.
        """
        name = self._average_name(index) if position is None else self._particle_name(index, position)
        digest = state_digest(self._manifest(name, index).files)
        return self._recipes.evaluation(digest, self._recipes.mask_digest(self.mask(index)), self._start).name

    def measure(
        self, point: Point, splits: Sequence[str] = ("train", "test"), statistics: StatisticsSource | None = None
    ) -> Metrics:
        """Metrics of any weights on whole splits, unaugmented, with normalisation statistics re-estimated for them.

        Args:
            point: The weights.
            splits: Of the data.
            statistics: Of which training images the normalisation statistics are; default: as the run has them.
        """
        with applied(self.arithmetic):
            self.put(point, statistics)
            return self.trainer.metrics(tuple(splits))

    def predict(self, point: Point, split: str) -> list[Tensor]:
        """What the task's metrics are computed from, one tensor a batch; statistics are re-estimated first."""
        with (applied(self.arithmetic), torch.no_grad(), self.trainer.autocast(),
              blamed("the model or the task failed in evaluation")):
            self.put(point)
            self.trainer.model.eval()
            return [self.trainer.task.predict(self.trainer.model, batch) for batch in self.batches(split)]

    def batches(self, split: str) -> Iterable[Any]:
        """The batches of a split in fixed order, on the device."""
        return self.trainer.evaluation_batches(split, PREDICTION_BATCH)

    def put(self, point: Point, statistics: StatisticsSource | None = None) -> None:
        """Load weights into the network, and re-estimate its statistics. The caller applies the arithmetic."""
        num = self.trainer.layout.num_prunable
        self.trainer.load(CompactState(point[:num], point[num:]), np.ones(num, dtype=bool), self._buffers)
        self.trainer.reestimate(statistics)

    def _average_name(self, index: int) -> str:
        return self._record(index)["artifacts"]["average"]["name"]

    def _particle_name(self, index: int, position: int) -> str:
        record = self._record(index)
        gone = {one["particle"] for one in record.get("dropped", [])}
        names = dict(zip([n for n in range(record["num_particles"]) if n not in gone],
                         record["artifacts"]["particles"], strict=True))
        return names[record["combined"][position]]["name"]

    def _record(self, index: int) -> dict[str, Any]:
        if index not in self._records:
            raise UserError(f"the run {self.rundir.name!r} has no finished round {index}", where="RUN",
                            do=f"There are: {', '.join(map(str, self.rounds))}.")
        return self._records[index]

    def _manifest(self, name: str, index: int) -> Manifest:
        manifest = self._store.find(name)
        if manifest is None:
            raise self._not_kept(index)
        return manifest

    def _point(self, manifest: Manifest, index: int) -> Point:
        try:
            compact = read_state(self._store, manifest)
        except MissingPayloadError as error:
            raise self._not_kept(index) from error
        return np.concatenate([full_values(self.mask(index), compact.values), compact.rest]).astype(np.float32)

    def _not_kept(self, index: int) -> UserError:
        return UserError(f"the states of round {index} of {self.rundir.name!r} are no longer in the storage",
                         do="Look at a round whose states are, with --round; or run it again in another storage root "
                            "with keep.particles: all.", where="RUN")


def mean_point(points: Sequence[Point]) -> Point:
    """The mean of networks, added up in order in float64 and rounded once."""
    total = np.zeros(points[0].shape, dtype=np.float64)
    for point in points:
        total += point
    return (total / len(points)).astype(np.float32)


def _check_data(rundir: RunDir, data: Data) -> None:
    stored = (rundir.read_run() or {}).get("data", {}).get("digest")
    if stored is not None and stored != data.digest:
        raise UserError(f"the run {rundir.name!r} was trained on other data or another split than its config gives now",
                        where="RUN", do="Give it the data back that it was trained on.")


