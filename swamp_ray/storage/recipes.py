"""What each result is made of: the recipe and the arithmetic behind its name.

A recipe holds everything that decides the numbers and nothing else: never the run's name, the number of
particles, the workers, paths or hosts. docs/identity.md explains each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swamp_ray.config.rules import SEES_NO_DATA
from swamp_ray.config.schema import SwampConfig
from swamp_ray.sparsity.masks import Layout, to_bits
from swamp_ray.storage.code_digest import package_version
from swamp_ray.storage.former_names import Before, Former, Recipe, metrics_of
from swamp_ray.storage.names import canonical_json, digest_arrays, digest_bytes, name_of, source_digest
from swamp_ray.structure import NONE
from swamp_ray.training.arithmetic import SINGLE
from swamp_ray.training.models import TORCHVISION
from swamp_ray.user_code.importing import is_import_path


@dataclass(frozen=True)
class DataDigests:
    """What names a run's data.

    Attributes:
        training: Digest of the training samples and of what is done to them.
        all: Digest of the samples of all splits, likewise.
        decoder: What decodes samples while training, where the digests are of files; else empty.
    """

    training: str
    all: str
    decoder: str = ""


@dataclass(frozen=True)
class Named:
    """A result's name (64 hex digits) and the recipe that it was made from.

    Attributes:
        name: Under which it is stored if it is computed now.
        recipe: What it is made from.
        former: Names under which earlier versions may have stored the same.
    """

    name: str
    recipe: Recipe
    former: tuple[Former, ...] = ()

    @classmethod
    def of(cls, kind: str, recipe: Recipe, former: tuple[Former, ...] = ()) -> Named:
        """Name a recipe."""
        return cls(name_of(kind, recipe), {"kind": kind, **recipe}, former)

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which it may lie, the present one first."""
        return (self.name, *(former.name for former in self.former))

    def measured_with(self, name: str, info: Mapping[str, Any]) -> Recipe | None:
        """What the metrics that are stored with a training are metrics of; None where that is not known.

        Args:
            name: The name under which it was found.
            info: What its manifest says.
        """
        noted = info.get("measured")
        if isinstance(noted, dict):
            return noted
        return next((former.measured for former in self.former if former.name == name), None)


@dataclass(frozen=True)
class Measurement:
    """How a run measures networks of one mask.

    Attributes:
        recipe: Of an evaluation, without the network.
        measured: What distinguishes it from other measurements of the same network; stored with its metrics.
    """

    recipe: Recipe
    measured: Recipe

    def named(self, state: str, former: tuple[Former, ...] = ()) -> Named:
        """The metrics of a network, given the digest of its state."""
        return Named.of("evaluation", {**self.recipe, "state": state}, former)


