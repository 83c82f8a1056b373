"""Runs whose mask changes within their training, from config to ticket: inline, killed, damaged, on Ray, refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from swamp_ray import load_ticket
from swamp_ray.cli import main
from swamp_ray.launch import Run, run
from swamp_ray.run.disk_space import estimate
from swamp_ray.run.prepare import prepare
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.own_masks import MASK_FILE, read_own_mask
from tests.faults import epoch_seed
from tests.helpers import TINY, artifacts_of, ticket_digests, tiny, wait_for

ONE = {"dense__length": 0, "particles__count": 1, "averaging__within": "none", "pruning__updates__every": "2 steps"}
METHODS: dict[str, dict[str, Any]] = {
    "rigl": {**ONE, "pruning__when": "dynamic", "pruning__scope": "erk"},
    "set": {**ONE, "pruning__when": "dynamic", "pruning__scope": "uniform", "pruning__updates__grow": "random"},
    "gradual": {**ONE, "pruning__when": "gradual"},
    "one shot": {**ONE, "pruning__when": "gradual", "pruning__updates__begin": 0.75, "dense__length": 1},
    "replicas": {**ONE, "pruning__when": "dynamic", "pruning__scope": "erk", "particles__count": 3,
                 "averaging__within": "swa", "averaging__start": 0.8, "averaging__every": "1 steps"},
}


def own_mask(done: Run) -> np.ndarray:
    """The mask that is stored with the only particle's result."""
    store = ArtifactStore(done.rundir.place)
    manifest = store.find(done.records[0].artifacts["particles"][0]["name"])
    assert manifest is not None
    found = read_own_mask(store, manifest, done.prepared.layout.num_prunable)
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_ticket_has_the_mask_that_training_ended_with(tmp_path: Path, method: str) -> None:
    config = tiny(tmp_path, **METHODS[method])
    done = run(config)
    prepared = prepare(config)
    [record] = done.records
    num = prepared.layout.num_prunable
    assert record.survivors == int(0.25 * num + 0.5)
    mask = own_mask(done)
    assert int(mask.sum()) == record.survivors
    assert not np.array_equal(mask, prepared.first_mask)
    ticket = load_ticket(tmp_path / record.ticket)
    flat = np.concatenate([ticket.masks[layer.name].numpy().reshape(-1) for layer in prepared.layout.layers])
    assert np.array_equal(flat, mask)
    for layer in prepared.layout.layers:
        assert record.layer_densities[layer.name] == pytest.approx(float(mask[layer.span].mean()))
        weight = np.asarray(ticket.state[layer.name]).reshape(-1)
        assert not weight[~mask[layer.span]].any()
    # What a plan counts and names beforehand is what is there.
    assert estimate(prepared).present_bytes > 0
    again = run(config)
    attempt = json.loads(Path(again.rundir.run_json.location).read_text())["attempts"][-1]
    assert attempt["trained"] == 0
    assert again.records == done.records


