"""What a sweep prints off a terminal, and what the commands say to the config of the wrong kind."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from swamp_ray.cli import main
from swamp_ray.commands.sweep_progress import PlainSweepReporter, make_sweep_reporter, shared_line
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting, Sweep, label
from swamp_ray.errors import Interrupted
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.places import open_place
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.plan import SweepPlan, plan_sweep
from swamp_ray.sweep.reporter import SweepReporter
from swamp_ray.sweep.run import SweepOutcome, _Sweep
from tests.helpers import TINY
from tests.sweep_storage import note, planned_sweep

ONE: Setting = {"pruning.target": 0.5, "particles.count": 1}
TWO: Setting = {"pruning.target": 0.75, "particles.count": 2}
METRIC = "average/validation/accuracy"


class Shown:
    """A sweep that is told to a plain reporter, and the lines that it printed."""

    def __init__(self, sweepdir: SweepDir, sweep: Sweep) -> None:
        self.text = io.StringIO()
        self.reporter = PlainSweepReporter(Console(file=self.text, width=60, highlight=False))
        self.sweep, self.plan = sweep, plan_sweep(sweep, "cpu", [{"CPU": 2.0}])
        self.reporter.sweep_started(sweep, self.plan, sweepdir)
        self.header = self.take()

    def take(self) -> list[str]:
        """The lines since the last time."""
        lines = self.text.getvalue().splitlines()
        self.text.seek(0)
        self.text.truncate()
        return lines

    def changed(self, setting: Setting, status: str, **values: Any) -> list[str]:
        self.reporter.setting_changed({"label": label(setting), "setting": setting, "status": status, **values})
        return self.take()


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown(*planned_sweep(tmp_path))


def test_the_header_says_what_is_swept_shared_and_written(shown: Shown, tmp_path: Path) -> None:
    assert shown.header[:2] == [
        "grid: 4 settings of pruning.target, particles.count, each with 2 seeds; digits_cnn on synthetic",
        f"results in {tmp_path}/sweeps/grid"]
    plan = shown.plan
    assert shown.header[2] == (
        f"names 30 particles, of which {plan.num_distinct('particle')} are distinct and trained; 8 dense "
        f"phases, {plan.num_distinct('dense')} distinct; {plan.distinct_epochs:g} epochs in all")
    assert re.fullmatch(rf"writes about [\d.]+ MB; [\d.,]+ [MGT]B are free in {tmp_path}", shown.header[3])
    assert len(shown.header) == 4


def test_a_setting_has_a_line_when_it_begins_and_one_when_it_ends(shown: Shown) -> None:
    assert shown.changed(ONE, "running", workers=1) == ["pruning.target 0.5, particles.count 1: begins, 1 worker"]
    assert shown.changed(TWO, "running", workers=2) == ["pruning.target 0.75, particles.count 2: begins, 2 workers"]
    assert shown.changed(ONE, "complete", seconds=75.0) == [
        "pruning.target 0.5, particles.count 1: complete after 1 min 15 s (1 of 4)"]
    assert shown.changed(TWO, "failed", seconds=5.0, reason="round 0, particle 1 [diverged]: the loss was nan") == [
        "pruning.target 0.75, particles.count 2: failed after 5 s: round 0, particle 1 [diverged]: the loss was nan "
        "(2 of 4)"], "what somebody else wrote is shown as it is, on one line"


def test_a_setting_that_is_started_again_is_counted_once(shown: Shown) -> None:
    shown.changed(ONE, "running", workers=1)
    assert shown.changed(ONE, "failed", reason="the process that drove it was lost")[0].endswith("lost (1 of 4)")
    shown.changed(ONE, "running", workers=1)
    assert shown.changed(TWO, "complete")[0].endswith(": complete (1 of 4)")
    assert shown.changed(ONE, "complete")[0].endswith(": complete (2 of 4)")


def test_what_an_earlier_attempt_has_finished_is_counted(tmp_path: Path) -> None:
    sweepdir, sweep = planned_sweep(tmp_path)
    settings = sweep.settings()
    for setting, status in zip(settings, ("complete", "stopped", "failed", "interrupted"), strict=True):
        note(sweepdir, sweep, setting, status)
    shown = Shown(sweepdir, sweep)
    assert shown.changed(settings[2], "complete")[0].endswith("(3 of 4)")
    assert shown.changed(settings[3], "complete")[0].endswith("(4 of 4)")


def test_a_milestone_has_a_line_with_the_metric_of_the_sweep(shown: Shown) -> None:
    def told(**values: Any) -> list[str]:
        shown.reporter.milestone(ONE, {"sparsity": 0.5, "complete": False, **values})
        return shown.take()

    assert told(**{METRIC: 0.9123, f"{METRIC}_se": 0.0123}) == [
        f"pruning.target 0.5, particles.count 1: sparsity 50.0 %, {METRIC} 91.23 % ± 1.23 %"]
    assert told(**{METRIC: 0.9123, f"{METRIC}_se": float("nan")})[0].endswith("91.23 %"), "one seed has no error"
    assert told(**{METRIC: 0.9, "complete": True}) == [], "that a setting is over is another line"
    assert told() == []


def test_warnings_and_stopping_are_told(shown: Shown) -> None:
    shown.reporter.warning("2 settings cannot run; the first: no [such] layer")
    shown.reporter.stopping(20.0)
    shown.reporter.ray_starting()
    assert shown.take() == [
        "warning: 2 settings cannot run; the first: no [such] layer",
        "stopping: running particles write a checkpoint, for at most 20 s; Ctrl-C again leaves at once",
        "starting Ray ..."]


def test_the_reporter_fits_the_output() -> None:
    assert isinstance(make_sweep_reporter(Console(file=io.StringIO()), quiet=False), PlainSweepReporter)
    assert type(make_sweep_reporter(Console(), quiet=True)) is SweepReporter


class Told(SweepReporter):
    """Remembers what it is told, and asks to stop at the first warning, before anything is started."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sweep_started(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir) -> None:
        self.calls.append("started")

    def setting_changed(self, record: Any) -> None:
        self.calls.append(f"{record['label']} {record['status']}")

    def warning(self, text: str) -> None:
        self.calls.append(text)
        raise KeyboardInterrupt

    def sweep_finished(self, complete: bool) -> None:
        self.calls.append("finished")


