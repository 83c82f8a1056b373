"""What ``swamp status`` says of a sweep that works, was killed, or is somewhere else."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from swamp_ray.cli import main
from swamp_ray.commands.sweep_status import SweepView, without_addresses
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError
from swamp_ray.storage.find import find_either, find_sweep
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import Leases, Watch
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.records import read_sweep
from tests.sweep_storage import note, planned_sweep, write_member

STARTED = "2026-01-01T00:00:00+0000"
NOW = datetime(2026, 1, 1, 0, 1, 40, tzinfo=UTC).timestamp()  # 100 s later


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Complete, running, failed and waiting settings of two seeds, in the order of the plan."""
    sweepdir, sweep = planned_sweep(tmp_path)
    done, running, failed, _ = sweep.settings()
    for seed, accuracies in enumerate([[0.9, 0.8], [0.9, 0.7]]):
        write_member(tmp_path, sweep, done, seed, accuracies, 2)
    note(sweepdir, sweep, done, "complete")
    write_member(tmp_path, sweep, running, 0, [0.95, 0.85], 2)
    write_member(tmp_path, sweep, running, 1, [0.93], 2)
    note(sweepdir, sweep, running, "running")
    note(sweepdir, sweep, failed, "failed", reason="round 1, particle 0 diverged on 10.1.2.3:6379\nand more")
    return tmp_path


def describe(sweepdir: SweepDir, **values: Any) -> None:
    sweepdir.write_record({**sweepdir.read_record(), **values})


@contextmanager
def working(sweepdir: SweepDir) -> Iterator[None]:
    with sweepdir.hold():
        yield


def text(view: SweepView, width: int = 120, height: int | None = None) -> list[str]:
    view.refresh()
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(view.render(width, height))
    return console.export_text().splitlines()


def row(lines: list[str], *cells: str) -> str:
    """The one line that begins with these cells."""
    found = [line for line in lines if line.split()[:len(cells)] == list(cells)]
    assert len(found) == 1, lines
    return found[0]


def test_each_setting_has_a_row_in_the_order_of_the_plan(storage: Path) -> None:
    sweepdir = SweepDir(storage, "grid")
    with working(sweepdir):
        lines = text(SweepView(sweepdir))
    assert lines[0] == "grid: running, 1 of 4 settings, 1 failed"
    starts = [line.split()[:3] for line in lines if " % " in line and line[0].isdigit()]
    assert starts == [["50.0", "%", "1"], ["50.0", "%", "2"], ["75.0", "%", "1"], ["75.0", "%", "2"]]
    # Mean and standard error: of 0.8 and 0.7 on test, 0.4 and 0.35 on validation.
    assert row(lines, "50.0", "%", "1").split()[3:] == [
        "2/2", "4/4", "50.0", "%", "37.50", "±", "2.50", "75.00", "±", "5.00", "complete"]
    # Of the round that both seeds have finished.
    assert row(lines, "50.0", "%", "2").split()[3:] == [
        "1/2", "3/4", "0.0", "%", "47.00", "±", "0.50", "94.00", "±", "1.00", "running"]
    assert row(lines, "75.0", "%", "2").split()[3:] == ["0/2", "-", "-", "-", "-", "waiting"]


def test_the_standard_error_is_over_seeds(tmp_path: Path) -> None:
    sweepdir, sweep = planned_sweep(tmp_path, seeds=3)
    values = [0.9, 0.84, 0.87]
    for seed, value in enumerate(values):
        write_member(tmp_path, sweep, sweep.settings()[0], seed, [value], 1)
    note(sweepdir, sweep, sweep.settings()[0], "complete")
    view = SweepView(sweepdir)
    view.refresh()
    found, metric = view.rows[0], "average/test/accuracy"
    assert found.mean(metric) == pytest.approx(statistics.fmean(values))
    assert found.standard_error(metric) == pytest.approx(statistics.stdev(values) / math.sqrt(3))


def test_why_a_setting_failed_is_said_without_addresses(storage: Path) -> None:
    lines = text(SweepView(SweepDir(storage, "grid")))
    assert "target0.75-count1 failed: round 1, particle 0 diverged on a node" in lines
    assert not any("10.1.2.3" in line for line in lines)


