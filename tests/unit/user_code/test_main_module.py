"""What the script or the notebook itself defines: fine in this process, refused before Ray starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.api import tune_trainable
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.run.shared_code import named_import_paths, refuse_main_on_ray
from swamp_ray.sweep.run import run_sweep
from tests.helpers import TINY, tiny

SCRIPT = """
import sys
from torch import nn
from swamp_ray import SwampTrainer

def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))

config = {TINY}
config["storage"] = "results"
config["model"] = {{"name": "__main__:net", **{model}}}
print(len(SwampTrainer(config, quiet=True).fit().rounds))
"""


@pytest.mark.parametrize("values", [
    {"model__name": "__main__:net"}, {"task__name": "__main__:Task"}, {"pruning__score": "__main__:score"}])
def test_a_run_on_ray_is_refused_before_anything_starts(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"workers on Ray .*'__main__:\w+'.*my_project:\w+"):
        run(tiny(tmp_path / "storage", **values, execution__executor="ray"))
    assert not ray.is_initialized()
    assert not (tmp_path / "storage").exists()


def test_a_sweep_on_ray_is_refused_before_anything_starts(tmp_path: Path) -> None:
    base = {**TINY, "storage": str(tmp_path), "execution": {"device": "cpu"}}
    space = {"model.name": {"grid": ["digits_cnn", "__main__:net"]}}
    sweep = build_sweep({"name": "s", "base": base, "space": space})
    with pytest.raises(UserError, match="workers on Ray"):
        run_sweep(sweep)
    assert not ray.is_initialized()
    with pytest.raises(UserError, match=r"data\.name: workers on Ray"):
        tune_trainable({**base, "data": {"name": "__main__:data"}})


def test_a_dataset_may_stand_there_because_only_this_process_calls_its_function() -> None:
    refuse_main_on_ray({"data.name": "__main__:data", "model.name": "my_net:net"})


def test_paths_in_a_space_are_found_under_their_options() -> None:
    space = {"model.name": {"grid": ["a:b", "resnet20", "c:d"]}, "arm": {"grid": [{"pruning.score": "e:f"}]}}
    plain = {"base": {"model": {"name": "a:b"}, "storage": "s3://c:d"}, "space": space}
    assert sorted(named_import_paths(plain).values()) == ["a:b", "a:b", "c:d", "e:f"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "out"), [({}, "no source file was found"), ({"version": "1"}, "3")])
def test_without_a_file_it_needs_a_version(tmp_path: Path, model: dict[str, str], out: str) -> None:
    """As in a notebook: the program comes from standard input."""
    script = SCRIPT.format(TINY=TINY, model=model)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, cwd=tmp_path)
    assert out in (done.stdout if model else done.stderr)


@pytest.mark.slow
def test_a_script_trains_what_it_was_at_its_start(tmp_path: Path) -> None:
    """What becomes of its file while it runs is not what runs."""
    edit = "open(__file__, 'a').write('changed = 1')\n"
    (tmp_path / "script.py").write_text(SCRIPT.format(TINY=TINY, model={}).replace("config =", f"{edit}config ="))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "3", done.stderr
