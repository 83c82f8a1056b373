"""Which changes give a result another name, and which must not."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import TrainingConfig
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.result_names import ResultNames
from swamp_ray.run.run_recipes import recipes_of
from swamp_ray.storage.recipes import average_recipe
from swamp_ray.training.trainer import initial_model
from tests.helpers import TINY, ticket_digests, tiny


def names(prepared: Prepared) -> dict[str, str]:
    """Names of the dense phase, a particle and an average of a run."""
    recipes = prepared.recipes
    start = recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
    mask = recipes.mask_digest(prepared.first_mask)
    assert prepared.dense is not None
    return {
        "dense": recipes.training(prepared.dense.as_dict(), prepared.particle_seed(-1, 0), start, mask, None).name,
        "particle": recipes.training(
            prepared.program(1, 2).as_dict(), prepared.particle_seed(1, 2), start, mask, None,
            prepared.named_packing(1, 2)).name,
        "average": recipes.average(
            ["a" * 64, "b" * 64], mask, start, prepared.plan[0].next_survivors, 7).name,
        "evaluation": recipes.evaluation("c" * 64, mask, start).name,
    }


ALL = {"dense", "particle", "average", "evaluation"}
SAMPLES = {"dense", "particle", "evaluation"}
STEPS = {"dense", "particle"}

# Fields that decide numbers: what else must be set for them to matter, another value, and which names it changes.
DECIDES: dict[str, tuple[dict[str, Any], Any, set[str]]] = {
    "seed": ({}, 1, SAMPLES),
    "data.name": ({"data__options": {}}, "digits", ALL),
    "data.options": ({}, {"num_train": 96, "num_test": 40, "num_classes": 3, "shape": [1, 6, 6], "seed": 1}, SAMPLES),
    "data.validation": ({}, 0.2, SAMPLES),
    "data.split_seed": ({}, 1, SAMPLES),
    "data.limit_train": ({}, 80, SAMPLES),
    "data.limit_test": ({}, 20, {"evaluation"}),
    "data.augment": ({}, "crop_flip", SAMPLES),
    "data.crop_padding": ({"data__augment": "crop"}, 2, SAMPLES),
    "model.name": ({}, "lenet_300_100", ALL),
    "task.label_smoothing": ({}, 0.1, SAMPLES),
    "training.batch_size": ({}, 8, SAMPLES),
    "training.micro_batch": ({}, 8, SAMPLES),
    "training.optimizer": ({}, "adamw", STEPS),
    "training.lr": ({}, 0.06, STEPS),
    "training.momentum": ({}, 0.8, STEPS),
    "training.nesterov": ({}, True, STEPS),
    "training.betas": ({"training__optimizer": "adamw"}, [0.8, 0.99], STEPS),
    "training.eps": ({"training__optimizer": "adamw"}, 1e-6, STEPS),
    "training.weight_decay": ({}, 0.0, STEPS),
    "training.decay_norm_and_bias": ({}, False, STEPS),
    "training.clip_norm": ({}, 1.0, STEPS),
    "training.sam_rho": ({}, 0.05, STEPS),
    "training.schedule.name": ({}, "linear", {"particle"}),
    "training.schedule.warmup": ({}, "1 step", {"particle"}),
    "training.schedule.milestones": ({"training__schedule__name": "multistep", "averaging__within": "none"}, [0.25],
                                     {"particle"}),
    "training.schedule.gamma": ({"training__schedule__name": "multistep", "averaging__within": "none"}, 0.5,
                                {"particle"}),
    "training.schedule.final_lr": ({"averaging__within": "none"}, 0.01, {"particle"}),
    "dense.length": ({}, 2, {"dense"}),
    "dense.warmup": ({}, 0, {"dense"}),
    "round.length": ({}, 3, {"particle"}),
    "round.schedule": ({"averaging__within": "none"}, "retrain", {"particle"}),
    "round.retrain_length": ({"averaging__within": "none", "round__schedule": "retrain"}, 1, {"particle"}),
    "round.retrain_lr": ({"averaging__within": "none", "round__schedule": "retrain"}, 0.01, {"particle"}),
    "rewind.schedule": ({"averaging__within": "none"}, "continue", STEPS),
    "averaging.within": ({}, "ema", {"particle"}),
    "averaging.start": ({"round__length": 4}, 0.25, {"particle"}),
    "averaging.lr": ({}, 0.01, {"particle"}),
    "averaging.every": ({}, "3 steps", {"particle"}),
    "averaging.statistics": ({"data__augment": "crop"}, "unaugmented", {"evaluation"}),
    "averaging.ema_decay": ({"averaging__within": "ema"}, 0.99, {"particle"}),
    "particles.fork_at": ({"averaging__start": 0.75}, 0.5, {"particle"}),
    "particles.vary.weight_decay": ({}, [0.0, 0.1, 0.2], {"particle"}),
    "particles.vary.lr": ({}, [0.1, 0.2, 0.3], {"particle"}),
    "particles.vary.length": ({}, [3, 4, 5], {"particle"}),
    "pruning.rate": ({}, 0.3, {"average"}),
    "pruning.score": ({}, "movement", {"average"}),
    "pruning.scope": ({}, "erk", {"average"}),
    "pruning.structure": ({"pruning__scope": "uniform"}, "channels", {"average"}),
    "pruning.include": ({}, ["features.*"], ALL),
    "pruning.exclude": ({}, ["classifier.weight"], ALL),
    "execution.threads": ({}, 2, SAMPLES),
    "execution.precision": ({}, "bf16", SAMPLES),
    "execution.channels_last": ({}, False, SAMPLES),
    "execution.compile": ({}, True, SAMPLES),
    "execution.fused": ({}, False, SAMPLES),
    "execution.particles_per_worker": ({}, 2, {"particle"}),
    "identity.strict": ({}, True, SAMPLES),
}

# Fields that are in no name: names, places, execution, and choices whose outcome is named instead of the choice.
NEVER: dict[str, Any] = {
    "name": "another", "storage": "elsewhere", "data.root": "/somewhere", "data.download": True,
    "data.loader_workers": 1, "particles.count": 7, "particles.schedule": [{"sparsity": 0.5, "count": 9}],
    "particles.combine": "best", "rewind.weights": "none", "pruning.target": 0.875, "pruning.empty_layers": "refuse",
    "execution.executor": "ray", "execution.address": "auto", "execution.num_workers": 2, "execution.num_gpus": 0.5,
    "execution.num_cpus": 0.5, "execution.data_on_device": True, "execution.checkpoint_every": 0,
    "execution.checkpoint_interval_s": 5.0,
    "execution.max_retries": 0, "execution.max_waiting_states": 0, "execution.log_every_s": 1.0,
    "particles.on_failure": "retry", "particles.max_reseeds": 5, "particles.min_count": 2, "particles.quorum": 2,
    "particles.deadline_s": 60.0, "execution.lease_expiry_s": 60.0,
    "execution.grace_s": 5.0, "execution.storage_patience_s": 5.0,
    "keep.particles": "none", "averaging.num_shards": 3, "execution.placement": "pack",
    "execution.labels": {"ray.io/market-type": "spot"}, "execution.stable_labels": {"disk": "in(ssd, nvme)"},
    "execution.accelerator_type": "H100", "execution.autoscaling": True,
}

# Fields that need files, code or a device; each has a test of its own below.
ELSEWHERE = {
    "data.version", "model.options", "model.version", "task.name", "task.options", "task.version", "pruning.version",
    "data.image_size", "data.resize", "start_from.path", "start_from.prefix", "start_from.take", "start_from.round",
    "start_from.skip", "start_from.zeros",
    "execution.device", "execution.deterministic", "particle.num_workers", "execution.packing",
    "pruning.before.steps", "pruning.before.num_batches", "pruning.before.temperature",
    "pruning.when", *(f"pruning.updates.{option}" for option in ("every", "begin", "until", "grow", "drop_share")),
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a config that is no section, by its dotted key."""
    for name, field in section.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation))
                 if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if kinds and get_origin(field.annotation) is not tuple:
            yield from leaves(kinds[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_is_known_to_decide_or_not() -> None:
    found = list(leaves(SwampConfig))
    assert len(found) > 80
    known = [*DECIDES, *NEVER, *ELSEWHERE]
    assert sorted(found) == sorted(known), "say of the new field which names it changes, here and in docs/identity.md"


Cache = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Names of the tiny run with some values changed."""
    known: dict[str, dict[str, str]] = {}

    def look_up(**values: Any) -> dict[str, str]:
        if repr(values) not in known:
            storage = values.pop("storage", "tiny")
            known[repr(values)] = names(prepare(tiny(tmp_path_factory.getbasetemp() / storage, **values)))
        return known[repr(values)]

    return look_up


@pytest.mark.parametrize("field", NEVER)
def test_what_does_not_decide_the_numbers_is_in_no_name(named: Cache, field: str) -> None:
    needed: dict[str, dict[str, Any]] = {
        "particles.quorum": {"particles__deadline_s": 60.0}, "particles.deadline_s": {"particles__quorum": 2},
        "execution.autoscaling": {"execution__address": "auto", "execution__device": "cpu"}}
    assert named(**needed.get(field, {}), **{field.replace(".", "__"): NEVER[field]}) == named()


@pytest.mark.parametrize("field", DECIDES)
def test_what_decides_the_numbers_is_in_the_names_it_decides(named: Cache, field: str) -> None:
    given, value, changed = DECIDES[field]
    before, after = named(**given), named(**given, **{field.replace(".", "__"): value})
    assert {kind for kind in before if after[kind] != before[kind]} == changed


DYNAMIC: dict[str, Any] = {"pruning__when": "dynamic", "pruning__scope": "erk", "dense__length": 0,
                           "averaging__within": "none", "particles__count": 1, "pruning__updates__every": "2 steps"}


@pytest.mark.parametrize(("option", "value"), [
    ("pruning__updates__every", "3 steps"), ("pruning__updates__begin", 0.4), ("pruning__updates__until", 0.6),
    ("pruning__updates__grow", "random"), ("pruning__updates__drop_share", 0.2), ("particles__count", 2),
])
def test_how_a_mask_changes_is_in_the_name_of_its_training(tmp_path: Path, option: str, value: Any) -> None:
    job = Job("particle", 0, 0)
    found = []
    for changed in ({}, {option: value}):
        result = ResultNames(prepare(tiny(tmp_path, **{**DYNAMIC, **changed})))
        found.append(result.training(job, result.first_origin()).named)
    assert found[0].name != found[1].name
    assert found[0].recipe["mask"] == found[1].recipe["mask"], "both begin alike"
    assert not found[0].former, "no earlier version did this"


def test_a_default_and_the_same_value_spelled_out_have_the_same_names(named: Cache) -> None:
    config = SwampConfig.model_validate(TINY)
    spelled = {key.replace(".", "__"): value for key, value in (
        ("training.momentum", config.training.momentum), ("training.schedule.warmup", "auto"),
        ("averaging.every", "1 epoch"), ("pruning.scope", "global"), ("execution.precision", "fp32"),
        ("execution.channels_last", True), ("execution.fused", True), ("averaging.lr", config.training.lr / 2))}
    assert named(**spelled) == named()


def test_a_changed_default_gives_other_names(tmp_path: Path, named: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a later version of the code: the same file means something else then."""
    monkeypatch.setattr(TrainingConfig.model_fields["momentum"], "default", 0.8)
    for section in (TrainingConfig, SwampConfig):
        section.model_rebuild(force=True)
    try:
        tree: dict[str, Any] = {**TINY, "storage": str(tmp_path), "training": dict(TINY["training"])}
        config = build_config(tree)
        assert config.training.momentum == 0.8
        after = names(prepare(config))
    finally:
        monkeypatch.undo()
        for section in (TrainingConfig, SwampConfig):
            section.model_rebuild(force=True)
    assert SwampConfig.model_validate(TINY).training.momentum == 0.9
    assert {kind for kind in after if after[kind] != named()[kind]} == STEPS


@pytest.mark.parametrize("change", [{"torch": "99.1"}, {"threads": 3}, {"device": "cuda"}, {"precision": "bf16"},
                                    {"ranks": 2}, {"deterministic": False}])
def test_each_part_of_the_arithmetic_is_in_the_names(tmp_path: Path, change: dict[str, Any]) -> None:
    prepared = prepare(tiny(tmp_path))
    arithmetic = replace(prepared.arithmetic, **change)
    model = initial_model(prepared.config, prepared.data)
    recipes = recipes_of(prepared.config, prepared.data, model, prepared.task, (), prepared.layout, arithmetic,
                         prepared.facts)
    before, after = names(prepared), names(replace(prepared, recipes=recipes))
    assert {kind for kind in before if after[kind] != before[kind]} == SAMPLES


def test_the_arithmetic_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names(prepare(tiny(tmp_path)))
    first, second, *rest = torch.__version__.split(".")
    monkeypatch.setattr(torch, "__version__", ".".join([first, second, *rest]) + "-patched")
    assert names(prepare(tiny(tmp_path))) == before, "a patch release of torch is the same arithmetic"
    monkeypatch.setattr(torch, "__version__", f"{first}.{int(second) + 1}.0")
    after = names(prepare(tiny(tmp_path)))
    assert {kind for kind in before if after[kind] != before[kind]} == SAMPLES


def test_on_cuda_device_and_determinism_are_in_the_names(tmp_path: Path) -> None:
    before = names(prepare(tiny(tmp_path), "cpu"))
    cuda = names(prepare(tiny(tmp_path), "cuda"))
    exact = names(prepare(tiny(tmp_path, execution__deterministic=True), "cuda"))
    assert names(prepare(tiny(tmp_path, execution__deterministic=True), "cpu")) == before, "the CPU always is"
    for kind in SAMPLES:
        assert len({before[kind], cuda[kind], exact[kind]}) == 3


def test_a_changed_dataset_file_changes_the_names(tmp_path: Path) -> None:
    def write(pixel: int, label: int) -> dict[str, str]:
        for split in ("train", "test"):
            encoded, labels = [], []
            for row in range(40):
                pixels = np.full((8, 8, 3), row * 5, np.uint8)
                pixels[0, 0, 0] = pixel if row == 7 else 0
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                encoded.append(buffer.getvalue())
                labels.append(label if row == 7 else row % 10)
            pq.write_table(pa.table({"image": encoded, "label": labels}), tmp_path / f"cifar10-{split}.parquet")
        return names(prepare(tiny(tmp_path, data__name="cifar10", data__root=str(tmp_path), data__options={})))

    first = write(1, 7)
    assert write(1, 7) == first
    for changed in (write(2, 7), write(1, 8)):
        assert {kind for kind in first if changed[kind] != first[kind]} == SAMPLES


def test_a_changed_image_folder_and_its_sizes_change_the_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for row in range(20):
                Image.new("RGB", (9, 9), (row, row, row)).save(tmp_path / split / label / f"{row}.png")
    given: dict[str, Any] = {"data__name": "image_folder", "data__root": str(tmp_path), "data__options": {},
                             "data__image_size": 8, "data__resize": 8, "data__loader_workers": 0}

    def look_up(**values: Any) -> dict[str, str]:
        return names(prepare(tiny(tmp_path, **{**given, **values})))

    first = look_up()
    assert look_up() == first
    for field, value in (("data__image_size", 7), ("data__resize", 9)):
        changed = look_up(**{field: value})
        assert {kind for kind in first if changed[kind] != first[kind]} >= SAMPLES, field
    os.utime(tmp_path / "train" / "cat" / "3.png", (1, 1))
    touched = look_up()
    assert {kind for kind in first if touched[kind] != first[kind]} == SAMPLES


def test_the_content_of_a_start_is_in_the_names_and_its_path_is_not(tmp_path: Path) -> None:
    model = initial_model(tiny(tmp_path), prepare(tiny(tmp_path)).data)
    first = model.state_dict()
    second = {name: value + 1 for name, value in first.items()}
    for name in ("a.pt", "b.pt"):
        torch.save({"first": first, "second": second}, tmp_path / name)

    def look_up(name: str, prefix: str) -> str:
        prepared = prepare(tiny(tmp_path, start_from={"path": str(tmp_path / name), "prefix": prefix}))
        start = prepared.recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
        mask = prepared.recipes.mask_digest(prepared.first_mask)
        return prepared.recipes.training(prepared.program(0, 0).as_dict(), 1, start, mask, None).name

    assert look_up("a.pt", "first") == look_up("b.pt", "first")
    assert look_up("a.pt", "first") != look_up("a.pt", "second")


def test_a_round_that_is_repeated_under_another_mask_has_the_seeds_and_the_program_of_that_round(
    tmp_path: Path
) -> None:
    values: dict[str, Any] = {"averaging__within": "none", "round__schedule": "retrain"}
    before = prepare(tiny(tmp_path, **values))
    done = run(tiny(tmp_path, pruning__target=0.5))
    path = str(Path(done.rundir.ticket(done.records[1].sparsity).location))

    def prepared(**start: Any) -> Prepared:
        return prepare(tiny(tmp_path, **values, start_from={"path": path, **start}))

    mask, ticket = prepared(take="mask", round=2), prepared()
    assert mask.dense == before.dense
    assert ticket.dense is None
    for name, value in before.initial.parameters.items():
        assert np.array_equal(mask.initial.parameters[name], value)
    assert np.array_equal(mask.first_mask, ticket.first_mask)
    assert int(mask.first_mask.sum()) == done.records[1].survivors
    assert mask.program(0, 1) == before.program(2, 1)
    assert ticket.program(0, 1) == before.program(0, 1) != before.program(2, 1)
    assert mask.particle_seed(0, 1) == before.particle_seed(2, 1)
    assert mask.particle_seed(-1, 0) == before.particle_seed(-1, 0), "the dense phase is the same one"
    torch.save(initial_model(tiny(tmp_path), before.data).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"start_from\.take.*no ticket"):
        prepare(tiny(tmp_path, start_from={"path": str(tmp_path / "plain.pt"), "take": "mask"}))


MODULE = """
from torch import nn
from torch.utils.data import Dataset
import numpy as np
import torch
import helper_of_mine
from swamp_ray.training.tasks import Classification

class Net(nn.Module):
    def __init__(self, width=8, num_classes=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, 3))
    def forward(self, x):
        return helper_of_mine.scaled(self.layers(x)) * 1.0

def task(**options):
    return Classification(0.0)

def score(weights, rewind_weights):
    return weights.abs() * 1.0

class Noise(Dataset):
    def __init__(self, num):
        self.num = num
    def __len__(self):
        return self.num
    def __getitem__(self, index):
        return torch.rand(1, 6, 6), index % 3

def data():
    return {"train": Noise(96), "test": Noise(40), "num_classes": 3}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Modules of a user's own, and a function that edits one of them as an editor would between two commands."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "module_of_mine.py").write_text(MODULE)
    (folder / "helper_of_mine.py").write_text("def scaled(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(folder))

    def forget() -> None:
        for name in ("module_of_mine", "helper_of_mine"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def edit(file: str, text: str) -> None:
        (folder / file).write_text(text)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        forget()

    forget()
    yield edit
    forget()


@pytest.mark.parametrize(("section", "attribute", "decided"), [
    ("model", "Net", SAMPLES), ("task", "task", SAMPLES), ("pruning", "score", {"average"})])
def test_code_of_your_own_is_in_the_names_unless_a_version_stands_for_it(
    tmp_path: Path, mine: Callable[[str, str], None], section: str, attribute: str, decided: set[str]
) -> None:
    key = f"{section}__{'score' if section == 'pruning' else 'name'}"

    def look_up(**values: Any) -> dict[str, str]:
        return names(prepare(tiny(tmp_path, **{"model__name": "lenet_300_100", key: f"module_of_mine:{attribute}"},
                                  **values)))

    def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {kind for kind in before if after[kind] != before[kind]}

    first, declared = look_up(), look_up(**{f"{section}__version": "1"})
    assert changed(first, declared) == decided
    assert changed(declared, look_up(**{f"{section}__version": "2"})) == decided
    if section != "pruning":
        options = {"width": 8} if section == "model" else {"anything": 1}
        assert changed(first, look_up(**{f"{section}__options": options})) == decided
    mine("module_of_mine.py", MODULE.replace("* 1.0", "* 2.0"))
    edited = look_up()
    assert changed(first, edited) == decided
    assert look_up(**{f"{section}__version": "1"}) == declared
    mine("helper_of_mine.py", "def scaled(x):\n    return 2 * x\n")
    assert changed(edited, look_up()) == decided
    assert look_up(**{f"{section}__version": "1"}) == declared
    mine("unrelated_of_mine.py", "x = 1\n")
    mine("helper_of_mine.py", "def scaled(x):\n    return x\n")
    mine("module_of_mine.py", MODULE)
    assert look_up() == first


def test_the_version_of_data_that_are_read_while_training_is_in_the_names(
    tmp_path: Path, mine: Callable[[str, str], None]
) -> None:
    first, second = (names(prepare(tiny(tmp_path, data__name="module_of_mine:data", data__options={},
                                        data__version=version))) for version in ("1", "2"))
    assert {kind for kind in first if first[kind] != second[kind]} == SAMPLES


def test_a_changed_forward_is_never_answered_with_an_old_result(
    tmp_path: Path, mine: Callable[[str, str], None]
) -> None:
    values: dict[str, Any] = {"model__name": "module_of_mine:Net", "pruning__target": 0.0, "particles__count": 1}

    def trained(name: str) -> tuple[int, int, dict[str, str]]:
        done = run(tiny(tmp_path, name=name, **values))
        attempt = (done.rundir.read_run() or {})["attempts"][-1]
        return attempt["trained"], attempt["found"], ticket_digests(tmp_path, name)

    num, found, tickets = trained("first")
    assert (num, found) == (2, 0)
    assert trained("same-code") == (0, 2, tickets)
    mine("module_of_mine.py", MODULE.replace("* 1.0", "* -1.0"))
    num, found, others = trained("other-code")
    assert (num, found) == (2, 0)
    assert others != tickets
    mine("helper_of_mine.py", "def scaled(x):\n    return 3 * x\n")
    assert trained("other-helper")[:2] == (2, 0)
    mine("helper_of_mine.py", "def scaled(x):\n    return x\n")
    mine("module_of_mine.py", MODULE)
    assert trained("first-code-again") == (0, 2, tickets)


def test_averaged_weights_do_not_depend_on_the_mask_chosen_from_them(tmp_path: Path) -> None:
    recipes = prepare(tiny(tmp_path)).recipes
    first = recipes.average(["a", "b"], "m", "s", 100, 0)
    second = recipes.average(["a", "b"], "m", "s", None, 0)
    assert first.name != second.name
    assert average_recipe(first) == average_recipe(second)
    assert recipes.average(["b", "a"], "m", "s", 100, 0).name != first.name, "the order decides the last bits"


def test_the_number_of_ranks_is_in_the_names_of_what_they_train(tmp_path: Path) -> None:
    one, two, three = (names(prepare(tiny(tmp_path, execution__executor="ray", training__batch_size=12,
                                          particle__num_workers=ranks))) for ranks in (1, 2, 3))
    for other in (two, three):
        assert {kind for kind in one if one[kind] != other[kind]} == SAMPLES
    assert two["particle"] != three["particle"]


def test_strict_names_hold_the_machine(tmp_path: Path) -> None:
    prepared = prepare(tiny(tmp_path, identity__strict=True))
    model = initial_model(prepared.config, prepared.data)
    other = recipes_of(prepared.config, prepared.data, model, prepared.task, (), prepared.layout, prepared.arithmetic,
                       {**prepared.facts, "cpu": "another"})
    assert other.evaluation("c", "m", "s").name != prepared.recipes.evaluation("c", "m", "s").name


def test_a_mask_has_its_own_digest(tmp_path: Path) -> None:
    prepared = prepare(tiny(tmp_path))
    mask = prepared.first_mask.copy()
    mask[3] = False
    assert prepared.recipes.mask_digest(mask) != prepared.recipes.mask_digest(prepared.first_mask)
    assert replace(prepared, first_mask=mask).recipes.mask_digest(np.copy(mask)) == prepared.recipes.mask_digest(mask)
