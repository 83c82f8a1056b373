"""The page: its numbers are those of metrics.parquet, its bytes repeat, and what it shows it escapes."""

from __future__ import annotations

import base64
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from swamp_ray.config.reading import with_values
from swamp_ray.report.charts.layers import layer_densities
from swamp_ray.report.charts.series import PARTICLES
from swamp_ray.report.load.runs import ReportRun, read_runs
from swamp_ray.report.page import building
from swamp_ray.report.page.building import build
from swamp_ray.report.page.contents import Section
from swamp_ray.report.page.html import csv_of, render

HOSTILE = '"><script>alert(1)</script>&lt;<img src=x onerror=alert(1)>'

pytestmark = pytest.mark.usefixtures("own_figures")


class Tables(HTMLParser):
    """Headings and rows of every table; a cell is its text and, where it has one, the number behind it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, float | None]]]] = []
        self._cell: list[str] | None = None
        self._value: float | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell, self._value = [], None
        elif tag == "data":
            self._value = float(dict(attrs)["value"] or "nan")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(("".join(self._cell).strip(), self._value))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def html(runs: list[ReportRun]) -> str:
    return render(build(runs, "swamp report", "report")).decode()


def parquet_of(run: ReportRun) -> Any:
    """Its metrics.parquet; pandas' types of what is taken out of it are too many."""
    return pd.read_parquet(Path(run.rundir.metrics_parquet.location))


def test_the_table_of_rounds_is_what_the_parquet_file_holds(swamp: ReportRun) -> None:
    table = next(table for table in Tables(html([swamp])).tables if table[0][0][0] == "round")
    parquet = parquet_of(swamp)
    rounds = parquet[parquet["kind"] == "round"].sort_values("round")
    columns = {"average, test": ("test/accuracy", 100), "average, validation": ("validation/accuracy", 100),
               "average, test loss": ("test/loss", 1), "particles, test": ("particles_mean/test/accuracy", 100),
               "spread": ("spread", 1), "sparsity": ("sparsity", 100)}
    headings = [text for text, _ in table[0]]
    assert len(table) == 1 + len(rounds) == 4
    for heading, (column, scale) in columns.items():
        cells = [row[headings.index(heading)] for row in table[1:]]
        assert [value for _, value in cells] == rounds[column].tolist()
        shown = [float(re.match(r"[\d.]+", text)[0]) for text, _ in cells]  # type: ignore[index]
        assert shown == pytest.approx((scale * rounds[column]).tolist(), rel=2e-3, abs=0.06)
    ends = parquet[parquet["kind"] == "particle_end"].groupby("round")["test/accuracy"]
    for heading, expected in (("best particle, test", ends.max()), ("worst particle, test", ends.min())):
        assert [row[headings.index(heading)][1] for row in table[1:]] == expected.tolist()
    stds = [text.rpartition("± ")[2] for text, _ in [row[headings.index("particles, test")] for row in table[1:]]]
    assert stds == [f"{100 * value:.2f}" for value in rounds["particles_std/test/accuracy"]]


def test_the_figures_data_are_what_the_parquet_file_holds(swamp: ReportRun) -> None:
    page = build([swamp], "", "report")
    drawn = next(drawn for part in page.parts for drawn in part.charts
                 if drawn.chart.name == "accuracy_against_sparsity")
    data = drawn.chart.data
    mean = data[(data["what"] == "seed") & (data["network"] == PARTICLES)]["accuracy"].tolist()
    parquet = parquet_of(swamp)
    assert mean == parquet[parquet["kind"] == "round"].sort_values("round")["particles_mean/test/accuracy"].tolist()


def test_equal_runs_give_equal_bytes(study: Path) -> None:
    first, second = (html(read_runs(["imp-seed0", "swamp-seed0"], str(study))) for _ in range(2))
    assert first == second


