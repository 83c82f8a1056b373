"""Which way of packing is chosen, who follows the choice, and that it is made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from swamp_ray.commands.check import packing_lines
from swamp_ray.launch import run
from swamp_ray.on_ray.choose_packing import FOLDER, choose, describe, measure_here, recorded_choice, with_chosen_packing
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.packs import timing
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.packs.timing import PackingTime, time_packings
from tests.helpers import tiny

AUTO = {"execution__particles_per_worker": "auto"}


def measured(**steps: float | None) -> dict[str, PackingTime]:
    """Seconds of a particle's step by packing, written as ``stacked_4``."""
    names = {name.replace("_", ":"): step_s for name, step_s in steps.items()}
    return {name: PackingTime(name, step_s) for name, step_s in names.items()}


@pytest.mark.parametrize(("known", "num_jobs", "workers", "expected"), [
    (measured(single_1=1.0, stacked_2=0.6, stacked_4=0.4), 4, 1, "stacked:4"),
    (measured(single_1=1.0, stacked_2=0.6, stacked_4=0.7), 4, 1, "stacked:2"),
    (measured(single_1=1.0, stacked_2=0.97, stacked_4=0.96), 4, 1, "single:1"),  # too little to tell from noise
    (measured(single_1=1.0, stacked_2=None, stacked_4=None), 4, 1, "single:1"),
    (measured(single_1=1.0, stacked_2=0.6, stacked_4=0.4), 4, 4, "single:1"),  # every particle has a GPU of its own
    (measured(single_1=1.0, stacked_2=0.6, stacked_4=0.4), 4, 2, "stacked:2"),
    (measured(single_1=1.0, stacked_2=0.6, stacked_4=0.5), 5, 1, "stacked:2"),  # three packs of 1.2 s, two of 2 s
    (measured(single_1=1.0, stacked_2=0.6, graphs_1=0.5, graphs_2=0.45), 3, 1, "graphs:1"),
    (measured(stacked_4=0.5, graphs_4=0.4), 4, 1, "graphs:4"),
])
def test_the_fastest_round_is_chosen(
    known: dict[str, PackingTime], num_jobs: int, workers: int, expected: str
) -> None:
    assert choose(known, list(known), num_jobs, workers) == expected


def test_the_choice_is_told_with_its_gain() -> None:
    known = measured(single_1=1.0, stacked_4=0.4)
    assert describe("stacked:4", known) == (
        "particles train 4 at a time, as one stacked computation, 2.5 times as fast as one by one")
    assert "no way of packing" in describe("single:1", known)


class Bench:
    """Measures as it is told, and counts how often."""

    def __init__(self, **steps: float | None) -> None:
        self.known, self.asked = measured(**steps), []

    def __call__(self, prepared: Prepared, packings: Sequence[str]) -> list[PackingTime]:
        self.asked.append(list(packings))
        return [self.known[packing] for packing in packings]


def packing_of(prepared: Prepared, storage: Path, bench: Bench, recorded: str | None = None, workers: int = 1) -> str:
    return with_chosen_packing(prepared, LocalPlace(storage), recorded, lambda: workers, bench).arithmetic.packing


def test_it_is_made_once_in_a_storage_root_and_followed_by_others(tmp_path: Path) -> None:
    bench = Bench(single_1=1.0, stacked_2=0.6, stacked_3=0.5, stacked_4=0.3)
    assert packing_of(prepare(tiny(tmp_path, **AUTO)), tmp_path, bench) == "stacked:3"
    assert bench.asked == [["single:1", "stacked:2", "stacked:3"]]
    again = prepare(tiny(tmp_path, seed=5, name="other", pruning__target=0.5, **AUTO))
    assert packing_of(again, tmp_path, bench, workers=3) == "stacked:3", "even with other workers"
    assert recorded_choice(again, LocalPlace(tmp_path)) == "stacked:3"
    assert packing_lines(again, LocalPlace(tmp_path)) == [
        "packing: a worker trains 3 particles at a time, as one stacked computation"]
    assert len(bench.asked) == 1
    more = prepare(tiny(tmp_path, particles__count=4, **AUTO))
    assert packing_of(more, tmp_path, bench) == "stacked:4"
    assert bench.asked[1:] == [["stacked:4"]], "the others are known"
    assert packing_of(prepare(tiny(tmp_path, model__name="lenet_300_100", **AUTO)), tmp_path, bench) == "stacked:3"
    assert len(bench.asked) == 3, "another network is measured for itself"


def test_a_run_that_goes_on_is_packed_as_before(tmp_path: Path) -> None:
    bench = Bench(single_1=1.0, stacked_2=0.9, stacked_3=0.9)
    assert packing_of(prepare(tiny(tmp_path, **AUTO)), tmp_path, bench, recorded="stacked:2") == "stacked:2"
    assert bench.asked == []
    assert not (tmp_path / FOLDER).exists()


def test_what_the_config_decides_is_not_measured(tmp_path: Path) -> None:
    bench = Bench()
    for value, expected in ((1, "single:1"), (2, "stacked:2")):
        prepared = prepare(tiny(tmp_path, execution__particles_per_worker=value))
        assert packing_of(prepared, tmp_path, bench) == expected
    assert bench.asked == []


@pytest.mark.parametrize("damage", [
    b"{", b"[]", b'{"packing": "stacked:2"}', b"", b'{"packing": "sideways:7", "measured": []}'])
