"""A ``config.yaml`` that was edited after the run: whoever shows the run says so, and a resume names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from tests.helpers import tiny

SMALL: dict[str, Any] = {"pruning__target": 0.5, "particles__count": 1, "averaging__within": "none"}
CHANGED = "config.yaml of the run tiny was changed after the run (recipe differs)"
SHOWN_BY = [("status",), ("evaluate",), ("report", "--no-measure", "--page-only")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(folder, **SMALL))
    return folder


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "s")
    return tmp_path / "s"


def shown(storage: Path, command: tuple[str, ...]) -> str:
    """What a command prints of the run, with the page that it writes."""
    result = CliRunner().invoke(main, [command[0], "tiny", "--storage", str(storage), *command[1:]])
    assert result.exit_code == 0, result.output
    page = storage / "runs/tiny/report.html"
    text = result.output + (page.read_text() if command[0] == "report" else "")
    return " ".join(text.split())


def edit(storage: Path, old: str, new: str) -> None:
    file = storage / "runs/tiny/config.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("command", SHOWN_BY, ids=lambda command: command[0])
def test_whoever_shows_the_run_says_that_its_recipe_was_edited(storage: Path, command: tuple[str, ...]) -> None:
    assert CHANGED not in shown(storage, command)
    edit(storage, "executor: inline", "executor: inline  # a remark")
    edit(storage, "lease_expiry_s: 30.0", "lease_expiry_s: 61.0")
    assert CHANGED not in shown(storage, command), "neither is part of the recipe"
    edit(storage, "length: 1 epoch", "length: 3 epochs")
    assert CHANGED in shown(storage, command)


def test_status_says_that_a_config_was_edited_beyond_reading(storage: Path) -> None:
    edit(storage, "length: 1 epoch", "length: [")
    assert CHANGED in shown(storage, ("status",))


def test_a_run_of_a_version_that_kept_no_digest_is_shown_without_a_word(storage: Path) -> None:
    file = storage / "runs/tiny/run.json"
    record = json.loads(file.read_text())
    del record["config_digest"], record["check"]
    file.write_text(json.dumps(record | {"recipe": "of another version"}))
    assert "changed after the run" not in shown(storage, ("status",))
    attempts = run(tiny(storage, **SMALL)).rundir.read_run() or {}
    assert attempts["attempts"][-1]["trained"] == 0


def test_a_resume_names_the_edited_file_and_not_the_config_that_is_given(storage: Path) -> None:
    edit(storage, "length: 1 epoch", "length: 3 epochs")
    message = (r"config\.yaml of the run 'tiny' was changed after the run \(recipe differs\)\n"
               r"  dense\.length: .3 epochs. -> .1 epoch.\n(.|\n)*Undo the change in that file")
    with pytest.raises(UserError, match=message):
        run(tiny(storage, **SMALL))
    with pytest.raises(UserError, match=r"tiny/config\.yaml"):
        run(tiny(storage, **SMALL, dense__length=3))  # the recipe of the edited file is not the run's
    edit(storage, "length: 3 epochs", "length: 1 epoch")
    run(tiny(storage, **SMALL))
    with pytest.raises(UserError, match="exists already with another recipe"):
        run(tiny(storage, **SMALL, dense__length=3))
