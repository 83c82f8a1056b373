"""What a run prints: the whole text off a terminal, and frames of the live display on one."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from swamp_ray.commands.run_progress import LiveReporter, PlainReporter, make_reporter, print_results
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.training.results import Progress
from tests.faults import epoch_seed
from tests.helpers import tiny

PROGRESS = Progress(epoch=37, num_epochs=160, step=740, loss=0.1234, metrics={"accuracy": 0.98765}, lr=0.05,
                    samples_per_s=12_345.6)


def plain(width: int = 80) -> tuple[PlainReporter, io.StringIO, Console]:
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False)
    return PlainReporter(console), text, console


def test_off_a_terminal_a_round_is_a_line(tmp_path: Path) -> None:
    reporter, text, console = plain()
    done = run(tiny(tmp_path), reporter)
    rounds = text.getvalue().splitlines()
    print_results(console, done.rundir, done.records, "accuracy")
    assert rounds[:3] == [
        "tiny: digits_cnn on synthetic, 3 rounds of 3 particles to 75.0 % sparsity, seed 0",
        "27,472 prunable weights of 27,763 parameters (74.2 % of all pruned at the end); cpu, fp32; "
        f"results in {tmp_path}/runs/tiny",
        "training on 1 worker"]
    line = (r"round  (\d)  sparsity +([\d.]+ %)  test accuracy: particles [\d.]+ % ± [\d.]+ %, averaged [\d.]+ %"
            r"(  \(.+ left\))?")
    assert [found.groups()[:2] for one in rounds[3:] if (found := re.fullmatch(line, one))] == [
        ("0", "0.0 %"), ("1", "50.0 %"), ("2", "75.0 %")]
    assert len(rounds) == 6
    end = text.getvalue().splitlines()[6:]
    for record in done.records:
        assert any(one.endswith(str(tmp_path / record.ticket)) for one in end)
    assert end[-1] == f"Metrics: {tmp_path}/runs/tiny/metrics.parquet"
    assert "\x1b" not in text.getvalue()


def test_a_complete_run_starts_no_workers_and_shows_its_rounds(tmp_path: Path) -> None:
    run(tiny(tmp_path))
    reporter, text, _ = plain()
    run(tiny(tmp_path), reporter)
    assert "training on" not in text.getvalue()
    assert text.getvalue().count("\nround ") == 3


def test_a_long_round_shows_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, text, _ = plain()
    done = run(tiny(tmp_path), Reporter())
    reporter.run_started(done.prepared, str(tmp_path))
    job = Job("particle", 0, 1)
    reporter.job_advanced(job, PROGRESS)
    assert "epoch" not in text.getvalue()
    reporter._heartbeat -= 61
    reporter.job_advanced(job, PROGRESS)
    reporter.job_advanced(job, PROGRESS)
    assert text.getvalue().count("round 0, particle 1: epoch 37/160, loss 0.1234") == 1


@pytest.mark.parametrize("kind", [PlainReporter, LiveReporter])
def test_failures_and_warnings_are_shown_as_they_are(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    text = io.StringIO()
    reporter = kind(Console(file=text, width=60))
    reporter.job_failed(Job("particle", 2, 1), "the worker [died] unexpectedly", retry=True)
    reporter.job_failed(Job("dense"), "gone", retry=False)
    reporter.warning("round 3 leaves no weight in [bold]")
    assert text.getvalue().splitlines() == [
        "round 2, particle 1 failed: the worker [died] unexpectedly - trying again", "dense phase failed: gone",
        "warning: round 3 leaves no weight in [bold]"]


def test_a_dropped_particle_is_shown_and_not_waited_for(tmp_path: Path) -> None:
    options = {"nan": [epoch_seed(0, 1)]}
    changed = {"task__name": "tests.faults:Faulty", "task__options": options, "pruning__target": 0.5}
    reporter, text, _ = plain()
    run(tiny(tmp_path, particles__on_failure="drop", **changed), reporter)
    assert "\nround 0 goes on without particle 1: the loss was nan at step 0 (epoch 0, learning rate" in text.getvalue()
    assert re.search(r"\nround  0  sparsity   0\.0 %  test accuracy: 2 of 3 particles \d", text.getvalue())
    assert re.search(r"\nround  1  sparsity  50\.0 %  test accuracy: particles \d", text.getvalue())
    assert reporter._budget.share == 1
    assert reporter._budget.rounds_text() == "rounds 2/2  particles 5/5"


@pytest.mark.parametrize("width", [80, 120])
def test_a_particle_has_one_line_at_every_width(tmp_path: Path, width: int) -> None:
    done = run(tiny(tmp_path), Reporter())
    reporter = LiveReporter(Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False))
    reporter.run_started(done.prepared, str(tmp_path))
    try:
        for particle in (11, 2):
            reporter.job_advanced(Job("particle", 1, particle), PROGRESS)
        frame = Console(file=io.StringIO(), width=width, record=True, highlight=False)
        frame.print(reporter._render())
        lines = [line.rstrip() for line in frame.export_text().splitlines()]
    finally:
        reporter.run_finished(complete=False)
    assert len(lines) == 3, lines
    assert lines[0].startswith("rounds 0/3  particles 0/9")
    assert [line.split()[3] for line in lines[1:]] == ["2", "11"], "the order of lines must not jump"
    for line in lines[1:]:
        for words in ("epoch 37/160", "loss 0.123", "accuracy 0.988", "12,346"):
            assert words in line
    assert max(map(len, lines)) <= width


def test_the_live_display_is_gone_when_the_run_is_over(tmp_path: Path) -> None:
    text = io.StringIO()
    reporter = LiveReporter(Console(file=text, force_terminal=True, width=100, highlight=False))
    run(tiny(tmp_path), reporter)
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1, "the cursor must come back"
    assert len(re.findall(r"round +\d  sparsity", text.getvalue())) == 3
    reporter.run_finished(complete=True)


def test_the_live_display_ends_with_a_run_that_fails(tmp_path: Path) -> None:
    text = io.StringIO()

    class Stopping(LiveReporter):
        def job_advanced(self, job: Job, progress: Progress) -> None:
            raise KeyboardInterrupt

    from swamp_ray.errors import Interrupted

    with pytest.raises(Interrupted):
        run(tiny(tmp_path), Stopping(Console(file=text, force_terminal=True, width=100)))
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1


def test_the_reporter_fits_the_output() -> None:
    assert isinstance(make_reporter(quiet=False)[0], PlainReporter), "the tests' output is no terminal"
    reporter, console = make_reporter(quiet=True)
    assert type(reporter) is Reporter
    assert console.quiet


def test_a_reader_that_goes_away_does_not_disturb_the_work() -> None:
    code = """
from swamp_ray.commands.run_progress import make_reporter
_, console = make_reporter(quiet=False)
for number in range(20000):
    console.print(f"line {number}")
import sys
print("the work went on", file=sys.stderr)
"""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "the work went on\n")
