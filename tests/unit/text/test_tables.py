"""Figures of speech: percent, numbers, durations, sizes, paths, and the table of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swamp_ray.text.metric_names import number, short
from swamp_ray.text.tables import dense_metric, display_path, duration, percent, results_table, size


@pytest.mark.parametrize(("fraction", "text"), [
    (0.0, "0.0 %"), (0.5, "50.0 %"), (0.95, "95.0 %"), (0.99, "99.0 %"), (0.999, "99.9 %"),
    (0.9995, "99.95 %"), (0.99995, "99.995 %"), (1.0, "100.0 %"), (0.8926, "89.3 %"), (0.1, "10.0 %"),
])
def test_percent(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_extreme_sparsities_stay_apart_and_below_one() -> None:
    rounds = [1 - 0.5**r for r in range(14)]
    texts = [percent(fraction) for fraction in rounds]
    assert len(set(texts)) == len(rounds)
    assert not any(text.startswith("100") for text in texts)


@pytest.mark.parametrize(("value", "metric", "text", "bare"), [
    (0.98765, "accuracy", "98.77 %", "98.77"), (1.0, "accuracy", "100.00 %", "100.00"),
    (0.000123456, "loss", "0.0001235", "0.0001235"), (12345.678, "loss", "1.235e+04", "1.235e+04"),
])
def test_metrics(value: float, metric: str, text: str, bare: str) -> None:
    assert number(value, metric) == text
    assert short(value, metric) == bare


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7320, "2 h 02 min"),
])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("num_bytes", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (3_200_000, "3.2 MB"), (5e12, "5.0 TB"),
    (2e16, "20000.0 TB"),
])
def test_sizes(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


def test_paths_are_relative_where_that_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "results" / "x") == "results/x"
    assert display_path("/elsewhere/x") == "/elsewhere/x"


def record(index: int, sparsity: float, particles: int, metric: str = "accuracy") -> dict[str, Any]:
    return {"round": index, "sparsity": sparsity, "survivors": round((1 - sparsity) * 10_000),
            "num_particles": particles, "mean": {"test": {metric: 0.9 - index / 100}},
            "std": {"test": {metric: 0.0123}},
            "average": {"validation": {metric: 0.95}, "test": {metric: 0.9432 - index / 100}}}


def rows(records: list[dict[str, Any]], primary: str = "accuracy", width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(records, primary))
    return console.export_text()


def test_the_table_says_what_the_records_say() -> None:
    text = rows([record(0, 0.0, 3), record(1, 0.5, 3), record(2, 0.95, 1)])
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "0.0", "%", "10,000", "90.00", "90.00", "±", "1.23", "95.00", "94.32"] in lines
    assert ["1", "50.0", "%", "5,000", "90.00", "89.00", "±", "1.23", "95.00", "93.32"] in lines
    assert ["2", "95.0", "%", "500", "90.00", "88.00", "95.00", "92.32"] in lines, "one particle has no spread"
    assert "averaged" in text


def test_a_round_that_went_on_without_particles_says_so() -> None:
    dropped = [{"particle": 1, "what": "drop", "reason": "nan", "attempt": 0}]
    smaller = {"dropped": dropped}
    text = rows([record(0, 0.0, 3), record(1, 0.5, 3) | smaller, record(2, 0.95, 2) | smaller])
    assert [line.strip() for line in text.splitlines() if " of " in line] == [
        "round 1: 2 of 3 particles", "round 2: 1 of 2 particles"]
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "95.0", "%", "500", "90.00", "88.00", "95.00", "92.32"] in lines, "what is left has no spread"


def test_a_single_particle_is_not_called_an_average() -> None:
    text = rows([record(0, 0.0, 1), record(1, 0.5, 1)])
    assert "averaged" not in text
    assert "network" in text
    assert "±" not in text


def test_a_run_that_starts_sparse_has_no_dense_metric() -> None:
    records = [record(0, 0.5, 2)]
    assert dense_metric(records, "accuracy") is None
    assert rows(records).splitlines()[4].split()[:5] == ["0", "50.0", "%", "5,000", "-"]


def test_other_metrics_are_not_called_accuracies() -> None:
    text = rows([record(0, 0.0, 2, "loss")], "loss")
    assert "0.9432" in text
    assert "accurac" not in text


def test_the_table_fits_eighty_columns() -> None:
    text = rows([record(index, 1 - 0.5**index, 8) for index in range(12)])
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
