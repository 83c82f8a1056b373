"""A run whose code has changed is refused under its name, with what has changed, or goes on if that is said."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.commands.analyze import analyze
from swamp_ray.commands.check import print_plan
from swamp_ray.commands.evaluate import print_evaluation
from swamp_ray.errors import Interrupted, UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.report.load.missing import missing
from swamp_ray.report.load.runs import read_runs
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.json_lines import read_lines
from swamp_ray.storage.kept_sources import changes_in_words, code_changes, keep_sources
from swamp_ray.storage.metrics import read_metrics
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import folder_of, tiny

MODULE = '''"""Mine."""
from torch import nn
import changing_helper

API_KEY = "abcdefghijklmnop"

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 3))

    def forward(self, x):
        return changing_helper.scaled(self.layers(x)) * 1.0

def unused():
    return 1
'''
VALUES: dict[str, Any] = {"model__name": "changing_net:Net", "pruning__target": 0.0, "particles__count": 1,
                          "averaging__within": "none"}
Edit = Callable[[str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Writes a module of the user's as an editor would."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(file: str, text: str) -> None:
        (folder / file).write_text(text)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        for name in ("changing_net", "changing_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    write("changing_net.py", MODULE)
    write("changing_helper.py", "def scaled(x):\n    return x\n")
    yield write
    for name in ("changing_net", "changing_helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("file", "old", "new", "said"), [
    ("changing_net.py", "* 1.0", "* 2.0", "module changing_net: Net.forward"),
    ("changing_net.py", "    return 1\n", "    return 2\n", "module changing_net: unused"),
    ("changing_net.py", "import changing_helper\n", "import changing_helper\nX = 1\n",
     "module changing_net: statements outside of functions"),
    ("changing_helper.py", "return x", "return x + 0", "module changing_helper: scaled"),
])
def test_changed_code_is_refused_with_what_changed(
    tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, said: str
) -> None:
    storage = tmp_path / "storage"
    config = tiny(storage, **VALUES)
    done = run(config)
    assert code_changes(done.rundir, config) == []
    before = MODULE if file == "changing_net.py" else "def scaled(x):\n    return x\n"
    edit(file, before.replace(old, new))
    with pytest.raises(UserError, match=f"other code(.|\n)*{said}(.|\n)*--code-changed retrain"):
        run(config)
    assert (done.rundir.read_run() or {})["status"] == "complete"
    print_evaluation([str(folder_of(done.rundir))], None, as_json=False)
    assert said in capsys.readouterr().err
    again = run(config, code_changed="retrain")
    assert (again.rundir.read_run() or {})["attempts"][-1]["trained"] == 2
    run(config)


@pytest.mark.parametrize(("values", "new", "said"), [
    ({}, "* 1.0", ""), ({}, "* 2.0", "other code: module changing_net: Net.forward"),
    ({"training__lr": 0.01}, "* 1.0", "another recipe: training.lr"),
    ({"data__split_seed": 5, "pruning__target": 0.5}, "* 1.0", "another recipe: data.split_seed"),
    ({"name": "another", "training__lr": 0.01}, "* 2.0", ""),
])
def test_check_says_that_run_would_refuse_the_name(
    tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str], values: dict[str, Any], new: str, said: str
) -> None:
    run(tiny(tmp_path / "storage", **VALUES))
    edit("changing_net.py", MODULE.replace("* 1.0", new))
    print_plan(tiny(tmp_path / "storage", **(VALUES | values)))
    text = " ".join(capsys.readouterr().out.split())
    assert ("swamp run would refuse this" in text) == bool(said)
    assert said in text


def test_comments_docstrings_and_declared_versions_change_nothing(tmp_path: Path, edit: Edit) -> None:
    storage = tmp_path / "storage"
    run(tiny(storage, **VALUES))
    run(tiny(storage, name="declared", model__version="1", **VALUES))
    edit("changing_net.py", MODULE.replace('"""Mine."""', '"""Yours."""').replace("* 1.0", "* 1.0  # once"))
    assert (run(tiny(storage, **VALUES)).rundir.read_run() or {})["attempts"][-1]["trained"] == 0
    edit("changing_net.py", MODULE.replace("* 1.0", "* 3.0"))
    run(tiny(storage, name="declared", model__version="1", **VALUES))


def test_the_sources_are_kept_with_the_run_without_keys(tmp_path: Path, edit: Edit) -> None:
    folder = folder_of(run(tiny(tmp_path / "storage", **VALUES)).rundir) / "sources"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["modules"]) == {"changing_net", "changing_helper"}
    text = (folder / "changing_net.py").read_text()
    assert "abcdefghijklmnop" not in text
    assert text == MODULE.replace("abcdefghijklmnop", "***")
    built_in = run(tiny(tmp_path / "storage", name="built-in", pruning__target=0.0))
    assert not (folder_of(built_in.rundir) / "sources").exists()


def test_the_sources_of_each_attempt_are_kept(tmp_path: Path, edit: Edit) -> None:
    config = tiny(tmp_path / "storage", **VALUES)
    rundir = run(config).rundir
    folder = folder_of(rundir) / "sources"
    first = {file.name: file.read_text() for file in folder.iterdir()}
    keep_sources(rundir, config)
    assert not (folder / "earlier").exists()
    edit("changing_net.py", MODULE.replace("* 1.0", "* 2.0"))
    run(config, code_changed="retrain")
    for factor in ("3.0", "1.0", "2.0"):  # the code of the first two attempts comes back
        edit("changing_net.py", MODULE.replace("* 1.0", f"* {factor}"))
        keep_sources(rundir, config)
    earlier = [one for one in (folder / "earlier").iterdir() if "* 1.0" in (one / "changing_net.py").read_text()]
    assert len(earlier) == 1
    assert {file.name: file.read_text() for file in earlier[0].iterdir()} == first
    assert len(list((folder / "earlier").iterdir())) == 3
    assert "* 2.0" in (folder / "changing_net.py").read_text()


@pytest.mark.parametrize("manifest", ["", "[]", "{", '{"modules": {"../../x": {}, "a/../../b": {}}}'])
def test_a_damaged_manifest_of_sources_costs_nothing(tmp_path: Path, edit: Edit, manifest: str) -> None:
    config = tiny(tmp_path / "storage", **VALUES)
    rundir = RunDir(tmp_path / "storage", "tiny")
    keep_sources(rundir, config)
    folder = folder_of(rundir) / "sources"
    (folder / "manifest.json").write_text(manifest)
    edit("changing_net.py", MODULE.replace("* 1.0", "* 2.0"))
    assert "cannot be compared" not in changes_in_words(rundir, config)
    keep_sources(rundir, config)
    assert "* 2.0" in (folder / "changing_net.py").read_text()
    assert "* 1.0" in next((folder / "earlier").rglob("changing_net.py")).read_text()


class StopsAfterTheFirstParticle(Reporter):
    def job_finished(self, job: Job, found: bool) -> None:
        if job.kind == "particle":
            raise KeyboardInterrupt


def losses_of(rundir: RunDir) -> dict[int, float]:
    """The training loss of each round's first epoch, as the metrics have it."""
    return {line["round"]: line["loss"] for line in read_metrics(rundir.metrics)
            if line["kind"] == "particle_epoch" and line["epoch"] == 1}


