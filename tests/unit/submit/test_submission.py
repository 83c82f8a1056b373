"""A config that is about to be submitted: what it must say, and what is checked without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from swamp_ray.config.reading import parse_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.errors import UserError
from swamp_ray.submit.submission import Submission, check_here, check_upload, read_submission
from swamp_ray.submit.upload import select_files
from tests.helpers import TINY

SPACE = {"pruning.target": {"grid": [0.5, 0.75]}}


def write(folder: Path, tree: dict[str, Any], name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def run_tree(**values: Any) -> dict[str, Any]:
    return {**TINY, "storage": "/mnt/shared", "execution": {"device": "cpu"}, **values}


def read(folder: Path, *overrides: str, **values: Any) -> Submission:
    return read_submission(write(folder, run_tree(**values)), overrides)


def test_what_is_submitted_reads_back_equal(tmp_path: Path) -> None:
    submission = read(tmp_path, "execution.address=10.0.0.1:6379")
    assert submission.run.execution.address == "auto"
    assert parse_config(submission.text) == submission.run
    sweep = read_submission(write(tmp_path, {"base": "tiny.yaml", "space": SPACE}, "sweep.yaml"), ["seeds=2"])
    assert (sweep.kind, sweep.name, sweep.run.execution.address) == ("sweep", "sweep", "auto")
    again = build_sweep(yaml.safe_load(sweep.text))
    assert sweep.sweep is not None
    assert again.base == sweep.run
    assert again.identity() == sweep.sweep.identity()


def test_the_id_is_that_of_name_kind_and_storage(tmp_path: Path) -> None:
    first = read(tmp_path).base_id
    assert first == read(tmp_path, "seed=7").base_id
    assert first.startswith("swamp-tiny-")
    other = [read_submission(tmp_path / "tiny.yaml", name="other"),
             read_submission(tmp_path / "tiny.yaml", storage="/mnt/other"),
             read_submission(write(tmp_path, {"base": "tiny.yaml", "space": SPACE, "name": "tiny"}, "s.yaml"))]
    assert len({first, *(one.base_id for one in other)}) == 4


@pytest.mark.parametrize(("overrides", "words"), [
    (["storage=results"], "storage: .*absolute path or an object store"),
    (["execution.executor=inline"], "execution.executor: .*executor ray"),
    (["data.root=data"], "data.root: .*absolute path"),
    (["name=a/b"], "name"),
    (["storage=ftp://host/x"], None),
])
def test_what_no_submitted_run_can_do_is_refused(tmp_path: Path, overrides: list[str], words: str | None) -> None:
    if words is None:
        assert read(tmp_path, *overrides).run.storage == "ftp://host/x"
        return
    with pytest.raises(UserError, match=words):
        read(tmp_path, *overrides)


def test_a_cluster_that_starts_nodes_needs_no_address_of_its_own(tmp_path: Path) -> None:
    assert read(tmp_path, execution={"autoscaling": True, "device": "cpu"}).run.execution.autoscaling
    sweep = read_submission(write(tmp_path, {"base": "tiny.yaml", "space": SPACE}, "sweep.yaml"))
    assert sweep.run.execution.autoscaling


def test_a_sweep_is_told_where_to_set_it(tmp_path: Path) -> None:
    write(tmp_path, run_tree(execution={"executor": "inline"}))
    with pytest.raises(UserError, match=r"--set base\.execution\.executor=ray"):
        read_submission(write(tmp_path, {"base": "tiny.yaml", "space": SPACE}, "sweep.yaml"))


def test_modules_follow_from_storage_search_and_trackers(tmp_path: Path) -> None:
    assert "obstore" not in read(tmp_path).modules()
    assert "obstore" in read(tmp_path, "storage=s3://bucket/x").modules()
    write(tmp_path, run_tree())
    space = {"training.lr": {"uniform": [0.01, 0.1]}}
    sweep = {"base": "tiny.yaml", "space": space, "search": {"name": "optuna"}, "callbacks": {"mlflow": {}}}
    found = read_submission(write(tmp_path, sweep, "sweep.yaml")).modules()
    assert {"optuna", "mlflow"} <= set(found)
    assert "wandb" not in found


def test_only_what_a_node_must_see_is_asked_for(tmp_path: Path) -> None:
    assert read(tmp_path).paths() == {}
    found = read(tmp_path, "data.root=/data", "start_from.path=/w.pt").paths()
    assert found == {"data.root": "/data", "start_from.path": "/w.pt"}
    fetched = read(tmp_path, "data.root=/data", "data.download=true", "start_from.path=s3://b/w").paths()
    assert fetched == {}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "code"
    (folder / "own_pkg").mkdir(parents=True)
    (folder / "own_pkg" / "__init__.py").write_text("")
    (folder / "own_nets.py").write_text("from torch import nn\n\ndef small(num_classes):\n"
                                        "    return nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("own_nets", None)


def test_a_run_is_prepared_as_check_does(tmp_path: Path, code: Path) -> None:
    options = {"num_classes": 3}
    assert check_here(read(tmp_path, model={"name": "own_nets:small", "options": options}), code) == []
    with pytest.raises(UserError, match="own_nets"):
        check_here(read(tmp_path, model={"name": "own_nets:large"}), code)
    with pytest.raises(UserError, match="no such dataset"):
        check_here(read(tmp_path, data={"name": "digitz"}), code)


def test_data_may_be_elsewhere(tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWAMP_DATA", raising=False)
    far = read(tmp_path, data={"name": "cifar10", "root": "/mnt/only/on/the/cluster"})
    assert "cifar10 are not on this machine" in check_here(far, code)[0]
    (code / "own_data.py").write_text("def load():\n    raise FileNotFoundError('/mnt/far')\n")
    assert "left to the cluster" in check_here(read(tmp_path, data={"name": "own_data:load"}), code)[0]
    fetched = read(tmp_path, data={"name": "cifar10", "root": "/mnt/only", "download": True})
    assert check_here(fetched, code), "nothing is downloaded to submit"
    assert not Path("/mnt/only").exists()


def test_code_that_is_not_in_the_upload_must_be_on_the_cluster(tmp_path: Path, code: Path) -> None:
    upload = select_files(code, {})
    here = read(tmp_path, model={"name": "own_nets:small"}, task={"name": "own_pkg:task"})
    assert check_upload(here, upload) == []
    assert check_upload(read(tmp_path, model={"name": "elsewhere.nets:small"}), upload) == ["elsewhere"]
    (code / ".gitignore").write_text("own_nets.py\n")
    with pytest.raises(UserError, match=r"model\.name: own_nets\.py is needed, but is left out .*\.gitignore"):
        check_upload(here, select_files(code, {}))


def test_a_relative_checkpoint_must_be_in_the_upload(tmp_path: Path, code: Path) -> None:
    (code / "w.pt").write_text("")
    submission = read(tmp_path, "start_from.path=w.pt")
    assert check_upload(submission, select_files(code, {})) == []
    (code / ".gitignore").write_text("*.pt\n")
    with pytest.raises(UserError, match=r"start_from\.path: w\.pt is needed"):
        check_upload(submission, select_files(code, {}))
    with pytest.raises(UserError, match="not in the folder that is uploaded"):
        check_upload(read(tmp_path, "start_from.path=none.pt"), select_files(code, {}))


def test_code_of_a_space_is_seen(tmp_path: Path) -> None:
    write(tmp_path, run_tree())
    space = {"model.name": {"grid": ["mlp", "nets:a"]},
             "arm": {"grid": {"one": {"pruning.score": "scores:b"}, "two": {"pruning.score": "random"}}}}
    found = read_submission(write(tmp_path, {"base": "tiny.yaml", "space": space}, "sweep.yaml")).own_code()
    assert set(found.values()) == {"nets:a", "scores:b"}


def test_ray_waits_longer_than_the_run(tmp_path: Path) -> None:
    submission = read(tmp_path, "execution.grace_s=99.5")
    assert submission.stop_s > 99.5 + 10
    assert isinstance(submission.run, SwampConfig)


PROJECT = {
    "pkg/__init__.py": "", "pkg/gen_pb2.py": "WIDTH = 16\n", "pkg/util.py": "", "other/late.py": "",
    "pkg/models.py": "from . import gen_pb2\nfrom pkg.util import *\ndef net():\n    import other.late\n",
}


@pytest.mark.parametrize(("ignored", "named"), [
    ("*_pb2.py", "pkg/gen_pb2.py"), ("util.py", "pkg/util.py"), ("/other/", "other/late.py"), ("", None),
    ("*.txt", None),
])
def test_what_an_ignore_file_leaves_out_and_the_code_imports_is_named(
    tmp_path: Path, ignored: str, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    project = tmp_path / "project"
    for name, text in PROJECT.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / ".rayignore").write_text(ignored + "\n")
    submission = read(tmp_path, model={"name": "pkg.models:net", "options": {}})
    upload = select_files(project, {})
    if named is None:
        assert check_upload(submission, upload) == []
        return
    with pytest.raises(UserError, match=rf"model\.name: {named} is needed, but is left out of the upload \(.rayignore"):
        check_upload(submission, upload)


def test_a_helper_from_elsewhere_has_to_be_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"project/mine.py": "import submission_helper\n", "lib/submission_helper.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib"), *sys.path])
    submission = read(tmp_path, model={"name": "mine:net", "options": {}})
    assert check_upload(submission, select_files(tmp_path / "project", {})) == ["submission_helper"]


def test_code_of_the_script_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.name: .*'__main__:net'.*my_project:net"):
        read(tmp_path, model={"name": "__main__:net", "options": {}})
