"""Pieces of an analysis are kept as they come, are not measured twice, and are never taken for those of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.items import Item
from swamp_ray.analysis.measuring import DIVIDED, measure
from swamp_ray.analysis.progress import Lines, Live, Progress
from swamp_ray.analysis.work import Workplace, kept_rows, read_items, rows_of
from swamp_ray.config.reading import dump_config
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import delete_state
from tests.helpers import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(folder, pruning__target=0.5))
    return folder


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test."""
    return Path(shutil.copytree(finished, tmp_path / "storage"))


class Counting:
    """Measures, and counts; interrupts before a piece."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.texts: list[str] = []
        self._interrupt_at = interrupt_at

    def __call__(self, bench: Bench, item: Item) -> Any:
        if len(self.texts) == self._interrupt_at:
            raise KeyboardInterrupt
        self.texts.append(item.text)
        return measure(bench, item)


def test_rounds_with_nothing_to_measure_are_told(tmp_path: Path) -> None:
    run(tiny(tmp_path, pruning__target=0.5, particles__count=1))
    with pytest.raises(UserError, match="nothing to measure"):
        analysed(tmp_path, "connectivity", rounds=(1,))


def analysed(storage: Path, what: str, do: Any = measure, rounds: Sequence[int] = (0, 1)) -> list[dict[str, Any]]:
    bench = Bench(RunDir(storage, "tiny"))
    place = Workplace(bench.config.execution, Stopping())
    return rows_of(DIVIDED[what], do, bench, rounds, place, Progress())


@pytest.mark.parametrize("what", ["connectivity", "particles"])
def test_an_interrupted_analysis_goes_on_where_it_stopped(storage: Path, what: str) -> None:
    whole = analysed(Path(shutil.copytree(storage, storage.parent / "other")), what)
    first, second, third = Counting(interrupt_at=1), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        analysed(storage, what, first)
    found = analysed(storage, what, second)
    assert json.dumps(found) == json.dumps(whole)
    assert len(first.texts) == 1
    assert not set(first.texts) & set(second.texts), "nothing is measured twice"
    assert analysed(storage, what, third) == found
    assert not third.texts


def test_a_piece_that_is_damaged_is_measured_again(storage: Path) -> None:
    found, again = analysed(storage, "particles"), Counting()
    path = storage / "runs/tiny/analysis/particles-items.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first.replace('0.', '1.', 1)}\nno JSON\n[]\n{second}\n")
    assert analysed(storage, "particles", again) == found
    assert [text[:7] for text in again.texts] == ["round 0"]


def forget(storage: Path) -> None:
    """Delete the run and its artifacts, but not what was measured of it."""
    shutil.move(storage / "runs/tiny/analysis", storage / "kept")
    shutil.rmtree(storage / "runs/tiny")
    shutil.rmtree(storage / "artifacts")


def test_figures_of_another_run_of_that_name_are_not_taken(storage: Path) -> None:
    before = analysed(storage, "particles")
    forget(storage)
    run(tiny(storage, pruning__target=0.5, seed=1))
    shutil.move(storage / "kept", storage / "runs/tiny/analysis")
    again = Counting()
    after = analysed(storage, "particles", again, rounds=[1])
    assert again.texts == ["round 1: averages and ensembles of its particles"]
    assert after != before[3:]
    bench = Bench(RunDir(storage, "tiny"))
    assert kept_rows(DIVIDED["particles"], bench) == after, "of round 0 nothing is known"


@pytest.mark.parametrize(("change", "counts"), [
    ({}, False), ({"pruning__target": 0.75}, False), ({"execution__threads": 2}, True),
    ({"data__options": {"num_train": 96, "num_test": 20, "num_classes": 3, "shape": [1, 6, 6]}}, True)])
def test_what_decides_the_figures_is_in_the_name_of_a_piece(
    storage: Path, change: dict[str, Any], counts: bool
) -> None:
    def keys() -> list[str]:
        bench = Bench(RunDir(storage, "tiny"))
        return [item.key(bench) for item in DIVIDED["curvature"].items(bench, [0, 1])]

    before = keys()
    assert len(set(before)) == 4
    rundir = RunDir(storage, "tiny")
    rundir.write_config(dump_config(tiny(storage, **{"pruning__target": 0.5, **change})))
    Path(rundir.run_json.location).unlink()  # it holds the data's digest, and others are refused
    assert (keys() != before) is counts


def test_a_network_that_is_not_stored_any_more_is_refused_unless_it_was_measured(storage: Path) -> None:
    found, rundir = analysed(storage, "particles", rounds=[1]), RunDir(storage, "tiny")
    for record in rundir.read_rounds():
        for particle in record["artifacts"]["particles"]:
            delete_state(ArtifactStore(rundir.place), particle["name"])
    assert analysed(storage, "particles", rounds=[1]) == found
    with pytest.raises(UserError, match="states of round 0 of 'tiny' are no longer in the storage"):
        analysed(storage, "particles", rounds=[0])


def test_read_items_of_a_run_that_was_never_analysed(storage: Path) -> None:
    assert read_items(RunDir(storage, "tiny").analysis_items("curvature")) == {}


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=100, force_terminal=False, highlight=False)


def test_progress_in_lines(console: Console) -> None:
    progress = Lines(console, every_s=1000)
    with progress.of("tiny", 4, 1):
        progress.note("starting Ray ...")
        for text in ("one", "two", "three"):
            progress.begins(text)
            progress.done(text)
    assert console.export_text().splitlines() == [
        "tiny: 4 pieces of work, 1 of them measured before", "tiny: starting Ray ...", "tiny: 2/4  one",
        "tiny: 4/4  three"]


def test_progress_on_a_terminal() -> None:
    console = Console(record=True, width=100, force_terminal=True, highlight=False)
    progress = Live(console)
    with progress.of("tiny", 4, 1):
        progress.note("starting Ray ...")
        for text in ("one", "two", "three"):
            progress.begins(text)
            progress.done(text)
    shown = console.export_text(clear=False)
    assert "4/4" in shown
    assert "three" in shown
    assert "tiny: 4 pieces of work, 1 of them measured before" in console.export_text()
