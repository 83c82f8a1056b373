"""The page of a sweep: arms by sparsity with what they cost, from what its members have recorded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from swamp_ray.errors import UserError
from swamp_ray.report.load.sweep_arms import arm_levels, arm_names, compared_sparsities
from swamp_ray.report.page.writing import write_report
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.results import collect
from tests.sweep_storage import planned_sweep, trained_sweep

METHODS: dict[str, Any] = {
    "IMP": {"particles.count": 1, "averaging.within": "none"},
    "SWAMP": {"particles.count": 2},
    "one-shot": {"particles.count": 1, "averaging.within": "none", "pruning.rate": 0.75}}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three methods with three seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    trained_sweep(folder, "methods", space={"method": {"grid": METHODS}}, seeds=3)
    return folder


@pytest.fixture(scope="module")
def frame(storage: Path) -> pd.DataFrame:
    return collect(SweepDir(storage, "methods"))


def accuracy(storage: Path, method: str, seed: int, sparsity: float) -> float:
    """Read without the code under test."""
    (folder,) = (storage / "runs").glob(f"methods-method{method}*-seed{seed}")
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    (found,) = [one["average"]["test"]["accuracy"] for one in records if abs(one["sparsity"] - sparsity) < 1e-9]
    return found


def test_every_arm_at_every_sparsity_with_its_seeds_and_costs(storage: Path, frame: pd.DataFrame) -> None:
    levels = {(one.arm, one.sparsity): one for one in arm_levels(frame, "average/test/accuracy", True)}
    places = [("IMP", 0.0), ("IMP", 0.5), ("IMP", 0.75), ("SWAMP", 0.0), ("SWAMP", 0.5), ("SWAMP", 0.75),
              ("one-shot", 0.0), ("one-shot", 0.75)]
    assert list(levels) == places
    for (arm, sparsity), one in levels.items():
        assert one.values == {seed: accuracy(storage, arm, seed, sparsity) for seed in range(3)}
    # One epoch dense, then two a particle and round.
    faces = {place: (one.cost["total_epochs"], one.cost["critical_epochs"]) for place, one in levels.items()}
    assert faces["IMP", 0.75] == (7, 7)
    assert faces["SWAMP", 0.75] == (13, 7)
    assert faces["one-shot", 0.75] == (5, 5)
    assert levels["SWAMP", 0.75].cost["sparse_flops"] < levels["SWAMP", 0.75].cost["dense_flops"]
    for sparsity in (0.5, 0.75):
        own = [one for one in levels.values() if one.sparsity == sparsity]
        assert [one.verdict.found for one in own].count("best") == 1
        assert max(own, key=lambda one: one.mean).verdict.found == "best"


def test_settings_that_differ_in_their_target_are_one_arm(tmp_path: Path) -> None:
    """0.7 is the last round of one chain and none of the other's; at 0.5 the chain that ends there counts."""
    sweepdir = trained_sweep(tmp_path, seeds=1, space={"pruning.target": {"grid": [0.75, 0.5]},
                                                       "particles.count": {"grid": [1, 2]}})
    frame = collect(sweepdir)
    assert list(dict.fromkeys(arm_names(frame))) == ["count 1", "count 2"]
    frame.loc[(frame["run"] == "grid-target0.5-count1-seed0") & (frame["round"] == 1), "average/test/accuracy"] = 0.125
    levels = arm_levels(frame, "average/test/accuracy", True)
    assert [(one.arm, one.sparsity) for one in levels][:3] == [("count 1", 0.0), ("count 1", 0.5), ("count 1", 0.75)]
    assert levels[1].values == {0: 0.125}


def test_columns_are_the_sparsities_that_most_arms_have(frame: pd.DataFrame) -> None:
    levels = arm_levels(frame, "average/test/accuracy", True)
    assert compared_sparsities(levels, 3) == [0.0, 0.5, 0.75]
    assert compared_sparsities(levels, 2) == [0.0, 0.75]
    assert compared_sparsities(levels, 1) == [0.75]


def test_the_page_and_the_files_beside_it(storage: Path) -> None:
    written = write_report(["methods"], str(storage))
    page = Path(written.page)
    assert page == storage / "sweeps/methods/report.html"
    folder = page.with_suffix("")
    fronts = [f"{face}_front" for face in ("total_epochs", "critical_epochs", "sparse_flops")]
    stems = {"arms_against_sparsity", *fronts}
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("csv", "svg", "png")}
    assert {path.name for path in folder.iterdir()} == expected | {"comparison.csv", "comparison.parquet"}
    table = pd.read_parquet(str(folder / "comparison.parquet"))
    pd.testing.assert_frame_equal(pd.read_csv(str(folder / "comparison.csv")), table, check_dtype=False)
    assert set(table["verdict"]) <= {"best", "not distinguishable", "distinguishable"}
    text = page.read_text()
    row = re.search(r'<th scope="row">SWAMP</th>.*?</tr>', text, re.S)
    assert row is not None
    sparsest = table[(table["arm"] == "SWAMP") & (table["sparsity"] == 0.75)].iloc[0]
    assert f"{100 * sparsest['mean']:.2f} ± {100 * sparsest['standard_deviation']:.2f}" in row[0]
    assert "<small>n = 3</small><small>13 / 7 epochs</small>" in row[0]
    assert text.count('class="best"') == 3, "one at each sparsity"
    assert write_report(["methods"], str(storage)).files == written.files
    assert page.read_text() == text, "the same results give the same bytes"


def test_the_page_alone_carries_everything(storage: Path, tmp_path: Path) -> None:
    written = write_report(["methods"], str(storage), tmp_path / "one.html", page_only=True)
    assert written.files == ()
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"]


def test_what_is_not_finished_is_said(storage: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(storage, tmp_path / "copy")
    trials = copy / "sweeps/methods/trials.jsonl"
    lines = [json.loads(line) for line in trials.read_text().splitlines()]
    for line in lines:
        line.pop("check", None)
        line["status"] = "failed" if line["setting"]["method"] == "one-shot" else line["status"]
    trials.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = Path(write_report(["methods"], str(copy), page_only=True).page).read_text()
    assert "1 setting failed: method one-shot." in page


def test_a_sweep_without_a_finished_round_has_no_page_yet(tmp_path: Path) -> None:
    planned_sweep(tmp_path)
    with pytest.raises(UserError, match="the sweep 'grid' has no finished round yet"):
        write_report(["grid"], str(tmp_path))
    assert not (tmp_path / "sweeps/grid/report.html").exists()
