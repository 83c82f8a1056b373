"""The table of a sweep says what the rounds of its members say, and nothing is lost or made up."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from swamp_ray.config.reading import load_config
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import Settings, read_record
from swamp_ray.sweep.results import by_setting, collect, flat_config, write_results
from tests.helpers import tiny
from tests.sweep_storage import note, planned_sweep, trained_sweep

TEST = "average/test/loss"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets and two numbers of particles, with two seeds, under grid."""
    folder = tmp_path_factory.mktemp("sweep")
    trained_sweep(folder)
    return folder


@pytest.fixture
def sweepdir(trained: Path, tmp_path: Path) -> SweepDir:
    """A copy that a test may damage."""
    for part in ("sweeps", "runs"):
        shutil.copytree(trained / part, tmp_path / part)
    return SweepDir(tmp_path, "grid")


def lines(path: Path) -> list[dict[str, Any]]:
    """The rounds of a run, read without the code under test."""
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda record: record["round"])


def test_the_parquet_file_holds_what_the_rounds_hold(trained: Path) -> None:
    write_results(SweepDir(trained, "grid"))
    frame = pd.read_parquet(trained / "sweeps/grid/results.parquet")
    expected = []
    for target in (0.5, 0.75):
        for count in (1, 2):
            for seed in (0, 1):
                run = f"grid-target{target}-count{count}-seed{seed}"
                records = lines(trained / f"runs/{run}/rounds.jsonl")
                expected += [(run, seed, target, count, record) for record in records]
    assert len(frame) == len(expected) == 20
    rows: list[dict[str, Any]] = [dict(row) for _, row in frame.iterrows()]
    for row, (run, seed, target, count, record) in zip(rows, expected, strict=True):
        assert (row["run"], row["seed"], row["space/pruning.target"], row["space/particles.count"]) == (
            run, seed, target, count)
        assert row["num_dropped"] == 0
        for key in ("round", "sparsity", "survivors", "num_particles", "spread"):
            assert row[key] == record[key]
        for column, key in (("average", "average"), ("particles_mean", "mean"), ("particles_std", "std")):
            for split in ("validation", "test"):
                for metric in ("accuracy", "loss"):
                    assert row[f"{column}/{split}/{metric}"] == record[key][split][metric]


def test_parquet_and_csv_give_the_table_back(sweepdir: SweepDir) -> None:
    frame = write_results(sweepdir)
    pd.testing.assert_frame_equal(pd.read_parquet(str(sweepdir.parquet)), frame)
    text = pd.read_csv(str(sweepdir.csv))
    assert list(text.columns) == list(frame.columns)
    assert text[TEST].tolist() == frame[TEST].tolist()


def test_columns_have_an_order_and_a_type(sweepdir: SweepDir) -> None:
    frame = collect(sweepdir)
    assert list(frame.columns[:13]) == [
        "sweep", "setting", "status", "run", "seed", "num_seeds", "space/pruning.target", "space/particles.count",
        "round", "sparsity", "survivors", "num_particles", "num_dropped"]
    whole = ("seed", "round", "survivors", "num_particles", "num_dropped", "config/particles.count", "config/seed")
    assert {str(frame.dtypes[name]) for name in whole} == {"int64"}
    assert {str(frame.dtypes[name]) for name in ("sparsity", TEST, "config/training.lr", "config/round.length_epochs",
                                                 "training_epochs")} == {"float64"}
    assert str(frame.dtypes["config/training.nesterov"]) == "bool"


def test_the_whole_config_is_there(sweepdir: SweepDir) -> None:
    frame = collect(sweepdir)
    saved = load_config(Path(str(RunDir(sweepdir.place, frame["run"].iloc[0]).config)))
    row = frame.iloc[0]
    for path, value in flat_config(saved):
        found = row[f"config/{path}"]
        assert found == value or (value is None and pd.isna(found)), path
    assert row["config/data.options.shape"] == "[1, 6, 6]"
    assert json.loads(row["config/training.betas"]) == [0.9, 0.999]


def test_epochs_count_the_particles_and_the_dense_phase(sweepdir: SweepDir) -> None:
    frame = collect(sweepdir).set_index(["space/pruning.target", "space/particles.count", "seed", "round"])
    # Two epochs a particle, after one of the dense phase.
    assert frame.loc[(0.75, 2, 0), "training_epochs"].tolist() == [4.0, 4.0, 4.0]
    assert frame.loc[(0.75, 2, 0), "cumulative_training_epochs"].tolist() == [5.0, 9.0, 13.0]
    assert frame.loc[(0.5, 1, 1), "cumulative_training_epochs"].tolist() == [3.0, 5.0]