def test_settings_that_cannot_run_are_told_after_the_header_and_recorded(tmp_path: Path) -> None:
    sweep = build_sweep({"name": "s", "storage": str(tmp_path), "base": TINY,
                         "space": {"pruning.target": {"grid": [0.5, 1.5]}}})
    plan, place, told = plan_sweep(sweep, "cpu", [{"CPU": 2.0}]), open_place(tmp_path), Told()
    sweepdir = SweepDir(place, "s")
    with pytest.raises(Interrupted, match="Run the same command again to go on"):
        _Sweep(sweep, plan, sweepdir, place, told, Stopping(), "cpu").run()
    assert told.calls == ["started", "target1.5 failed", f"1 settings cannot run; the first: "
                          f"{plan.invalid['target1.5']}", "finished"]
    [record] = sweepdir.read_trials().values()
    assert (record["label"], record["status"], record["reason"]) == ("target1.5", "failed", plan.invalid["target1.5"])
    assert sweepdir.read_record()["status"] == "interrupted"


def test_what_was_trained_is_told_against_what_was_named(tmp_path: Path) -> None:
    def line(**base: Any) -> str:
        sweepdir, sweep = planned_sweep(tmp_path, base={**TINY, **base})
        return shared_line(SweepOutcome(sweepdir, {}, plan_sweep(sweep, "cpu", [{"CPU": 2.0}]), 1234))

    # Of each seed: a dense phase, round 0 of two particles, and two rounds of one and of two.
    assert line() == "trained: 1,234 particles and dense phases; the settings name 38, of which 18 are distinct"
    assert line(particles={"combine": "best"}).endswith("the settings name 38, of which at most 18 are distinct")


# Commands


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A run, and a sweep over it, as files."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump({
        "base": "run.yaml", "seeds": 2,
        "space": {"pruning.target": {"grid": [0.5, 0.75]}, "arm [name]": {"grid": {
            "imp [ours]": {"particles.count": 1}, "swamp": {"particles.count": 2}}}}}, sort_keys=False))
    return tmp_path


