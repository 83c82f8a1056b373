"""How metrics are written: as their task says, in the terminal, the report and records."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.commands.run_progress import print_results
from swamp_ray.commands.status import describe
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.report.charts.style import axis_label, scale_of
from swamp_ray.report.load.runs import read_runs
from swamp_ray.report.page.tables import rounds_table, signed, summary_table
from swamp_ray.run.prepare import prepare
from swamp_ray.text.metric_names import Metric, is_percent, number, short, unit_words
from swamp_ray.text.output import Output
from swamp_ray.text.tables import results_table
from tests.figures import made_run
from tests.helpers import tiny

OWN_TASK = """
    from swamp_ray.training.tasks import Classification


    class Named(Classification):
        primary = "balanced_iou"

        def __init__(self, shown_as=None):
            super().__init__()
            if shown_as is not None:
                self.shown_as = shown_as

        def metrics(self, prediction, batch):
            found = super().metrics(prediction, batch)
            return {"balanced_iou": found["accuracy"], "loss": found["loss"]}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "named_tasks.py").write_text(textwrap.dedent(OWN_TASK))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "named_tasks:Named"
    sys.modules.pop("named_tasks", None)


@pytest.mark.parametrize(("name", "shown_as", "value", "bare", "full"), [
    ("iou", {"iou": "percent"}, 0.98765, "98.77", "98.77 %"),
    ("rmse", {"rmse": 3}, 12345.67891, "12345.679", "12345.679"),
    ("mae", {"mae": 0}, 41.7, "42", "42"),
    ("tiny", {}, 6.76812e-05, "6.768e-05", "6.768e-05"),
    ("accuracy", None, 0.5, "50.00", "50.00 %"),
    ("accuracy", {"accuracy": 3}, 0.5, "0.500", "0.500"),
    ("accuracy", {"iou": 3}, 0.5, "50.00", "50.00 %"),
])
def test_a_metric_is_written_as_its_task_says(name: str, shown_as: Any, value: float, bare: str, full: str) -> None:
    metric = Metric(name, shown_as)
    assert (short(value, metric), number(value, metric)) == (bare, full)
    assert metric == name
    assert metric in {name}
    assert json.dumps(metric) == f'"{name}"'


@pytest.mark.parametrize("style", ["per cent", True, -1, 13, 2.0, None, [1], {}])
def test_what_a_damaged_record_says_is_passed_over(style: Any) -> None:
    assert short(0.123456, Metric("iou", {"iou": style})) == "0.1235"
    assert short(0.123456, Metric("accuracy", {"accuracy": style})) == "12.35"


@pytest.mark.parametrize(("metric", "difference", "text"), [
    (Metric("iou", {"iou": "percent"}), -0.01234, "−1.23"),  # noqa: RUF001 - a minus sign
    (Metric("rmse", {"rmse": 2}), 1.236, "+1.24"),
    (Metric("rmse", {"rmse": 2}), -0.001, "0.00"),
    (Metric("other"), 0.12345, "+0.123"),
])
def test_differences_have_the_same_unit(metric: Metric, difference: float, text: str) -> None:
    assert signed(difference, metric) == text


def test_shares_are_drawn_in_percent() -> None:
    share, other = Metric("iou", {"iou": "percent"}), Metric("iou", {"iou": 2})
    assert (scale_of(share), axis_label(share, "test"), unit_words(share)) == (100.0, "test iou (%)", "iou in percent")
    assert (scale_of(other), axis_label(other, "test"), unit_words(other)) == (1.0, "test iou", "iou")


@pytest.mark.parametrize(("shown_as", "text"), [
    (["balanced_iou"], "a task's shown_as must be a mapping of metrics to how they are written, but got 'list'"),
    ({"balanced_iuo": "percent"}, "names a metric that the task does not have, but got 'balanced_iuo'. Did you mean "
                                  "'balanced_iou'?"),
    ({"balanced_iou": "%"}, "must say of 'balanced_iou' how it is written"),
    ({"balanced_iou": -1}, 'Give it "percent", or a number of decimals from 0 to 12'),
    ({"loss": True}, "must say of 'loss' how it is written"),
])
def test_what_means_nothing_is_refused_before_work(shown_as: Any, text: str, own: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^task\.name: ") as caught:
        prepare(tiny(tmp_path / "s", task={"name": own, "options": {"shown_as": shown_as}}))
    assert text in str(caught.value)


def test_a_run_is_shown_as_its_task_says_in_the_terminal_and_in_the_report(own: str, tmp_path: Path) -> None:
    task = {"name": own, "options": {"shown_as": {"balanced_iou": "percent", "loss": 1}}}
    done = run(tiny(tmp_path / "s", name="a", pruning__target=0.5, task=task))
    share = done.records[-1].average["test"]["balanced_iou"]
    written = f"{100 * share:.2f}"
    assert (done.rundir.read_run() or {})["shown_as"] == task["options"]["shown_as"]

    console = Output(record=True, width=100, highlight=False, file=io.StringIO())
    print_results(console, done.rundir, done.records, Metric("balanced_iou", task["options"]["shown_as"]))
    console.print(*describe(done.rundir))
    printed = console.export_text()
    assert printed.count("balanced_iou in percent") == 2
    assert printed.count(written) >= 2

    (found,) = read_runs([str(done.rundir.spot())])
    table = rounds_table(found)
    assert written in [cell.text for cell in table.rows[-1]]
    assert table.caption.startswith("balanced_iou in percent.")


def test_a_summary_of_several_arms_names_the_unit(tmp_path: Path) -> None:
    metrics = {"test": {"iou": 0.25}, "validation": {"iou": 0.25}}
    record = {"round": 0, "sparsity": 0.5, "survivors": 8, "num_particles": 1, "spread": 0.0, "particles": [metrics],
              "average": metrics, "mean": metrics, "std": metrics}
    runs = [made_run(tmp_path, name, [record], primary="iou", shown_as={"iou": "percent"}) for name in ("a", "b")]
    table = summary_table(runs)
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["50.0 %", "25.00", "25.00"]
    assert "Test iou in percent" in table.caption


@pytest.mark.parametrize("style", ["percent", 3])
def test_the_table_of_a_run_is_as_wide_as_its_numbers(style: Any) -> None:
    metrics = {"test": {"weighted_f1": 6.76812e-05}, "validation": {"weighted_f1": 0.123456}}
    record = {"round": 0, "sparsity": 0.5, "survivors": 1_234_567, "num_particles": 4, "mean": metrics,
              "std": metrics, "average": metrics}
    console = Output(record=True, width=80, highlight=False)
    console.print(results_table([record], Metric("weighted_f1", {"weighted_f1": style})))
    printed = console.export_text()
    assert ("0.01 ± 0.01" if style == "percent" else "0.000 ± 0.000") in printed
    assert "12.35" in printed if is_percent(Metric("weighted_f1", {"weighted_f1": style})) else "0.123" in printed
    assert max(map(len, printed.splitlines())) <= 80
