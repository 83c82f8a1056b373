"""Names that earlier versions gave to the same numbers, so that what they stored is found and not computed again.

Format 1 named a training also after the test samples and after ``averaging.statistics``, on neither of which its
weights depend, and user code by its text with all comments. Its results are used where they lie, under the names that
they have. A name is tried only where the earlier version computed the same numbers; whatever entered recipes later and
is not known here has no former name. A training's metrics are another matter: they are those of its own time, and
`Former.measured` says what they are metrics of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.storage.names import format_of, name_of
from swamp_ray.training.normalisation import StatisticsSource
from swamp_ray.user_code.importing import is_import_path

Recipe = dict[str, Any]

_SHARED = {"data", "decoder", "model", "task", "batch_size", "micro_batch", "arithmetic", "machine"}
_KEYS = {
    "particle": _SHARED | {"optimizer", "program", "seed", "start", "mask", "values"},
    "evaluation": _SHARED | {"state", "mask", "start", "statistics"},
    "average": {"states", "mask", "next_survivors", "scope", "score", "start", "seed"},
}
_INNER = {
    "arithmetic": {"device", "torch", "precision", "channels_last", "threads", "compile", "deterministic", "fused",
                   "packing", "ranks"},
    "optimizer": {"optimizer", "momentum", "nesterov", "betas", "eps", "decay_norm_and_bias", "clip_norm"},
    "program": {"num_steps", "steps_per_epoch", "rate", "weight_decay", "averaging", "first_snapshot",
                "snapshot_every", "ema_decay"},
    "model": {"name", "options", "code"},
    "task": {"name", "options", "code", "label_smoothing"},
}
OTHER_ORDER = "augmented, other order"
"""Format 1 shuffled the samples for augmented statistics even where nothing is augmented."""


@dataclass(frozen=True)
class Former:
    """An earlier name of a result.

    Attributes:
        name: 64 hex digits.
        measured: What the metrics that are stored with a training are metrics of, as `Measurement.measured`; None for
            other results.
    """

    name: str
    measured: Recipe | None = None


@dataclass(frozen=True)
class Before:
    """What earlier versions did otherwise with a run's data, network and code.

    Attributes:
        config: The run.
        data: Digests that they gave to these training samples, with whatever test samples.
        statistics: What ``averaging.statistics`` means now.
        augments: Whether the training samples are augmented.
        trains_alike: Whether they trained this network to the same numbers.
        code: Their digest of user code; None where it saw less of the code than today's.
    """

    config: SwampConfig
    data: tuple[str, ...]
    statistics: StatisticsSource
    augments: bool = True
    trains_alike: bool = True
    code: Callable[[str], Recipe | None] = field(default=lambda _: None)

    def trainings(self, recipe: Recipe) -> tuple[Former, ...]:
        """Earlier names of a training with this recipe of today."""
        if not self.trains_alike or not _is_known("particle", recipe):
            return ()
        then = self._with_code(recipe)
        if then is None:
            return ()
        found = []
        for digest in self.data:
            for setting in ("unaugmented", "augmented"):
                named = {**then, "data": digest, **_setting(setting)}
                found.append(Former(name_of("particle", named, version=1), self.measured(digest, setting)))
        return tuple(found)

    def measured(self, digest: str, setting: str) -> Recipe:
        """What metrics of format 1 are metrics of, by its digest of the data and its ``averaging.statistics``."""
        return metrics_of(digest, self._meant(setting))

    def evaluations(self, recipe: Recipe) -> tuple[Former, ...]:
        """Earlier names of an evaluation with this recipe of today."""
        then = self._with_code(recipe)
        if then is None or not _is_known("evaluation", recipe):
            return ()
        del then["statistics"]
        settings = [setting for setting in ("unaugmented", "augmented") if self._meant(setting) == self.statistics]
        return tuple(Former(name_of("evaluation", {**then, **_setting(setting)}, version=1)) for setting in settings)

    def averages(self, recipe: Recipe) -> tuple[Former, ...]:
        """Earlier names of an average with this recipe of today; only a score of the user's was named otherwise."""
        pruning = self.config.pruning
        if "score" not in recipe or not is_import_path(pruning.score) or not _is_known("average", recipe):
            return ()
        score = self._code_of(recipe["score"], pruning.version)
        return () if score is None else (Former(name_of("average", {**recipe, "score": score}, version=1)),)

    def _meant(self, setting: str) -> str:
        if self.statistics == "none":
            return "none"
        return OTHER_ORDER if setting == "augmented" and not self.augments else setting

    def _with_code(self, recipe: Recipe) -> Recipe | None:
        """The recipe with network and task as they were named; None where that does not say what they are today."""
        model = self._code_of(recipe["model"], self.config.model.version)
        task = self._code_of(recipe["task"], self.config.task.version)
        if model is None or task is None:
            return None
        # Format 1 did not name the versions of the libraries that decode images, and that build torchvision's networks.
        plain = {key: value for key, value in recipe.items() if key != "decoder"}
        return {**plain, "model": model, "task": task}

    def _code_of(self, entry: Recipe, version: str | None) -> Recipe | None:
        plain = {key: value for key, value in entry.items() if key != "code"}
        if not is_import_path(entry["name"]):
            return plain
        if version is not None:
            return {**plain, "code": {"version": version}}
        try:
            code = self.code(entry["name"])
        except UserError:
            return None
        return None if code is None else {**plain, "code": code}


def metrics_of(data: str, statistics: str) -> Recipe:
    """What decides the metrics of a network besides the network: the samples, and how it is measured."""
    return {"data": data, "statistics": statistics, "format": format_of("evaluation")}


def _setting(setting: str) -> Recipe:
    return {"statistics": setting} if setting == "augmented" else {}


def _is_known(kind: str, recipe: Recipe) -> bool:
    """Whether a recipe of today has only entries that format 1 had too."""
    if not recipe.keys() <= _KEYS[kind]:
        return False
    return all(recipe[key].keys() <= known for key, known in _INNER.items() if key in recipe)
