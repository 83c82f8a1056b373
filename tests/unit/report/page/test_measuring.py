"""What a report measures itself: once, kept beside the run, and no reason to fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from swamp_ray.config.reading import with_values
from swamp_ray.report.charts.series import ENSEMBLE, points
from swamp_ray.report.load.runs import ReportRun, read_runs
from swamp_ray.report.page.measuring import lacks_calibration, measured, without_calibration
from swamp_ray.report.page.writing import write_report

pytestmark = pytest.mark.usefixtures("own_figures")


@pytest.fixture
def storage(study: Path, tmp_path: Path) -> Path:
    """Two runs, not measured."""
    for name in ("imp-seed0", "swamp-seed0"):
        shutil.copytree(study / "runs" / name, tmp_path / "runs" / name)
    shutil.copytree(study / "artifacts", tmp_path / "artifacts")
    return tmp_path


def runs_of(storage: Path) -> list[ReportRun]:
    return read_runs(["imp-seed0", "swamp-seed0"], str(storage))


def test_calibration_is_measured_once_and_kept(storage: Path) -> None:
    said: list[str] = []
    found, notes = measured(runs_of(storage), said.append)
    assert notes == []
    assert len(said) == 2
    kept = json.loads((storage / "runs" / "swamp-seed0" / "analysis" / "calibration.json").read_text())
    assert found[1].analyses["calibration"] == kept
    assert not lacks_calibration(found[1])
    again, notes = measured(runs_of(storage), said.append)
    assert (len(said), notes) == (2, [])
    assert again[1].analyses["calibration"] == kept


def test_the_ensemble_of_the_particles_comes_with_it(storage: Path) -> None:
    found, _ = measured(runs_of(storage), lambda _: None)
    ensembles = {point.round: point.value for point in points(found) if point.network == ENSEMBLE}
    rows = found[1].analyses["calibration"]["rows"]
    assert ensembles == {row["round"]: row["test"]["accuracy"] for row in rows if row["network"] == "ensemble"}
    assert len(ensembles) == 3


def test_a_further_round_is_measured_too(storage: Path) -> None:
    (run,), _ = measured(runs_of(storage)[1:], lambda _: None)
    rows = [row for row in run.analyses["calibration"]["rows"] if row["round"] < 2]
    assert lacks_calibration(replace(run, analyses={"calibration": {"rows": rows}}))


def test_lost_states_are_a_note(storage: Path) -> None:
    shutil.rmtree(storage / "artifacts")
    found, notes = measured(runs_of(storage), lambda _: None)
    assert [run.analyses for run in found] == [{}, {}]
    assert [note.partition(":")[0] for note in notes] == ["imp-seed0", "swamp-seed0"]
    assert "no longer in the storage" in notes[0]
    page = Path(write_report(["imp-seed0"], str(storage)).page).read_text()
    assert "its calibration could not be measured" in page
    assert 'id="figure-accuracy_against_sparsity"' in page


def test_other_data_are_a_note(storage: Path) -> None:
    run = runs_of(storage)[0]
    other = replace(run, config=with_values(run.config, {"data.options": {"num_train": 60, "shape": [1, 6, 6]}}))
    _, notes = measured([other], lambda _: None)
    assert len(notes) == 1
    assert "other data" in notes[0]


def test_without_classes_there_is_nothing_to_measure(swamp: ReportRun) -> None:
    records = [{**record, "average": {"test": {"loss": 1.0}}} for record in swamp.records]
    assert not lacks_calibration(replace(swamp, records=records))


def test_what_was_not_to_be_measured_is_said(storage: Path) -> None:
    assert "imp-seed0, swamp-seed0" in without_calibration(runs_of(storage))[0]
    page = Path(write_report(["imp-seed0"], str(storage), measure=False).page).read_text()
    assert "The calibration of imp-seed0 is not measured, because --no-measure was given." in page
    assert "swamp report imp-seed0 --storage" in page
    assert " --no-measure</code>" in page
    assert not (storage / "runs" / "imp-seed0" / "analysis").exists()