class Recipes:
    """The names of one run's results.

    Args:
        config: The run.
        data: Digests of the training samples, and of the samples of all splits.
        layout: Prunable weights and the rest.
        arithmetic: As resolved when the run started, as plain values.
        facts: Library versions and hardware models, for ``identity.strict``.
        normalisation: What of the network's normalisation is unusual; of most networks nothing.
        before: What earlier versions did otherwise; it knows the normalisation statistics too.
    """

    def __init__(
        self,
        config: SwampConfig,
        data: DataDigests,
        layout: Layout,
        arithmetic: dict[str, Any],
        facts: dict[str, str],
        before: Before,
        normalisation: Recipe | None = None,
    ) -> None:
        self.config = config
        self._data = data
        self.before = before
        self._layout_digest = digest_bytes(canonical_json({
            "layers": [[layer.name, list(layer.shape)] for layer in layout.layers],
            "rest": [[name, list(shape)] for name, shape in layout.rest],
        }))
        # The dense phase and evaluations are never packed, and shared by runs that pack and runs that do not.
        alone = {**arithmetic, "packing": SINGLE}
        self._shared: Recipe = {
            "data": data.training,
            "model": _code(config.model.name, config.model.options, config.model.version),
            "task": _code(config.task.name, config.task.options, config.task.version)
            | {"label_smoothing": config.task.label_smoothing},
            "batch_size": config.training.batch_size,
            "micro_batch": config.training.micro_batch,
            "arithmetic": alone,
        }
        if data.decoder:
            self._shared["decoder"] = data.decoder
        self._shared |= normalisation or {}
        if config.identity.strict:
            self._shared["machine"] = facts
        self._optimizer = config.training.model_dump(
            mode="json", exclude={"batch_size", "micro_batch", "lr", "weight_decay", "schedule"})
        if config.training.sam_rho is None:  # names from before there was SAM stay
            del self._optimizer["sam_rho"]

    @property
    def training_data(self) -> str:
        """Digest of the training samples."""
        return self._data.training

    @property
    def measured(self) -> Recipe:
        """What distinguishes this run's metrics from others of the same networks."""
        return metrics_of(self._data.all, self.before.statistics)

    def mask_digest(self, mask: np.ndarray) -> str:
        """Digest of a mask and of the tensors that it is over."""
        return digest_bytes(self._layout_digest.encode() + to_bits(mask).tobytes())

    def state_digest(self, parameters: dict[str, np.ndarray], buffers: dict[str, np.ndarray]) -> str:
        """Digest of full weights and buffers, e.g. of the initialisation."""
        return digest_arrays({**{f"parameter {k}": v for k, v in parameters.items()},
                              **{f"buffer {k}": v for k, v in buffers.items()}})

    def training(
        self, program: Recipe, seed: int, start: str, mask: str, values: str | None, packing: str = SINGLE,
        trunk: str | None = None, kind: str = "particle",
    ) -> Named:
        """One training run: the dense phase, a trunk or a particle.

        Args:
            program: Length, rates, decay and snapshots as plain values.
            seed: The particle's own seed.
            start: Digest of the weights that it starts from (before the mask).
            mask: Digest of its mask.
            values: Digest of the surviving weights, where they do not come from ``start``.
            packing: The form and width of packing that decide the last bits.
            trunk: Digest of the trunk's state, from which a particle parts; None: it trains from the ticket.
            kind: ``"particle"`` (the dense phase too), or ``"trunk"``.
        """
        shared = {**self._shared, "arithmetic": {**self._shared["arithmetic"], "packing": packing}}
        recipe = {**shared, "optimizer": self._optimizer, "program": program, "seed": seed, "start": start,
                  "mask": mask, "values": values}
        if trunk is not None:
            recipe["trunk"] = trunk
        former = self.before.trainings(recipe) if kind == "particle" else ()
        return Named.of(kind, recipe, former)

    def mask(self, program: Recipe, mask: str, start: str) -> Named:
        """The mask that is chosen before training.

        Args:
            program: Survivors, steps, and what its score reads of batches and seed, as plain values.
            mask: Digest of the mask that the survivors are chosen from.
            start: Digest of the weights that are scored.
        """
        pruning = self.config.pruning
        recipe: Recipe = {**program, "mask": mask, "scope": pruning.scope,
                          "score": _code(pruning.score, {}, pruning.version)}
        if pruning.score != "random":
            recipe |= {"start": start}
        if pruning.score == "synflow":  # sees the network and no data
            unread = ("data", "task", "batch_size", "micro_batch", "decoder")
            recipe |= {key: value for key, value in self._shared.items() if key not in unread}
        elif pruning.score not in SEES_NO_DATA:
            recipe |= self._shared
        return Named.of("mask", recipe)

    def average(self, states: list[str], mask: str, start: str, next_survivors: int | None, seed: int) -> Named:
        """A round's average and its next mask.

        Args:
            states: Digests of the states that enter, in order.
            mask: Digest of the round's mask.
            start: Digest of the rewind weights, which scores may read.
            next_survivors: Weights that the next mask keeps; None in a last round.
            seed: Seed of random scores.
        """
        recipe: Recipe = {"states": states, "mask": mask, "next_survivors": next_survivors}
        if next_survivors is not None:
            pruning = self.config.pruning
            recipe |= {"scope": pruning.scope, "score": _code(pruning.score, {}, pruning.version)}
            if pruning.structure != NONE:
                recipe |= {"structure": pruning.structure}
            if pruning.score != "magnitude":
                recipe |= {"start": start}
            if pruning.score == "random":
                recipe |= {"seed": seed}
        return Named.of("average", recipe, self.before.averages(recipe))

    def measurement(self, mask: str, start: str) -> Measurement:
        """How networks of a mask are measured whose buffers come from the state with the digest ``start``."""
        recipe = {**self._shared, "data": self._data.all, "statistics": self.before.statistics, "mask": mask,
                  "start": start}
        return Measurement(recipe, self.measured)

    def soup(self, states: list[str], mask: str, start: str) -> Named:
        """The metrics of the average of some of a round's particles: digests of their states, in order."""
        return Named.of("soup", {**self.measurement(mask, start).recipe, "states": states})

    def evaluation(self, average: str, mask: str, start: str) -> Named:
        """The metrics of an average: digest of its state, of its mask, and of where its buffers come from."""
        measurement = self.measurement(mask, start)
        return measurement.named(average, self.before.evaluations({**measurement.recipe, "state": average}))


def average_recipe(named: Named) -> Recipe:
    """What the averaged weights alone depend on, and not the mask that is chosen from them.

    Chains to different targets share the weights of their rounds, and with them whatever is named after these.
    """
    return {key: named.recipe[key] for key in ("kind", "states", "mask")}


def _code(name: str, options: dict[str, Any], version: str | None) -> Recipe:
    recipe: Recipe = {"name": name, "options": options}
    if is_import_path(name):
        recipe["code"] = source_digest(name, version)
    elif name.startswith(TORCHVISION):  # its networks and their initialisation are the library's
        recipe["code"] = {"distribution": package_version("torchvision")}
    return recipe
