"""User code on a real local Ray: workers train what the driver has digested, or say which module is another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.errors import UserError
from swamp_ray.launch import make_executor, run
from swamp_ray.run.messages import Executor
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.run import run_sweep
from tests.helpers import TINY, tiny

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


@pytest.mark.nightly
def test_a_sweep_whose_code_has_changed_is_refused_and_retrains_only_that(folder: Path, tmp_path: Path) -> None:
    (folder / "user_code_other.py").write_text(NET.replace("user_code_helper.ACT()", "nn.Sigmoid()").replace(
        "import user_code_helper\n", ""))
    models = ["user_code_net:net", "user_code_other:net"]
    base = {**TINY, "model": {}, "execution": {**TINY["execution"], "executor": "inline"}}
    sweep = build_sweep({"name": "s", "storage": str(tmp_path / "swept"), "base": base, "seeds": 1,
                         "space": {"model.name": {"grid": models}}})
    first = run_sweep(sweep)
    changed, same = (record["runs"][0] for record in first.records.values())
    rounds = Path(RunDir(tmp_path / "swept", same).rounds.location)
    before = rounds.stat().st_mtime_ns, (tmp_path / "swept/sweeps/s/trials.jsonl").read_bytes()
    (folder / "user_code_helper.py").write_text(HELPER.format("Tanh"))
    with pytest.raises(UserError, match=r"(?s)sweep 's' exists already with other code.*module user_code_helper: .*"
                                        r"\(in nameuser_code_net_net.*--code-changed retrain"):
        run_sweep(sweep)
    assert before == (rounds.stat().st_mtime_ns, (tmp_path / "swept/sweeps/s/trials.jsonl").read_bytes())
    again = run_sweep(sweep, code_changed="retrain")
    assert {record["status"] for record in again.records.values()} == {"complete"}
    assert rounds.stat().st_mtime_ns == before[0], "a setting whose code is as it was is found"
    alone = tiny(tmp_path / "alone", model__name="user_code_net:net", model__options={}, execution__executor="inline")
    expected = [record.average for record in run(alone).records]
    assert [line["average"] for line in RunDir(tmp_path / "swept", changed).read_rounds()] == expected
    assert again.sweepdir.read_record()["attempts"][-1]["trained"] > 0
    assert run_sweep(sweep).sweepdir.read_record()["attempts"][-1]["trained"] == 0
