"""The study: parts are done once, and its tables say what the results say."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from swamp_ray.config.reading import load_config
from swamp_ray.errors import SwampError
from tests.helpers import tiny

pytestmark = pytest.mark.nightly

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
tables: Any = importlib.import_module("_study_report")
study: Any = importlib.import_module("study")
parts: Any = importlib.import_module("_study_parts")
tiers: Any = importlib.import_module("_study_tiers")
claims: Any = importlib.import_module("_study_claims")
frames: Any = importlib.import_module("_study_frames")
figures: Any = importlib.import_module("_study_figures")
runs: Any = importlib.import_module("_study_runs")

ROOT = Path(__file__).resolve().parents[3]


def rows_of(arm: str, what: str, seeds: Sequence[Sequence[float]], metric: str = "accuracy",
            split: str = "test") -> list[dict[str, Any]]:
    """One row a seed and round."""
    return [{"part": arm, "arm": arm, "seed": seed, "round": index, "sparsity": 0.2 * index, "split": split,
             "metric": metric, "what": what, "value": value, "date": "2026-01-01", "cpu": "some", "gpu": "",
             "torch": "2.14.1", "seconds": 1.0}
            for seed, rounds in enumerate(seeds) for index, value in enumerate(rounds)]


def frame_of(values: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Test accuracies of averages by arm, seed and round; particles are a point worse."""
    rows: list[dict[str, Any]] = []
    for arm, seeds in values.items():
        rows += rows_of(arm, "ensemble" if arm.endswith("ensemble") else "average", seeds)
        rows += rows_of(arm, "particles", [[value - 0.01 for value in rounds] for rounds in seeds])
    return pd.DataFrame(rows)


