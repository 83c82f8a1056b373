"""What commands print: no encoding, pipe, narrow window or name in the data ends or takes over anything."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.lines import Line2D
from rich.markup import escape
from rich.table import Table

from swamp_ray.cli import main
from swamp_ray.commands.evaluate import SparsityLevel, evaluation_table
from swamp_ray.report.charts.style import LONGEST_LABEL, add_legend, new_figure
from swamp_ray.text.csv_text import csv_bytes
from swamp_ray.text.output import Output, is_live, visible
from swamp_ray.text.tables import bounded, results_table, short_names, told_apart

CODES = ["\x1b]0;title\x07", "\x1b[31m", "\x9b2J", "a\u202eb", "\u2066x\u2069", "\x08\x08", "\x00",
         "\r\x1b[1A", "\u200f"]


class Stream(io.TextIOWrapper):
    """A text stream over bytes, in an encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def written(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # pyright: ignore[reportAttributeAccessIssue]


class Gone(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "gone")


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
    def test_every_character_is_written_somehow(self, encoding: str) -> None:
        stream = Stream(encoding)
        Output(file=stream, highlight=False).print("a ± b … \u00fc \u4e2d \U0001f600 \udcff", soft_wrap=True)
        assert stream.written().startswith("a ")

    def test_ascii_is_plain(self) -> None:
        stream = Stream("ascii")
        Output(file=stream, highlight=False).print("88.2 ± 0.3 … \u00e9")
        assert stream.written() == "88.2 +- 0.3 ... \\xe9\n"

    @pytest.mark.parametrize("cell", ["1.25 ± 0.50", "a … b", "\u4e2d\u00fc"])
    def test_the_columns_of_a_table_stay_in_line(self, cell: str) -> None:
        stream = Stream("ascii")
        table = Table("a", "b")
        table.add_row(cell, "1")
        Output(file=stream, highlight=False).print(table)
        lines = stream.written().rstrip("\n").split("\n")
        assert len({len(line) for line in lines}) == 1, lines

    @pytest.mark.parametrize("environment", [
        {"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "1"}, {"COLUMNS": "10", "TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "unknown"},
    ])
    def test_a_command_in_a_poor_surrounding(self, environment: dict[str, str], tmp_path: Path) -> None:
        script = ("from swamp_ray.text.output import *; from rich.table import Table\nmake_streams_safe()\n"
                  "t = Table('\\u00fc x'); t.add_row('1.25 \\u00b1 0.50'); Output(highlight=False).print(t)\n"
                  "print('\\u4e2d')")
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | environment, capture_output=True,
                              check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert b"0.50" in done.stdout


class TestReaders:
    @pytest.mark.parametrize("number", [32, 5, 9])
    def test_one_who_is_gone_ends_nothing(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        console = Output(file=Gone(number), highlight=False)
        console.print("a")
        console.print(Table("b"))

    def test_a_full_disk_is_said(self) -> None:
        with pytest.raises(OSError, match="gone"):
            Output(file=Gone(28), highlight=False).print("a")

    def test_a_closed_stream(self) -> None:
        stream = io.StringIO()
        stream.close()
        Output(file=stream, highlight=False).print("a")

    def test_a_dumb_terminal_is_not_live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert not is_live(Output(force_terminal=True))
        monkeypatch.setenv("TERM", "xterm")
        assert is_live(Output(force_terminal=True))


class TestWidths:
    @pytest.mark.parametrize("columns", [1, 10, 80])
    def test_a_table_is_never_cut(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        metrics = {"test": {"weighted_f1": 6.76812e-05}, "validation": {"weighted_f1": 0.123456}}
        record = {"round": 0, "sparsity": 0.5, "survivors": 1_234_567, "num_particles": 4, "mean": metrics,
                  "std": metrics, "average": metrics}
        stream = io.StringIO()
        Output(file=stream, highlight=False).print(results_table([record], "weighted_f1"))
        assert "6.768e-05 ± 6.768e-05" in stream.getvalue()
        assert "…" not in stream.getvalue()

    @pytest.mark.parametrize("name", ["m" * 5000, "a.b." * 2000, "[bold]" * 900])
    def test_names_are_bounded(self, name: str) -> None:
        metrics = {"test": {name: 0.5}, "validation": {name: 0.5}}
        record = {"round": 0, "sparsity": 0.5, "survivors": 1, "num_particles": 1, "mean": metrics, "std": metrics,
                  "average": metrics}
        stream = io.StringIO()
        Output(file=stream, highlight=False).print(results_table([record], name))
        assert max(map(len, stream.getvalue().splitlines())) < 200
        assert len(bounded(name)) == 60


class TestCodes:
    @pytest.mark.parametrize("code", CODES)
    def test_do_not_reach_the_terminal(self, code: str) -> None:
        stream = io.StringIO()
        console = Output(file=stream, highlight=False)
        console.print(escape(f"name {code} end"), soft_wrap=True)
        table = Table(escape(f"heading {code}"))
        table.add_row(escape(code))
        console.print(table)
        assert visible(stream.getvalue()) == stream.getvalue()
        assert "end" in stream.getvalue()

    @pytest.mark.parametrize("code", CODES)
    def test_nor_do_those_in_errors(self, code: str, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("{}")
        done = CliRunner().invoke(main, ["status", f"x{code}".replace("\x00", "\x01"), "--storage", str(tmp_path)])
        assert done.exit_code == 2
        assert visible(done.output) == done.output


class TestTablesAsFiles:
    @pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "=HYPERLINK(\"x\")"])
    def test_formulas_are_texts(self, text: str) -> None:
        [heading, cell, *_] = csv_bytes(pd.DataFrame({text: [text]})).decode().splitlines()
        assert heading.strip('"').startswith("'")
        assert cell.strip('"').startswith("'")

    @pytest.mark.parametrize("text", ["-1.5", "+3", "-2e-5", "1e3", "-.5", "plain", "a=b", ""])
    def test_numbers_and_plain_texts_stay(self, text: str) -> None:
        assert pd.read_csv(io.BytesIO(csv_bytes(pd.DataFrame({"a": ["x", text]}))), dtype=str, keep_default_na=False)[
            "a"].tolist() == ["x", text]

    def test_numbers_are_in_full(self) -> None:
        frame = pd.DataFrame({"a": [-0.1, 1 / 3], "b": [1, -2], "c": [True, None], "d": ["x", None]})
        assert csv_bytes(frame) == frame.to_csv(index=False, lineterminator="\n").encode()

    def test_long_names_and_codes(self) -> None:
        found = csv_bytes(pd.DataFrame({"m" * 5000: ["\x1b[31m", "\u202e"]}))
        assert b"\x1b" not in found
        assert len(found) < 1100


class TestNamesThatDiffer:
    def test_are_told_apart(self) -> None:
        names = [f"bert.encoder.layer.{layer}.attention.self.{part}.weight"
                 for layer in (0, 11) for part in ("query", "key", "value")]
        short = told_apart(names, 22)
        assert len(set(short)) == len(names)
        assert max(map(len, short)) <= 22
        assert "query" in short[0]

    @pytest.mark.parametrize(("names", "longest"), [
        ([f"model.decoder.blocks.{block}.mlp.fc{part}.weight" for block in range(24) for part in (1, 2)], 20),
        ([f"features.{number}.conv.{part}.0.weight" for number in range(3) for part in range(2)] + ["head.weight"], 16),
        ([f"encoder_{'x' * 60}_{side}_{'y' * 60}" for side in ("left", "right")], 22),
        ([f"swamp-{'very-' * 20}long-lr{rate}-{'again-' * 20}" for rate in (0.1, 0.2, 0.3)], 27),
    ])
    def test_are_told_apart_whatever_they_are(self, names: list[str], longest: int) -> None:
        short = told_apart(names, longest)
        assert len(set(short)) == len(names)
        assert max(map(len, short)) <= longest
        assert list(short_names(iter([*names, *names]), longest).items()) == list(zip(names, short, strict=True))

    def test_show_what_differs(self) -> None:
        names = [f"{'a method ' * 12}with {number} steps {'and more ' * 12}" for number in (5, 10, 20)]
        short = told_apart(names, 24)
        assert all(f" {number} " in text for number, text in zip((5, 10, 20), short, strict=True))

    def test_in_the_legend_of_a_figure(self) -> None:
        figure, axes = new_figure()
        names = [f"swamp-with-a-long-name-of-{'x' * 30}-{number}-{'y' * 30}" for number in range(4)]
        add_legend(figure, axes, [Line2D([], [], label=name) for name in names])
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(set(labels)) == len(names)
        assert max(map(len, labels)) <= LONGEST_LABEL

    def test_in_a_table_of_evaluations(self) -> None:
        names = [f"run-{'x' * 60}-{number}-{'y' * 60}" for number in range(3)]
        members = [{split: {"iou": 0.5} for split in ("validation", "test")}] * 3
        table = evaluation_table([SparsityLevel(0.5, members, None)], names, "iou")
        headings = [str(column.header) for column in table.columns[1:]]
        assert len(set(headings)) == len(names)

    @pytest.mark.parametrize("names", [
        ["a", "b"], ["x" * 50, "x" * 50], [], ["x" * 50 + "a" * 50 + "y" * 50, "x" * 50 + "b" * 50 + "y" * 50],
    ])
    def test_others_are_as_before(self, names: list[str]) -> None:
        short = told_apart(names, 20)
        assert len(set(short)) == len(set(names))
        assert all(len(one) <= 20 for one in short)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_titles_and_captions_are_broken_between_words_however_narrow_their_table_is(width: int):
    words = "differences of accuracy, calibration and negative log-likelihood between two networks of a kind, in points"
    table = Table("n", title=words, caption=words, caption_justify="left")
    table.add_row("1")
    stream = io.StringIO()
    Output(file=stream, force_terminal=True, color_system=None, width=width).print(table)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    first, last = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert " ".join(first).split()[: len(words.split())] == words.split()
    assert " ".join(last).split()[-len(words.split()) :] == words.split()
    assert (table.title, table.caption) == (words, words)


def test_a_caption_is_one_line_where_there_is_no_terminal():
    words = "a caption of many words " * 8
    table = Table("n", caption=words.strip())
    table.add_row("1")
    stream = io.StringIO()
    Output(file=stream).print(table)
    assert words.strip() in stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("cells", [["97.21 % ± 0.56 %", "0.00012"], ["1,234,567 of 9", "-0.25 to +1.75"],
                                   ["a b c"] * 8])
def test_numbers_are_not_cut_in_a_narrow_terminal(width: int, cells: list[str]):
    table = Table()
    for number, _ in enumerate(cells):
        table.add_column(f"heading of column {number}", no_wrap=True)
    table.add_row(*cells)
    stream = io.StringIO()
    Output(file=stream, force_terminal=True, color_system=None, width=width).print(table)
    assert all(cell in stream.getvalue() for cell in cells)
    assert "…" not in stream.getvalue()
