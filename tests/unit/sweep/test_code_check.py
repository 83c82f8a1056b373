"""A sweep whose user code has changed is refused under its name before anything starts, or goes on if that is said."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.config.sweep_settings import Sweep, label
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.code_check import check_code, compare_code
from swamp_ray.sweep.members import Team
from swamp_ray.sweep.results import collect
from swamp_ray.sweep.run import run_sweep
from tests.helpers import TINY
from tests.sweep_storage import note, planned_sweep

NET = '''"""A network."""
from torch import nn

def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.{}(), nn.Linear(4, num_classes))

def unused():
    return 1
'''
MODULES = ("swept_first", "swept_second")
MODELS = {"model.name": {"grid": [f"{name}:net" for name in MODULES]}}
BASE: dict[str, Any] = {**TINY, "model": {}, "pruning": {**TINY.get("pruning", {}), "target": 0.0},
                        "particles": {"count": 1}}
Edit = Callable[[str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Writes a module of the user's as an editor would."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()

    for name in MODULES:
        write(name, NET.format("ReLU"))
    yield write
    for name in MODULES:
        sys.modules.pop(name, None)


def begun(storage: Path, num_settings: int = 2, recorded: bool = True) -> tuple[SweepDir, Sweep]:
    """A sweep over two networks of the user's of which some settings are finished."""
    sweepdir, sweep = planned_sweep(storage, base=BASE, space=MODELS, seeds=1)
    for setting in sweep.settings()[:num_settings]:
        run(sweep.member(setting, 0))
        if recorded:
            note(sweepdir, sweep, setting, "complete")
    return sweepdir, sweep


@pytest.mark.parametrize(("module", "old", "new", "said"), [
    ("swept_first", "ReLU", "Tanh", "module swept_first: net"),
    ("swept_second", "return 1", "return 2", "module swept_second: unused"),
    ("swept_first", "import nn\n", "import nn\nX = 1\n", "module swept_first: statements outside of functions"),
    ("swept_second", NET, "import missing_module_of_mine\n" + NET, "module swept_second: statements outside"),
    ("swept_first", "def unused():", "def unused(:", "swept_first"),
])
def test_changed_code_is_refused_before_anything_starts(
    tmp_path: Path, edit: Edit, module: str, old: str, new: str, said: str
) -> None:
    storage = tmp_path / "storage"
    sweepdir, sweep = begun(storage)
    before = files(storage)
    edit(module, NET.format("ReLU").replace(old.replace("{}", "ReLU"), new.replace("{}", "ReLU")))
    with pytest.raises(UserError) as error:
        run_sweep(sweep)
    text = str(error.value)
    assert f"the sweep {sweep.name!r} exists already with other code" in text
    assert said in text
    assert "--code-changed retrain" in text
    assert str(sweepdir.spot()) in text
    concerned = label(sweep.settings()[MODULES.index(module)])
    assert f"(in {concerned})" in text, "the other setting's code is as it was"
    assert files(storage) == before
    assert check_code(sweep, sweepdir, "retrain") == {concerned}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("new", [
    NET.format("ReLU"), NET.format("ReLU").replace("A network", "My network"),
    NET.format("ReLU").replace("return 1", "return 1  # one"), "\n\n" + NET.format("ReLU"),
])
def test_code_that_does_the_same_goes_on(tmp_path: Path, edit: Edit, new: str) -> None:
    sweepdir, sweep = begun(tmp_path / "storage")
    edit("swept_first", new)
    assert check_code(sweep, sweepdir) == frozenset()


def test_code_of_settings_that_were_not_begun_may_change(tmp_path: Path, edit: Edit) -> None:
    sweepdir, sweep = begun(tmp_path / "storage", num_settings=1)
    edit("swept_second", NET.format("Tanh"))
    assert check_code(sweep, sweepdir) == frozenset()
    edit("swept_first", NET.format("Tanh"))
    with pytest.raises(UserError, match=r"module swept_first: net\n"):  # of all settings that were begun
        check_code(sweep, sweepdir)


def test_a_lost_record_of_a_setting_does_not_hide_its_runs(tmp_path: Path, edit: Edit) -> None:
    sweepdir, sweep = begun(tmp_path / "storage", recorded=False)
    edit("swept_first", NET.format("Tanh"))
    assert list(compare_code(sweep, sweepdir).changes) == [label(sweep.settings()[0])]


def test_a_search_is_asked_about_the_settings_that_it_has_tried(tmp_path: Path, edit: Edit) -> None:
    values: Mapping[str, Any] = {"base": {**BASE, "model": {"name": "swept_first:net"}}, "seeds": 1, "num_samples": 3,
                                 "space": {"training.lr": {"loguniform": [0.01, 0.1]}}, "search": {"name": "optuna"}}
    sweepdir, sweep = planned_sweep(tmp_path / "storage", **values)
    setting = {"training.lr": 0.05}
    run(sweep.member(setting, 0))
    note(sweepdir, sweep, setting, "interrupted")
    assert check_code(sweep, sweepdir) == frozenset()
    edit("swept_first", NET.format("Tanh"))
    with pytest.raises(UserError, match="module swept_first: net"):
        check_code(sweep, sweepdir)


def test_a_team_refuses_before_it_writes_and_retrains_if_that_is_said(tmp_path: Path, edit: Edit) -> None:
    storage = tmp_path / "storage"
    _, sweep = begun(storage, num_settings=1)
    member = sweep.member(sweep.settings()[0], 0)
    edit("swept_first", NET.format("Tanh"))
    before = files(storage)
    with pytest.raises(UserError, match="exists already with other code"):
        list(Team([member], "cpu").milestones())
    assert files(storage) == before
    list(Team([member], "cpu", code_changed="retrain").milestones())
    list(Team([member], "cpu").milestones())


def test_results_of_other_code_that_wait_to_be_trained_anew_are_not_shown(tmp_path: Path, edit: Edit) -> None:
    sweepdir, sweep = begun(tmp_path / "storage")
    first, second = sweep.settings()
    assert set(collect(sweepdir)["setting"]) == {label(first), label(second)}
    note(sweepdir, sweep, first, "waiting")
    assert set(collect(sweepdir)["setting"]) == {label(second)}


def test_check_says_that_sweep_would_refuse_the_name(tmp_path: Path, edit: Edit) -> None:
    storage = tmp_path / "storage"
    sweepdir, _ = begun(storage)
    arguments = ["check", str(sweepdir.config.location)]
    assert "would refuse" not in CliRunner().invoke(main, arguments).stdout
    edit("swept_second", NET.format("Tanh"))
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "swamp sweep would refuse this: " in said
    assert "module swept_second: net" in said
