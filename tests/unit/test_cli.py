"""The command line: help, precedence, quietness, and what must not be imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from swamp_ray.cli import main
from swamp_ray.config.reading import load_config
from tests.helpers import TINY, ticket_digests

COMMANDS = sorted(main.commands)
HEAVY = ("torch", "ray", "numpy", "pandas")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The tiny config as a file that sets neither name nor storage."""
    path = tmp_path / "from-file.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "name"}))
    return path


def swamp(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    text = swamp(command, "--help").stdout
    assert f"\n    swamp {command}" in text, text
    assert max(map(len, text.splitlines())) <= 100


def test_help_imports_nothing_heavy() -> None:
    """All helps in one fresh process: an import by any of them would show."""
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom swamp_ray.cli import main\n"
        f"for words in [['--help'], ['--version'], *([name, '--help'] for name in {COMMANDS})]:\n"
        "    assert CliRunner().invoke(main, words).exit_code == 0, words\n"
        f"print([name for name in {HEAVY} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_defaults_then_file_then_set_then_flags(config: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**tree, "name": "in-file", "storage": str(tmp_path / "in-file"), "seed": 3}))
    done = swamp("run", config, "--quiet", "--set", "name=set", "--set", "training.lr=0.5", "--set", "training.lr=0.04",
                 "--set", "execution.executor=ray", "--set", "pruning.target=0.0", "--name", "flag",
                 "--storage", tmp_path / "flag", "--executor", "inline")
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "in-file").exists()
    saved = load_config(tmp_path / "flag/runs/flag/config.yaml")
    assert (saved.name, saved.storage, saved.execution.executor) == ("flag", str(tmp_path / "flag"), "inline")
    assert saved.training.lr == 0.04, "of two --set of one key the last one counts"
    assert saved.seed == 3, "the file replaces the default"
    assert saved.training.momentum == 0.9, "the default stays"


def test_the_name_defaults_to_the_files(config: Path, tmp_path: Path) -> None:
    assert swamp("run", config, "--quiet", "--storage", tmp_path / "s", "--set", "pruning.target=0").exit_code == 0
    assert (tmp_path / "s/runs/from-file/run.json").is_file()


def test_quiet_prints_nothing_but_errors(config: Path, tmp_path: Path) -> None:
    done = swamp("run", config, "--quiet", "--storage", tmp_path / "s", "--set", "pruning.target=0.5")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    refused = swamp("run", config, "--quiet", "--storage", tmp_path / "s", "--set", "training.lr=0.3",
                    "--set", "pruning.target=0.5")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "training.lr: 0.05 -> 0.3" in refused.stderr


def test_a_second_run_says_that_it_is_complete_by_showing_its_table(config: Path, tmp_path: Path) -> None:
    first = swamp("run", config, "--storage", tmp_path / "s", "--set", "pruning.target=0.5")
    before = ticket_digests(tmp_path / "s", "from-file")
    second = swamp("run", config, "--storage", tmp_path / "s", "--set", "pruning.target=0.5")
    assert second.exit_code == 0
    tables = [done.stdout[done.stdout.index("weights   dense"):] for done in (first, second)]
    assert tables[0] == tables[1]
    assert "training on" not in second.stdout
    assert ticket_digests(tmp_path / "s", "from-file") == before


def test_a_traceback_is_shown_to_those_who_ask_for_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAMP_TRACEBACK", "1")
    done = swamp("run", config, "--set", "trainig.lr=1")
    assert done.exc_info is not None
    assert "there is no such option" in str(done.exception)


def test_wrong_use_of_the_command_itself_is_exit_code_2() -> None:
    assert swamp("run").exit_code == 2
    unknown = swamp("evaluat")
    assert unknown.exit_code == 2
    assert "evaluate" in unknown.stderr
