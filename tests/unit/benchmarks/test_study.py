"""The study: parts are done once, and its tables say what the results say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from swamp_ray.config_reading import load_config
from tests.helpers import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
tables: Any = importlib.import_module("_study_report")
study: Any = importlib.import_module("study")

ROOT = Path(__file__).resolve().parents[3]


def frame_of(values: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Test accuracies of averages by arm, seed and round; particles are a point worse."""
    rows: list[dict[str, Any]] = []
    for arm, seeds in values.items():
        for seed, rounds in enumerate(seeds):
            for index, value in enumerate(rounds):
                row = {"arm": arm, "seed": seed, "round": index, "sparsity": 0.2 * index, "split": "test",
                       "metric": "accuracy"}
                what = "ensemble" if arm.endswith("ensemble") else "average"
                rows += [{**row, "what": what, "value": value}, {**row, "what": "particles", "value": value - 0.01}]
    return pd.DataFrame(rows)


SWAMP = [[0.9, 0.80, 0.70, 0.6], [0.9, 0.82, 0.71, 0.59], [0.9, 0.79, 0.72, 0.61]]
IMP = [[0.9, 0.78, 0.69, 0.57], [0.9, 0.80, 0.70, 0.58], [0.9, 0.79, 0.69, 0.58]]


def test_the_primary_endpoint_is_the_mean_of_the_three_sparsest_rounds_paired_by_seed() -> None:
    frame = frame_of({"swamp": SWAMP, "imp": IMP, "imp_ensemble": IMP})
    expected = 100 * np.array(SWAMP)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(tables.endpoint(frame, "swamp"), expected)
    differences = expected - 100 * np.array(IMP)[:, 1:].mean(axis=1)
    line = next(line for line in tables.comparison_table(frame).splitlines() if "SWAMP - IMP |" in line)
    assert f"| 3 | {differences.mean():+.2f} |" in line
    assert f"{stats.ttest_1samp(differences, 0)[1]:.3g}" in line
    assert "equivalence within 0.5" in tables.comparison_table(frame)
    assert "| SWAMP | 40.0 % | 3 | +1.00 | +1.00 to +1.00 |" in tables.averaging_table(frame)
    mean = 100 * np.mean([rounds[3] for rounds in SWAMP])
    assert f"{mean:.2f} ± 0.58" in tables.accuracy_table(frame)


def test_a_seed_that_one_arm_lacks_is_left_out_of_its_comparison() -> None:
    frame = frame_of({"swamp": SWAMP, "imp": IMP[:2]})
    assert "| SWAMP - IMP | 2 |" in tables.comparison_table(frame)


def test_parts_are_done_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny(tmp_path / "storage", pruning__target=0.5, particles__count=2)
    arms = {"imp": study.Arm({"particles.count": 1, "averaging.within": "none"}, second=True),
            "swamp": study.Arm(lines=True)}
    tier, path = study.Tier("", (0,), arms), tmp_path / "results" / "small.parquet"
    study.slice_of(tier, base, path, -1.0)
    assert "the time is up before imp, seed 0" in capsys.readouterr().out
    assert not path.exists()
    study.slice_of(tier, base, path, 600.0)
    said = capsys.readouterr().out
    assert "every part is done" in said
    frame: Any = pd.read_parquet(path)
    assert set(frame["arm"]) == {"imp", "imp_second", "imp_ensemble", "swamp"}
    assert set(frame[frame["arm"] == "swamp"]["what"]) == {
        "average", "particles", "barrier between particles", "dip between particles", "barrier between rounds",
        "dip between rounds"}
    assert study.finished(path) >= {("imp", 0), ("swamp", 0)}
    assert (frame[frame["what"].str.startswith("barrier")]["value"] >= 0).all()
    study.slice_of(tier, base, path, 600.0)
    assert len(pd.read_parquet(path)) == len(frame)
    assert all(text.startswith("| ") for text in tables.tables(frame))


def test_a_part_that_another_process_does_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny(tmp_path / "storage", pruning__target=0.5, particles__count=2)
    tier, path = study.Tier("", (0, 1), {"swamp": study.Arm()}), tmp_path / "small.parquet"
    with study.held(tmp_path / ".small-swamp-0.lock") as mine:
        assert mine
        study.slice_of(tier, base, path, 600.0)
    assert study.finished(path) == {("swamp", 1)}
    assert "another process does the last 1" in capsys.readouterr().out
    study.slice_of(tier, base, path, 600.0)
    assert study.finished(path) == {("swamp", 0), ("swamp", 1)}


def test_stages_come_one_after_the_other_each_with_all_seeds() -> None:
    tier = study.Tier("", (0, 1), {"a": study.Arm(), "late": study.Arm(stage=2), "b": study.Arm()})
    assert tier.parts() == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("late", 0), ("late", 1)]


@pytest.mark.parametrize("tier", study.TIERS)
def test_every_arm_of_a_tier_is_a_config_that_can_run(tier: str) -> None:
    found = study.TIERS[tier]
    base = load_config(ROOT / found.config)
    for name, arm in found.arms.items():
        config = study.arm_config(base, name, arm, 0)
        assert (config.particles.count == 1) == name.startswith("imp")
        assert (config.averaging.within == "none") == (name in ("imp", "imp_4t", "swamp_without_swa"))