@pytest.mark.parametrize(("said", "shown"), [
    ("worker on 10.0.0.1:80 died", "worker on a node died"), ("at [fe80::1]:80", "at a node"),
    ("rate 0.1, 1.2.3 and 99.5 %", "rate 0.1, 1.2.3 and 99.5 %"),
])
def test_addresses(said: str, shown: str) -> None:
    assert without_addresses(said) == shown


def test_a_killed_sweep_is_called_so_and_its_settings_are_not_running(storage: Path) -> None:
    lines = text(SweepView(SweepDir(storage, "grid")))
    assert lines[0] == ("grid: stopped without a word (killed?); the same command goes on, 1 of 4 settings, 1 failed")
    assert row(lines, "50.0", "%", "2").split()[-1] == "interrupted"


def test_a_finished_sweep_needs_no_process(storage: Path) -> None:
    sweepdir = SweepDir(storage, "grid")
    describe(sweepdir, status="complete")
    assert text(SweepView(sweepdir))[0] == "grid: complete, 1 of 4 settings, 1 failed"


def test_a_process_elsewhere_is_watched(storage: Path) -> None:
    sweepdir, now = SweepDir(storage, "grid"), 0.0
    Leases(sweepdir.place, 3600.0).acquire(sweepdir.lease_key, replace(this_process("grid"), host="elsewhere.example",
                                                                      boot="another machine"))
    view = SweepView(sweepdir, Watch(30.0, lambda: now))
    assert text(view)[0].startswith("grid: running on elsewhere.example, last seen")
    assert view.life.running
    now = 3600.0
    assert text(view)[0].startswith("grid: stopped without a word (killed?)")
    assert not view.life.running


PLAN = {"named": 40, "distinct": 20, "dense_named": 8, "dense_distinct": 2, "distinct_epochs": 50.0, "exact": True}


def test_the_time_left_is_at_the_pace_of_the_current_attempt(storage: Path) -> None:
    sweepdir = SweepDir(storage, "grid")
    describe(sweepdir, plan=PLAN, attempts=[
        {"started": STARTED, "host": "h", "seconds": 1.0, "trained": 4, "trained_epochs": 20.0},
        {"started": STARTED, "host": "h", "trained": 2, "trained_epochs": 10.0}])
    with working(sweepdir):
        # 20 of 50 epochs are left, at 10 in 100 s.
        shown = text(SweepView(sweepdir, now=lambda: NOW))[1]
        assert shown == "6 of 22 particles and dense phases trained, 3 min 20 s left"
        describe(sweepdir, plan={**PLAN, "exact": False})
        assert text(SweepView(sweepdir, now=lambda: NOW))[1].endswith(", about 3 min 20 s left")
    assert text(SweepView(sweepdir, now=lambda: NOW))[1] == "6 particles and dense phases trained"


@pytest.mark.parametrize("attempts", [
    [], [{"started": "yesterday", "trained": 1, "trained_epochs": 1.0}], [{"started": STARTED}],
    [{"started": STARTED, "trained": 20, "trained_epochs": 60.0}],
])
def test_without_a_pace_there_is_no_time_left(storage: Path, attempts: list[dict[str, Any]]) -> None:
    sweepdir = SweepDir(storage, "grid")
    describe(sweepdir, plan=PLAN, attempts=attempts)
    with working(sweepdir):
        assert not any(" left" in line for line in text(SweepView(sweepdir, now=lambda: NOW)))


class Counting:
    """A place that notes what is read."""

    def __init__(self, root: Path) -> None:
        self._place, self.read_keys = open_place(root), list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        return self._place.read(key)

    def read_appended(self, key: str, start: int = 0) -> bytes:
        self.read_keys.append(key)
        return self._place.read_appended(key, start)

    def locate(self, key: str) -> Path | str:
        self.read_keys.append(key)
        return self._place.locate(key)


def test_a_refresh_reads_only_what_runs(storage: Path) -> None:
    place: Any = Counting(storage)
    sweepdir = SweepDir(place, "grid")
    with working(SweepDir(storage, "grid")):
        view = SweepView(sweepdir)
        view.refresh()
        assert any("target0.5-count1" in key for key in place.read_keys)
        place.read_keys.clear()
        first = view.rows
        view.refresh()
        members = {key for key in place.read_keys if key.startswith("runs/")}
        assert members == {f"runs/grid-target0.5-count2-seed{seed}/rounds.jsonl" for seed in (0, 1)}
        assert view.rows == first


