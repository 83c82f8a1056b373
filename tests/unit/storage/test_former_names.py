"""Results of format 1 are found under the names that they have, as far as they hold the same numbers.

The names below were made by the last version of that format, for inputs that are spelled out here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.run.prepare import prepare
from swamp_ray.run.run_recipes import recipes_of
from swamp_ray.storage.former_names import Before
from swamp_ray.storage.recipes import Named, Recipes
from swamp_ray.training.tasks import Classification, Task
from swamp_ray.training.trainer import initial_model
from tests.helpers import TINY

MODULE = '''"""A network."""
from torch import nn


def net(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))  # small


def score(weights, rewind_weights):
    return weights.abs() * 2
'''
START, MASK, STATE, OTHER = "a" * 64, "b" * 64, "c" * 64, "d" * 64
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop": {"data.augment": "crop", "averaging.statistics": "unaugmented"},
    "augmented": {"data.augment": "crop"},
    "limited": {"data.limit_test": 20},
    "adamw": {"training.optimizer": "adamw", "training.clip_norm": 1.0},
    "without_swa": {"averaging.within": "none"},
    "movement": {"pruning.score": "movement"},
    "own_code": {"model.name": "former_net:net", "pruning.score": "former_net:score"},
    "declared": {"model.name": "former_net:net", "model.version": "7", "pruning.score": "former_net:score",
                 "pruning.version": "2"},
    "micro": {"training.micro_batch": 8, "task.label_smoothing": 0.1},
}
"""What each of the pinned names was made for; the default of averaging.statistics was another one then."""
PINNED: dict[str, dict[str, str]] = {
    "plain": {
        "particle": "a9bfc1a95a79d6ceea8f9e529d45cc7c589b763d3d639b679efe594e247d3ddd",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "42e05538e0bfa3a3bd8990c0527e87802e87369fe8ae80732b176cfc12577e5c",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "crop": {
        "particle": "2385060be938fbb7a336a7a7b3a163f112a3a9ec25e0b227c9c09a04fe59cc60",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "993c5503901248ee10834491a3ffc07ead7c4fe151065ba5c7dfdf7f5215e19e",
        "data": "1f6fc7fe3128090d9cff40ddfe6c51f5fcf053e930e0975bd1d67098bd428b42",
    },
    "augmented": {
        "particle": "cc6a0a8738698eca835fb445a32605dd53a8241070c59d92d57f1e65ddc33ec9",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "dae263fe526b6abffd967976c3af80e6f5ec508ad8fbbbbdcc73b39255c459ad",
        "data": "1f6fc7fe3128090d9cff40ddfe6c51f5fcf053e930e0975bd1d67098bd428b42",
    },
    "limited": {
        "particle": "6d8a3c0fd06f5e6c5d3813dcd276b0a510ea7b9ed3564c5159e0a3f3b14439b8",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "6c01bc9fe169d32b68d091d56c699617c5b2b75659e01bea04fe9b5f728936ea",
        "data": "2c847efc658770e65abb37db5f05aadd53d3415ccfd32b2f2cd02bca0929d346",
    },
    "adamw": {
        "particle": "e395bc2c6077248de8e6cfe0559b86536934f48037cee189a8f619b946b139b3",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "42e05538e0bfa3a3bd8990c0527e87802e87369fe8ae80732b176cfc12577e5c",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "without_swa": {
        "particle": "070fa761bc10465128a132cc1085d74f4040fd9d2e526c272a944275b0824ec5",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "42e05538e0bfa3a3bd8990c0527e87802e87369fe8ae80732b176cfc12577e5c",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "movement": {
        "particle": "a9bfc1a95a79d6ceea8f9e529d45cc7c589b763d3d639b679efe594e247d3ddd",
        "average": "062463dfc1f045fb6315ea7d4f82edfbe3d2fa11ef6dcde9eb4e3e4d798467ad",
        "evaluation": "42e05538e0bfa3a3bd8990c0527e87802e87369fe8ae80732b176cfc12577e5c",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "own_code": {
        "particle": "5497e8ff60c7da92142b3bf31fa11e843447e7bb3d6c3098f5134b8bd0b3fef3",
        "average": "c874b1bac7d0ec73ff0c83753d4079762c21e6cf6efcc5a5218501c0c7446618",
        "evaluation": "15e19fa5d88c56abaf229b98da406d02f1b8cca0d4435468897dc530deccb485",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "declared": {
        "particle": "34f131be6e9df0b55e3fd8534880d4cbd8f66979491ae4521755d417ea1df089",
        "average": "97064273b2595c217ecb4976c6535d508a1645da51d04a6fd745e710d5363cef",
        "evaluation": "da73ea90f843089403ebdce141da7c335b7cb3a8a2fe44f560964a515951ac8a",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
    "micro": {
        "particle": "f40e53bce18ecc3e7e7eaff67970debd860b9e533162444ad5b29321160c38f3",
        "average": "37125b713d31e03af264cdc52bb6b0ece5667a2ff1d0176e0a80136d6d19b80b",
        "evaluation": "5bd596868e9f5d81a86b217b2720b86fbcabb021ac2095a030d56377115de7e1",
        "data": "936ab588c0038a7f0b4f24154a25878999673d8e7bfe2cfc7906c037640a1019",
    },
}


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the pinned names on the import path."""
    (tmp_path / "former_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("former_net", None)
    importlib.invalidate_caches()
    yield tmp_path / "former_net.py"
    sys.modules.pop("former_net", None)


def recipes(
    values: dict[str, Any], model: nn.Module | None = None, kept: tuple[str, ...] = (), task: Task | None = None
) -> tuple[SwampConfig, Recipes, dict[str, Any]]:
    """The names of the tiny run with some values, under the arithmetic of the pinned ones."""
    config = with_values(build_config(TINY), values)
    prepared = prepare(config, "cpu")
    network = model or initial_model(config, prepared.data)
    made = recipes_of(config, prepared.data, network, task or prepared.task, kept, prepared.layout,
                      replace(prepared.arithmetic, torch="2.0"), prepared.facts)
    return config, made, prepared.program(1, 2).as_dict()


def all_names(
    values: dict[str, Any], model: nn.Module | None = None, kept: tuple[str, ...] = (), task: Task | None = None
) -> dict[str, tuple[str, ...]]:
    """All names of the results that are pinned, by kind."""
    _, made, program = recipes(values, model, kept, task)
    return {"particle": made.training(program, 7, START, MASK, None).names,
            "average": made.average([STATE, OTHER], MASK, START, 100, 5).names,
            "evaluation": made.evaluation(STATE, MASK, START).names}


@pytest.mark.parametrize("case", CASES)
def test_what_format_1_stored_is_found(case: str) -> None:
    found = all_names(CASES[case])
    for kind in ("particle", "average", "evaluation"):
        assert PINNED[case][kind] in found[kind], kind
    assert PINNED[case]["particle"] != found["particle"][0], "a training of today has a name of its own"


@pytest.mark.parametrize(("case", "values"), [
    ("crop", {"averaging.statistics": "augmented"}), ("augmented", {"averaging.statistics": "unaugmented"})])
def test_a_training_is_found_whatever_it_was_measured_with_and_an_evaluation_is_not(case: str, values: dict[str, Any]
                                                                                   ) -> None:
    found = all_names({**CASES[case], **values})
    assert PINNED[case]["particle"] in found["particle"]
    assert PINNED[case]["evaluation"] not in found["evaluation"]


@pytest.mark.parametrize("case", ["plain", "crop", "augmented", "limited"])
@pytest.mark.parametrize("statistics", ["unaugmented", "augmented"])
def test_metrics_of_a_training_count_as_what_they_were_measured_with(case: str, statistics: str) -> None:
    _, made, program = recipes({**CASES[case], "averaging.statistics": statistics})
    named = made.training(program, 7, START, MASK, None)
    then = named.measured_with(PINNED[case]["particle"], {})
    assert then is not None
    if case in ("plain", "limited"):
        assert then == made.measured, "no image is augmented: both settings measure the same"
    else:
        was = "augmented" if case == "augmented" else "unaugmented"
        assert (then == made.measured) == (statistics == was)
    assert named.measured_with(named.name, {"measured": made.measured}) == made.measured
    assert named.measured_with(named.name, {}) is None


def test_a_shuffled_pass_over_data_that_are_not_augmented_is_another_measurement() -> None:
    """Format 1 shuffled for augmented statistics even where nothing is augmented."""
    _, made, program = recipes({})
    former = made.training(program, 7, START, MASK, None).former
    assert [one.measured == made.measured for one in former] == [True, False]


@pytest.mark.parametrize("values", [
    {"training.lr": 0.04}, {"data.augment": "crop_flip"}, {"data.limit_train": 90}, {"training.batch_size": 8}])
def test_other_numbers_are_not_found(values: dict[str, Any]) -> None:
    found = all_names({**CASES["plain"], **values})
    assert PINNED["plain"]["particle"] not in found["particle"]
    if "training.lr" not in values:
        assert PINNED["plain"]["evaluation"] not in found["evaluation"]


def test_changed_code_is_not_found(own_module: Path) -> None:
    own_module.write_text(MODULE.replace("Linear(36, 8)", "Linear(36, 8, bias=False)").replace("* 2", "* 3"))
    sys.modules.pop("former_net", None)
    found = all_names(CASES["own_code"])
    for kind in ("particle", "average", "evaluation"):
        assert PINNED["own_code"][kind] not in found[kind]
    assert PINNED["declared"]["particle"] in all_names(CASES["declared"])["particle"], "a version stands for the code"


def test_code_of_which_format_1_did_not_see_all_is_not_found(
    tmp_path: Path, own_module: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took no notice of modules in other folders of the import path: its digest says nothing of them."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.syspath_prepend(str(elsewhere))
    own_module.write_text(f"import former_helper\n{MODULE}")
    for folder, seen in ((tmp_path, True), (elsewhere, False)):
        (folder / "former_helper.py").write_text("x = 1\n")
        for name in ("former_net", "former_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        found = all_names(CASES["own_code"])
        assert {kind: len(names) > 1 for kind, names in found.items()} == dict.fromkeys(found, seen)
        (folder / "former_helper.py").unlink()


def with_gaps() -> nn.Module:
    """A network with a parameter that is every other column of something."""
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 8)[:, ::2])
    return model


@pytest.mark.parametrize("model", [with_gaps(), nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16()])
def test_trainings_that_format_1_got_wrong_are_not_found(model: nn.Module) -> None:
    assert len(all_names(CASES["plain"], model)["particle"]) == 1


class Doubled(Classification):
    """Format 1 trained it with the loss that it inherits."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return 2 * super().loss(model, batch)


def test_a_loss_that_format_1_did_not_call_is_not_found() -> None:
    assert len(all_names({}, task=Classification())["particle"]) > 1
    assert len(all_names({}, task=Doubled())["particle"]) == 1


def test_where_normalisation_keeps_its_statistics_nothing_of_format_1_is_found() -> None:
    found = all_names(CASES["plain"], kept=("features.1",))
    assert len(found["particle"]) == len(found["evaluation"]) == 1


@pytest.mark.parametrize("entry", ["a_new_entry", "arithmetic", "optimizer"])
def test_what_a_later_version_adds_to_a_recipe_has_no_former_name(entry: str) -> None:
    """So whoever adds an option that changes numbers cannot be answered with results of before."""
    config, made, program = recipes({})
    recipe = made.training(program, 7, START, MASK, None).recipe
    del recipe["kind"]
    before: Before = made.before
    assert before.trainings(recipe)
    changed = {**recipe, entry: {**recipe[entry], "new": 1} if entry in recipe else 1}
    assert before.trainings(changed) == ()
    assert config.name == "tiny"


@pytest.mark.parametrize("kind", ["particle", "evaluation"])
def test_versions_of_libraries_are_in_the_names_of_today_alone(kind: str) -> None:
    """Of torchvision in those of its networks, and of what decodes image files while training."""
    config = with_values(build_config(TINY), {"model.name": "torchvision/shufflenet_v2_x0_5",
                                              "data.options.shape": [3, 16, 16]})
    prepared = prepare(config, "cpu")

    def named(decoder: str) -> Named:
        data = replace(prepared.data, decoder=decoder)
        made = recipes_of(config, data, nn.Linear(2, 2), prepared.task, (), prepared.layout, prepared.arithmetic,
                          prepared.facts)
        if kind == "evaluation":
            return made.evaluation(STATE, MASK, START)
        return made.training(prepared.program(1, 2).as_dict(), 7, START, MASK, None)

    plain, old, new = named(""), named("pillow==11.0"), named("pillow==12.0")
    assert len({plain.name, old.name, new.name}) == 3
    assert plain.names[1:] == old.names[1:] == new.names[1:] != ()
    version = importlib.metadata.version("torchvision")
    assert plain.recipe["model"]["code"] == {"distribution": f"torchvision=={version}"}
