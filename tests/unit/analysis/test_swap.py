"""Masks of two real small runs, swapped: what each cell starts from, what is trained, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from swamp_ray.analysis.swap import Swap, effects, shuffled, swap
from swamp_ray.cli import main
from swamp_ray.config.reading import dump_config
from swamp_ray.errors import Interrupted, UserError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.sparsity.masks import layer_densities, overlap
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import read_state, state_digest
from swamp_ray.storage.tickets import Ticket, load_ticket
from tests.helpers import tiny

NUM_NEW = 3 + 1 + 2 * (1 + 3)
"""Particles of two swapped and four shuffled cells."""
IMP: dict[str, Any] = {"name": "imp", "particles__count": 1, "averaging__within": "none"}


def imp(storage: Path, **values: Any) -> Run:
    return run(tiny(storage, **IMP, **values))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swapped")
    imp(folder)
    run(tiny(folder, name="swamp"))
    return folder


class Interrupts(Reporter):
    """Ctrl-C once so many particles are finished."""

    left = 6

    def job_finished(self, job: Job, found: bool) -> None:
        Interrupts.left -= job.kind == "particle" and not found
        if Interrupts.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def found(storage: Path) -> Swap:
    """Interrupted in the middle, then carried to the end."""
    first, second = RunDir(storage, "imp"), RunDir(storage, "swamp")
    with pytest.raises(Interrupted, match="Run the same command again"):
        swap(first, second, reporter=Interrupts)
    return swap(first, second)


def ticket(rundir: RunDir, index: int) -> Ticket:
    return load_ticket(rundir.place.locate(rundir.read_rounds()[index]["ticket"]))


def mask_of(found: Ticket, prepared: Prepared) -> np.ndarray:
    return np.concatenate([found.masks[layer.name].numpy().reshape(-1) for layer in prepared.layout.layers])


def test_a_shuffled_mask_keeps_the_count_of_each_layer(storage: Path) -> None:
    prepared = prepare(tiny(storage))
    masks = [mask_of(ticket(RunDir(storage, name), 2), prepared) for name in ("imp", "swamp")]
    mixed = [shuffled(prepared.layout, mask, seed=0) for mask in masks]
    for before, after in zip(masks, mixed, strict=True):
        assert layer_densities(prepared.layout, after) == layer_densities(prepared.layout, before)
        assert overlap(before, after) < 0.5
        assert not np.array_equal(after, shuffled(prepared.layout, before, seed=1))
        assert np.array_equal(after, shuffled(prepared.layout, before, seed=0))
    assert overlap(*mixed) == overlap(*masks) > 0.5


def test_each_cell_begins_at_the_rewind_point_under_its_mask(storage: Path, found: Swap) -> None:
    prepared, store = prepare(tiny(storage)), ArtifactStore(RunDir(storage, "imp").place)
    [dense] = {entry["name"] for name in ("imp", "swamp") for entry in RunDir(storage, name).read_results()
               if entry["kind"] == "dense"}
    manifest = store.find(dense)
    assert manifest is not None
    rewind = read_state(store, manifest).values
    own = {name: mask_of(ticket(RunDir(storage, name), 2), prepared) for name in ("imp", "swamp")}
    assert len(found.rows) == 8
    for row in found.rows:
        mask = own[row["mask_of"]]
        if row["shuffled"]:
            mask = shuffled(prepared.layout, mask, seed=0)
        cell = RunDir(storage, row["run"])
        start = load_ticket(cell.start.place.locate(cell.start.key))
        weights = np.concatenate([start.state[layer.name].numpy().reshape(-1) for layer in prepared.layout.layers])
        assert np.array_equal(weights, rewind * mask)
        particles = [entry["name"] for entry in cell.read_results() if entry["kind"] == "particle"]
        assert len(particles) == row["num_particles"] == {"imp": 1, "swamp": 3}[row["training_of"]]
        for name in particles:
            recipe = recipe_of(store, name)
            assert recipe["mask"] == prepared.recipes.mask_digest(mask), "what was trained is what was meant"
            assert recipe["start"] == state_digest(manifest.files)
            assert recipe["program"]["averaging"] == {"imp": "none", "swamp": "swa"}[row["training_of"]]
        assert np.array_equal(mask_of(ticket(cell, 0), prepared), mask)


def recipe_of(store: ArtifactStore, name: str) -> dict[str, Any]:
    manifest = store.find(name)
    assert manifest is not None
    data = store.read(manifest, "state.safetensors")
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["swamp"])


def test_a_round_of_a_run_is_its_own_cell_and_is_not_trained_again(storage: Path, found: Swap) -> None:
    for row in found.rows[:2]:
        assert row["mask_of"] == row["training_of"]
        assert row["trained"] == 0
        assert all(value == 0 for values in row["difference"].values() for value in values.values())
        own, cell = RunDir(storage, row["mask_of"]), RunDir(storage, row["run"])
        assert cell.read_rounds()[0]["artifacts"]["particles"] == own.read_rounds()[2]["artifacts"]["particles"]
        before, after = ticket(own, 2).state, ticket(cell, 0).state
        assert before.keys() == after.keys()
        assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)


def test_an_interrupted_swap_trains_nothing_twice(storage: Path, found: Swap) -> None:
    assert Interrupts.left == 0
    trained = [[attempt["trained"] for attempt in (RunDir(storage, row["run"]).read_run() or {})["attempts"]]
               for row in found.rows]
    assert any(len(attempts) > 2 or 0 in attempts[1:] for attempts in trained)
    assert sum(map(sum, trained)) == sum(row["trained"] for row in found.rows) == NUM_NEW
    again = swap(RunDir(storage, "imp"), RunDir(storage, "swamp"))
    assert again.rows == found.rows


def test_effects_are_differences_of_the_cells() -> None:
    values = {("first", False, "first"): 0.1, ("second", False, "first"): 0.3, ("first", False, "second"): 0.4,
              ("second", False, "second"): 1.1, ("first", True, "first"): 0.05, ("first", True, "second"): 0.15,
              ("second", True, "first"): 0.2, ("second", True, "second"): 0.4}
    rows = [{"round": 7, "sparsity": 0.9, "first": "a", "second": "b", "mask": mask, "shuffled": is_shuffled,
             "training": training, "average": {"test": {"accuracy": value}}}
            for (mask, is_shuffled, training), value in values.items()]
    [effect] = effects(rows, "accuracy")
    assert effect["mask"] == pytest.approx((0.2 + 0.7) / 2)
    assert effect["training"] == pytest.approx((0.3 + 0.8) / 2)
    assert effect["interaction"] == pytest.approx(0.7 - 0.2)
    assert effect["shuffled"] == {"first": pytest.approx((0.05 + 0.25) / 2), "second": pytest.approx((0.1 + 0.7) / 2)}


def test_the_command_prints_tables_and_json_and_leaves_a_file(storage: Path, found: Swap) -> None:
    command = ["swap", "imp", "swamp", "--storage", str(storage), "--quiet", "--json"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    said = json.loads(shown.output)
    assert said == {"rows": found.rows, "effects": found.effects}
    path = storage / "runs/imp/analysis/swap.json"
    path.write_text('{"rows": [1], "effects": {}}')
    text = CliRunner().invoke(main, ["swap", "imp", "swamp", "--storage", str(storage)]).output
    assert "own mask" in text
    assert "8/8: shuffled mask of swamp, training of swamp" in text
    assert "without an interval" in text
    assert "…" not in text
    CliRunner().invoke(main, [*command, "--round", "1"])
    kept = json.loads(path.read_text())
    assert [effect["round"] for effect in kept["effects"]] == [2, 1], "rounds that were swapped before stay"
    assert len(kept["rows"]) == 16
    listed = CliRunner().invoke(main, ["status", found.rows[3]["run"], "--storage", str(storage)])
    assert "complete" in listed.output


def test_what_cannot_be_swapped_is_refused(storage: Path, tmp_path: Path) -> None:
    first = RunDir(storage, "imp")

    def refused(match: str, second: RunDir | None = None, rounds: tuple[int, ...] = (), **values: Any) -> None:
        other = second or run(tiny(tmp_path, **{"particles__count": 1, **values})).rundir
        with pytest.raises(UserError, match=match):
            swap(first, other, rounds)

    refused("swapped with itself", first)
    refused("--round: swamp has no mask of the sparsity.*Rounds with a partner: 1, 2", RunDir(storage, "swamp"), (0,))
    refused("not begin at the same rewind point", name="seed", seed=1)
    refused("different data or splits", name="split", data__split_seed=1)
    refused("(?s)different networks.*model.name: 'digits_cnn' -> 'lenet_", name="other", model__name="lenet_300_100")
    refused("prune different tensors", name="part", pruning__include=["features.*"])
    refused("no sparsity in common", name="rate", pruning__rate=0.4, pruning__target=0.6)
    refused("no rewind point", name="none", rewind__weights="none", round__schedule="full")
    begun = RunDir(tmp_path, "begun")
    begun.write_config(dump_config(tiny(tmp_path, name="begun")))
    refused("'begun' has no finished round", begun)
    assert not list((tmp_path / "runs").glob("*-swap-*"))


def test_runs_of_another_arithmetic_or_without_their_rewind_weights_are_refused(tmp_path: Path) -> None:
    first, second = imp(tmp_path, pruning__target=0.5).rundir, run(tiny(tmp_path, pruning__target=0.5)).rundir
    with pytest.raises(UserError, match=r"(?s)another arithmetic.*threads: 1 -> 2"):
        swap(first, second, execution={"threads": 2})
    [dense] = [entry["name"] for entry in first.read_results() if entry["kind"] == "dense"]
    ArtifactStore(first.place).discard(dense, "result")
    with pytest.raises(UserError, match="no longer in the storage"):
        swap(first, second)
