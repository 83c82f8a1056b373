"""Runs whose masks have structure: every round's ticket has it, also after an interruption and from a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import Interrupted, UserError
from swamp_ray.launch import run
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.shard import num_shards
from swamp_ray.sparsity.masks import find_prunable
from swamp_ray.sparsity.structure import kept_of_groups, kept_units
from swamp_ray.storage.tickets import load_ticket
from swamp_ray.structure import parse_structure
from swamp_ray.training.trainer import initial_model
from tests.helpers import TINY, data_of, ticket_digests

MLP = {"model": {"name": "mlp", "options": {"hidden": [16, 8]}}, "averaging": {"within": "none"},
       "particles": {"count": 2}}
CASES: dict[str, dict[str, Any]] = {
    "2:4": {"target": 0.5, "rate": 0.2},
    "1:4": {"target": 0.75, "rate": 0.3},
    "channels": {"target": 0.6, "rate": 0.4, "scope": "uniform"},
    "blocks:4x4": {"target": 0.7, "rate": 0.4},
}


def config_of(storage: Path, text: str, **pruning: Any) -> SwampConfig:
    return build_config({**TINY, **MLP, "storage": str(storage),
                         "pruning": {**TINY["pruning"], "structure": text, **CASES.get(text, {}), **pruning}})


def last_layer(config: SwampConfig) -> str:
    model = initial_model(with_values(config, {"pruning.exclude": []}), data_of(config))
    return find_prunable(model).layers[-1].name


def fitting(storage: Path, text: str, **pruning: Any) -> SwampConfig:
    """With the last layer of 3 outputs left whole, where units of outputs have to divide it."""
    config = config_of(storage, text, exclude=[], **pruning)
    wants_whole_outputs = text == "channels" or text.startswith("blocks")
    return with_values(config, {"pruning.exclude": [last_layer(config)] if wants_whole_outputs else []})


def check_tickets(config: SwampConfig) -> list[float]:
    """Sparsities of the run's tickets, whose masks all have the structure and are nested."""
    structure = parse_structure(config.pruning.structure)
    assert structure is not None
    layout = find_prunable(initial_model(config, data_of(config)), ("*",), config.pruning.exclude)
    folder = Path(config.storage) / "runs" / "tiny" / "tickets"
    before = np.ones(layout.num_prunable, dtype=bool)
    found = []
    for path in sorted(folder.iterdir()):
        masks = load_ticket(path / "model.safetensors").masks
        mask = np.concatenate([masks[layer.name].numpy().ravel() for layer in layout.layers])
        if structure.keeps_pattern:
            kept_of_groups(layout, structure, mask)
        for layer in layout.layers if not structure.keeps_pattern else ():
            kept_units(layer, structure, mask)
        assert not np.any(mask & ~before)
        before = mask
        found.append(1 - mask.mean())
    return found


@pytest.mark.parametrize("text", CASES)
def test_every_ticket_has_the_structure(tmp_path: Path, text: str) -> None:
    config = fitting(tmp_path, text)
    planned = [plan.sparsity for plan in prepare(config).plan]
    done = run(config)
    assert [record.sparsity for record in done.records] == planned
    assert check_tickets(config) == pytest.approx(planned)
    assert planned[-1] == pytest.approx(config.pruning.target, abs=0.1 if text == "channels" else 0.02)


class StopAfterARound(Reporter):
    def round_finished(self, record: Any) -> None:
        raise KeyboardInterrupt


def test_interrupted_it_ends_with_the_same_tickets(tmp_path: Path) -> None:
    whole = fitting(tmp_path / "whole", "1:4")
    run(whole)
    broken = fitting(tmp_path / "broken", "1:4")
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(broken, StopAfterARound())
    run(broken)
    assert ticket_digests(broken.storage) == ticket_digests(whole.storage)


def test_a_ticket_goes_on_and_one_without_the_structure_is_refused(tmp_path: Path) -> None:
    run(fitting(tmp_path, "2:4"))
    ticket = tmp_path / "runs/tiny/tickets/0.5000/model.safetensors"
    further = with_values(fitting(tmp_path / "further", "1:4"), {"start_from": {"path": str(ticket)}})
    assert [plan.sparsity for plan in prepare(further).plan] == [0.5, 0.75]
    run(further)
    assert check_tickets(further) == [0.5, 0.75]
    with pytest.raises(UserError, match=r"the ticket's mask has not the structure blocks:1x4"):
        prepare(with_values(further, {"pruning.structure": "blocks:1x4", "pruning.target": 0.9}))


def test_names_change_only_where_a_structure_is_used(tmp_path: Path) -> None:
    plain = config_of(tmp_path, "none")
    assert "structure" not in plain.recipe()["pruning"]
    structured = fitting(tmp_path, "2:4")
    assert structured.recipe()["pruning"]["structure"] == "2:4"
    recipes = prepare(structured).recipes
    assert recipes.average(["s"], "m", "w", 5, 0).recipe["structure"] == "2:4"
    assert "structure" not in recipes.average(["s"], "m", "w", None, 0).recipe
    assert "structure" not in prepare(plain).recipes.average(["s"], "m", "w", 5, 0).recipe


def test_all_weights_are_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swamp_ray.run.shard.AUTO_ELEMENTS", 100)
    monkeypatch.setattr("swamp_ray.sparsity.compact.CHUNK", 64)
    config = fitting(tmp_path, "2:4")
    layout = prepare(config).layout
    assert num_shards(config, layout) == 1
    assert num_shards(config_of(tmp_path, "none"), layout) > 1


@pytest.mark.parametrize(("pruning", "message"), [
    ({"structure": "2:4", "target": 0.9}, r"pruning.target must be 0.5 with pruning.structure: 2:4.*got 0.9"),
    ({"structure": "2:4", "target": 0.5, "scope": "erk"}, r"pruning.scope: erk has no meaning"),
    ({"structure": "5:4"}, r"pruning.structure: must keep at least 1 and fewer"),
    ({"structure": "rows"}, r"pruning.structure: must be none, N:M such as 2:4, channels, or blocks:AxB"),
])
def test_what_has_no_meaning_is_refused_by_name(pruning: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config({**TINY, "pruning": pruning})


def test_several_shards_are_refused() -> None:
    with pytest.raises(UserError, match=r"averaging.num_shards must be auto or 1 with pruning.structure: channels"):
        build_config({**TINY, "averaging": {"num_shards": 2}, "pruning": {"structure": "channels"}})


def test_layers_that_do_not_divide_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 inputs, which 4 does not divide.*pruning.exclude"):
        prepare(with_values(config_of(tmp_path, "2:4"), {"model.name": "digits_cnn", "model.options": {}}))