def test_a_damaged_record_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    bench = Bench(single_1=1.0, stacked_2=0.6, stacked_3=0.5)
    prepared = prepare(tiny(tmp_path, **AUTO))
    packing_of(prepared, tmp_path, bench)
    [record] = (tmp_path / FOLDER).glob("*/*.json")
    record.write_bytes(damage)
    assert "cannot be read" in packing_lines(prepared, LocalPlace(tmp_path))[0]
    said: list[str] = []
    again = with_chosen_packing(prepared, LocalPlace(tmp_path), None, lambda: 1, bench, said.append)
    assert again.arithmetic.packing == "stacked:3"
    assert f"cannot be read in {record}" in said[0]
    assert len(bench.asked) == 2
    assert packing_of(prepared, tmp_path, bench) == "stacked:3"
    assert len(bench.asked) == 2, "the damaged record was replaced"


def test_what_cannot_be_measured_is_not_packed_and_not_recorded(tmp_path: Path) -> None:
    said: list[str] = []

    def fails(prepared: Prepared, packings: Sequence[str]) -> list[PackingTime]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    prepared = prepare(tiny(tmp_path, **AUTO))
    chosen = with_chosen_packing(prepared, LocalPlace(tmp_path), None, lambda: 1, fails, said.append)
    assert chosen.arithmetic.packing == "single:1"
    assert said[1] == "nothing could be measured (CUDA out of memory): particles train one by one"
    assert not (tmp_path / FOLDER).exists()


# What is measured


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_S", 0.0)


def measure(prepared: Prepared, packings: Sequence[str]) -> dict[str, PackingTime]:
    with applied(prepared.arithmetic):
        found = time_packings(prepared.config, prepared.data, prepared.arithmetic, packings)
    return {one.packing: one for one in found}


@pytest.mark.usefixtures("quick")
def test_each_form_is_really_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TOO_SLOW", 1e9)
    found = measure(prepare(tiny(tmp_path, **AUTO)), ["single:1", "stacked:2", "stacked:3"])
    assert [one.step_s is not None and one.step_s > 0 for one in found.values()] == [True] * 3
    assert all(one.peak_bytes is None for one in found.values()), "there is no device memory to speak of"


@pytest.mark.usefixtures("quick")
def test_a_form_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Pack.gradients

    def wrong(self: Pack, batches: Any) -> Any:
        found = real(self, batches)
        for seat in self.seats:
            for parameter in seat.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(-300.0)
        return found

    monkeypatch.setattr(Pack, "gradients", wrong)
    found = measure(prepare(tiny(tmp_path, **AUTO)), ["single:1", "stacked:2", "stacked:3"])
    assert found["stacked:2"].step_s is None
    assert "losses differ" in found["stacked:2"].refused
    assert found["stacked:3"].step_s is None
    assert choose(found, list(found), 3, 1) == "single:1"


@pytest.mark.usefixtures("quick")
def test_wider_packs_are_not_tried_once_one_is_slower_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    real = Pack.__init__

    def counted(self: Pack, *arguments: Any) -> None:
        real(self, *arguments)
        widths.append(len(self.seats))
        if len(self.seats) == 3:
            raise torch.OutOfMemoryError("out of memory: tried to allocate a lot")

    monkeypatch.setattr(Pack, "__init__", counted)
    monkeypatch.setattr(timing, "TOO_SLOW", 1e9)
    packings = ["single:1", "stacked:2", "stacked:3", "stacked:4"]
    found = measure(prepare(tiny(tmp_path, **AUTO)), packings)
    assert widths == [2, 3]
    assert "out of memory" in found["stacked:4"].refused
    monkeypatch.setattr(timing, "TOO_SLOW", 0.0)
    found = measure(prepare(tiny(tmp_path, **AUTO)), packings)
    assert widths == [2, 3, 2]
    assert "stacked:2 is slower already" in found["stacked:3"].refused


# Whole runs


class Told(Reporter):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.mark.usefixtures("quick")
def test_a_run_measures_says_so_records_it_and_does_not_measure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    config = tiny(tmp_path, pruning__target=0.5, **AUTO)
    before = packing_lines(prepare(config), LocalPlace(tmp_path))
    assert before == ["packing: chosen from single:1, stacked:2, stacked:3 by a short measurement when a run starts"]
    done = run(config, told)
    assert told.notices[0].startswith("measuring 3 ways of packing particles")
    assert told.notices[1].startswith("particles train")
    [record] = (tmp_path / FOLDER).glob("*/*.json")
    chosen = json.loads(record.read_text())
    assert {one["packing"] for one in chosen["measured"]} == {"single:1", "stacked:2", "stacked:3"}
    assert done.prepared.arithmetic.packing == chosen["packing"]
    assert done.rundir.read_run()["arithmetic"]["packing"] == chosen["packing"]  # type: ignore[index]
    monkeypatch.setattr(timing, "time_packings", None)
    monkeypatch.setattr("swamp_ray.on_ray.choose_packing.time_packings", None)
    run(tiny(tmp_path, name="another", seed=3, pruning__target=0.5, **AUTO), again := Told())
    assert again.notices == []
    assert run(config).prepared.arithmetic.packing == chosen["packing"]


@pytest.mark.usefixtures("quick")
def test_measuring_leaves_no_trace_in_the_process(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(3)
    measure_here(prepare(tiny(tmp_path, **AUTO)), ["single:1", "stacked:2"])
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_the_plan_says_how_particles_are_packed_and_where_padding_is_computed(tmp_path: Path) -> None:
    def lines(**values: Any) -> list[str]:
        return packing_lines(prepare(tiny(tmp_path, **values)), LocalPlace(tmp_path))

    assert lines() == []
    assert lines(execution__particles_per_worker=3) == [
        "packing: a worker trains 3 particles at a time, as one stacked computation"]
    assert lines(execution__particles_per_worker=2) == [
        "packing: a worker trains 2 particles at a time, as one stacked computation; packs that are not full are "
        "padded (3 in round 0)"]