def test_the_page_carries_its_data(both: list[ReportRun]) -> None:
    page = build(both, "", "report")
    charts = [drawn.chart for part in page.parts for drawn in part.charts]
    carried = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)\.csv"',
                         render(page).decode())
    assert {name: base64.b64decode(data) for data, name in carried} == {
        chart.name: csv_of(chart) for chart in charts}
    assert len(charts) == 3


def test_nothing_is_fetched_and_no_two_things_have_one_name(both: list[ReportRun]) -> None:
    text = html(both)
    assert not re.search(r"""(src|href|action|poster|data)\s*=\s*["']\s*(https?:)?//""", text, re.I)
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import|<script|<link|<iframe", text, re.I)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert len(re.findall("<figure ", text)) == len(set(re.findall('<figure id="([^"]+)"', text)))
    used = {name for pair in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text) for name in pair if name}
    assert used <= set(ids)


def test_what_runs_say_is_escaped(swamp: ReportRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SECTIONS", (Section("layers", "Layers", (layer_densities,)),))
    incident = {"time": HOSTILE, "who": HOSTILE, "kind": HOSTILE, "reason": HOSTILE}
    attempts = [{**swamp.about["attempts"][0], "argv": [HOSTILE], "host": HOSTILE, "commit": HOSTILE,
                 "facts": {"gpu": HOSTILE}, "versions": {HOSTILE: HOSTILE}, "incidents": [incident],
                 "reason": HOSTILE, "started": HOSTILE}]
    config = with_values(swamp.config, {"model.name": "a.b:c", "model.options": {HOSTILE: HOSTILE}})
    about = {**swamp.about, "attempts": attempts, "status": HOSTILE, "data": {"sample": HOSTILE}}
    runs = [replace(swamp, arm=HOSTILE, config=config, about=about), swamp]
    text = render(build(runs, HOSTILE, "report", notes=[HOSTILE, "a\x1b]0;b\u202ec\x07"])).decode()
    assert "a\ufffd]0;b\ufffdc\ufffd" in text
    assert not set("\x1b\x07\u202e") & set(text)
    assert not re.search(r"<script|<img", text, re.I)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_section_that_cannot_be_drawn_says_so_and_the_rest_stands(
        swamp: ReportRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[object]:
        raise KeyError("values")

    monkeypatch.setattr(building, "SECTIONS", (Section("broken", "Broken", (broken,)),))  # type: ignore[arg-type]
    page = build([swamp], "", "report")
    part = next(part for part in page.parts if part.anchor == "broken")
    assert "KeyError: 'values'" in part.notes[0]
    assert [drawn.chart.name for part in page.parts for drawn in part.charts] == [
        "accuracy_against_sparsity", "accuracy_against_epochs"]


def test_a_run_without_accuracy_is_shown_by_what_decides(swamp: ReportRun) -> None:
    def only_loss(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        return {split: {"loss": values["loss"]} for split, values in metrics.items()}

    records = [{**record, "average": only_loss(record["average"]), "mean": only_loss(record["mean"]),
                "std": only_loss(record["std"]), "particles": [only_loss(one) for one in record["particles"]]}
               for record in swamp.records]
    run = replace(swamp, records=records, about={**swamp.about, "primary": "loss", "higher_is_better": False})
    page = build([run], "", "report")
    assert page.findings[0].startswith("swamp-seed0: test loss ")
    table = next(part for part in page.parts if part.anchor == "rounds").tables[0]
    best, worst = (table.headings.index(f"{which} particle, test") for which in ("best", "worst"))
    assert all((row[best].value or 0) <= (row[worst].value or 0) for row in table.rows)
    assert "%" not in page.parts[0].charts[0].chart.caption


def test_a_wheel_brings_the_templates_along() -> None:
    package = Path(__file__).resolve().parents[4] / "swamp_ray"
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {path for pattern in settings["package-data"]["swamp_ray"] for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {package / "report" / "templates" / name for name in ("report.html", "report.css")} <= others <= packed
