"""What ``run.json`` says of a run, and of each attempt at it."""

from __future__ import annotations

import platform
import socket
import sys
from dataclasses import asdict
from typing import Any

from swamp_ray.config.schema import SwampConfig
from swamp_ray.credentials import concealed_arguments, concealed_tree
from swamp_ray.method.events import RoundPlan
from swamp_ray.run.older_runs import FORMER_DIGESTS, former_digests
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.provenance import PACKAGES, commit, now, version
from swamp_ray.storage.find import CONFIG_DIGEST
from swamp_ray.storage.names import canonical_json, digest_bytes


def attempt_record(prepared: Prepared) -> dict[str, Any]:
    """An attempt that begins now: who, where, with which versions; what it does is counted in it later."""
    return {
        "started": now(), "argv": concealed_arguments(sys.argv), "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES}, "commit": commit(), "facts": prepared.facts,
        "executor": prepared.config.execution.executor, "workers": 0, "trained_epochs": 0, "trained": 0, "found": 0,
        "incidents": [],
    }


def run_record(earlier: dict[str, Any], name: str, prepared: Prepared, config_text: str, attempt: dict[str, Any]
               ) -> dict[str, Any]:
    """The whole record.

    Args:
        earlier: What earlier attempts have left; empty for the first.
        name: The run's.
        prepared: The run.
        config_text: ``config.yaml`` as it is written now.
        attempt: The attempt that begins.
    """
    return earlier | {
        "name": name, "status": "running", "arithmetic": prepared.arithmetic.as_dict(),
        "data": _data_of(prepared, earlier.get("data", {})), "measured": prepared.recipes.measured,
        "recipe": recipe_digests(prepared)[0], CONFIG_DIGEST: digest_bytes(config_text.encode()),
        "start": start_digest(prepared),
        "num_prunable": prepared.layout.num_prunable, "num_parameters": prepared.layout.num_parameters,
        "notes": list(prepared.notes), "flops": _flops_of(prepared),
        "layers": [[layer.name, layer.size] for layer in prepared.layout.layers],
        "primary": prepared.task.primary, "shown_as": dict(prepared.task.shown_as),
        "higher_is_better": prepared.task.higher_is_better,
        "rounds": [_plan_record(plan) for plan in prepared.plan],
        "attempts": [*earlier.get("attempts", []), attempt],
    }


def _plan_record(plan: RoundPlan) -> dict[str, Any]:
    """A planned round in ``run.json``, where only those with a trunk say so."""
    fields = asdict(plan)
    if not plan.has_trunk:
        del fields["has_trunk"]
    return fields


def _flops_of(prepared: Prepared) -> dict[str, Any]:
    """FLOPs of a forward pass of one sample with every weight, or why they cannot be counted."""
    found = prepared.flops
    return {"reason": found.reason} if found.network is None else {"forward": found.network.dense}


def _data_of(prepared: Prepared, then: dict[str, Any]) -> dict[str, Any]:
    """The run's data as ``run.json`` has them, with the digests by which results of earlier versions are found."""
    former = former_digests(then)
    return {**concealed_tree(prepared.data.description), "digest": prepared.data.digest,
            "training_digest": prepared.recipes.training_data, **({FORMER_DIGESTS: former} if former else {})}


def was_measured_with(prepared: Prepared, run: dict[str, Any], config: SwampConfig) -> dict[str, Any] | None:
    """What the run's metrics so far are metrics of; None where that is not known."""
    if "measured" in run:
        return run["measured"]
    return prepared.recipes.before.measured(str(run.get("data", {}).get("digest")), config.averaging.statistics)


def recipe_digests(prepared: Prepared) -> list[str]:
    """Digest of the recipe, and those of earlier versions, in whose recipes the way of measuring stood too."""
    recipe = prepared.config.recipe()
    config = prepared.config
    found = [recipe]
    for setting in ("unaugmented", "augmented"):
        found.append({**recipe, "averaging": {**recipe["averaging"], "statistics": setting},
                      "data": {**recipe["data"], "limit_test": config.data.limit_test}})
    return [digest_bytes(canonical_json(one)) for one in found]


def start_digest(prepared: Prepared) -> str:
    """Digest of the weights before the first training, and of the mask that a ticket brought along."""
    state = prepared.recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
    return digest_bytes((state + prepared.recipes.mask_digest(prepared.first_mask)).encode())