def swamp(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_check_shows_every_setting_with_what_it_trains(files: Path) -> None:
    done = swamp("check", files / "targets.yaml", "--storage", files / "s")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    headings = "pruning.target arm [name] particles epochs a seed the other FLOPs masks workers"
    assert headings in [" ".join(line) for line in lines]
    # Two seeds of a dense phase of one epoch, and particles of two.
    # Of one seed: 1 + 2 x 2 epochs of one particle, and 1 + 3 x 2 x 2 of two, 1 + 3 x 2 of them one after the other.
    costs = {tuple(line[:-5]): line[-1] for line in lines if line[:1] in (["0.5"], ["0.75"])}
    assert costs["0.5", "imp", "[ours]", "4", "10", "5", "5"] == "1"
    assert costs["0.75", "swamp", "12", "26", "13", "7"] == "1"
    assert "targets: 4 settings of pruning.target, arm [name], each with 2 seeds" in done.stdout
    assert f"results in {files}/s/sweeps/targets" in done.stdout
    assert re.search(r"names 30 particles, of which \d+ are distinct", done.stdout)
    assert not (files / "s").exists(), "a check writes nothing"


def test_check_lists_the_settings_that_cannot_run(files: Path) -> None:
    tree = yaml.safe_load((files / "targets.yaml").read_text())
    tree["space"]["pruning.target"]["grid"].append(1.5)
    (files / "some.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    done = swamp("check", files / "some.yaml", "--storage", files / "s")
    assert done.exit_code == 0
    assert ("cannot run: pruning.target 1.5, arm [name] imp [ours]: config: pruning.target: must be less than 1, "
            "but got 1.5.") in done.stdout.splitlines()
    assert ["1.5", "swamp", *"-------"] in [line.split() for line in done.stdout.splitlines()]


def test_check_says_what_is_compared_and_when(files: Path) -> None:
    done = swamp("check", files / "targets.yaml", "--storage", files / "s", "--set", "scheduler.name=asha",
                 "--set", "at_sparsity=[0.25, 0.5]")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"compares {METRIC} (max) at 25.0 %, 50.0 %; search random, scheduler asha")


@pytest.mark.parametrize(("overrides", "text"), [
    (["metric=average/validation/acuracy"], "metric: no setting reports this metric"),
    (["at_sparsity=[0.6]"], "at_sparsity: every setting must reach the sparsity 0.6"),
    (["base.training.lr=-1"], "training.lr: must be greater than 0, but got -1"),
    (["scheduler.name=ashas", "at_sparsity=[0.5]"], "Did you mean 'asha'?"),
    (["callbacks={mlfow: {}}"], "Did you mean 'mlflow'?"),
])
def test_check_refuses_what_the_sweep_would(files: Path, overrides: list[str], text: str) -> None:
    words = [word for override in overrides for word in ("--set", override)]
    done = swamp("check", files / "targets.yaml", "--storage", files / "s", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert text in done.stderr


def test_a_sweep_is_no_run(files: Path) -> None:
    path = files / "targets.yaml"
    done = swamp("run", path, "--storage", files / "s")
    assert done.exit_code == 2
    assert done.stderr == f"swamp: {path}: this is the config of a sweep. Run it with: swamp sweep {path}\n"
    assert not (files / "s").exists()


def test_a_run_is_no_sweep(files: Path) -> None:
    path = files / "run.yaml"
    done = swamp("sweep", path, "--storage", files / "s")
    assert done.exit_code == 2
    assert done.stderr == (f"swamp: {path}: this is not the config of a sweep, because it has neither base nor space. "
                           f"If it is a run's, run it with: swamp run {path}\n")
    assert not (files / "s").exists()


def test_a_sweep_whose_base_is_gone_is_refused(files: Path) -> None:
    (files / "run.yaml").unlink()
    for command in ("check", "sweep"):
        done = swamp(command, files / "targets.yaml", "--storage", files / "s")
        assert done.exit_code == 2
        assert f"targets.yaml: base: {files}/run.yaml: the config does not exist" in done.stderr


def test_a_sweep_has_a_name_that_can_be_a_folder(files: Path) -> None:
    done = swamp("check", files / "targets.yaml", "--name", "a b", "--storage", files / "s")
    assert done.exit_code == 2
    assert "a sweep's name must consist of 1 to 60 letters, digits" in done.stderr