def with_rows(frame: pd.DataFrame, *more: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame and further rows."""
    return pd.concat([frame, *(pd.DataFrame(rows) for rows in more)], ignore_index=True)


SWAMP = [[0.9, 0.80, 0.70, 0.6], [0.9, 0.82, 0.71, 0.59], [0.9, 0.79, 0.72, 0.61]]
IMP = [[0.9, 0.78, 0.69, 0.57], [0.9, 0.80, 0.70, 0.58], [0.9, 0.79, 0.69, 0.58]]


def test_the_primary_endpoint_is_the_mean_of_the_three_sparsest_rounds_paired_by_seed() -> None:
    frame = frame_of({"swamp": SWAMP, "imp": IMP, "imp_ensemble": IMP})
    expected = 100 * np.array(SWAMP)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(frames.endpoint(frame, "swamp"), expected)
    differences = expected - 100 * np.array(IMP)[:, 1:].mean(axis=1)
    line = next(line for line in tables.comparison_table(frame).splitlines() if "SWAMP - IMP |" in line)
    assert f"| 3 | {differences.mean():+.2f} |" in line
    assert f"{stats.ttest_1samp(differences, 0)[1]:.3g}" in line
    assert "equivalence within 0.5" in tables.comparison_table(frame)
    assert "| SWAMP | 40.0 % | 3 | +1.00 | +1.00 to +1.00 |" in tables.averaging_table(frame)
    mean = 100 * np.mean([rounds[3] for rounds in SWAMP])
    assert f"{mean:.2f} ± 0.58" in tables.accuracy_table(frame)


def test_a_seed_that_one_arm_lacks_is_left_out_of_its_comparison() -> None:
    more = [*SWAMP, SWAMP[0]]
    assert "| SWAMP - IMP | 3 |" in tables.comparison_table(frame_of({"swamp": more, "imp": IMP}))
    assert tables.comparison_table(frame_of({"swamp": SWAMP, "imp": IMP[:2]})) == "", "two pairs say nothing"


def shifted(seeds: list[list[float]], by: Sequence[float]) -> list[list[float]]:
    """Every seed's rounds, each seed's moved by its own amount."""
    return [[value + shift for value in rounds] for rounds, shift in zip(seeds, by, strict=True)]


@pytest.mark.parametrize(("shifts", "verdict"), [
    ((-0.03, -0.031, -0.032), "holds"), ((0.03, 0.031, 0.032), "does not hold"),
    ((-0.02, 0.03, 0.01), "not yet known")])
def test_swamp_is_better_only_where_holms_p_value_says_so(shifts: Sequence[float], verdict: str) -> None:
    frame = frame_of({"swamp": SWAMP, "imp": shifted(SWAMP, shifts)})
    found = claims.findings(frame)["C2"]
    assert found.verdict == verdict
    assert ("would have been found" in found.why) == (verdict == "not yet known")
    assert claims.findings(frame)["C2, at equal cost"].verdict == "not yet known"


def test_equivalence_needs_the_whole_difference_within_the_margin() -> None:
    near = frame_of({"swamp": SWAMP, "imp_ensemble": shifted(SWAMP, (0.001, -0.001, 0.0))})
    assert claims.findings(near)["C3"].verdict == "holds"
    far = frame_of({"swamp": SWAMP, "imp_ensemble": shifted(SWAMP, (0.02, 0.021, 0.022))})
    assert claims.findings(far)["C3"].verdict == "does not hold"
    wide = frame_of({"swamp": SWAMP, "imp_ensemble": shifted(SWAMP, (0.02, -0.02, 0.0))})
    assert claims.findings(wide)["C3"].verdict == "not yet known"


def test_averaging_loses_nothing_from_the_sparsity_on_at_which_no_interval_reaches_half_a_point() -> None:
    rows = [*rows_of("swamp", "average", [[0.88, 0.80, 0.71], [0.879, 0.801, 0.711], [0.881, 0.80, 0.712]]),
            *rows_of("swamp", "particles", [[0.90, 0.80, 0.70], [0.90, 0.80, 0.70], [0.90, 0.80, 0.70]])]
    found = claims.findings(pd.DataFrame(rows))["C1"]
    assert found.verdict == "holds"
    assert found.why.startswith("from 20.0 % on")
    assert "-2.00" in found.why
    dense = pd.DataFrame([row for row in rows if row["round"] == 0])
    assert claims.findings(dense)["C1"].verdict == "does not hold"


def curved(arm: str, what: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """Curvature of an arm's network, by seed."""
    return [row for metric in ("trace", "scaled trace", "largest")
            for row in rows_of(arm, f"curvature of {what}", [[value] for value in values], metric, "train")]


def full_frame() -> pd.DataFrame:
    """Results with something to say of every claim."""
    frame = frame_of({"swamp": SWAMP, "imp": IMP, "imp_swa": IMP, "swamp_without_swa": IMP, "imp_4t": IMP,
                      "imp_ensemble": IMP, "dense_2t": [[0.92], [0.93], [0.92]]})
    low, high = [[0.001] * 4, [0.002] * 4, [0.001] * 4], [[-0.02] * 4, [-0.01] * 4, [-0.02] * 4]
    return with_rows(
        frame, rows_of("imp", "as trained", shifted(IMP, (0.01, 0.01, 0.02))),
        rows_of("swamp", "barrier between particles", low, "error"),
        rows_of("swamp", "barrier between rounds", low, "error"), rows_of("swamp", "dip between rounds", high, "error"),
        curved("imp", "average", [100, 120, 110]), curved("imp_swa", "average", [50, 61, 56]),
        curved("swamp", "particle", [48, 55, 50]), curved("swamp", "average", [20, 26, 22]),
        *(rows_of(arm, what, [[value + better], [value + better], [value + 1.1 * better]])
          for arm, value in (("imp", 0.5), ("swamp", 0.6))
          for what, better in zip(frames.MASKS, (0.02, 0.01, 0.0, 0.0), strict=True)))


def test_the_better_mask_is_better_in_both_ways_of_training() -> None:
    frame = full_frame()
    assert claims.findings(frame)["C7"].verdict == "holds"
    worse = frame.copy()
    worse.loc[(worse["arm"] == "imp") & (worse["what"] == "mask of swamp"), "value"] -= 0.05
    assert claims.findings(worse)["C7"].verdict == "in part"
    assert "| training of SWAMP | 3 | 62.07 ± 0.07 |" in tables.swap_table(frame)


def test_flatter_means_that_both_steps_are_in_both_measures() -> None:
    frame = full_frame()
    assert claims.findings(frame)["C4"].verdict == "holds"
    steeper = frame.copy()
    chosen = (steeper["arm"] == "swamp") & (steeper["what"] == "curvature of average") & (
        steeper["metric"] == "scaled trace")
    steeper.loc[chosen, "value"] *= 10
    assert claims.findings(steeper)["C4"].verdict == "in part"


def test_rounds_are_connected_where_no_barrier_reaches_half_a_point() -> None:
    frame = full_frame()
    found = claims.findings(frame)["C5"]
    assert found.verdict == "holds"
    assert "at 4 of 4 steps" in found.why
    worse = frame.copy()
    worse.loc[(worse["what"] == "barrier between rounds") & (worse["round"] == 0), "value"] += 0.05
    assert claims.findings(worse)["C5"].verdict == "in part"


def test_the_barrier_over_the_mean_of_the_ends_stands_beside_the_other() -> None:
    frame = full_frame()
    ends = 100 * np.array(SWAMP)
    half = np.abs(ends[:, :-1] - ends[:, 1:]).mean(axis=0) / 2
    found = frames.over_mean(frame)
    assert [one.mean for one, _ in found.values()] == pytest.approx(half.tolist())
    assert not any(measured for _, measured in found.values())
    assert "at least" in claims.findings(frame)["C5"].why
    measured = with_rows(frame, rows_of("swamp", f"{frames.OVER_MEAN} between rounds",
                                        [[0.02] * 3, [0.021] * 3, [0.02] * 3], "error"))
    assert frames.over_mean(measured)[0][0].mean == pytest.approx(6.1 / 3)
    assert "the rule is broken in the steps from" in claims.findings(measured)["C5"].why
    assert "at least" not in claims.findings(measured)["C5"].why


def test_every_table_and_figure_is_made_and_put_between_the_marks_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "study.md"
    page.write_text("before\n<!-- results: first -->\nstale\n<!-- end of results: first -->\nafter\n")
    frame = full_frame()
    study.tell("first", frame, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert all(f"**{claim}: " in text for claim in claims.CLAIMS)
    assert all(f"figures/study_first_{name}.svg" in text for _, _, name in claims.CLAIMS.values() if name)
    assert "T is too short" in text
    assert len(list((tmp_path / "figures").glob("study_first_*.svg"))) == len(figures.FIGURES)
    study.tell("first", frame, page)
    assert page.read_text() == text


def test_little_is_said_of_little() -> None:
    frame = frame_of({"imp": IMP[:1]})
    assert {one.verdict for one in claims.findings(frame).values()} == {"not yet known"}
    assert "57.00" in tables.report("first", study.TIERS["first"], frame, ())
    assert [figure(frame) for figure in figures.FIGURES.values()] == [None] * len(figures.FIGURES)


@pytest.mark.slow
def test_every_part_of_the_largest_tier_can_be_done_with_small_networks(tmp_path: Path) -> None:
    base = tiny(tmp_path / "storage", round__length=4, pruning__target=0.99, pruning__rate=0.5, particles__count=4,
                averaging__start=0.75, data__options__shape=[3, 8, 8])
    path = tmp_path / "results" / "gpu.parquet"
    found = study.TIERS["gpu_resnet20"]
    kept = [part for part in found.parts if not isinstance(part, parts.Choice) or "0.1 " in f"{part.name} "]
    small = [dataclasses.replace(part, seeds=(0,)) for part in kept]
    for part in small:
        if isinstance(part, parts.Curvature):
            small[small.index(part)] = dataclasses.replace(part, num_images=32, num_directions=2)
    study.slice_of(tiers.Tier("", (0,), small, found.choose_at), base, path, 3600.0)
    assert study.finished(path) == {(part.name, 0) for part in small}
    assert "| IMP, best of 4 |" in tables.accuracy_table(study.read(path))


@pytest.mark.parametrize("tier", ["first"])
def test_the_page_says_what_the_results_say(tier: str) -> None:
    results = ROOT / "benchmarks" / "results" / "study" / f"{tier}.parquet"
    files = (ROOT / "docs" / "figures").glob(f"study_{tier}_*.svg")
    drawn = [path.stem.removeprefix(f"study_{tier}_") for path in files]
    text = tables.report(tier, study.TIERS[tier], study.read(results), drawn)
    page = ROOT / study.TIERS[tier].page
    assert text in page.read_text(), f"make the page anew: benchmarks/study.py {tier} --report"


def slice_of(tmp_path: Path, *chosen: Any, seeds: tuple[int, ...] = (0,), budget_s: float = 600.0) -> Any:
    """The results after a slice of a tier of these parts; what earlier calls in the folder did is there already."""
    base = tiny(tmp_path / "storage", pruning__target=0.5, particles__count=2)
    path = tmp_path / "results" / "small.parquet"
    study.slice_of(tiers.Tier("", seeds, chosen, choose_at=(0.5,)), base, path, budget_s)
    return study.read(path)


def test_parts_are_done_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = parts.Arm("imp", parts.IMP, second=True), parts.Arm("swamp", lines=True)
    assert slice_of(tmp_path, *done, budget_s=-1.0).empty
    assert "the time is up before imp, seed 0" in capsys.readouterr().out
    frame = slice_of(tmp_path, *done)
    assert "every part is done" in capsys.readouterr().out
    assert set(frame["arm"]) == {"imp", "imp_second", "imp_ensemble", "swamp"}
    assert set(frame[frame["arm"] == "swamp"]["what"]) == {
        "average", "particles", *(f"{what} between {kind}" for what in ("barrier", "dip", frames.OVER_MEAN)
                                  for kind in ("particles", "rounds"))}
    columns = {what: frames.values(frame, "swamp", f"{what} between rounds", "error")[0]
               for what in ("barrier", frames.OVER_MEAN)}
    assert (columns[frames.OVER_MEAN] >= columns["barrier"]).all()
    assert set(frame["part"]) == {"imp", "swamp"}
    assert (frame[frame["what"].str.startswith("barrier")]["value"] >= 0).all()
    assert len(slice_of(tmp_path, *done)) == len(frame)
    assert all(text.startswith("| ") or not text for _, text in tables.tables(frame))


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


def rates_of(arm: str, *rates: float, stage: int = 1, improves: str | None = None) -> list[Any]:
    """A choice of an arm's rate with two seeds; the takers are the arm itself."""
    return [parts.Choice(f"choose {lr:g}", f"rate of {arm} {stage}", arm, {"training.lr": lr}, (arm,), {}, stage,
                         (100, 101), improves) for lr in rates]


def test_what_validation_chooses_holds_for_the_arm_that_takes_it(tmp_path: Path) -> None:
    options = rates_of("imp", 0.04, 1e-9)
    arm, other = parts.Arm("imp", parts.IMP, stage=2), parts.Arm("other", parts.IMP, stage=2)
    tier = tiers.Tier("", (0,), (*options, arm, other), choose_at=(0.5,))
    with pytest.raises(LookupError, match=r"choose 0\.04"):
        tiers.chosen(tier, study.read(tmp_path / "none.parquet"), 2)
    frame = slice_of(tmp_path, *options, arm, other)
    found = [tiers.validation_accuracy(frame, option, (0.5,)) for option in options]
    assert found[0] > found[1]
    assert tiers.chosen(tier, frame, 1) == {}
    assert tiers.chosen(tier, frame, 2) == {"imp": {"training.lr": 0.04}}
    rates = [load_config(tmp_path / "storage" / "runs" / f"{name}-seed0" / "config.yaml").training.lr
             for name in ("imp", "other")]
    assert rates == [0.04, 0.05]


def measured(values: dict[str, dict[int, list[float]]]) -> Any:
    """Accuracies on validation of settings by seed, one a sparsity (0.5 and 0.9)."""
    return pd.DataFrame([
        {"arm": f"choose {name}", "seed": seed, "sparsity": sparsity, "what": "average", "split": "validation",
         "metric": "accuracy", "value": value}
        for name, seeds in values.items() for seed, found in seeds.items()
        for sparsity, value in zip((0.5, 0.9), found, strict=True)])


def both(value: float) -> dict[int, list[float]]:
    """The same accuracy at both seeds and sparsities."""
    return {100: [value, value], 101: [value, value]}


def test_a_choice_is_the_mean_over_seeds_and_sparsities() -> None:
    tier = tiers.Tier("", (0,), rates_of("imp", 0.1, 0.2), choose_at=(0.5, 0.9))
    frame = measured({"0.1": {100: [0.9, 0.5], 101: [0.9, 0.5]}, "0.2": {100: [0.8, 0.7], 101: [0.8, 0.5]}})
    assert tiers.chosen(tier, frame, 2) == {"imp": {"training.lr": 0.1}}
    better = measured({"0.1": {100: [0.9, 0.5], 101: [0.9, 0.5]}, "0.2": {100: [0.8, 0.7], 101: [0.8, 0.55]}})
    assert tiers.chosen(tier, better, 2) == {"imp": {"training.lr": 0.2}}
    with pytest.raises(LookupError, match=r"choose 0\.2"):
        tiers.chosen(tier, frame[(frame["arm"] != "choose 0.2") | (frame["seed"] == 100)], 2)
    with pytest.raises(LookupError, match=r"sparsity 0\.9"):
        tiers.chosen(tier, frame[frame["sparsity"] < 0.9], 2)


@pytest.mark.parametrize(("second", "expected"), [(0.6, 0.1), (0.7, 0.1), (0.8, 0.3)])
def test_a_later_question_replaces_an_earlier_answer_only_by_a_better_one(second: float, expected: float) -> None:
    later = rates_of("imp", 0.3, stage=2, improves="rate of imp 1")
    tier = tiers.Tier("", (0,), [*rates_of("imp", 0.1), *later], choose_at=(0.5, 0.9))
    frame = measured({"0.1": both(0.7), "0.3": both(second)})
    assert tiers.chosen(tier, frame, 3) == {"imp": {"training.lr": expected}}


def test_a_block_takes_over_what_another_one_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiers.Tier("", (0,), rates_of("imp", 0.1), choose_at=(0.5, 0.9))
    monkeypatch.setitem(study.TIERS, "source", source)
    tier = tiers.Tier("", (0,), [parts.Arm("imp", parts.IMP, stage=2)], settings_of="source")
    path = tmp_path / "taker.parquet"
    assert not study.may_begin(tier, tier.parts[0], path)
    measured({"0.1": both(0.7)}).to_parquet(tmp_path / "source.parquet")
    assert study.settings_for(tier, path, 2) == {"imp": {"training.lr": 0.1}}


def test_nothing_begins_before_what_it_needs_is_chosen(tmp_path: Path) -> None:
    (option,) = rates_of("imp", 0.05)
    with (study.held(study.lock(tmp_path / "results" / "small.parquet", option.name, 100)),
          study.held(study.lock(tmp_path / "results" / "small.parquet", option.name, 101))):
        assert slice_of(tmp_path, option, parts.Arm("imp", parts.IMP, stage=2)).empty


def test_runs_are_measured_again_from_the_storage(tmp_path: Path) -> None:
    arms = parts.Arm("imp", parts.IMP), parts.Arm("swamp")
    slice_of(tmp_path, *arms)
    trained = len(list((tmp_path / "storage" / "artifacts").glob("*/*")))
    measured = (parts.AsTrained(("imp",), stage=2),
                parts.Curvature(("imp", "swamp"), num_images=32, num_directions=2, stage=2),
                parts.Augmented(("swamp",), stage=2))
    frame = slice_of(tmp_path, *arms, *measured)
    assert len(list((tmp_path / "storage" / "artifacts").glob("*/*"))) == trained
    as_trained = frame[frame["what"] == "as trained"]
    assert set(as_trained["arm"]) == {"imp"}
    assert set(as_trained["round"]) == {0, 1}
    metrics = pd.read_parquet(tmp_path / "storage" / "runs" / "imp-seed0" / "metrics.parquet")
    expected = metrics[metrics["kind"] == "particle_as_trained"]["test/loss"].tolist()
    chosen = as_trained[(as_trained["split"] == "test") & (as_trained["metric"] == "loss")]
    assert chosen["value"].tolist() == expected
    augmented = frame[frame["part"] == "augmented"]
    assert set(augmented["what"]) == {frames.WITH_AUGMENTATION}
    assert set(augmented["round"]) == {0, 1}
    curved = frame[frame["part"] == "curvature"]
    assert set(zip(curved["arm"], curved["what"], strict=True)) == {
        ("imp", "curvature of average"), ("swamp", "curvature of average"), ("swamp", "curvature of particle")}
    assert np.isfinite(curved["value"]).all()


def test_swapped_masks_repeat_what_the_arms_have(tmp_path: Path) -> None:
    frame = slice_of(tmp_path, parts.Arm("imp", parts.IMP), parts.Arm("swamp"), parts.Swap("imp", "swamp", stage=2))
    for arm in ("imp", "swamp"):
        own = frames.values(frame, arm, "average", "loss")
        swapped = frames.values(frame, arm, f"mask of {arm}", "loss")
        assert swapped[1].tolist() == own[1].tolist()
        assert not frames.masked(frame, arm, "shuffled mask of imp").empty


@pytest.mark.parametrize("tier", study.TIERS)
def test_every_arm_of_a_tier_is_a_config_that_can_run(tier: str) -> None:
    found = study.TIERS[tier]
    base = load_config(ROOT / found.config)
    assert len({part.name for part in found.parts}) == len(found.parts)
    for part in found.parts:
        if isinstance(part, parts.Choice):
            found.arms[part.arm].config(base, 0, "choose", {**part.setting, **part.chain})
            assert set(part.takers) <= set(found.arms)
            assert part.improves is None or part.improves in found.choices(part.stage)
        if isinstance(part, parts.AsTrained | parts.Curvature):
            assert set(part.arms) <= set(found.arms)
    for name, arm in found.arms.items():
        config = arm.config(base, 0)
        single = name.startswith(("imp", "dense", "pilot", "lr_")) and name != "imp_best_of_4"
        assert single == (config.particles.count == 1 and not config.particles.schedule), name
        assert (config.averaging.within == "swa") == name.startswith(("swamp", "imp_swa")) - (
            name == "swamp_without_swa"), name


def test_a_run_that_diverges_counts_as_guessing_from_there_on_and_the_study_goes_on(tmp_path: Path) -> None:
    broken = parts.Arm("swamp", {"training.lr": 1e30, "particles.count": 2})
    frame = slice_of(tmp_path, parts.Arm("imp", parts.IMP), broken, parts.AsTrained(("swamp",), stage=2),
                     parts.Curvature(("imp", "swamp"), num_images=32, num_directions=2, stage=2),
                     parts.Swap("imp", "swamp", stage=2))
    assert {"imp", "swamp", "as_trained", "curvature", "swap"} == set(frame["part"]), "nothing is tried for ever"
    assert frames.accuracy(frame, "swamp").loc[0].tolist() == pytest.approx([100 / 3] * 2), "three classes"
    assert frames.endpoint(frame, "swamp").tolist() == pytest.approx([100 / 3])
    assert "curvature of average" in set(frame[frame["arm"] == "imp"]["what"])
    assert not set(frame[frame["arm"] == "swamp"]["what"]) - {"average", "particles", "as trained", "diverged"}
    assert tables.failures(frame).startswith("1 of 2 runs diverged (SWAMP, seed 0)")


def test_an_ensemble_of_a_run_that_diverged_guesses_where_that_one_has_no_network(tmp_path: Path) -> None:
    base = tiny(tmp_path / "storage", pruning__target=0.5, particles__count=2)
    whole = runs.attempt(parts.Arm("whole", parts.IMP).config(base, 0))
    dead = runs.attempt(parts.Arm("dead", {**parts.IMP, "training.lr": 1e30}).config(base, 0))
    half = dataclasses.replace(whole, records=whole.records[:1])
    assert whole.is_complete
    assert not dead.is_complete
    assert not dead.records
    found = {(row["round"], row["value"]) for row in runs.ensemble_rows(whole, dead) if row["metric"] == "accuracy"}
    chance = 1 / whole.prepared.data.num_classes
    assert found == {(0, chance), (1, chance)}
    later = [row for row in runs.missing_rows(half, ("ensemble",)) if row["metric"] == "accuracy"]
    assert {row["round"] for row in later} == {1}


def test_other_failures_of_a_run_end_the_slice(tmp_path: Path) -> None:
    base = tiny(tmp_path / "storage", execution__executor="inline", model__options={"width": "no number"})
    with pytest.raises(SwampError):
        runs.attempt(parts.Arm("imp", parts.IMP).config(base, 0))


def test_augmented_statistics_are_compared_with_each_other() -> None:
    what = frames.WITH_AUGMENTATION
    frame = with_rows(frame_of({"swamp": SWAMP, "imp": IMP}), rows_of("swamp", what, shifted(SWAMP, (0.02,) * 3)),
                      rows_of("imp", what, shifted(IMP, (0.03,) * 3)))
    swamp, imp = (100 * np.array(seeds)[:, 1:].mean(axis=1) for seeds in (SWAMP, IMP))
    table = tables.augmented_table(frame)
    assert "| +2.00 (+2.00 to +2.00) |  |" in table
    assert f"| +3.00 (+3.00 to +3.00) | {(swamp - imp).mean() - 1:+.2f} (" in table
    assert tables.augmented_table(frame_of({"swamp": SWAMP, "imp": IMP})) == ""


def test_networks_that_collapsed_are_counted_and_stay_in_the_means() -> None:
    frame = frame_of({"swamp": [*SWAMP[:2], [0.9, 0.8, 0.12, 0.1]]})
    assert tables.failures(frame) == ("No run diverged. Networks that collapsed (test accuracy of 15 % or less; they "
                                      "stay in all means): SWAMP 2 of 12.")
    assert len(frames.endpoint(frame, "swamp")) == 3
    assert tables.failures(frame_of({"swamp": SWAMP})) == "No run diverged, and no network collapsed."
