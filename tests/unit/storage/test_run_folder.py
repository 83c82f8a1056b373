from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import folder_of


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path, "my-run.1")


def test_the_files_of_a_run_have_the_names_of_the_design(run: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "my-run.1"
    assert folder_of(run) == folder
    assert Path(run.config.location) == folder / "config.yaml"
    assert Path(run.run_json.location) == folder / "run.json"
    assert Path(run.rounds.location) == folder / "rounds.jsonl"
    assert Path(run.metrics.location) == folder / "metrics.jsonl"
    assert Path(run.metrics_parquet.location) == folder / "metrics.parquet"
    assert Path(run.report.location) == folder / "report.html"
    assert Path(run.tensorboard.location) == folder / "tensorboard"
    assert Path(run.log(1, "round-03-particle-1").location) == folder / "logs" / "attempt-1" / "round-03-particle-1.log"
    assert Path(run.log(1, "../../x").location).parent == folder / "logs" / "attempt-1"
    assert Path(run.ticket(0.95).location) == folder / "tickets" / "0.9500" / "model.safetensors"
    assert Path(run.ticket(0.0).location) == folder / "tickets" / "0.0000" / "model.safetensors"
    assert run.ticket(0.5).key == "runs/my-run.1/tickets/0.5000/model.safetensors"


def test_asking_for_names_creates_nothing(run: RunDir, tmp_path: Path) -> None:
    assert run.read_config() is None
    assert run.read_run() is None
    assert run.read_rounds() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * 201])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        RunDir(tmp_path, name)


@given(st.integers(1_000, 10**9))
def test_rounds_at_the_usual_rate_never_share_a_ticket_file(num_prunable: int) -> None:
    run = RunDir("storage", "run")
    counts = [int(num_prunable * 0.8**round_ + 0.5) for round_ in range(90)]
    distinct = [count for count in dict.fromkeys(counts) if count > 100]
    paths = {Path(run.ticket(1 - count / num_prunable).location) for count in distinct}
    assert len(paths) == len(distinct)
    assert not any(path.parent.name.startswith("1") for path in paths)


def test_config_and_run_are_replaced(run: RunDir) -> None:
    run.write_config("a: ä\n")
    run.write_config("b: 1\n")
    assert run.read_config() == "b: 1\n"
    run.write_run({"attempts": [1]})
    run.write_run({"attempts": [1, 2]})
    assert run.read_run() == {"attempts": [1, 2]}


def test_a_damaged_run_json_is_an_error_and_an_empty_one_is_none(run: RunDir) -> None:
    run.write_run({"a": 1})
    Path(run.run_json.location).write_bytes(b"")
    assert run.read_run() is None
    for damaged in (b'{"a"', b"[]", b"\0\0"):
        Path(run.run_json.location).write_bytes(damaged)
        with pytest.raises(CorruptArtifactError, match=r"run\.json"):
            run.read_run()


def test_the_last_record_of_a_round_counts(run: RunDir) -> None:
    for record in ({"round": 0, "x": 1}, {"round": 1, "x": 2}, {"round": 0, "x": 3}):
        run.append_round(record)
    assert run.read_rounds() == [{"round": 0, "x": 3}, {"round": 1, "x": 2}]


def test_a_torn_round_is_ignored_and_overwritten(run: RunDir) -> None:
    run.append_round({"round": 0})
    with Path(run.rounds.location).open("ab") as file:
        file.write(b'{"round": 1, "acc')
    assert run.read_rounds() == [{"round": 0}]
    run.append_round({"round": 1, "x": 5})
    assert run.read_rounds() == [{"round": 0}, {"round": 1, "x": 5}]


def test_a_record_without_a_round_is_refused(run: RunDir) -> None:
    with pytest.raises(ValueError, match="round"):
        run.append_round({"x": 1})


def test_rounds_of_nearly_equal_sparsity_have_tickets_of_their_own(run: RunDir) -> None:
    keys = [spot.key for spot in run.tickets([0.0, 0.5, 0.75, 0.75, 0.75004, 0.99])]
    folders = [key.split("/")[-2] for key in keys]
    assert folders == ["0.0000", "0.5000", "0.7500", "0.7500-2", "0.7500-3", "0.9900"]
    assert keys[1] == run.ticket(0.5).key