def rounds_aside(rundir: RunDir) -> list[dict[str, Any]]:
    """The records that were put aside, in the order of rounds; a run may record them in another."""
    return sorted(read_lines(rundir.spot("rounds.earlier.jsonl")), key=lambda line: line["round"])


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_an_interrupted_retraining_shows_no_round_of_the_other_code(
    tmp_path: Path, edit: Edit, request: pytest.FixtureRequest, where: str
) -> None:
    storage = tmp_path / "storage" if where == "folder" else request.getfixturevalue("bucket")
    config = tiny(storage, **(VALUES | {"pruning__target": 0.5}))
    rundir = run(config).rundir
    before, losses_before = rundir.read_rounds(), losses_of(rundir)
    assert len(before) == 2
    edit("changing_net.py", MODULE.replace("* 1.0", "* 2.0"))
    with pytest.raises(Interrupted):
        run(config, StopsAfterTheFirstParticle(), code_changed="retrain")
    assert rundir.read_rounds() == []
    assert rounds_aside(rundir) == before
    run(config)
    after, losses_after = rundir.read_rounds(), losses_of(rundir)
    assert len(after) == 2
    assert after[1]["artifacts"] != before[1]["artifacts"]
    assert losses_after.keys() == losses_before.keys()
    assert all(losses_after[index] != loss for index, loss in losses_before.items())
    assert rounds_aside(rundir) == before
    edit("changing_net.py", MODULE)  # the first code again: its results are found
    run(config, code_changed="retrain")
    assert [line["artifacts"] for line in rundir.read_rounds()] == [line["artifacts"] for line in before]
    aside = rounds_aside(rundir)
    assert len(aside) == 4
    assert all(line in aside for line in (*before, *after))


CHANGES = [
    ("changing_net.py", MODULE.replace("* 1.0", "* 2.0"), "module changing_net: Net.forward"),
    ("changing_net.py", MODULE + "\nX = 1\n", "module changing_net: statements outside of functions"),
    ("changing_helper.py", "def scaled(x):\n    return x + 1\n", "module changing_helper: scaled"),
    ("changing_net.py", MODULE.replace('"""Mine."""', "# Yours"), ""),
]


@pytest.mark.parametrize(("file", "text", "said"), CHANGES)
def test_analyze_and_report_say_that_the_code_has_changed(
    tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str], file: str, text: str, said: str
) -> None:
    storage = tmp_path / "storage"
    values = VALUES | {"particles__count": 2}
    rundir = run(tiny(storage, **values)).rundir
    assert not missing(read_runs([rundir.name], str(storage))[0])
    edit(file, text)
    sentence = f"Your code has changed since the run {rundir.name} was trained, and the changed code is used here"
    analyze("particles", [rundir.name], str(storage), rounds=(), as_json=True)
    on_page = " ".join(missing(read_runs([rundir.name], str(storage))[0]))
    for found in (capsys.readouterr().err, on_page):
        assert (sentence in found) == bool(said)
        assert said in found
        assert not said or str(folder_of(rundir) / "sources") in found
