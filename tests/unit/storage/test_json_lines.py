from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.storage.json_lines import Lines, dump_json, load_json, read_lines

RECORDS = [{"round": 0, "text": "ä\n"}, {"round": 1, "nested": {"a": [1, None]}}, {"round": 2, "loss": 0.1}]


def write_all(path: Path, records: list[dict[str, object]]) -> None:
    with Lines(path) as lines:
        for record in records:
            lines.append(record)


def test_lines_are_read_as_written_over_several_writers(tmp_path: Path) -> None:
    for record in RECORDS:
        write_all(tmp_path / "new" / "lines.jsonl", [record])
    assert read_lines(tmp_path / "new" / "lines.jsonl") == RECORDS


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


def test_every_cut_of_the_last_line_is_ignored_and_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    write_all(path, RECORDS)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_lines(path) == RECORDS[:2]
        write_all(path, [{"round": 9}])
        assert read_lines(path) == [*RECORDS[:2], {"round": 9}]


@pytest.mark.parametrize("end", [b"\0" * 70_000, b"\0\0\n", b'{"a": 1\n', b"x" * 200_000])
def test_garbage_that_a_power_cut_left_at_the_end_is_ignored_and_removed(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    write_all(path, RECORDS)
    path.write_bytes(path.read_bytes() + end)
    assert read_lines(path) == RECORDS
    write_all(path, [{"round": 9}])
    assert read_lines(path) == [*RECORDS, {"round": 9}]


def test_a_first_line_that_was_torn_leaves_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'{"rou')
    write_all(tmp_path / "lines.jsonl", [])
    assert (tmp_path / "lines.jsonl").read_bytes() == b""


def test_damage_before_the_last_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a" 1}\n{"a": 1}\n')
    with pytest.raises(CorruptArtifactError, match="line 2"):
        read_lines(path)


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be written"):
        Lines(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")).filter(lambda text: text not in ("NaN", "Infinity", "-Infinity")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner), max_leaves=10)


@given(json_values)
def test_json_round_trips_and_is_one_line(value: object) -> None:
    data = dump_json(value)
    assert load_json(data) == value
    assert b"\n" not in data


def test_numbers_json_cannot_spell_survive_and_other_readers_accept_the_text() -> None:
    data = dump_json({"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.int64(3), "e": np.array(math.inf)})
    assert data == b'{"a": "NaN", "b": "-Infinity", "c": 0.5, "d": 3, "e": "Infinity"}'
    back = load_json(data)
    assert math.isnan(back["a"])
    assert back["b"] == -math.inf
