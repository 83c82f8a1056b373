from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.storage.json_lines import read_lines
from swamp_ray.storage.metrics import MetricsLog, write_parquet


def log_all(path: Path, records: list[dict[str, Any]], tensorboard: Path | None = None) -> None:
    with MetricsLog(path, tensorboard) as log:
        for record in records:
            log.log(**record)


RECORDS: list[dict[str, Any]] = [
    {"kind": "epoch", "round": 0, "particle": 1, "epoch": 0, "step": 10, "loss": 1.5, "lr": 1},
    {"kind": "epoch", "round": 0, "particle": 1, "epoch": 1, "step": 20, "loss": math.nan, "lr": 0.5, "note": "x"},
    {"kind": "round", "round": 0, "accuracy": np.float32(0.5), "matching": True, "images": 7},
]


def test_lines_are_on_disk_at_once_and_are_what_was_logged(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl", None)
    log.log(kind="epoch", round=0, loss=0.5, accuracy=None)
    (line,) = read_lines(tmp_path / "m.jsonl")
    assert abs(line.pop("time") - (tmp_path / "m.jsonl").stat().st_mtime) < 60
    assert line == {"kind": "epoch", "round": 0, "loss": 0.5}
    log.close()
    log.close()


def test_a_second_attempt_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log_all(path, [{"kind": "epoch", "step": 1}])
    with path.open("ab") as file:
        file.write(b'{"time": 17')
    assert [line["step"] for line in read_lines(path)] == [1]
    log_all(path, [{"kind": "epoch", "step": 2}])
    assert [line["step"] for line in read_lines(path)] == [1, 2]


def test_parquet_agrees_with_the_lines(tmp_path: Path) -> None:
    log_all(tmp_path / "m.jsonl", RECORDS)
    write_parquet(tmp_path / "m.jsonl", tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.column_names == ["time", "kind", "round", "particle", "epoch", "step",
                                  "accuracy", "images", "loss", "lr", "matching", "note"]
    types = {name: table.schema.field(name).type for name in table.column_names}
    assert types["step"] == types["images"] == pa.int64()
    assert types["lr"] == pa.float64()
    assert types["matching"] == pa.bool_()
    for row, line in zip(table.to_pylist(), read_lines(tmp_path / "m.jsonl"), strict=True):
        assert repr({name: value for name, value in row.items() if value is not None}) == repr(
            {name: (float(line[name]) if name == "lr" else line[name]) for name in table.column_names if name in line})


values = (st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(st.characters(codec="utf-8"))
          | st.lists(st.integers()))


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "step", "round"]), values)))
def test_no_mixture_of_values_keeps_the_table_from_being_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    log_all(folder / "m.jsonl", records)
    write_parquet(folder / "m.jsonl", folder / "m.parquet")
    table = pq.read_table(folder / "m.parquet")
    lines = read_lines(folder / "m.jsonl")
    assert table.num_rows == len(records)
    assert sorted([value is None for value in row.values()] for row in table.to_pylist()) == sorted(
        [line.get(name) is None for name in table.column_names] for line in lines)


def test_no_lines_are_an_empty_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "none.jsonl", tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.num_rows == 0
    assert table.schema.field("step").type == pa.int64()


def test_equal_lines_give_equal_bytes(tmp_path: Path) -> None:
    log_all(tmp_path / "m.jsonl", RECORDS)
    for name in ("a", "b"):
        write_parquet(tmp_path / "m.jsonl", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_are_in_the_order_of_rounds_and_their_numbers_whole(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "particle_epoch", "round": 0, "particle": 1, "epoch": 1}, {"kind": "dense_epoch", "epoch": 1},
        {"kind": "particle_epoch", "round": 0, "particle": 0, "epoch": 1}, {"kind": "round", "round": 1, "count": 3},
        {"kind": "particle_epoch", "round": 1, "particle": 0, "epoch": 2, "loss": 0.5}, {"kind": "round", "round": 0},
        {"kind": "particle_epoch", "round": 1, "particle": 0, "epoch": 1},
    ]
    log_all(tmp_path / "m.jsonl", lines)
    write_parquet(tmp_path / "m.jsonl", tmp_path / "m.parquet")
    frame = pd.read_parquet(tmp_path / "m.parquet")
    columns = [frame[name].tolist() for name in ("kind", "round", "particle", "epoch")]
    order = [tuple(-1 if value is pd.NA else value for value in row) for row in zip(*columns, strict=True)]
    assert order == [("dense_epoch", -1, -1, 1), ("particle_epoch", 0, 0, 1), ("particle_epoch", 0, 1, 1),
                     ("round", 0, -1, -1), ("particle_epoch", 1, 0, 2), ("particle_epoch", 1, 0, 1),
                     ("round", 1, -1, -1)]
    assert {str(frame[name].dtype) for name in ("round", "particle", "epoch", "step", "count")} == {"Int64"}
    assert frame["loss"].dtype == float
