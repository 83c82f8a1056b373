"""Runs that choose one mask before their only training: in one process, resumed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swamp_ray import load_ticket
from swamp_ray.config.reading import build_config
from swamp_ray.data.samples import Data
from swamp_ray.errors import Interrupted, RunError, UserError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import DENSE, MASK, Job
from swamp_ray.run.averager import MASK_FILE, read_mask
from swamp_ray.run.disk_space import estimate
from swamp_ray.run.messages import JobSpec
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.result_names import ResultNames
from swamp_ray.sparsity.masks import from_bits, split
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.mask_before import choose_mask
from swamp_ray.training.network_scores import snip
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import never
from tests.helpers import TINY, data_of, ticket_digests, tiny

BEFORE: dict[str, Any] = {"pruning__when": "before", "pruning__target": 0.9, "rewind__weights": "init",
                          "particles__count": 2, "round__length": 1,
                          "averaging__within": "none"}
SCORES = ("random", "magnitude", "snip", "grasp", "synflow", "tests.before_scores:squared")


class Watcher(Reporter):
    """Remembers what was done, found and said."""

    def __init__(self, interrupt_at: Job | None = None) -> None:
        self.done: list[Job] = []
        self.found: list[Job] = []
        self.said: list[str] = []
        self._interrupt_at = interrupt_at

    def job_submitted(self, spec: JobSpec) -> None:
        if spec.job == self._interrupt_at:
            raise KeyboardInterrupt

    def job_finished(self, job: Job, found: bool) -> None:
        (self.found if found else self.done).append(job)

    def notice(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)


def before(storage: Path, watcher: Reporter | None = None, **values: Any) -> Run:
    return run(tiny(storage, **{**BEFORE, **values}), watcher)


def mask_of(storage: Path, **values: Any) -> np.ndarray:
    """The mask that a finished run has stored."""
    prepared = prepare(tiny(storage, **{**BEFORE, **values}))
    names = ResultNames(prepared)
    store = ArtifactStore(str(storage))
    manifest = store.find(names.mask(names.first_origin()).named.name)
    assert manifest is not None
    bits = read_mask(store, manifest)
    assert bits is not None
    return from_bits(bits, prepared.layout.num_prunable)


@pytest.mark.parametrize("scope", ["global", "erk"])
@pytest.mark.parametrize("score", SCORES)
def test_every_score_trains_one_round_of_exactly_the_target(tmp_path: Path, score: str, scope: str) -> None:
    watcher = Watcher()
    done = before(tmp_path, watcher, pruning__score=score, pruning__scope=scope)
    [record] = done.records
    assert record.survivors == round(0.1 * prepare(tiny(tmp_path, **BEFORE)).layout.num_prunable)
    assert watcher.done == [MASK, *(Job("particle", 0, n) for n in range(2)), Job("evaluation", 0)]
    assert any(f"keeps {record.survivors:,} of" in text and score in text for text in watcher.said)
    mask = mask_of(tmp_path, pruning__score=score, pruning__scope=scope)
    ticket = load_ticket(tmp_path / record.ticket)
    layout = prepare(tiny(tmp_path, **BEFORE)).layout
    assert {name: part.tolist() for name, part in split(layout, mask).items()} == {
        name: part.tolist() for name, part in ticket.masks.items()}
    if scope == "erk":
        counts = [layer.size for layer in layout.layers]
        budgets = layer_budgets(layout, counts, record.survivors, "erk")
        assert [int(mask[layer.span].sum()) for layer in layout.layers] == budgets
    assert {line["kind"] for line in done.rundir.read_results()} == {"mask", "particle", "average", "evaluation"}


def test_the_mask_keeps_the_weights_of_the_largest_scores(tmp_path: Path) -> None:
    """SNIP's mask of a run from its own functions: initial weights, the first batches of the run's order, one sort."""
    config = tiny(tmp_path, **BEFORE, pruning__score="snip", pruning__before__num_batches=3)
    prepared = prepare(config)
    program = prepared.mask
    assert program is not None
    assert (program.num_batches, program.steps) == (3, 1)
    trainer = ParticleTrainer(config, data_of(config), prepared.arithmetic)
    seen: list[Any] = []
    training_step = trainer.task.training_step

    def watched(model: Any, batch: Any) -> Any:
        seen.append(batch)
        return training_step(model, batch)

    trainer.task.training_step = watched
    with applied(prepared.arithmetic):
        bits = choose_mask(trainer, program, prepared.initial.parameters, prepared.initial.buffers,
                           prepared.whole_mask, never)
    assert bits is not None
    assert [len(labels) for _, labels in seen] == [16, 16, 16]
    assert not torch.equal(seen[0][0], seen[1][0])
    model = initial_model(config, data_of(config)).train()
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in prepared.layout.layers}
    found = snip(model, trainer.task, seen[:3], masks)
    flat = torch.cat([found[layer.name].reshape(-1) for layer in prepared.layout.layers])
    best = torch.sort(flat, descending=True, stable=True).indices[:program.survivors]
    expected = np.zeros(len(flat), dtype=bool)
    expected[best.numpy()] = True
    assert (from_bits(bits, len(flat)) == expected).all()


def test_at_the_rewind_point_the_scores_are_of_the_trained_weights(tmp_path: Path) -> None:
    watcher = Watcher()
    before(tmp_path / "t0", watcher, pruning__score="magnitude", rewind__weights="t0", dense__length=2)
    assert watcher.done[:2] == [DENSE, MASK]
    before(tmp_path / "init", pruning__score="magnitude")
    assert ticket_digests(tmp_path / "t0") != ticket_digests(tmp_path / "init")


def test_several_steps_prune_in_turn_and_a_single_one_is_another_mask(tmp_path: Path) -> None:
    at_once: dict[str, Any] = {"pruning__score": "snip"}
    in_turn: dict[str, Any] = {**at_once, "pruning__before__steps": 5}
    before(tmp_path, **at_once)
    before(tmp_path, **in_turn, name="in-turn")
    masks = [mask_of(tmp_path, **values) for values in (at_once, in_turn)]
    assert masks[0].sum() == masks[1].sum()
    assert (masks[0] != masks[1]).any()


def test_two_fresh_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        before(tmp_path / name, pruning__score="grasp")
    assert ticket_digests(tmp_path / "a") == ticket_digests(tmp_path / "b")


def test_a_run_that_is_stopped_after_its_mask_finds_it_again(tmp_path: Path) -> None:
    before(tmp_path / "whole", pruning__score="synflow")
    with pytest.raises(Interrupted):
        before(tmp_path / "cut", Watcher(Job("particle", 0, 0)), pruning__score="synflow")
    watcher = Watcher()
    before(tmp_path / "cut", watcher, pruning__score="synflow")
    assert watcher.found == [MASK]
    assert ticket_digests(tmp_path / "cut") == ticket_digests(tmp_path / "whole")


def test_the_same_command_again_computes_nothing(tmp_path: Path) -> None:
    before(tmp_path, pruning__score="snip")
    watcher = Watcher()
    before(tmp_path, watcher, pruning__score="snip")
    assert watcher.done == []
    space = estimate(prepare(tiny(tmp_path, **BEFORE, pruning__score="snip")))
    assert space.present_bytes > 0


def test_a_damaged_mask_is_chosen_again(tmp_path: Path) -> None:
    before(tmp_path, pruning__score="snip")
    tickets = ticket_digests(tmp_path)
    prepared = prepare(tiny(tmp_path, **BEFORE, pruning__score="snip"))
    names = ResultNames(prepared)
    name = names.mask(names.first_origin()).named.name
    manifest = ArtifactStore(tmp_path).find(name)
    assert manifest is not None
    [payload] = (tmp_path / "artifacts").rglob(f"{name}/{manifest.files[MASK_FILE].sha256}.safetensors")
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(bytes(data))
    watcher = Watcher()
    before(tmp_path, watcher, pruning__score="snip")
    assert MASK in watcher.done
    assert ticket_digests(tmp_path) == tickets


def test_runs_that_differ_in_particles_share_mask_and_particles(tmp_path: Path) -> None:
    before(tmp_path, pruning__score="snip")
    watcher = Watcher()
    before(tmp_path, watcher, pruning__score="snip", name="three", particles__count=3)
    assert watcher.found == [MASK, Job("particle", 0, 0), Job("particle", 0, 1)]


@pytest.mark.parametrize(("score", "changed", "same"), [
    ("synflow", {"training__batch_size": 8, "task__label_smoothing": 0.1}, True),
    ("synflow", {"pruning__before__steps": 99}, False),
    ("synflow", {"pruning__before__steps": 100}, True),
    ("synflow", {"model__options": {}, "seed": 1}, False),  # another initialisation
    ("snip", {"training__lr": 0.01, "round__length": 3, "averaging__within": "ema"}, True),
    ("snip", {"pruning__before__num_batches": 2}, False),
    ("snip", {"pruning__before__num_batches": 5}, True),  # as many as there are
    ("snip", {"task__label_smoothing": 0.1}, False),
    ("snip", {"pruning__scope": "erk"}, False),
    ("grasp", {"pruning__before__temperature": 1.0}, False),
    ("grasp", {"pruning__before__temperature": 200.0}, True),
    ("random", {"training__batch_size": 8}, True),
    ("random", {"seed": 1}, False),
    ("magnitude", {"training__batch_size": 8}, True),
])
def test_a_masks_name_has_what_decides_it_and_nothing_else(
    tmp_path: Path, score: str, changed: dict[str, Any], same: bool
) -> None:
    found = []
    for values in ({}, changed):
        names = ResultNames(prepare(tiny(tmp_path, **{**BEFORE, "pruning__score": score, **values})))
        found.append(names.mask(names.first_origin()).named.name)
    assert (found[0] == found[1]) is same


def test_a_tickets_mask_is_pruned_further(tmp_path: Path) -> None:
    [record] = before(tmp_path, pruning__score="snip", pruning__target=0.5).records
    start = {"path": str(tmp_path / record.ticket), "take": "mask"}
    before(tmp_path, pruning__score="magnitude", pruning__target=0.8, start_from=start, name="further")
    first = load_ticket(tmp_path / record.ticket)
    [further] = (tmp_path / "runs" / "further" / "tickets").rglob("*.safetensors")
    second = load_ticket(further)
    assert second.sparsity == pytest.approx(0.8, abs=1e-3)
    assert all(not bool((second.masks[name] & ~first.masks[name]).any()) for name in first.masks)


def test_options_that_say_nothing_leave_the_recipe_as_it_was() -> None:
    recipe = build_config(TINY).recipe()
    assert not {"when", "before"} & set(recipe["pruning"])
    pruned = build_config({**TINY, "pruning": {"when": "before", "score": "snip"}}).recipe()
    assert pruned["pruning"]["when"] == "before"
    assert "before" not in pruned["pruning"]


def test_a_mask_that_empties_a_layer_is_refused_or_warned_of(tmp_path: Path) -> None:
    values: dict[str, Any] = {"pruning__score": "magnitude", "pruning__target": 0.999}
    watcher = Watcher()
    before(tmp_path, watcher, **values)
    assert any("round 0 leaves no weight in" in text for text in watcher.said)
    with pytest.raises(RunError, match=r"would leave no weight in .* pruning\.scope to erk"):
        before(tmp_path / "other", **values, pruning__empty_layers="refuse")


@pytest.mark.parametrize(("values", "words"), [
    ({"pruning__when": "rounds", "pruning__score": "snip"}, ["pruning.score", "pruning.when: before"]),
    ({"pruning__score": "movement"}, ["pruning.score", "how far training moved"]),
    ({"pruning__score": "synflo"}, ["pruning.score", "'synflow'"]),
    ({"pruning__score": "tests.before_scores:turned"}, ["features.0.weight", "(16, 1, 3, 3)", "(3, 3, 1, 16)"]),
    ({"pruning__score": "tests.before_scores:nan"}, ["pruning.score", "NaN in features.0.weight"]),
    ({"pruning__score": "tests.before_scores:nothing"}, ["one tensor for each prunable weight", "features.0.weight"]),
    ({"pruning__score": "tests.before_scores:labels"}, ["the score failed", "batch[\"weights\"]"]),
    ({"pruning__score": "tests.before_scores:old_form"}, ["score(model, task, batches, mask)"]),
    ({"pruning__score": "snip", "pruning__before__num_batches": 9}, ["pruning.before.num_batches", "5 batches of 16"]),
    ({"pruning__score": "snip", "pruning__before__temperature": 2.0}, ["pruning.before.temperature", "grasp"]),
    ({"pruning__score": "synflow", "pruning__before__num_batches": 2}, ["sees no data"]),
    ({"pruning__score": "random", "pruning__before__steps": 3}, ["pruning.before.steps must be 1"]),
    ({"pruning__when": "rounds", "pruning__before__steps": 3}, ["pruning.before needs pruning.when: before"]),
    ({"rewind__weights": "none"}, ["rewind.weights must be init or t0"]),
    ({"round__schedule": "retrain"}, ["round.schedule must be full"]),
    ({"particles__schedule": [{"sparsity": 0.5, "count": 3}]}, ["particles.schedule", "particles.count"]),
    ({"pruning__target": 0.99999}, ["pruning.target", "at least one of"]),
])
def test_what_has_no_meaning_is_refused_before_any_work(
    tmp_path: Path, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as found:
        prepare(tiny(tmp_path, **{**BEFORE, **values}))
    assert [word for word in words if word not in str(found.value)] == [], str(found.value)


def test_a_temperature_needs_logits(tmp_path: Path) -> None:
    values = {**BEFORE, "pruning__score": "grasp", "task__name": "tests.before_scores:OwnLoss"}
    program = prepare(tiny(tmp_path, **values)).mask
    assert program is not None
    assert program.temperature == 1.0
    with pytest.raises(UserError, match=r"pruning\.before\.temperature: .* other losses have none"):
        prepare(tiny(tmp_path, **values, pruning__before__temperature=2.0))


def test_data_are_named_by_their_digest(tmp_path: Path) -> None:
    data: Data = data_of(tiny(tmp_path))
    names = ResultNames(prepare(tiny(tmp_path, **BEFORE, pruning__score="snip")))
    assert names.mask(names.first_origin()).named.recipe["data"] == (data.training_digest or data.digest)
