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
parts: Any = importlib.import_module("_study_parts")
tiers: Any = importlib.import_module("_study_tiers")

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


def slice_of(tmp_path: Path, *chosen: Any, seeds: tuple[int, ...] = (0,), budget_s: float = 600.0) -> Any:
    """The results after a slice of a tier of these parts; what earlier calls in the folder did is there already."""
    base = tiny(tmp_path / "storage", pruning__target=0.5, particles__count=2)
    path = tmp_path / "results" / "small.parquet"
    study.slice_of(tiers.Tier("", seeds, chosen, choose_at=0.5), base, path, budget_s)
    return study.read(path)


def test_parts_are_done_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = parts.Arm("imp", parts.IMP, second=True), parts.Arm("swamp", lines=True)
    assert slice_of(tmp_path, *done, budget_s=-1.0).empty
    assert "the time is up before imp, seed 0" in capsys.readouterr().out
    frame = slice_of(tmp_path, *done)
    assert "every part is done" in capsys.readouterr().out
    assert set(frame["arm"]) == {"imp", "imp_second", "imp_ensemble", "swamp"}
    assert set(frame[frame["arm"] == "swamp"]["what"]) == {
        "average", "particles", "barrier between particles", "dip between particles", "barrier between rounds",
        "dip between rounds"}
    assert set(frame["part"]) == {"imp", "swamp"}
    assert (frame[frame["what"].str.startswith("barrier")]["value"] >= 0).all()
    assert len(slice_of(tmp_path, *done)) == len(frame)
    assert all(text.startswith("| ") for text in tables.tables(frame))


def test_a_part_that_another_process_does_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swamp = parts.Arm("swamp")
    with study.held(study.lock(tmp_path / "results" / "small.parquet", "swamp", 0)) as mine:
        assert mine
        frame = slice_of(tmp_path, swamp, seeds=(0, 1))
    assert set(frame["seed"]) == {1}
    assert "before the last 1" in capsys.readouterr().out
    assert set(slice_of(tmp_path, swamp, seeds=(0, 1))["seed"]) == {0, 1}


def test_stages_come_one_after_the_other_each_with_all_its_seeds() -> None:
    tier = tiers.Tier("", (0, 1), (parts.Arm("a"), parts.Arm("late", stage=2), parts.Arm("b", seeds=(1,))))
    assert [(part.name, seed) for part, seed in tier.order()] == [("a", 0), ("a", 1), ("b", 1), ("late", 0),
                                                                  ("late", 1)]


def test_what_validation_chooses_holds_for_everything_after_it(tmp_path: Path) -> None:
    options = [parts.Choice(f"choose {lr:g}", "rate", {"training.lr": lr}, parts.IMP, 1, (100,)) for lr in (0.05, 1e-9)]
    arm = parts.Arm("imp", parts.IMP, stage=2)
    tier = tiers.Tier("", (0,), (*options, arm), choose_at=0.5)
    with pytest.raises(LookupError, match=r"choose 0\.05"):
        tiers.chosen(tier, study.read(tmp_path / "none.parquet"), 2)
    frame = slice_of(tmp_path, *options, arm)
    found = [tiers.validation_accuracy(frame, option, 0.5) for option in options]
    assert found[0] > found[1]
    assert tiers.chosen(tier, frame, 1) == {}
    assert tiers.chosen(tier, frame, 2) == {"training.lr": 0.05}
    assert load_config(tmp_path / "storage" / "runs" / "imp-seed0" / "config.yaml").training.lr == 0.05


def test_nothing_begins_before_what_it_needs_is_chosen(tmp_path: Path) -> None:
    option = parts.Choice("choose", "rate", {"training.lr": 0.05}, parts.IMP, 1)
    with study.held(study.lock(tmp_path / "results" / "small.parquet", "choose", 0)):
        assert slice_of(tmp_path, option, parts.Arm("imp", parts.IMP, stage=2)).empty


def test_runs_are_measured_again_from_the_storage(tmp_path: Path) -> None:
    arms = parts.Arm("imp", parts.IMP), parts.Arm("swamp")
    slice_of(tmp_path, *arms)
    trained = len(list((tmp_path / "storage" / "artifacts").glob("*/*")))
    frame = slice_of(tmp_path, *arms, parts.AsTrained(("imp",), stage=2),
                     parts.Curvature(("imp", "swamp"), num_images=32, num_directions=2, stage=2))
    assert len(list((tmp_path / "storage" / "artifacts").glob("*/*"))) == trained
    as_trained = frame[frame["what"] == "as trained"]
    assert set(as_trained["arm"]) == {"imp"}
    assert set(as_trained["round"]) == {0, 1}
    metrics = pd.read_parquet(tmp_path / "storage" / "runs" / "imp-seed0" / "metrics.parquet")
    expected = metrics[metrics["kind"] == "particle_as_trained"]["test/loss"].tolist()
    chosen = as_trained[(as_trained["split"] == "test") & (as_trained["metric"] == "loss")]
    assert chosen["value"].tolist() == expected
    curved = frame[frame["part"] == "curvature"]
    assert set(zip(curved["arm"], curved["what"], strict=True)) == {
        ("imp", "curvature of average"), ("swamp", "curvature of average"), ("swamp", "curvature of particle")}
    assert np.isfinite(curved["value"]).all()


@pytest.mark.parametrize("tier", tiers.TIERS)
def test_every_arm_of_a_tier_is_a_config_that_can_run(tier: str) -> None:
    found = tiers.TIERS[tier]
    base = load_config(ROOT / found.config)
    assert len({part.name for part in found.parts}) == len(found.parts)
    for part in found.parts:
        if isinstance(part, parts.Choice):
            parts.Arm("choose", {**part.setting, **part.values}).config(base, 0)
        if isinstance(part, parts.AsTrained | parts.Curvature):
            assert set(part.arms) <= set(found.arms)
    for name, arm in found.arms.items():
        config = arm.config(base, 0)
        single = name.startswith(("imp", "dense", "one_shot")) and name != "imp_best_of_4"
        assert single == (config.particles.count == 1 and not config.particles.schedule), name
        assert (config.averaging.within == "swa") == name.startswith(("swamp", "imp_swa")) - (
            name == "swamp_without_swa"), name
