"""Runs that begin at one rewind point: what two of them have in common, and what forbids to compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swamp_ray.config.reading import differences, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import MissingPayloadError, UserError
from swamp_ray.launch import device_of
from swamp_ray.method.events import DENSE
from swamp_ray.on_ray.choose_packing import recorded_packing
from swamp_ray.on_ray.sending import sendable
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.result_names import ResultNames
from swamp_ray.run.state import State
from swamp_ray.sparsity.compact import full_state
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.find import config_of
from swamp_ray.storage.run_folder import RunDir, check_run_record
from swamp_ray.storage.states import read_state
from swamp_ray.storage.tickets import load_round_ticket


@dataclass(frozen=True)
class Side:
    """A run with finished rounds, prepared as it would be now.

    Attributes:
        rundir: Its folder.
        config: As it was run, with the caller's options.
        prepared: Its data, network and names.
        records: Of its finished rounds, by index.
        rewind: The weights that every round begins at, and the initial buffers.
    """

    rundir: RunDir
    config: SwampConfig
    prepared: Prepared
    records: dict[int, dict[str, Any]]
    rewind: State

    @property
    def name(self) -> str:
        """Of the run."""
        return self.rundir.name

    @property
    def packing(self) -> str | None:
        """In which form, and how many at a time, its particles were trained."""
        return recorded_packing(self.rundir)

    def mask(self, index: int) -> np.ndarray:
        """A round's mask, bool ``[P]``."""
        ticket = load_round_ticket(self.rundir, self.records[index])
        return np.concatenate([ticket.masks[layer.name].numpy().reshape(-1) for layer in self.prepared.layout.layers])


def side_of(rundir: RunDir, values: Mapping[str, Any], data: Data | None = None) -> Side:
    """Read a run.

    Args:
        rundir: Its folder.
        values: Options by dotted key that replace its own.
        data: Its decoded data, where somebody has them.

    Raises:
        UserError: It has no finished round or no rewind point, its data are others now, or its rewind weights would
            have other names: they were trained under another arithmetic, or with other code.
    """
    config = with_values(config_of(rundir), values)
    records = {record["round"]: record for record in rundir.read_rounds()}
    if not records:
        raise UserError(f"the run {rundir.name!r} has no finished round yet", where="RUN")
    if config.rewind.weights == "none":
        raise UserError(f"the rounds of {rundir.name!r} go on from the last average, so there is no rewind point at "
                        "which another mask could begin", got="rewind.weights: none", where="RUN")
    prepared = sendable(prepare(config, device_of(config), data))
    _check_as_then(rundir, prepared)
    return Side(rundir, config, prepared, records, _rewind_point(rundir, prepared))


def _check_as_then(rundir: RunDir, prepared: Prepared) -> None:
    recorded = rundir.read_run() or {}
    check_run_record(recorded, rundir.run_json)
    if recorded.get("data", {}).get("digest") not in (None, prepared.data.digest):
        raise UserError(f"the run {rundir.name!r} was trained on other data or another split than its config gives now",
                        where="RUN", do="Give it the data back that it was trained on.")
    now = {key: value for key, value in prepared.arithmetic.as_dict().items() if key != "packing"}
    then = {key: value for key, value in recorded.get("arithmetic", now).items() if key != "packing"}
    changed = differences(then, now)
    if changed:
        raise UserError(f"the run {rundir.name!r} was trained under another arithmetic, so its rewind weights and its "
                        "rounds would be trained anew:\n  " + "\n  ".join(changed) + "\n", where="RUN",
                        do="Work on a machine with the device and the versions that the run had.")


def _rewind_point(rundir: RunDir, prepared: Prepared) -> State:
    if prepared.dense is None:
        return prepared.initial
    recorded = [entry["name"] for entry in rundir.read_results() if entry["kind"] == "dense"]
    names = ResultNames(prepared)
    named = names.training(DENSE, names.first_origin()).named
    if recorded and not set(named.names) & set(recorded):
        raise UserError(f"the dense phase of {rundir.name!r} has another name now: its model or its task is other code",
                        where="RUN", do="Give it the code back that it was trained with.")
    store = ArtifactStore(rundir.place)
    try:
        # The last that was noted is the one that was used: others diverged, or are another version's name for it.
        names = reversed(recorded) if recorded else named.names
        manifest = next(filter(None, map(store.find, names)), None)
        if manifest is None:
            raise MissingPayloadError("it is not in the storage")
        full = full_state(read_state(store, manifest), prepared.layout, prepared.whole_mask)
        return State(full, prepared.initial.buffers)
    except MissingPayloadError as error:
        raise UserError(f"the rewind weights of {rundir.name!r} are no longer in the storage", where="RUN",
                        do="Run it again; its dense phase is trained anew.") from error


def check_pair(first: Side, second: Side) -> None:
    """Refuse two runs that do not differ in masks and training alone.

    Raises:
        UserError: Other data, another network or task, other prunable tensors, or another rewind point.
    """
    both = f"{first.name} and {second.name}"
    if first.rundir.spot().location == second.rundir.spot().location:
        raise UserError("a run cannot be swapped with itself", got=first.name, where="RUN")
    for key, what in (("model", "networks"), ("task", "tasks")):
        old, new = (side.config.model_dump(mode="json")[key] for side in (first, second))
        changed = differences(old, new, f"{key}.")
        if changed:
            raise UserError(f"{both} have different {what}:\n  " + "\n  ".join(changed) + "\n", where="RUN")
    one = first.prepared
    other = second.prepared
    if one.data.digest != other.data.digest:
        raise UserError(f"{both} have different data or splits", where="RUN",
                        do="Runs to be swapped need the same data section.")
    if one.layout != other.layout:
        raise UserError(f"{both} prune different tensors", where="RUN",
                        got=f"{one.layout.num_prunable:,} and {other.layout.num_prunable:,} weights",
                        do="Give them the same pruning.include and pruning.exclude.")
    if _digest(first) != _digest(second):
        raise UserError(f"{both} do not begin at the same rewind point", where="RUN",
                        do="Give them the same seed, dense phase, batch size and optimiser.")


def _digest(side: Side) -> str:
    return side.prepared.recipes.state_digest(side.rewind.parameters, side.rewind.buffers)
