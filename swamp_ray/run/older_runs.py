"""What earlier versions called the training samples of a run: their digests held the test samples too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swamp_ray.config.reading import parse_stored_config
from swamp_ray.config.sections import DataConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.errors import SwampError
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.run_recipes import with_data_digests
from swamp_ray.storage.place import Place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.usage import run_dirs

_ASIDE = {"limit_test", "root", "download", "loader_workers"}
FORMER_DIGESTS = "former_digests"
"""Where ``run.json`` keeps them once the run has gone on with a later version."""


def knowing_older_runs(prepared: Prepared, place: Place) -> Prepared:
    """The same run, which finds what earlier versions trained on its training samples with other test samples.

    Args:
        prepared: The run.
        place: The storage root, whose other runs are looked at.
    """
    found: list[str] = []
    for rundir in _runs(place):
        try:
            found += _digests_of(rundir, prepared, found)
        except (SwampError, OSError):
            continue  # what cannot be read names nothing that could be found
    return replace(prepared, recipes=with_data_digests(prepared.recipes, tuple(found))) if found else prepared


def former_digests(data: dict[str, Any]) -> list[str]:
    """The digests in the ``data`` of a ``run.json`` that earlier versions gave to the run's training samples."""
    former = [str(digest) for digest in data.get(FORMER_DIGESTS, ())]
    return former if "training_digest" in data or not data.get("digest") else [*former, str(data["digest"])]


def _runs(place: Place) -> list[RunDir]:
    try:
        return run_dirs(place)
    except (SwampError, OSError):
        return []


def _digests_of(rundir: RunDir, prepared: Prepared, known: list[str]) -> list[str]:
    data = (rundir.read_run() or {}).get("data", {})
    digests = [digest for digest in former_digests(data) if digest not in (*known, prepared.data.digest)]
    if not digests:
        return []
    if "training_digest" in data:
        return digests if data["training_digest"] == prepared.recipes.training_data else []
    text = rundir.read_config()
    if text is None:
        return []
    section = parse_stored_config(text, source=str(rundir.config)).data
    if not _same_training(section, prepared.config.data):
        return []
    # The recorded digest says whether these are the samples that the older run had.
    there = load_data(section.model_copy(update={name: getattr(prepared.config.data, name)
                                                 for name in _ASIDE - {"limit_test"}}))
    if there.training_digest != prepared.recipes.training_data:
        return []
    return [digest for digest in digests if digest == there.digest]


def _same_training(one: DataConfig, other: DataConfig) -> bool:
    return one.model_dump(exclude=_ASIDE) == other.model_dump(exclude=_ASIDE)
