"""Bad input: exit code 2, one clear message, no traceback, and nothing started."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from swamp_ray.cli import main
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import TINY

BROKEN_MODULE = '''
raise RuntimeError("my own mistake")
'''
MODELS = '''
from torch import nn

def wrong_output(**_):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 7))

def without_weights(**_):
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(36))

def failing(**_):
    raise ValueError("no such width")

def broken_score(weights, rewind):
    raise ValueError("no such norm")

def flat_score(weights, rewind):
    return weights.abs().sum()
'''


def swamp(folder: Path, *arguments: str, **values: Any) -> Result:
    """Run the tiny config, changed, through the command line in this process."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    sets = [text for key, value in values.items()
            for text in ("--set", f"{key.replace('__', '.')}={yaml.safe_dump(value, default_flow_style=True)}")]
    return CliRunner().invoke(main, ["run", str(path), "--storage", str(folder / "results"), *sets, *arguments])


def refused(result: Result, *words: str) -> str:
    """The message of a refusal, once it is clear that it is one."""
    assert result.exit_code == 2, result.output
    assert "Traceback (most recent call last)" not in result.output.partition("own error")[0]
    for word in words:
        assert word in result.output, result.output
    return result.output


@pytest.mark.parametrize(("values", "words"), [
    ({"pruning__taget": 0.5}, ["pruning.taget: there is no such option", "Did you mean 'target'?"]),
    ({"model__name": "resnet21"}, ["resnet21", "resnet20"]),
    ({"model__name": "torchvision/resnet51"}, ["resnet50"]),
    ({"data__name": "cifar1"}, ["cifar1", "cifar10"]),
    ({"task__name": "clasification"}, ["task.name", "'classification'"]),
    ({"pruning__score": "magnitud"}, ["pruning.score", "'magnitude'"]),
    ({"pruning__scope": "local"}, ["pruning.scope", "'global'"]),
    ({"pruning__target": 1.0}, ["pruning.target", "less than 1", "1.0"]),
    ({"pruning__target": -0.1}, ["pruning.target", "greater than or equal to 0", "-0.1"]),
    ({"pruning__rate": 0}, ["pruning.rate", "greater than 0"]),
    ({"particles__count": 0}, ["particles.count", "greater than 0"]),
    ({"averaging__start": 0.99}, ["averaging.start", "none would be taken"]),
    ({"dense__length": 5, "rewind__schedule": "continue", "averaging__within": "none"},
     ["dense.length (T0) must be shorter", "5 epochs and 2 epochs"]),
    ({"training__batch_size": 4096}, ["training.batch_size", "4096"]),
    ({"pruning__target": 0.9999999}, ["at least one of", "0.9999999"]),
    ({"pruning__include": ["no.such.*"]}, ["no.such.*"]),
    ({"round__length": "10 stps"}, ["round.length", "10 stps"]),
    ({"model__options": {"depth": 3}}, ["depth"]),
    ({"execution__num_workers": 0}, ["execution.num_workers"]),
    ({"start_from": {"path": "nowhere.pt"}}, ["start_from.path", "nowhere.pt"]),
])
def test_wrong_values(tmp_path: Path, values: dict[str, Any], words: list[str]) -> None:
    refused(swamp(tmp_path, **values), *words)
    assert not (tmp_path / "results").exists(), "something was started"


def test_files_that_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("seed: [1\n")
    for name, words in (("list.yaml", "mapping of sections"), ("broken.yaml", "not valid YAML"),
                        ("lst.yaml", "Did you mean 'list.yaml'?")):
        refused(CliRunner().invoke(main, ["run", str(tmp_path / name)]), words)
    refused(swamp(tmp_path, "--set", "pruning.target"), "KEY=VALUE", "pruning.target")


def test_import_paths_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text(BROKEN_MODULE)
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(swamp(tmp_path, model__name="broken_module:make"), "model.name", "RuntimeError: my own mistake")
    refused(swamp(tmp_path, model__name="no_such_module:make"), "no_such_module", "cannot be imported")
    refused(swamp(tmp_path, model__name="my_models:withot_weights"), "Did you mean 'without_weights'?")
    refused(swamp(tmp_path, model__name="my_models:failing"), "no such width")
    refused(swamp(tmp_path, model__name="my_models:wrong_output"), "7", "3")
    refused(swamp(tmp_path, model__name="my_models:without_weights", model__options={}), "no prunable weight",
            "LayerNorm")


