"""Analyses on a real local Ray: the bits of inline, workers that die, errors, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.measuring import DIVIDED, measure
from swamp_ray.analysis.progress import Progress
from swamp_ray.analysis.work import Workplace, rows_of
from swamp_ray.cli import main
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import delete_state
from tests.dying import dying_measure
from tests.helpers import descendants, tiny, wait_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(folder, pruning__target=0.5))
    return folder


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "storage"))


class Notes(Progress):
    """What was said about the machines."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def analysed(storage: Path, what: str, executor: str, rounds: Sequence[int], do: Any = measure,
             notes: Progress | None = None, **execution: Any) -> list[dict[str, Any]]:
    bench = Bench(RunDir(storage, "tiny"))
    given = bench.config.execution.model_copy(update={"executor": executor, **execution})
    return rows_of(DIVIDED[what], do, bench, rounds, Workplace(given, Stopping()), notes or Progress())


@pytest.mark.usefixtures("cluster")
def test_rows_have_the_bits_of_inline_and_pieces_of_a_worker_that_dies_are_done_again(
    storage: Path, finished: Path
) -> None:
    notes = Notes()
    found = analysed(storage, "connectivity", "ray", [0, 1], dying_measure, notes, num_workers=9)
    assert (storage / "died").exists()
    assert "a piece of work is done again: its worker died" in notes.texts
    assert "measuring on 2 workers" in notes.texts, "as many as fit, where the run had more"
    inline = Path(shutil.copytree(finished, storage.parent / "inline"))
    assert found == analysed(inline, "connectivity", "inline", [0, 1])
    pieces = [json.loads(line)["item"] for line in
              (storage / "runs/tiny/analysis/connectivity-items.jsonl").read_text().splitlines()]
    assert len(pieces) == len(set(pieces)) == 7, "each is kept once"


@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_piece_is_the_error_of_inline(storage: Path) -> None:
    rundir = RunDir(storage, "tiny")
    [first, *_] = rundir.read_rounds()[1]["artifacts"]["particles"]
    delete_state(ArtifactStore(rundir.place), first["name"])
    notes, errors = Notes(), []
    for executor in ("inline", "ray"):
        with pytest.raises(UserError) as caught:
            analysed(storage, "particles", executor, [0, 1], notes=notes, num_gpus=2.0)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "no longer in the storage" in errors[0]
    assert "measuring on 1 worker" in notes.texts, "the node has two GPUs"


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(storage: Path, finished: Path) -> None:
    arguments = ["analyze", "landscape", "tiny", "--round", "1", "--storage", str(storage)]
    process = subprocess.Popen(
        [sys.executable, "-m", "swamp_ray", *arguments, "--executor", "ray"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    kept = storage / "runs/tiny/analysis/landscape-items.jsonl"
    wait_for(lambda: kept.exists() and kept.read_text().count("\n") > 0, process)
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.strip().splitlines()[-1].startswith("swamp: stopped. Run the same command again")
    assert "Traceback" not in output
    end = time.monotonic() + 15
    while any(os.path.exists(f"/proc/{pid}") for pid in below):
        assert time.monotonic() < end, "processes are left behind"
        time.sleep(0.1)
    num_kept = kept.read_text().count("\n")
    assert 0 < num_kept < 16
    goes_on = CliRunner().invoke(main, arguments)
    assert f"16 pieces of work, {num_kept} of them measured before" in goes_on.output
    whole = analysed(finished, "landscape", "inline", [1])
    assert json.loads((storage / "runs/tiny/analysis/landscape.json").read_text())["rows"] == whole