def test_a_setting_that_ends_is_read_once_more(storage: Path) -> None:
    sweepdir = SweepDir(storage, "grid")
    sweep = sweep_of(storage)
    with working(sweepdir):
        view = SweepView(sweepdir)
        view.refresh()
        RunDir(storage, "grid-target0.5-count2-seed1").append_round(
            {**RunDir(storage, "grid-target0.5-count2-seed0").read_rounds()[1]})
        note(sweepdir, sweep, sweep.settings()[1], "complete")
        assert row(text(view), "50.0", "%", "2").split()[3:5] == ["2/2", "4/4"]


def sweep_of(storage: Path) -> Sweep:
    return read_sweep(SweepDir(storage, "grid"))


def test_where_not_all_fit_the_urgent_come_first_then_the_best(tmp_path: Path) -> None:
    space = {"particles.count": {"grid": list(range(1, 31))}}
    sweepdir, sweep = planned_sweep(tmp_path, space=space, seeds=1)
    for number, setting in enumerate(sweep.settings()[:20]):
        write_member(tmp_path, sweep, setting, 0, [0.5 + number / 100], 1)
        status = {7: "failed", 3: "running"}.get(number, "complete")
        note(sweepdir, sweep, setting, status, reason="x")
    with working(sweepdir):
        lines = text(SweepView(sweepdir), 80, 14)
        shown = [int(line.split()[0]) for line in lines if line.strip() and line.split()[0].isdigit() and "/" in line]
        assert shown == [8, 4, 20, 19, 18]
        assert "25 more settings are not shown: 15 complete, 10 waiting" in lines
        assert len(lines) <= 14
        assert len([line for line in text(SweepView(sweepdir), 80) if "/" in line]) == 30


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_width(storage: Path, width: int) -> None:
    lines = text(SweepView(SweepDir(storage, "grid")), width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    heading = " ".join(lines[:5])
    for word in ("target", "count", "rounds", "validation", "status"):
        assert word in heading
    assert ("seeds" in heading) == (width > 60), "seeds are the first to go"
    assert ("test" in heading) == (width > 60)


def test_values_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    sweepdir, _ = planned_sweep(tmp_path, space={"pruning.include": {"grid": [["[red]"], ["a"]]}}, seeds=1)
    assert any("['[red]']" in line for line in text(SweepView(sweepdir)))


def test_a_metric_that_is_no_accuracy(tmp_path: Path) -> None:
    sweepdir, sweep = planned_sweep(tmp_path, metric="average/test/loss", mode="min", seeds=1)
    member = write_member(tmp_path, sweep, sweep.settings()[0], 0, [0.5], 1)
    member.append_round({**member.read_rounds()[0], "average": {"test": {"loss": 0.123456}}})
    note(sweepdir, sweep, sweep.settings()[0], "complete")
    view = SweepView(sweepdir)
    assert row(text(view), "50.0", "%", "1").split()[-2:] == ["0.1235", "complete"]
    assert view.metrics == ["average/test/loss"]


@pytest.mark.parametrize(("file", "content"), [
    ("rounds.jsonl", '{"round": 0, "sparsity": 0}\n'), ("rounds.jsonl", "{\n{}\n"), ("run.json", "["),
    ("rounds.jsonl", '{"round": 0, "sparsity": 0, "average": {"validation": 3}}\n'), ("run.json", '{"rounds": [1]}'),
])
def test_damage_of_one_member_is_said_in_its_row(storage: Path, file: str, content: str) -> None:
    (storage / "runs/grid-target0.5-count1-seed0" / file).write_text(content)
    lines = text(SweepView(SweepDir(storage, "grid")))
    assert row(lines, "50.0", "%", "1").split()[-1] == "unreadable"
    assert any(line.startswith("target0.5-count1 unreadable:") for line in lines)
    assert row(lines, "50.0", "%", "2").split()[4] == "3/4"


def test_members_that_are_missing_count_as_not_begun(storage: Path) -> None:
    for path in (storage / "runs").glob("*count1-seed*/*"):
        path.unlink()
    assert row(text(SweepView(SweepDir(storage, "grid"))), "50.0", "%", "1").split()[3:5] == ["0/2", "-"]


@pytest.mark.parametrize(("content", "got"), [
    ('{"attempts": 3}', "(attempts)"), ("{", "1 bytes that are no JSON"), ("[]", "a list"),
    ("\x00\x00", "2 bytes that are no JSON"), ('{"status": "complete", "check": "0"}', "another checksum"),
])
def test_damage_of_the_sweeps_record_is_said_and_the_settings_are_shown(storage: Path, content: str, got: str) -> None:
    record = storage / "sweeps/grid/sweep.json"
    record.write_text(content)
    sweepdir = SweepDir(storage, "grid")
    lines = text(SweepView(sweepdir), 400)
    assert lines[0] == "grid: its state is not known, 1 of 4 settings, 1 failed"
    assert row(lines, "50.0", "%", "1").split()[-1] == "complete"
    assert row(lines, "50.0", "%", "2").split()[-1] == "interrupted"
    [said] = [line for line in lines if line.startswith("damaged: ")]
    assert str(record) in said
    assert got in said
    assert "Restore the file or delete it" in said
    done = status("grid", "--storage", storage)
    assert done.exit_code == 0, done.output
    assert "sweep.json: this is not" in done.stdout
    with working(sweepdir):
        assert text(SweepView(sweepdir))[0].startswith("grid: running, ")


@pytest.mark.parametrize(("damaged", "said"), [
    ("nonsense", "line 1."), ('{"label": 3, "setting": {}, "check": ""}', "line 1."), ("{}\n[]", "line 1 and 1 more."),
])
def test_damaged_records_of_settings_are_said_and_the_others_are_shown(
    storage: Path, damaged: str, said: str
) -> None:
    trials = storage / "sweeps/grid/trials.jsonl"
    lines = trials.read_text().splitlines()
    trials.write_text("\n".join([damaged, *lines[1:], ""]))
    shown = text(SweepView(SweepDir(storage, "grid")), 400)
    assert row(shown, "50.0", "%", "1").split()[-1] == "waiting"
    assert row(shown, "75.0", "%", "1").split()[-1] == "failed"
    assert any(line.startswith(f"damaged: {trials}: not what was written: {said}") for line in shown)


@pytest.mark.parametrize(("values", "wrong"), [
    ({"status": "lost"}, "status"), ({"runs": [1, 2]}, "runs"), ({"runs": ["a/b"]}, "no name of a run"),
    ({"setting": {"other": 1}}, "setting"),
])
def test_a_record_of_a_setting_that_no_sweep_writes_is_said(
    storage: Path, values: Mapping[str, Any], wrong: str
) -> None:
    sweepdir = SweepDir(storage, "grid")
    key, record = next(iter(sweepdir.read_trials().items()))
    sweepdir.append_trial({**record, **values})
    shown = text(SweepView(sweepdir), 400)
    assert row(shown, "75.0", "%", "1").split()[-1] == "failed"
    [said] = [line for line in shown if line.startswith("damaged: ")]
    assert wrong in said
    assert key in said or "a/b" in said


def status(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def test_the_command_finds_sweeps_by_name_and_path(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["grid", "--storage", storage], [storage / "sweeps/grid"], [f"{storage}/sweeps/grid/"],
                      ["grid", "--storage", storage, "--watch"]):
        done = status(*arguments)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith("grid: stopped without a word")
    monkeypatch.chdir(storage / "sweeps")
    assert find_either("grid").spot().location == storage / "sweeps/grid"
    monkeypatch.chdir(storage)
    assert find_either("sweeps/grid").spot().location == storage / "sweeps/grid"


def test_a_name_of_both_asks_for_the_path(storage: Path) -> None:
    RunDir(storage, "grid").write_config("{}")
    done = status("grid", "--storage", storage)
    assert done.exit_code == 2
    assert f"Give the path: {storage}/runs/grid or {storage}/sweeps/grid" in done.stderr
    assert status(storage / "sweeps/grid").exit_code == 0


def test_similar_names_are_suggested(storage: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'grid'"):
        find_either("gird", str(storage))
    with pytest.raises(UserError, match="Did you mean 'grid'"):
        find_sweep("gird", str(storage))
    with pytest.raises(UserError, match="there is no run"):
        find_either("x" * 100, str(storage))
    with pytest.raises(UserError, match="no such folder"):
        find_either(f"{storage}/sweeps/none")
