"""``swamp analyze`` on a real small run: tables, files, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from swamp_ray.analysis import items
from swamp_ray.analysis.measuring import measured
from swamp_ray.cli import main
from swamp_ray.commands import analyze as commands
from swamp_ray.launch import run
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import tiny


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysed")
    run(tiny(folder, pruning__target=0.5))
    run(tiny(folder, name="other", seed=1, pruning__target=0.5, particles__count=1))
    return folder


def shown(storage: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["analyze", *arguments, "--storage", str(storage)])
    return result.output


def rows(storage: Path, what: str, name: str = "tiny") -> list[dict]:
    return json.loads((storage / f"runs/{name}/analysis/{what}.json").read_text())["rows"]


def test_connectivity(storage: Path) -> None:
    text = shown(storage, "connectivity", "tiny")
    found = rows(storage, "connectivity")
    assert [(row["kind"], row["round"]) for row in found] == [
        ("particles", 0), ("particles", 0), ("particles", 0), ("rounds", 0), ("particles", 1), ("particles", 1),
        ("particles", 1)]
    for row in found:
        values = np.array(row["values"]["test"]["loss"])
        chord = np.linspace(values[0], values[-1], 11)
        assert row["barrier"]["test"]["loss"] == pytest.approx(max(values - chord), abs=1e-12)
    assert "particle 0, 1 " in text
    assert "average of round 0, 1 " in text


@pytest.mark.parametrize(("what", "heading"), [
    ("landscape", "at the average"), ("curvature", "sum w² H"), ("particles", "ensemble test"), ("masks", "overlap")])
def test_the_others_print_a_table_and_leave_a_file(
    storage: Path, monkeypatch: pytest.MonkeyPatch, what: str, heading: str
) -> None:
    for name, value in (("GRID", 3), ("NUM_SAMPLES", 40), ("NUM_DIRECTIONS", 2)):
        monkeypatch.setattr(items, name, value)
    text = shown(storage, what, "tiny")
    assert heading in text
    assert "…" not in text, "a number is cut off"
    assert ("this takes up to" in text) == (what == "curvature")
    assert rows(storage, what)


def test_one_round_as_json(storage: Path) -> None:
    text = shown(storage, "particles", "tiny", "--round", "1", "--json")
    found = json.loads(text[text.index("{"):])
    assert {row["round"] for row in found["tiny"]} == {1}
    assert [row["count"] for row in found["tiny"]] == [1, 2, 3]


def test_what_was_measured_before_stays_in_the_file(storage: Path) -> None:
    shown(storage, "particles", "tiny")
    everything = rows(storage, "particles")
    assert [row["round"] for row in everything] == [0, 0, 0, 1, 1, 1]
    shown(storage, "particles", "tiny", "--round", "0")
    assert rows(storage, "particles") == everything
    path = storage / "runs/tiny/analysis/particles.json"
    path.write_text("[1]")
    assert "1 piece of work, all of them measured before" in shown(storage, "particles", "tiny", "--round", "1")
    assert rows(storage, "particles") == everything, "a damaged file is written anew, from what was measured"


def test_from_python_it_is_the_command_without_its_tables(storage: Path) -> None:
    found = measured("particles", RunDir(storage, "other"))
    path = storage / "runs/other/analysis/particles.json"
    assert json.loads(path.read_text()) == found
    assert "all of them measured before" in shown(storage, "particles", "other")
    assert json.loads(path.read_text()) == found


@pytest.mark.parametrize(("value", "error", "text"), [
    (0.7999, 0.0871, "0.800 ± 0.087"), (5.669, 0.5, "5.67 ± 0.50"), (1234.5, 67.0, "1234 ± 67"), (2.5, 0.0, "2.5")])
def test_estimates_have_two_digits_of_their_error(value: float, error: float, text: str) -> None:
    assert commands.with_error(value, error) == text


def test_masks_of_runs_are_compared_with_chance(storage: Path) -> None:
    text = shown(storage, "masks", "tiny", "other")
    assert "masks of different runs" in text
    assert "by chance" in text
    assert "0.3333" in text, "two random masks of density 0.5 share a third of their union"
    kept = json.loads((storage / "runs/other/analysis/masks.json").read_text())
    assert [row["sparsity"] for row in kept["between_runs"]] == [0.0, pytest.approx(0.5, abs=1e-4)]
    assert kept["rows"], "the run's own masks stay"


def test_what_cannot_be_analysed_is_refused(storage: Path) -> None:
    assert "only one round" in shown(storage, "masks", "tiny", "--round", "1")
    assert rows(storage, "masks"), "what was measured before is still there"
    assert "needs three particles" in shown(storage, "landscape", "other")
    assert "no finished round 7" in shown(storage, "masks", "tiny", "--round", "7")
    assert "curvature" in shown(storage, "sharpness", "tiny"), "the choices are named"
