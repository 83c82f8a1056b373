"""Config files are read once, in any encoding that names itself; paths mean the same in every option."""

from __future__ import annotations

import codecs
import errno
import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swamp_ray import SwampTrainer, load_config
from swamp_ray.cli import main
from swamp_ray.config.files import read_config_file
from swamp_ray.config.paths import absolute, expanded
from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.sweep_reading import build_sweep, is_sweep, load_sweep
from swamp_ray.errors import UserError
from swamp_ray.submit.submission import read_submission
from tests.helpers import TINY

SWEEP = "base: {training: {lr: 0.5}}\nspace: {pruning.target: {grid: [0.5, 0.75]}}\n"


@contextmanager
def piped(text: str) -> Iterator[str]:
    """The path of a pipe that gives a text once."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "w") as file:
            file.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    yield f"/dev/fd/{out}"
    writer.join()
    os.close(out)


class TestPipes:
    def test_a_run_is_read_once(self) -> None:
        with piped("training: {lr: 0.25}") as path:
            config = load_config(path)
        assert (config.training.lr, config.name) == (0.25, "swamp")

    def test_a_sweep_is_told_from_a_run_and_then_read(self) -> None:
        with piped(SWEEP) as path:
            file = read_config_file(path)
            assert is_sweep(file)
            assert load_sweep(file).name == "sweep"

    def test_a_base_of_a_sweep_too(self) -> None:
        with piped("training: {lr: 0.25}") as path:
            sweep = build_sweep({"base": path, "space": {"pruning.rate": {"grid": [0.5]}}})
        assert sweep.base.training.lr == 0.25

    def test_submit_reads_once(self, tmp_path: Path) -> None:
        with piped(f"storage: {tmp_path}\ntraining: {{lr: 0.25}}") as path:
            assert read_submission(Path(path)).run.training.lr == 0.25

    @pytest.mark.parametrize("text", ["", "\n \n"])
    def test_an_empty_one_is_refused(self, text: str) -> None:
        with piped(text) as path, pytest.raises(UserError, match="the config is empty"):
            load_config(path)

    def test_a_dash_is_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"seed: 5")))
        assert load_config("-").seed == 5

    @pytest.mark.parametrize("command", ["run", "check"])
    def test_commands_read_standard_input(self, command: str) -> None:
        done = CliRunner().invoke(main, [command, "-"], input="training: {lr: -1}")
        assert done.exit_code == 2
        assert "standard input: training.lr: must be greater than 0" in done.output

    def test_a_sweep_on_standard_input(self) -> None:
        done = CliRunner().invoke(main, ["run", "-"], input=SWEEP)
        assert "this is the config of a sweep" in done.output


class TestFiles:
    @pytest.mark.parametrize(("data", "seed"), [
        (codecs.BOM_UTF8 + b"seed: 1", 1), ("seed: 2".encode("utf-16"), 2), ("seed: 3".encode("utf-32"), 3),
        (codecs.BOM_UTF16_BE + "seed: 4".encode("utf-16-be"), 4), (b"seed: 5\r\nname: x\r\n", 5),
        (b"seed: 6\rname: x", 6),
    ])
    def test_in_the_encodings_of_editors(self, tmp_path: Path, data: bytes, seed: int) -> None:
        (tmp_path / "a.yaml").write_bytes(data)
        assert load_config(tmp_path / "a.yaml").seed == seed

    @pytest.mark.parametrize("data", ["seed: 2".encode("utf-16-le"), b"name: \xe4", b"a:\n\tb: 1", b"a: \x1b[31m"])
    def test_other_bytes_are_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.yaml").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.yaml"):
            load_config(tmp_path / "a.yaml")

    def test_an_endless_one_is_refused(self) -> None:
        with pytest.raises(UserError, match="more than 10 MB"):
            load_config("/dev/zero")

    def test_the_null_device_is_all_defaults(self) -> None:
        assert load_config("/dev/null") == with_values(load_config("/dev/null"), {})


class TestPaths:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WORK", "w")
        monkeypatch.delenv("UNSET", raising=False)
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(("text", "tail"), [
        ("~/a", "a"), ("$WORK/a", "w/a"), ("${WORK}x", "wx"), ("~/${WORK}/$WORK", "w/w"), ("a", "a"), ("./a", "a"),
        ("us$/5", "us$/5"),
    ])
    def test_are_expanded_and_made_absolute(self, tmp_path: Path, text: str, tail: str) -> None:
        assert Path(absolute(text, "storage")) == tmp_path / tail

    @pytest.mark.parametrize("text", ["s3://$WORK/x", "gs://${WORK}/x", "az://w/x"])
    def test_urls_have_variables_alone(self, text: str) -> None:
        assert absolute(text, "storage") == f"{text[:5]}w/x"

    @pytest.mark.parametrize("text", ["$UNSET/a", "${UNSET}", "s3://${UNSET}/x", "${}"])
    def test_a_variable_that_is_not_set_is_named(self, text: str) -> None:
        with pytest.raises(UserError, match=r"data\.root: the environment variable '(UNSET)?' is not set"):
            expanded(text, "data.root")

    def test_a_user_that_is_not_there(self) -> None:
        with pytest.raises(UserError, match="home folder is not known"):
            expanded("~nobody-of-this-name/a", "storage")

    def test_a_folder_that_is_really_called_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "$WORK").mkdir()
        monkeypatch.chdir(tmp_path / "$WORK")
        once = SwampTrainer({"storage": "r"}).config
        assert SwampTrainer(once).config.storage == once.storage == str(tmp_path / "$WORK/r")

    @pytest.mark.parametrize("make", [
        lambda values: SwampTrainer(values).config,
        lambda values: SwampTrainer(build_config(values)).config,
        lambda values: build_sweep({"base": values, "space": {"pruning.rate": {"grid": [0.5]}}}).member(
            {"pruning.rate": 0.5}, 0),
    ])
    def test_mean_the_same_in_every_option(self, tmp_path: Path, make: Any) -> None:
        config = make({**TINY, "storage": "$WORK/r", "data": {"root": "~/d"}, "start_from": {"path": "t.pt"}})
        assert config.storage == str(tmp_path / "w/r")
        assert config.data.root == str(tmp_path / "d")
        assert config.start_from.path == str(tmp_path / "t.pt")

    def test_in_a_space_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sweep = build_sweep({"base": TINY, "space": {
            "start_from.path": {"grid": ["a.pt", "~/b.pt"]}, "arm": {"grid": {"one": {"data.root": "$WORK"}}}}})
        monkeypatch.chdir("/")
        members = [sweep.member(setting, 0) for setting in sweep.settings()]
        starts = [one.start_from.path for one in members if one.start_from]
        assert starts == [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
        assert members[0].data.root == str(tmp_path / "w")
        assert sweep.settings()[0]["start_from.path"] == "a.pt", "settings are named as they are written"

    def test_a_submitted_run_keeps_what_is_relative_to_its_own_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("storage: ~/r\nstart_from: {path: t.pt}\n")
        run = read_submission(tmp_path / "a.yaml").run
        assert run.start_from is not None
        assert (run.storage, run.start_from.path) == (str(tmp_path / "r"), "t.pt")

    @pytest.mark.parametrize("arguments", [
        ["status", "x"], ["prune-storage"], ["report", "x"], ["check", "/dev/null"], ["evaluate", "x"]])
    def test_commands_refuse_an_unset_variable(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(main, [*arguments, "--storage", "$UNSET/a"])
        assert done.exit_code == 2
        assert "--storage: the environment variable 'UNSET' is not set" in done.output


UNREADABLE = {
    "missing.yaml": "the config does not exist. ", "no/where/a.yaml": "and neither does the folder ",
    "folder": "the config must be a file, but this is a folder", "": "the path of the config is empty",
    "file.yaml/a.yaml": "a part of its path is a file, not a folder", "circle.yaml": "its links lead round in a circle",
    "dangling.yaml": "it is a link to gone.yaml, which does not exist", "a" * 300: "its name is too long",
    "nul\0.yaml": "its path holds a character that no path may hold",
    "quickstrat.yaml": "Did you mean 'quickstart.yaml'?", "socket": "it is a socket, not a file",
}


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of paths that hold no config, as the current one."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("quickstart.yaml").touch()
    Path("file.yaml").touch()
    Path("circle.yaml").symlink_to("circle.yaml")
    Path("dangling.yaml").symlink_to("gone.yaml")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    return tmp_path


@pytest.mark.usefixtures("odd")
class TestUnreadable:
    @pytest.mark.parametrize("command", ["run", "check", "sweep", "submit"])
    @pytest.mark.parametrize("path", UNREADABLE)
    def test_it_is_said_in_a_plain_sentence(self, command: str, path: str) -> None:
        done = CliRunner().invoke(main, [command, path])
        assert done.exit_code == 2, done.output
        said = " ".join(done.stderr.split())
        assert UNREADABLE[path] in said
        assert "Errno" not in said
        assert said.endswith((".", "?"))

    @pytest.mark.parametrize("path", UNREADABLE)
    def test_a_base_of_a_sweep_too(self, path: str) -> None:
        with pytest.raises(UserError) as error:
            build_sweep({"base": path, "space": {"pruning.rate": {"grid": [0.5]}}})
        assert str(error.value).startswith("sweep: base: ")
        assert "Errno" not in str(error.value)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EDQUOT])
    def test_what_a_disk_refuses(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code), "quickstart.yaml")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(UserError, match=r"^quickstart\.yaml: the config cannot be read: [a-z]") as error:
            read_config_file("quickstart.yaml")
        assert "Errno" not in str(error.value)
