from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import Lease, Leases
from swamp_ray.storage.sweep_folder import MAX_NAME, SweepDir


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    return SweepDir(tmp_path, "grid.1")


def test_the_files_of_a_sweep_have_the_names_of_the_design(sweep: SweepDir, tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "grid.1"
    assert sweep.spot().location == folder
    names = {"config": "sweep.yaml", "record": "sweep.json", "trials": "trials.jsonl", "parquet": "results.parquet",
             "csv": "results.csv", "tune": "tune"}
    assert {key: getattr(sweep, key).location for key in names} == {key: folder / name for key, name in names.items()}
    assert sweep.figure("curves", "svg").location == folder / "figures" / "curves.svg"


def test_asking_creates_nothing(sweep: SweepDir, tmp_path: Path) -> None:
    assert sweep.read_config() is None
    assert sweep.read_record() == {}
    assert sweep.read_trials() == {}
    assert sweep.held() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * (MAX_NAME + 1)])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="a sweep's name"):
        SweepDir(tmp_path, name)


def test_the_last_record_of_a_setting_counts_and_keeps_its_place(sweep: SweepDir) -> None:
    sweep.append_trial({"label": "b", "setting": {"x": 1}, "status": "running"})
    sweep.append_trial({"label": "a", "setting": {"x": 2}, "status": "running"})
    sweep.append_trial({"label": "b", "setting": {"x": 1}, "status": "complete", "seconds": float("inf")})
    assert list(sweep.read_trials()) == ["b", "a"]
    assert sweep.read_trials()["b"] == {"label": "b", "setting": {"x": 1}, "status": "complete",
                                       "seconds": float("inf")}


def test_a_torn_last_line_is_nothing_and_the_next_record_stands_on_its_own(sweep: SweepDir, tmp_path: Path) -> None:
    sweep.append_trial({"label": "a", "setting": {}})
    path = tmp_path / "sweeps/grid.1/trials.jsonl"
    path.write_bytes(path.read_bytes() + b'{"label": "b", "sett')
    assert list(sweep.read_trials()) == ["a"]
    sweep.append_trial({"label": "c", "setting": {}})
    assert list(sweep.read_trials()) == ["a", "c"]


@pytest.mark.parametrize("line", [
    '{"setting": {}}', '{"label": 3, "setting": {}}', '{"label": "a"}', '{"label": "a", "setting": []}',
    '{"label": "a", "setting": {}, "check": "0000"}',
])
def test_lines_that_a_sweep_does_not_write_are_refused(sweep: SweepDir, tmp_path: Path, line: str) -> None:
    sweep.append_trial({"label": "x", "setting": {}})
    path = tmp_path / "sweeps/grid.1/trials.jsonl"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(CorruptArtifactError, match=r"trials\.jsonl"):
        sweep.read_trials()


def test_a_changed_value_is_noticed(sweep: SweepDir, tmp_path: Path) -> None:
    sweep.append_trial({"label": "x", "setting": {}, "status": "failed"})
    path = tmp_path / "sweeps/grid.1/trials.jsonl"
    path.write_text(path.read_text().replace("failed", "complete"))
    with pytest.raises(CorruptArtifactError, match="has changed since it was written"):
        sweep.read_trials()


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff\xfe", b"[" * 10_000])
def test_a_record_that_is_no_object_is_refused(sweep: SweepDir, content: bytes) -> None:
    sweep.write_record({"status": "running"})
    assert sweep.read_record() == {"status": "running"}
    sweep.record.write(content)
    with pytest.raises(CorruptArtifactError, match=r"sweep\.json"):
        sweep.read_record()


def test_a_record_is_json_for_everybody(sweep: SweepDir, tmp_path: Path) -> None:
    sweep.write_record({"value": float("nan"), "name": "ä"})
    text = (tmp_path / "sweeps/grid.1/sweep.json").read_text()
    read = json.loads(text)
    assert len(read.pop("check")) == 16
    assert read == {"value": "NaN", "name": "ä"}


def test_a_config_that_is_no_text_is_refused(sweep: SweepDir) -> None:
    sweep.config.write(b"name: \xff\n")
    with pytest.raises(CorruptArtifactError, match=r"sweep\.yaml"):
        sweep.read_config()


def test_one_process_at_a_time(sweep: SweepDir) -> None:
    with sweep.hold():
        held = sweep.held()
        assert held is not None
        assert held.life == "alive"
    assert sweep.held() is None
    other = Leases(sweep.place).acquire(sweep.lease_key, replace(this_process("other"), host="elsewhere.example"))
    assert isinstance(other, Lease)
    with other:
        held = sweep.held()
        assert held is not None
        assert held.holder is not None
        assert held.holder.host == "elsewhere.example"


def test_the_process_that_holds_a_sweep_is_named(sweep: SweepDir) -> None:
    with sweep.hold(), pytest.raises(UserError, match=r"the sweep 'grid\.1' is being worked on by process \d+"):
        SweepDir(sweep.place, "grid.1").hold()