@pytest.mark.parametrize("method", ["rigl", "replicas"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, method: str) -> None:
    longer = {**METHODS[method], "round__length": 60}
    run(tiny(tmp_path / "undisturbed", **longer))
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny(tmp_path / "results", **longer).model_dump_json())
    path.write_text(yaml.safe_dump(json.loads(path.read_text())))
    command = [sys.executable, "-m", "swamp_ray", "run", str(path), "--storage", str(tmp_path / "results")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = tmp_path / "results" / "artifacts"
    wait_for(lambda: any(checkpoints.rglob("run.pt")) or any(checkpoints.rglob("*checkpoint*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    done = CliRunner().invoke(main, command[3:])
    assert done.exit_code == 0, done.output
    assert ticket_digests(tmp_path / "results") == ticket_digests(tmp_path / "undisturbed")
    [log] = (tmp_path / "results/runs/tiny/logs/attempt-2").glob("round-0-particle-0.log")
    assert ", from step " in log.read_text(), "from a checkpoint"


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("method", ["rigl", "replicas"])
def test_a_worker_on_ray_that_is_killed_changes_no_byte(tmp_path: Path, method: str) -> None:
    faulty = {**METHODS[method], "task__name": "tests.faults:Faulty", "execution__num_workers": 1}
    marker = tmp_path / "marker"
    options = {"kills": [epoch_seed(0, 0, epoch=1)], "marker": str(marker)}
    marker.touch()
    run(tiny(tmp_path / "inline", **faulty, task__options=options))
    marker.unlink()
    done = run(tiny(tmp_path / "ray", **faulty, task__options=options, execution__executor="ray"))
    assert marker.exists(), "a worker was killed"
    assert ticket_digests(tmp_path / "ray") == ticket_digests(tmp_path / "inline")
    attempt = json.loads(Path(done.rundir.run_json.location).read_text())["attempts"][0]
    assert [one["kind"] for one in attempt["incidents"]] == ["machine"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.nightly
def test_ranks_change_the_mask_alike(tmp_path: Path) -> None:
    done = run(tiny(tmp_path, **METHODS["rigl"], execution__executor="ray", particle__num_workers=2))
    [record] = done.records
    assert int(own_mask(done).sum()) == record.survivors


def test_a_damaged_mask_is_found_and_its_training_done_again(tmp_path: Path) -> None:
    config = tiny(tmp_path, **METHODS["set"])
    done = run(config)
    before = ticket_digests(tmp_path)
    store = ArtifactStore(tmp_path)
    particle = store.find(done.records[0].artifacts["particles"][0]["name"])
    assert particle is not None
    path = artifacts_of(store) / particle.name[:2] / particle.name / f"{particle.files[MASK_FILE].sha256}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    again = run(config)
    attempt = json.loads(Path(again.rundir.run_json.location).read_text())["attempts"][-1]
    assert attempt["trained"] == 1
    assert again.records == done.records
    assert ticket_digests(tmp_path) == before


REFUSED = [
    ({"pruning__updates__every": "3 steps"}, "rounds", "pruning.updates needs pruning.when: gradual or dynamic"),
    ({"pruning__scope": "global"}, "rigl", "pruning.scope must be erk or uniform"),
    ({"dense__length": 1}, "rigl", "rewind.weights must be init, or dense.length 0"),
    ({"pruning__score": "random"}, "rigl", "pruning.score must be magnitude"),
    ({"pruning__updates__begin": 0.8}, "gradual", "pruning.updates.begin must not lie after"),
    ({"pruning__updates__drop_share": 0.2}, "gradual", "pruning.updates.drop_share needs pruning.when: dynamic"),
    ({"rewind__weights": "none"}, "gradual", "rewind.weights must be init or t0"),
    ({"round__schedule": "retrain"}, "gradual", "round.schedule must be full"),
    ({"particles__schedule": [{"sparsity": 0.5, "count": 2}]}, "rigl", "particles.schedule has no meaning"),
    ({"pruning__structure": "2:4", "pruning__target": 0.5}, "rigl", "pruning.structure must be none"),
    ({"particles__fork_at": 0.5}, "gradual", "particles.fork_at must be 0"),
    ({"particles__combine": "best"}, "replicas", "particles.combine must be average"),
    ({"particles__vary__lr": [0.1, 0.2]}, "replicas", "particles.vary must be empty"),
    ({"particles__on_failure": "drop"}, "replicas", "particles.on_failure: drop has no meaning"),
    ({"particles__quorum": 2, "particles__deadline_s": 5}, "replicas", "particles.quorum has no meaning"),
    ({"execution__particles_per_worker": 2}, "replicas", "execution.particles_per_worker must be 1"),
    ({"execution__executor": "ray", "particle__num_workers": 2}, "replicas", "particle.num_workers must be 1"),
    ({"averaging__within": "swa", "averaging__start": 0.25}, "rigl", "averaging.start"),
    ({"pruning__updates__every": "2 epochs"}, "rigl", "long enough for one change of the mask"),
    ({"pruning__target": 0.0}, "rigl", "leaves every layer whole"),
    ({"pruning__updates__drop_share": 0.0001}, "rigl", "no layer would exchange a single weight"),
    ({"pruning__target": 0.999, "pruning__empty_layers": "refuse", "pruning__scope": "uniform"}, "rigl",
     "the first mask would leave no weight in"),
]


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(("values", "method", "words"), REFUSED)
def test_what_has_no_meaning_is_refused_before_any_work(
    tmp_path: Path, values: dict[str, Any], method: str, words: str, command: str
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    changed = {"averaging__every": "1 epochs", **METHODS.get(method, {}), **values}
    arguments = [f"{key.replace('__', '.')}={yaml.safe_dump(value, default_flow_style=True)}"
                 for key, value in changed.items()]
    sets = [text for argument in arguments for text in ("--set", argument)]
    result = CliRunner().invoke(main, [command, str(path), "--set", f"storage={tmp_path / 'results'}", *sets])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split()), result.output
    assert not (tmp_path / "results").exists()
