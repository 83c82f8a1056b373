"""The snippets of docs/own_model_and_data.md are one project that runs."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swamp_ray.config.reading import load_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.run.prepare import prepare

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_model_and_data.md"
SNIPPET = re.compile(r"^```(?:python|yaml)\n# (?P<file>\S+)\n(?P<body>.*?)^```$", re.M | re.S)
TINY = ("data.options.num_samples=200", "model.options.width=8", "training.batch_size=16", "dense.length=1 epoch",
        "dense.warmup=0", "round.length=4 epochs", "pruning.target=0.5", "execution.executor=inline",
        "execution.device=cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files in a folder of their own, which is the current one."""
    for snippet in SNIPPET.finditer(PAGE.read_text()):
        path = tmp_path / snippet["file"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(snippet["body"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


def tiny(project: Path) -> SwampConfig:
    return load_config(project / "my_run.yaml", TINY)


def test_every_snippet_names_its_file(project: Path) -> None:
    num_snippets = len(re.findall(r"^```(?:python|yaml)$", PAGE.read_text(), re.M))
    files = sorted(path.relative_to(project).as_posix() for path in project.rglob("*.*"))
    assert len(files) == num_snippets == 8


def test_config_of_the_page_can_be_planned_as_it_stands(project: Path) -> None:
    prepared = prepare(load_config(project / "my_run.yaml"), "cpu")
    assert [layer.name for layer in prepared.layout.layers] == ["0.weight", "3.weight"]
    assert prepared.plan[-1].sparsity == pytest.approx(0.9, abs=1e-3)


def test_script_of_the_page_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (project / "my_run.py").read_text()
    small = script.replace('load_config("my_run.yaml")', f'load_config("my_run.yaml", {TINY!r})')
    small = small.replace("sparsity=0.9", "sparsity=0.5")
    assert small.count("TINY") == 0
    (project / "my_run.py").write_text(small)
    runpy.run_path(str(project / "my_run.py"), run_name="__main__")
    assert "50.0% of the prunable weights are zero" in capsys.readouterr().out
    assert len(list((project / "results" / "runs").rglob("model.safetensors"))) == 2


def test_score_of_the_page_decides(project: Path) -> None:
    from swamp_ray.launch import run

    config = tiny(project).model_copy(update={"name": "mine"})
    mine = run(config)
    pruning = config.pruning.model_copy(update={"score": "magnitude"})
    theirs = run(config.model_copy(update={"name": "theirs", "pruning": pruning}))
    assert mine.records[0].artifacts["particles"] == theirs.records[0].artifacts["particles"]
    assert mine.records[1].artifacts["particles"] != theirs.records[1].artifacts["particles"]


@pytest.mark.usefixtures("project")
def test_the_score_before_training_can_be_run(project: Path) -> None:
    given = {"pruning.when": "before", "pruning.score": "my_project.early_scores:squared_gradient",
             "pruning.before.num_batches": 2}
    program = prepare(with_values(tiny(project), given)).mask
    assert program is not None
    assert (program.num_batches, program.steps) == (2, 1)