def test_steps_become_epochs_and_units_stay_apart(tmp_path: Path) -> None:
    space = {"round.length": {"grid": ["10 steps", "2 epochs"]}}
    sweepdir = trained_sweep(tmp_path, space=space, seeds=1, base={
        **tiny(tmp_path, pruning__target=0.0, particles__count=1).model_dump(mode="json"), "name": "b"})
    frame = collect(sweepdir)
    # 86 training samples make 5 steps of 16.
    assert frame["training_epochs"].tolist() == [2.0, 2.0]
    assert frame["config/round.length_steps"].tolist()[0] == 10
    assert math.isnan(frame["config/round.length_steps"].tolist()[1])
    assert frame["config/round.length_epochs"].tolist()[1] == 2
    assert frame["space/round.length"].tolist() == ["10 steps", "2 epochs"]


def test_without_the_description_of_a_run_only_its_epochs_are_unknown(sweepdir: SweepDir) -> None:
    before = collect(sweepdir)
    for run in before["run"].unique():
        Path(str(RunDir(sweepdir.place, run).run_json)).unlink()
    after: Any = collect(sweepdir)
    assert after["training_epochs"].isna().all()
    assert after[TEST].tolist() == before[TEST].tolist()


def test_means_and_standard_errors_over_seeds(sweepdir: SweepDir) -> None:
    table: Any = by_setting(collect(sweepdir), TEST).set_index("setting")
    for setting in ("target0.5-count1", "target0.75-count2"):
        paths = [sweepdir.place.locate(f"runs/grid-{setting}-seed{seed}/rounds.jsonl") for seed in (0, 1)]
        runs = [lines(Path(path)) for path in paths]
        values = [run[-1]["average"]["test"]["loss"] for run in runs]
        assert table.loc[setting, "mean"] == pytest.approx(statistics.fmean(values))
        assert table.loc[setting, "standard_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(2))
        assert table.loc[setting, "n"] == 2
    assert table["sparsity"].tolist() == [0.5, 0.5, 0.75, 0.75]


def made(seeds: dict[int, list[float]], num_seeds: int = 2, num_prunable: int = 1000) -> pd.DataFrame:
    """A frame of one setting: the metric of each round by seed; each round halves the weights."""
    return pd.DataFrame([
        {"setting": "s", "status": "running", "seed": seed, "num_seeds": num_seeds, "space/x": 1, "round": index,
         "survivors": round(num_prunable * 0.5**index), "sparsity": 1 - round(num_prunable * 0.5**index) / num_prunable,
         "average/test/accuracy": value}
        for seed, values in seeds.items() for index, value in enumerate(values)])


def only(frame: pd.DataFrame, **options: Any) -> Any:
    return by_setting(frame, "average/test/accuracy", **options).iloc[0]


def test_only_rounds_that_all_seeds_have_finished_are_compared() -> None:
    row = only(made({0: [0.9, 0.8, 0.1], 1: [0.7, 0.6]}))
    assert (row["round"], row["n"]) == (1, 2)
    assert row["mean"] == pytest.approx(0.7)
    assert row["standard_error"] == pytest.approx(0.1)
    missing = only(made({0: [0.9, 0.8]}))
    assert missing["n"] == 0
    assert math.isnan(missing["mean"])
    assert pd.isna(missing["round"])


def test_one_seed_has_no_standard_error() -> None:
    row = only(made({0: [0.9, 0.8]}, num_seeds=1))
    assert (row["mean"], row["n"]) == (0.8, 1)
    assert math.isnan(row["standard_error"])


def test_a_seed_that_diverged_is_not_left_out_of_the_mean() -> None:
    assert math.isnan(only(made({0: [0.9], 1: [math.nan]}))["mean"])


@pytest.mark.parametrize(("at", "round_"), [
    (0.0, 0), (0.3, 1), (0.5, 1), (0.5005, 1), (0.5006, 2), (0.75, 2), (0.9, None),
])
def test_milestones_are_reached_to_half_a_weight(at: float, round_: int | None) -> None:
    row = only(made({0: [0.9, 0.8, 0.7], 1: [0.9, 0.8, 0.7]}), at_sparsity=at)
    assert (None if pd.isna(row["round"]) else row["round"]) == round_


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(UserError, match="average/test/accuracy"):
        by_setting(made({0: [0.9]}), "average/test/acuracy")


def test_settings_without_a_round_have_no_row(tmp_path: Path) -> None:
    sweepdir, sweep = planned_sweep(tmp_path)
    assert collect(sweepdir).empty
    note(sweepdir, sweep, sweep.settings()[0], "failed", reason="no data")
    frame = write_results(sweepdir)
    assert frame.empty
    assert by_setting(frame.assign(**{TEST: 0.0}), TEST).empty
    assert pd.read_parquet(str(sweepdir.parquet)).empty


def test_named_groups_and_a_whole_number_that_some_lack(tmp_path: Path) -> None:
    space = {"method": {"grid": {"SWAMP": {"particles.count": 2}, "small": {"data.limit_train": 64}}}}
    frame = collect(trained_sweep(tmp_path, space=space, seeds=1, base={
        **tiny(tmp_path, pruning__target=0.0).model_dump(mode="json")}))
    assert frame["space/method"].tolist() == ["SWAMP", "small"]
    assert str(frame.dtypes["config/data.limit_train"]) == "Int64"
    assert frame["config/data.limit_train"].tolist()[1] == 64


def test_a_storage_root_in_an_object_store(remote: str) -> None:
    sweepdir = trained_sweep(remote, space={"pruning.target": {"grid": [0.0]}}, seeds=1)
    frame = write_results(sweepdir)
    assert len(frame) == 1
    data = sweepdir.parquet.read()
    assert data is not None
    assert data[:4] == b"PAR1"


def test_settings_are_found_whatever_the_order_of_entries(tmp_path: Path) -> None:
    """YAML that was written with its keys sorted names the same settings."""
    sweepdir, sweep = planned_sweep(tmp_path)
    note(sweepdir, sweep, sweep.settings()[2], "running")
    text = sweepdir.read_config()
    assert text is not None
    sweepdir.config.write(yaml.safe_dump(yaml.safe_load(text), sort_keys=True).encode())
    found = Settings(sweepdir).read()
    assert len(found) == 4
    assert [trial.label for trial in found if trial.status == "running"] == ["target0.75-count1"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"a: [", b"[]", b"3", b"space: {x: 3}\nbase: {}", b"!!python/none"])
