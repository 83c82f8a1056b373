"""Which changes give a result another name, and which must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.orchestration.preparation import Prepared, prepare
from swamp_ray.storage.recipes import Recipes, average_recipe
from tests.helpers import tiny


def names(prepared: Prepared) -> dict[str, str]:
    """Names of the dense phase, a particle and an average of a run."""
    recipes = prepared.recipes
    start = recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
    mask = recipes.mask_digest(prepared.first_mask)
    assert prepared.dense is not None
    return {
        "dense": recipes.training(prepared.dense.as_dict(), prepared.particle_seed(-1, 0), start, mask, None).name,
        "particle": recipes.training(
            prepared.program(1, 2).as_dict(), prepared.particle_seed(1, 2), start, mask, None).name,
        "average": recipes.average(["a" * 64, "b" * 64], mask, start, 100, 7).name,
        "evaluation": recipes.evaluation("c" * 64, mask, start).name,
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return names(prepare(tiny(tmp_path_factory.mktemp("base"))))


@pytest.mark.parametrize("values", [
    {"name": "another"}, {"particles__count": 7}, {"execution__executor": "ray"},
    {"execution__num_workers": 2}, {"execution__num_cpus": 0.5}, {"execution__checkpoint_every": 0},
    {"execution__max_waiting_states": 0}, {"execution__address": "auto"}, {"data__loader_workers": 1},
    {"data__root": "/somewhere"}, {"pruning__target": 0.875}, {"particles__schedule": [{"sparsity": 0.9, "count": 9}]},
])
def test_what_does_not_decide_the_numbers_is_in_no_name(
    tmp_path: Path, base: dict[str, str], values: dict[str, Any]
) -> None:
    assert names(prepare(tiny(tmp_path, **values))) == base


@pytest.mark.parametrize(("values", "changed"), [
    ({"seed": 1}, {"dense", "particle", "evaluation"}),
    ({"training__lr": 0.06}, {"dense", "particle"}),
    ({"training__momentum": 0.8}, {"dense", "particle"}),
    ({"training__weight_decay": 0.0}, {"dense", "particle"}),
    ({"training__clip_norm": 1.0}, {"dense", "particle"}),
    ({"training__nesterov": True}, {"dense", "particle"}),
    ({"training__micro_batch": 8}, {"dense", "particle", "evaluation"}),
    ({"round__length": 3}, {"particle"}),
    ({"averaging__start": 0.4, "round__length": 5}, {"particle"}),
    ({"averaging__lr": 0.01}, {"particle"}),
    ({"dense__length": 2}, {"dense"}),
    ({"dense__warmup": 0}, {"dense"}),
    ({"task__label_smoothing": 0.1}, {"dense", "particle", "evaluation"}),
    ({"model__name": "lenet_300_100"}, {"dense", "particle", "average", "evaluation"}),
    ({"data__split_seed": 1}, {"dense", "particle", "evaluation"}),
    ({"data__validation": 0.2}, {"dense", "particle", "evaluation"}),
    ({"execution__threads": 2}, {"dense", "particle", "evaluation"}),
    ({"execution__precision": "bf16"}, {"dense", "particle", "evaluation"}),
    ({"execution__channels_last": False}, {"dense", "particle", "evaluation"}),
    ({"execution__fused": False}, {"dense", "particle", "evaluation"}),
    ({"identity__strict": True}, {"dense", "particle", "evaluation"}),
    ({"pruning__score": "movement"}, {"average"}),
    ({"pruning__scope": "erk"}, {"average"}),
    ({"pruning__exclude": ["classifier.weight"]}, {"dense", "particle", "average", "evaluation"}),
])
def test_what_decides_the_numbers_is_in_the_names_it_decides(
    tmp_path: Path, base: dict[str, str], values: dict[str, Any], changed: set[str]
) -> None:
    found = names(prepare(tiny(tmp_path, **values)))
    assert {kind for kind in base if found[kind] != base[kind]} == changed


def test_user_code_is_in_the_name_unless_a_version_stands_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "scores_of_mine.py"
    module.write_text("def score(weights, rewind_weights):\n    return weights.abs()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    prepared = prepare(tiny(tmp_path, pruning__score="scores_of_mine:score"))
    arguments = (prepared.config, prepared.data.digest, prepared.layout, prepared.arithmetic.as_dict(), {})
    before = Recipes(*arguments).average(["a"], "m", "s", 5, 0).name
    module.write_text("def score(weights, rewind_weights):\n    return weights.abs() * 2\n")
    assert Recipes(*arguments).average(["a"], "m", "s", 5, 0).name != before
    declared = tiny(tmp_path, pruning__score="scores_of_mine:score", pruning__version="1")
    first = Recipes(declared, *arguments[1:]).average(["a"], "m", "s", 5, 0).name
    module.write_text("def score(weights, rewind_weights):\n    return weights.abs() * 3\n")
    assert Recipes(declared, *arguments[1:]).average(["a"], "m", "s", 5, 0).name == first


def test_averaged_weights_do_not_depend_on_the_mask_chosen_from_them(tmp_path: Path) -> None:
    recipes = prepare(tiny(tmp_path)).recipes
    first = recipes.average(["a", "b"], "m", "s", 100, 0)
    second = recipes.average(["a", "b"], "m", "s", None, 0)
    assert first.name != second.name
    assert average_recipe(first) == average_recipe(second)
    assert recipes.average(["b", "a"], "m", "s", 100, 0).name != first.name, "the order decides the last bits"


def test_strict_names_hold_the_machine(tmp_path: Path) -> None:
    prepared = prepare(tiny(tmp_path, identity__strict=True))
    other = Recipes(prepared.config, prepared.data.digest, prepared.layout, prepared.arithmetic.as_dict(),
                    {**prepared.facts, "cpu": "another"})
    assert other.evaluation("c", "m", "s").name != prepared.recipes.evaluation("c", "m", "s").name


def test_a_mask_has_its_own_digest(tmp_path: Path) -> None:
    prepared = prepare(tiny(tmp_path))
    mask = prepared.first_mask.copy()
    mask[3] = False
    assert prepared.recipes.mask_digest(mask) != prepared.recipes.mask_digest(prepared.first_mask)
    assert replace(prepared, first_mask=mask).recipes.mask_digest(np.copy(mask)) == prepared.recipes.mask_digest(mask)
