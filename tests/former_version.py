"""Turns a storage root of today into what the last version with format 1 would have written, byte for byte as far as
names and manifests go; its names are pinned in tests/unit/storage/test_former_names.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from swamp_ray.run.prepare import Prepared

Names = dict[str, str]


def canonical(value: object) -> bytes:
    """JSON as names and manifests are made from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def former_name(recipe: dict[str, Any], data: str, statistics: str) -> str:
    """What format 1 called a training with this recipe of today."""
    then = {**recipe, "data": data, "kind": "particle", "format": 1}
    if statistics == "augmented":
        then["statistics"] = "augmented"
    return hashlib.sha256(canonical(then)).hexdigest()


def to_format_1(storage: Path, run: str, statistics: str, open_trainings: Prepared | None = None) -> Names:
    """Rewrite the artifacts and the records of a run; its evaluations and finished rounds are removed.

    Args:
        storage: The storage root.
        run: The run's name.
        statistics: What its averaging.statistics was.
        open_trainings: The run, if trainings of its first round have left checkpoints.

    Returns:
        New names by those of today.
    """
    folder = storage / "runs" / run
    about = json.loads((folder / "run.json").read_text())
    data = about["data"]["digest"]
    renamed = _trainings(storage, data, statistics)
    if open_trainings is not None:
        renamed |= _open(storage, open_trainings, data, statistics)
    for manifest in list((storage / "artifacts").glob("*/*/*.json")):
        _rewrite(storage, manifest, renamed)
    del about["data"]["training_digest"], about["measured"]
    about.pop("check", None)  # earlier versions wrote none
    (folder / "run.json").write_text(json.dumps(about))
    for file in ("results.jsonl", "rounds.jsonl"):
        (folder / file).unlink(missing_ok=True)
    return renamed


def _trainings(storage: Path, data: str, statistics: str) -> Names:
    found = {}
    for path in (storage / "artifacts").glob("*/*/*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            recipe = json.loads((file.metadata() or {}).get("swamp", "{}"))
        if recipe.get("kind") == "particle":
            found[path.parent.name] = former_name(recipe, data, statistics)
    return found


def _open(storage: Path, prepared: Prepared, data: str, statistics: str) -> Names:
    """Names of the first round's trainings; its dense phase is there."""
    dense = next(path.parent.name for path in (storage / "artifacts").glob("*/*/result.json"))
    start = next(iter(json.loads((storage / "artifacts" / dense[:2] / dense / "result.json").read_text())["files"]
                      .values()))["sha256"]
    mask, found = prepared.recipes.mask_digest(prepared.first_mask), {}
    for particle in range(prepared.plan[0].num_particles):
        named = prepared.recipes.training(prepared.program(0, particle).as_dict(), prepared.particle_seed(0, particle),
                                          start, mask, None, prepared.named_packing(0, particle))
        found[named.name] = former_name(named.recipe, data, statistics)
    return found


def _rewrite(storage: Path, path: Path, renamed: Names) -> None:
    body = json.loads(path.read_text())
    del body["check"]
    if "buffers.safetensors" in body["files"]:
        shutil.rmtree(path.parent)
        return
    if body["name"] not in renamed:
        return
    body["name"] = renamed[body["name"]]
    body["info"].pop("measured", None)
    body["check"] = hashlib.sha256(canonical(body)).hexdigest()
    path.write_bytes(canonical(body))
    place = storage / "artifacts" / body["name"][:2] / body["name"]
    place.parent.mkdir(exist_ok=True)
    path.parent.rename(place)