def _jpeg(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _parquet(folder: Path, images: list[bytes], column: str = "image") -> None:
    for split in ("train", "test"):
        frame = pd.DataFrame({column: images, "label": np.arange(len(images), dtype=np.int8) % 10})
        frame.to_parquet(folder / f"cifar10-{split}.parquet")


def test_data_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWAMP_DATA", raising=False)
    root = tmp_path / "data"
    cifar = {"data__name": "cifar10", "data__options": {}, "data__root": str(root)}
    refused(swamp(tmp_path, **cifar), str(root))
    root.mkdir()
    refused(swamp(tmp_path, **cifar), str(root), "cifar10")
    _parquet(root, [_jpeg(n) for n in range(20)], column="picture")
    refused(swamp(tmp_path, **cifar), "cifar10-train.parquet", "image")
    _parquet(root, [*(_jpeg(n) for n in range(19)), b"not a jpeg"])
    refused(swamp(tmp_path, **cifar), "cifar10-train.parquet", "19")
    folder = {"data__name": "image_folder", "data__options": {}, "data__root": str(root)}
    refused(swamp(tmp_path, **folder), str(root))
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        (root / split / "cat" / "1.jpg").write_bytes(_jpeg(1))
    refused(swamp(tmp_path, **folder), "class")


def test_a_score_that_fails_is_found_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(swamp(tmp_path, pruning__score="my_models:broken_score"), "features.0.weight", "ValueError: no such norm")
    refused(swamp(tmp_path, pruning__score="my_models:flat_score"), "pruning.score", "(16, 1, 3, 3)", "()")
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    refused(swamp(tmp_path, execution__device="cuda"), "execution.device", "no CUDA device")
    refused(swamp(tmp_path, execution__device="cuda", execution__executor="ray"), "1 GPU", "the largest node has 0")
    assert not (tmp_path / "results/runs").exists()


@pytest.mark.parametrize(("storage", "words"), [
    ("ftp://host/swamp", "must be a folder, or start with s3://"),
    ("/proc/swamp", "must be a folder that can be written"),
])
def test_storage_that_is_no_folder_to_write_in(tmp_path: Path, storage: str, words: str) -> None:
    refused(swamp(tmp_path, "--storage", storage), words, storage)


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    refused(swamp(tmp_path), "storage", str(tmp_path / "results"))


def test_a_name_used_with_another_recipe_leaves_the_run_alone(tmp_path: Path) -> None:
    assert swamp(tmp_path).exit_code == 0
    run_json = tmp_path / "results/runs/tiny/run.json"
    before = run_json.read_bytes()
    refused(swamp(tmp_path, training__lr=0.2), "training.lr: 0.05 -> 0.2", "--name")
    assert run_json.read_bytes() == before


def test_an_address_where_no_ray_answers(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "execution": {"device": "cpu"}}))
    done = subprocess.run(
        [sys.executable, "-m", "swamp_ray", "run", str(path), "--storage", str(tmp_path / "results"),
         "--address", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"127.0.0.1:{port}" in done.stderr
    assert "no Ray cluster answers" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_fit(tmp_path: Path) -> None:
    result = swamp(tmp_path, execution__executor="ray", execution__num_gpus=64, execution__num_workers=2)
    refused(result, "64 GPU", "the largest node has")
    assert not (tmp_path / "results/runs").exists(), "a refused plan has taken the run's name"
    assert swamp(tmp_path).exit_code == 0
    run_json = tmp_path / "results/runs/tiny/run.json"
    rundir = RunDir(tmp_path / "results", "tiny")
    rundir.write_run({**(rundir.read_run() or {}), "status": "interrupted"})
    before = run_json.read_bytes()
    refused(swamp(tmp_path, execution__executor="ray", execution__num_workers=99), "99 workers", "fit at a time")
    assert run_json.read_bytes() == before, "a refused plan counts as an attempt"
