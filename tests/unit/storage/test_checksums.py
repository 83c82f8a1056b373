"""Every record is verified, or said to be unverified; what is damaged of the metrics is written again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.launch import run
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.json_lines import salvage_lines
from swamp_ray.storage.metrics import MetricsLog, salvage_jsonl
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.storage.usage import read_usage
from tests.helpers import tiny

SMALL = {"pruning__target": 0.5, "particles__count": 2}


class Told(Reporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(folder, **SMALL))
    return folder


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "s")
    return tmp_path / "s"


def table(storage: Path) -> pd.DataFrame:
    frame = pd.read_parquet(storage / "runs/tiny/metrics.parquet").drop(columns="time")
    return frame.sort_values(["kind", "round", "particle", "epoch"]).reset_index(drop=True)


def change(path: Path, pattern: str, new: str) -> None:
    text = path.read_text()
    changed = re.sub(pattern, new, text, count=1)
    assert changed != text
    path.write_text(changed)


def strip(path: Path, only: int | None = None) -> None:
    """Take the checksums away, of all lines or of one."""
    lines = path.read_text().splitlines()
    for number in range(len(lines)) if only is None else [only]:
        record = json.loads(lines[number])
        del record["check"]
        lines[number] = json.dumps(record)
    path.write_text("".join(f"{line}\n" for line in lines))


def swamp(storage: Path, *arguments: str) -> str:
    return " ".join(CliRunner().invoke(main, [*arguments, "--storage", str(storage)]).output.split())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a digit": lambda path: change(path, r'"loss": (\d)', '"loss": 9'),
    "an epoch": lambda path: change(path, r'"epoch": 1', '"epoch": 5'),
    "no JSON": lambda path: change(path, r"\{", "["),
    "a line is gone": lambda path: path.write_text("".join(path.read_text().splitlines(True)[1:])),
    "a checksum is gone": lambda path: strip(path, only=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_metrics_of_a_finished_run_are_written_again(storage: Path, damage: str) -> None:
    before = table(storage)
    DAMAGE[damage](storage / "runs/tiny/metrics.jsonl")
    told = Told()
    again = run(tiny(storage, **SMALL), told)
    assert (again.rundir.read_run() or {})["attempts"][-1]["trained"] == 0
    pd.testing.assert_frame_equal(table(storage), before)
    assert any("metrics.jsonl" in text for text in told.warnings) == (damage != "a line is gone")
    silent = Told()
    run(tiny(storage, **SMALL), silent)
    assert not silent.warnings
    assert not salvage_jsonl(again.rundir.metrics).damaged


@pytest.mark.parametrize(("pattern", "new"), [
    (r'"trained_epochs": \d+', '"trained_epochs": 99'), (r'"seconds": [\d.]+', '"seconds": 1.5'),
    (r'"host": "[^"]*"', '"host": "other"'), (r'"primary": "accuracy"', '"primary": "loss"')])
def test_a_run_json_that_has_changed_is_not_believed(storage: Path, pattern: str, new: str) -> None:
    change(storage / "runs/tiny/run.json", pattern, new)
    for command in ("status", "report"):
        assert "this is not what was written: it has changed since" in swamp(storage, command, "tiny")
    with pytest.raises(CorruptArtifactError, match="has changed since"):
        run(tiny(storage, **SMALL))


@pytest.mark.parametrize("damage", ["changed", "stripped"])
@pytest.mark.parametrize("file", ["rounds.jsonl", "results.jsonl", "jobs.jsonl"])
def test_a_line_that_has_changed_or_lost_its_checksum_is_damaged(storage: Path, file: str, damage: str) -> None:
    path = storage / "runs/tiny" / file
    if damage == "changed":
        change(path, r'"(round|epochs|particle)": \d', r'"\1": 7')
    else:
        strip(path, only=1)
    assert len(salvage_lines(path).changed) == 1
    assert f"{file}: line" in swamp(storage, "report", "tiny", "--no-measure", "--page-only")
    if file != "jobs.jsonl":
        with pytest.raises(CorruptArtifactError, match="has changed since it was written"):
            read_usage(RunDir(storage, "tiny"))


def test_records_without_checksums_are_said_to_be_unverified_once_and_still_work(storage: Path) -> None:
    folder = storage / "runs/tiny"
    for name in ("rounds.jsonl", "results.jsonl", "metrics.jsonl", "jobs.jsonl"):
        strip(folder / name)
    record = json.loads((folder / "run.json").read_text())
    del record["check"]
    (folder / "run.json").write_text(json.dumps(record))
    said = swamp(storage, "status", "tiny")
    assert said.count("not verified") == 1
    assert "run.json, rounds.jsonl, results.jsonl" in said
    said = swamp(storage, "report", "tiny", "--no-measure", "--page-only")
    assert said.count("Not verified") == 1
    assert all(name in said for name in ("run.json", "rounds.jsonl", "metrics.jsonl", "jobs.jsonl", "results.jsonl"))
    said = " ".join(swamp(storage, "evaluate", "tiny").split())
    assert "not verified, since an older version wrote them without checksums: tiny: run.json, rounds.jsonl" in said
    told = Told()
    again = run(tiny(storage, **SMALL), told)
    assert (again.rundir.read_run() or {})["attempts"][-1]["trained"] == 0
    [text] = told.warnings
    assert "run.json, rounds.jsonl, results.jsonl, metrics.jsonl, jobs.jsonl" in text
    assert "run.json" not in again.rundir.unverified()


def test_a_metric_may_have_the_name_of_the_checksum(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.log(kind="epoch", epoch=1, check=0.5)
    [line] = salvage_jsonl(tmp_path / "m.jsonl").records
    assert line["metric/check"] == 0.5


def test_a_damaged_record_of_a_sweep_is_refused_where_it_is_read(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path, "s")
    sweep.write_record({"trained": 3})
    assert sweep.read_record() == {"trained": 3}
    change(tmp_path / "sweeps/s/sweep.json", "3", "4")
    with pytest.raises(CorruptArtifactError, match="only describes the sweep"):
        sweep.read_record()


def test_status_tells_an_averaged_round_from_one_whose_particles_are_done(storage: Path) -> None:
    rundir = RunDir(storage, "tiny")
    names = {(use.kind, use.round): use.name for use in read_usage(rundir).uses}
    Path(rundir.rounds.location).unlink()
    rundir.write_run({**(rundir.read_run() or {}), "status": "interrupted"})
    store = ArtifactStore(storage)
    assert "2 of 2 particles done; averaged and evaluated; only the round's record is missing" in swamp(
        storage, "status", "tiny")
    store.discard(names["evaluation", 0], "result")
    assert "2 of 2 particles done; averaged; the evaluation of the average: missing" in swamp(
        storage, "status", "tiny")
    store.discard(names["average", 0], "result")
    assert "2 of 2 particles done; their average is still to be made" in swamp(storage, "status", "tiny")


@pytest.mark.parametrize("name", ["a" * 5000, "a b", "a/../b", "", "..", "a\x1b[31m", "a\0b", "\u202ea"])
def test_impossible_names_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    for folder in (RunDir, SweepDir):
        with pytest.raises(UserError, match="name must consist of") as error:
            folder(tmp_path, name)
        assert len(str(error.value)) < 400
        assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["a" * 5000, f"x/{'a' * 5000}", "a" * 300])
def test_long_names_on_the_command_line_end_in_a_sentence(tmp_path: Path, name: str) -> None:
    for command in (["status", name], ["report", name], ["evaluate", name]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2, (command[0], done.exception)
    done = CliRunner().invoke(main, ["status", "q", "--storage", str(tmp_path / name)])
    assert done.exit_code == 2
    assert "255 bytes" in done.output
