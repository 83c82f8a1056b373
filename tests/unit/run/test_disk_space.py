"""The estimate of bytes against what runs really write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swamp_ray import launch as running
from swamp_ray.commands.check import space_lines
from swamp_ray.launch import run
from swamp_ray.run.disk_space import Space, checkpoint_bytes, estimate, free_bytes, free_inodes
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.sparsity.compact import compact_state
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.program import TrainingSpec
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import begin_training
from tests.helpers import tiny

_listener: list[Callable[[], None]] = []


def _hear(event: str, _arguments: object) -> None:
    # A replaced checkpoint is removed at the moment of the peak.
    if _listener and event in ("os.rename", "os.remove"):
        _listener[0]()


def total_bytes(folder: str) -> int:
    return sum(entry.stat().st_size if entry.is_file() else total_bytes(entry.path) for entry in os.scandir(folder))


@pytest.fixture(scope="module", autouse=True)
def hearing() -> None:
    sys.addaudithook(_hear)  # it can never be taken away again: without a listener it does nothing


class Scale:
    """The most bytes that a folder has held."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most = folder, 0

    def look(self) -> None:
        self.most = max(self.most, total_bytes(str(self.folder)))

    def __enter__(self) -> Scale:
        _listener.append(self.look)
        return self

    def __exit__(self, *_: object) -> None:
        _listener.clear()


@pytest.mark.parametrize(("values", "policy"), [
    ({}, "all"),
    ({"round__length": 4, "dense__length": 2}, "none"),
    ({"training__optimizer": "adamw", "averaging__within": "none", "round__length": 3}, "last"),
    ({"model__name": "resnet20", "data__options": {
        "num_train": 32, "num_test": 16, "num_classes": 3, "shape": [3, 8, 8]}, "particles__count": 4}, "last"),
])
def test_the_estimate_is_near_what_a_run_writes(tmp_path: Path, values: dict[str, Any], policy: str) -> None:
    config = tiny(tmp_path, keep__particles=policy, **values)
    space = estimate(prepare(config))
    assert space.present_bytes == 0
    with Scale(tmp_path) as scale:
        run(config)
    assert space.kept_bytes == pytest.approx(total_bytes(str(tmp_path)), rel=0.2)
    assert space.peak_bytes == pytest.approx(scale.most, rel=0.2)


@pytest.mark.parametrize("values", [
    {}, {"averaging__within": "ema"}, {"averaging__within": "none", "training__momentum": 0},
    {"training__optimizer": "adamw"}, {"model__name": "resnet20", "data__options": {
        "num_train": 40, "num_test": 16, "num_classes": 3, "shape": [3, 8, 8]}},
])
def test_a_checkpoint_is_as_large_as_estimated(tmp_path: Path, values: dict[str, Any]) -> None:
    prepared = prepare(tiny(tmp_path, **values))
    with applied(prepared.arithmetic):
        trainer = ParticleTrainer(prepared.config, prepared.data, prepared.arithmetic)
        start = compact_state(prepared.initial.parameters, prepared.layout, prepared.first_mask)
        program = prepared.program(0, 0)
        job = TrainingSpec("a", 1, program)
        training = begin_training(trainer, job, start, prepared.first_mask, prepared.initial.buffers)
        training.epoch()
        assert checkpoint_bytes(prepared, program) == pytest.approx(len(training.checkpoint()), rel=0.2)


def test_what_is_there_already_is_not_counted_again(tmp_path: Path) -> None:
    run(tiny(tmp_path, pruning__target=0.5, keep__particles="last"))
    again = estimate(prepare(tiny(tmp_path, pruning__target=0.5, keep__particles="last")))
    assert again.present_bytes == pytest.approx(again.kept_bytes, rel=0.2)
    more = estimate(prepare(tiny(tmp_path, name="more", particles__count=4, pruning__target=0.5)))
    dense_and_one_state_short = 3 * 4 * 27_472
    assert 0 < more.present_bytes < dense_and_one_state_short, "states that were let go are not there"
    assert estimate(prepare(tiny(tmp_path, name="other", seed=1))).present_bytes == 0
    shown = " ".join(space_lines(prepare(tiny(tmp_path, pruning__target=0.5))))
    assert "of it is there already" in shown


def test_policies_lower_the_peak_of_a_long_run(tmp_path: Path) -> None:
    peaks = [estimate(prepare(tiny(tmp_path, keep__particles=policy, particles__count=8, pruning__rate=0.2,
                                   pruning__target=0.98))).peak_bytes for policy in ("all", "last", "none")]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[2] < peaks[0] / 2


def test_a_run_that_will_not_fit_is_warned_of_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listens(Reporter):
        def warning(self, text: str) -> None:
            said.append(text)

        def job_submitted(self, spec: object) -> None:
            said.append("work")

    config = tiny(tmp_path, pruning__target=0.0, particles__count=1)
    monkeypatch.setattr(running, "estimate", lambda prepared: replace(estimate(prepared), free_bytes=1000))
    run(config, Listens())
    assert "will not fit" in said[0]
    assert "keep.particles" in said[0]
    said.clear()
    run(config, Listens())
    assert not any("fit" in text for text in said), "nothing is left to be written"


def test_what_fits_and_what_is_free(tmp_path: Path) -> None:
    assert Space(10, 20, 5, 15).fits
    assert not Space(10, 20, 5, 14).fits
    assert Space(10, 20, 5, None).fits
    assert free_bytes(str(tmp_path / "not" / "there" / "yet")) == free_bytes(str(tmp_path))
    assert free_bytes("s3://bucket/folder") is None
    console = Console(width=200)
    with console.capture() as capture:
        for line in space_lines(prepare(tiny(tmp_path))):
            console.print(line)
    assert "keep.particles: all" in capture.get()


def test_a_storage_that_can_hold_few_more_files_is_told_by_their_number(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    before = estimate(prepare(config))
    assert before.fits
    run(config)
    written = sum(1 for _ in tmp_path.rglob("*"))
    assert written <= before.num_files <= 4 * written
    scarce = replace(before, free_inodes=before.num_files - 1)
    assert not scarce.fits
    assert f"{before.num_files - 1:,} more at most, whatever their size" in scarce.advice
    assert replace(before, free_inodes=None).fits
    assert free_inodes("s3://bucket/key") is None
