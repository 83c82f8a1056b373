"""User code on a real local Ray: workers train what the driver has digested, or say which module is another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.orchestration.messages import Executor
from swamp_ray.orchestration.preparation import Prepared
from swamp_ray.orchestration.running import make_executor, run
from swamp_ray.orchestration.stopping import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.places import open_place
from swamp_ray.storage.rundir import RunDir
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("cluster")

NET = """
from torch import nn
import user_code_helper

def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), user_code_helper.ACT(),
                         nn.Linear(8, num_classes))
"""
HELPER = "from torch import nn\nACT = nn.{}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that only this process's import path names, with a network and what it imports."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "user_code_net.py").write_text(NET)
    (folder / "user_code_helper.py").write_text(HELPER.format("ReLU"))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def losses(storage: Path, executor: str) -> list[float]:
    config = tiny(storage, model__name="user_code_net:net", model__options={}, execution__executor=executor,
                  execution__num_workers=1 if executor == "ray" else None)
    records = run(config, code_changed="retrain").records
    return [record.average["validation"]["loss"] for record in records]


def test_workers_find_what_this_process_finds_and_train_what_is_edited(folder: Path, tmp_path: Path) -> None:
    before = losses(tmp_path / "one", "ray")
    assert before == losses(tmp_path / "two", "inline")
    (folder / "user_code_helper.py").write_text(HELPER.format("Tanh"))
    after = losses(tmp_path / "one", "ray")
    assert after == losses(tmp_path / "three", "inline")
    assert after != before


def test_a_module_that_changes_before_workers_have_it_ends_the_run_with_its_name(folder: Path, tmp_path: Path) -> None:
    def late(prepared: Prepared, storage: str, stopping: Stopping) -> Executor:
        (folder / "user_code_helper.py").write_text(HELPER.format("Tanh"))
        return make_executor(prepared, storage, stopping)

    config = tiny(tmp_path, model__name="user_code_net:net", model__options={}, execution__executor="ray",
                  execution__num_workers=1)
    with pytest.raises(UserError, match="'user_code_helper' has changed since the run was started"):
        run(config, executor=late)
    store = ArtifactStore(open_place(tmp_path))
    noted = RunDir(tmp_path, "tiny").read_results()
    assert not any(store.find(line["name"]) for line in noted), "nothing was trained"