def test_a_damaged_config_is_refused(sweepdir: SweepDir, content: bytes) -> None:
    sweepdir.config.write(content)
    with pytest.raises(CorruptArtifactError, match=r"sweep\.yaml"):
        collect(sweepdir)


@pytest.mark.parametrize("values", [
    {"status": "done"}, {"status": 3}, {"seeds": "01"}, {"seeds": ["a"]}, {"runs": ["a", "b", "c"]}, {"runs": [1, 2]},
    {"runs": ["../../etc", "b"]}, {"setting": {"pruning.target": 0.5}}, {"reason": ["x"]},
])
def test_a_damaged_record_of_a_setting_is_refused(sweepdir: SweepDir, values: dict[str, Any]) -> None:
    first = next(iter(sweepdir.read_trials().values()))
    sweepdir.append_trial({**first, **values})
    with pytest.raises(CorruptArtifactError, match=r"trials\.jsonl"):
        collect(sweepdir)


@pytest.mark.parametrize("record", [
    {"attempts": {}}, {"attempts": [3]}, {"attempts": [{"trained": "x"}]}, {"plan": []}, {"plan": {"distinct": "x"}},
    {"planned": [3]}, {"num_settings": "x"}, {"status": None},
])
def test_a_damaged_description_is_refused(sweepdir: SweepDir, record: dict[str, Any]) -> None:
    sweepdir.write_record(record)
    with pytest.raises(CorruptArtifactError, match=r"sweep\.json"):
        read_record(sweepdir)


@pytest.mark.parametrize(("file", "content"), [
    ("config.yaml", None), ("config.yaml", "pruning: 3"), ("config.yaml", "a: ["), ("run.json", "{"),
    ("run.json", '{"rounds": 3}'), ("rounds.jsonl", '{"round": 0}\n'), ("rounds.jsonl", "{\n{}\n"),
    ("rounds.jsonl", '{"round": "a"}\n'),
    ("rounds.jsonl", '{"round": 0, "sparsity": "x", "survivors": 1, "num_particles": 1, "spread": 0}\n'),
    ("rounds.jsonl", '{"round": 0, "sparsity": 0, "survivors": 1, "num_particles": 1, "spread": 0, "average": 3}\n'),
])
def test_damaged_files_of_a_member_are_named(sweepdir: SweepDir, file: str, content: str | None) -> None:
    path = Path(str(sweepdir.place.locate(f"runs/grid-target0.5-count2-seed1/{file}")))
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CorruptArtifactError, match=rf"target0\.5-count2-seed1/{file}"):
        collect(sweepdir)


def test_a_member_that_was_removed_counts_as_missing(sweepdir: SweepDir) -> None:
    shutil.rmtree(Path(str(sweepdir.place.locate("runs/grid-target0.5-count2-seed1"))))
    frame: Any = collect(sweepdir)
    assert "grid-target0.5-count2-seed1" not in set(frame["run"])
    assert by_setting(frame, TEST).set_index("setting").loc["target0.5-count2", "n"] == 0
