"""Stored results by all names that they may have, and the metrics of trainings that were measured in another way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.run.messages import JobSpec, Outcome
from swamp_ray.storage.artifacts import RESULT, ArtifactStore, Manifest
from swamp_ray.storage.recipes import Named
from swamp_ray.storage.states import state_digest

Metrics = dict[str, dict[str, float]]


def find_named(store: ArtifactStore, named: Named, slot: str = RESULT) -> Manifest | None:
    """What lies under the first of a result's names under which there is something.

    Raises:
        CorruptArtifactError: Its manifest is not what was written.
        RunError: The storage could not be read.
    """
    return next(every_named(store, named, slot), None)


def every_named(store: ArtifactStore, named: Named, slot: str = RESULT) -> Iterator[Manifest]:
    """What lies under each of a result's names, the present one first."""
    for name in named.names:
        manifest = store.find(name, slot)
        if manifest is not None:
            yield manifest


def discard_named(store: ArtifactStore, named: Named, slot: str) -> None:
    """Remove a slot under all names of a result."""
    for name in named.names:
        store.discard(name, slot)


def is_whole(store: ArtifactStore, name: str) -> bool:
    """Whether a stored result is there, and all of it is what was written."""
    try:
        manifest = store.find(name)
        if manifest is None:
            return False
        for file in manifest.files:
            store.read(manifest, file)
    except CorruptArtifactError:
        return False
    return True


def outcome_of(manifest: Manifest, trained_epochs: int = 0, num_pieces: int = 0) -> Outcome:
    """The outcome that a stored result stands for."""
    return Outcome(manifest.name, state_digest(manifest.files), manifest.info, trained_epochs, num_pieces)


def is_measured_alike(spec: JobSpec, name: str, info: Mapping[str, Any]) -> bool:
    """Whether the metrics that are stored with a training are those that the job asks for.

    Args:
        item: The job.
        name: The name under which the training was found.
        info: What its manifest says.
    """
    if spec.measurement is None:
        return True
    return spec.named.measured_with(name, info) == spec.measurement.measured


def evaluation_of(spec: JobSpec, state: str) -> Named:
    """The name of the metrics that a job asks for of a stored training, given the digest of its state."""
    assert spec.measurement is not None
    return spec.measurement.named(state)


def measured_anew(spec: JobSpec, outcome: Outcome, evaluation: str, metrics: Metrics) -> Outcome:
    """A stored training with metrics that were measured for it later.

    What it measured with the statistics that training left cannot be measured again: it stays only where it is of the
    same samples.

    Args:
        item: The job.
        outcome: As the training was stored.
        evaluation: Name of the metrics' own artifact.
        metrics: By split and name.
    """
    assert spec.measurement is not None
    measured = spec.measurement.measured
    before = spec.named.measured_with(outcome.name, outcome.info) or {}
    info = outcome.info | {"metrics": metrics, "measured": measured, "evaluation": evaluation}
    if before.get("data") != measured["data"]:
        info.pop("as_trained", None)
    return replace(outcome, info=info)
