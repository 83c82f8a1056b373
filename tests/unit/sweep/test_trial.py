"""A trial without Tune: what it reports, what it asks for, and what it says that it failed of."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError, RayTaskError

from swamp_ray.config.sweep import RESERVED
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting, Sweep, label
from swamp_ray.errors import DivergedError, RunError, UserError
from swamp_ray.run.messages import RoundRecord
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.members import Milestone
from swamp_ray.sweep.trial import FreeSettings, Trials, anchored, plain_setting, reason_of, report_of, standard_error
from tests.helpers import TINY, folder_of, tiny

BASE: dict[str, Any] = {
    **TINY, "model": {"name": "mlp", "options": {"hidden": [8]}}, "round": {"length": 1},
    "averaging": {"within": "none"}, "particles": {"count": 2},
    "training": {"batch_size": 16, "lr": 0.05, "schedule": {"warmup": 0}},
    "execution": {"executor": "inline", "device": "cpu", "checkpoint_every": 0},
}
SETTING: Setting = {"pruning.target": 0.75}
Report = dict[str, Any]


def sweep_of(storage: Path, **values: Any) -> Sweep:
    return build_sweep({"name": "s", "storage": str(storage), "base": BASE, "seeds": 2,
                        "space": {"pruning.target": {"grid": [0.5, 0.75]}}, **values})


def trials(storage: Path, at_sparsity: Sequence[float] = (), **values: Any) -> Trials:
    return Trials(sweep_of(storage).member, (0, 1), "cpu", at_sparsity, count_workers=lambda _: 1,
                  **values)


def milestones(reports: Sequence[Report]) -> list[tuple[int, int, bool, bool]]:
    """Number and round of each, whether the setting is at its target, and whether it is over."""
    return [(one["milestone"], one["round"], one["complete"], one.get("done", False)) for one in reports]


def figures(reports: Sequence[Report]) -> list[Report]:
    """The metrics in reports."""
    return [{key: value for key, value in one.items() if "/" in key} for one in reports]


# Figures


def record(index: int, accuracy: float, loss: float = 1.0) -> RoundRecord:
    metrics = {"validation": {"accuracy": accuracy, "loss": loss}, "test": {"accuracy": accuracy / 2, "loss": loss}}
    return RoundRecord(
        round=index, sparsity=0.5, survivors=10, num_particles=2, average=metrics, particles=[metrics], mean=metrics,
        std={split: dict.fromkeys(values, 0.25) for split, values in metrics.items()}, layer_densities={}, spread=0.0,
        combined=[0], artifacts={}, ticket="t", emptied_layers=[], dropped=[])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_standard_error_is_the_deviation_of_a_sample_over_the_root_of_its_size(values: list[float]) -> None:
    expected = np.std(np.array(values), ddof=1) / np.sqrt(len(values))
    assert standard_error(values) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [0.5, math.inf]])
def test_there_is_no_error_of_one_value_or_of_none(values: list[float]) -> None:
    assert math.isnan(standard_error(values))


def test_a_report_has_means_over_seeds_and_their_errors() -> None:
    accuracies, losses = [0.5, 0.75, 0.7], [1.0, 3.0, 2.5]
    records = [record(4, *values) for values in zip(accuracies, losses, strict=True)]
    found = report_of(Milestone(2, 4, 0.5, records))
    assert {key: found[key] for key in ("milestone", "round", "sparsity", "num_seeds", "complete")} == {
        "milestone": 2, "round": 4, "sparsity": 0.5, "num_seeds": 3, "complete": False}
    assert found["average/validation/accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["average/test/accuracy"] == pytest.approx(np.mean(accuracies) / 2)
    assert found["particles_mean/validation/loss"] == pytest.approx(np.mean(losses))
    assert found["average/validation/loss_se"] == pytest.approx(np.std(losses, ddof=1) / np.sqrt(3))
    assert (found["particles_std/test/loss"], found["particles_std/test/loss_se"]) == (0.25, 0.0)
    assert len([key for key in found if "/" in key]) == 2 * 3 * 2 * 2


def test_a_report_of_one_seed_has_no_error() -> None:
    found = report_of(Milestone(1, 0, 0.0, [record(0, 0.5)]))
    assert found["average/validation/accuracy"] == 0.5
    assert math.isnan(found["average/validation/accuracy_se"])


def test_values_of_numpy_become_plain_ones() -> None:
    found = plain_setting({"a": np.float64(0.5), "b": np.int64(3), "c": "text", "d": [1], "e": None})
    assert found == {"a": 0.5, "b": 3, "c": "text", "d": [1], "e": None}
    assert [type(value) for value in found.values()] == [float, int, str, list, type(None)]


# Why a trial failed


def wrapped(cause: Exception) -> RayTaskError:
    """An error as it comes out of another process."""
    return RayTaskError("train", "Traceback ...\n  File ...\n", cause).as_instanceof_cause()


@pytest.mark.parametrize(("error", "text"), [
    (UserError("rate must lie in (0, 1)", got=2, where="pruning.rate"),
     "pruning.rate: rate must lie in (0, 1), but got 2."),
    (wrapped(RunError("round 0, particle 1 diverged\n")), "round 0, particle 1 diverged"),
    (wrapped(wrapped(DivergedError("round 0, particle 1", 0, 3, 0.1, math.nan))),
     "round 0, particle 1 diverged: the loss was nan at step 3 (epoch 0, learning rate 0.1). Lower training.lr, "
     "lengthen the warm-up, or set training.clip_norm."),
    (RayActorError(), "the process that drove it was lost"),
    (wrapped(ValueError("something\nelse ")), "ValueError: else"),
    (KeyError("x"), "KeyError: 'x'"),
    (MemoryError(), "MemoryError"),
    (None, "NoneType"),
])
def test_a_reason_is_in_the_words_of_what_failed(error: BaseException | None, text: str) -> None:
    assert reason_of(error) == text


# Settings and their runs


def test_paths_are_absolute_for_whoever_works_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = anchored(tiny("results", data__root="data", start_from={"path": "tickets/t.safetensors"}))
    assert found.storage == open_place(str(tmp_path / "results")).uri
    assert found.data.root == str(tmp_path / "data")
    assert found.start_from is not None
    assert found.start_from.path == str(tmp_path / "tickets/t.safetensors")
    assert anchored(found) == found
    assert anchored(tiny("results", data__root="~/data")).data.root == str(tmp_path / "home/data")
    assert anchored(tiny("results")).data.root is None
    remote = anchored(tiny("results", start_from={"path": "s3://bucket/t.safetensors"}))
    assert remote.start_from is not None
    assert remote.start_from.path == "s3://bucket/t.safetensors"
    monkeypatch.chdir("/")
    assert folder_of(RunDir(found.storage, "tiny")) == tmp_path / "results/runs/tiny"


def test_a_setting_of_a_tuner_of_ones_own_names_options(tmp_path: Path) -> None:
    free = FreeSettings(tiny(tmp_path))
    member = free.member({"training.lr": 0.5, "pruning.target": 0.5}, 3)
    assert member == tiny(tmp_path, name="tiny-lr0.5-target0.5-seed3", seed=3, training__lr=0.5, pruning__target=0.5)
    with pytest.raises(UserError, match=r"param_space\['training\.lrr'\]: there is no such option\. Did you mean 'lr'"):
        free.member({"training.lrr": 0.5}, 0)
    with pytest.raises(UserError, match=r"training\.lr: must be greater than 0, but got -1"):
        free.member({"training.lr": -1}, 0)


@pytest.mark.parametrize("key", [*RESERVED, "keep.particles", "execution"])
def test_a_tuner_of_ones_own_cannot_set_what_trials_set_themselves(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as caught:
        FreeSettings(tiny(tmp_path)).member({key: 0}, 0)
    advice = RESERVED.get(key, "Set it in the base config.")
    assert str(caught.value) == f"param_space[{key!r}]: this option cannot be swept. {advice}"


def test_a_tuner_of_ones_own_is_refused_particles_of_several_ranks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="particles of a sweep train in one process each, but got 2"):
        FreeSettings(tiny(tmp_path, execution__executor="ray", particle__num_workers=2))


# Resources


def asked(storage: Path, base: dict[str, Any], device: str = "cpu", workers: int = 3,
          **values: Any) -> tuple[float, list[dict[str, float]]]:
    """CPUs of the process that drives a trial, and all bundles that are not empty."""
    sweep = build_sweep({"name": "s", "storage": str(storage), "base": {**BASE, "execution": base},
                         "space": {"pruning.target": {"grid": [0.75]}}})
    made = Trials(sweep.member, (0,), device, count_workers=lambda _: workers, **values)
    group = made.resources({"pruning.target": np.float64(0.75)})
    return group.head_cpus, group.bundles


def test_a_trial_asks_for_its_workers_and_for_nothing_itself(tmp_path: Path) -> None:
    ray = {"executor": "ray"}
    assert asked(tmp_path, ray) == (0, [{"CPU": 1.0}] * 3)
    assert asked(tmp_path, {**ray, "num_cpus": 2}, workers=1) == (0, [{"CPU": 2.0}])
    assert asked(tmp_path, ray, "cuda", 2) == (0, [{"CPU": 1.0, "GPU": 1.0}] * 2)
    assert asked(tmp_path, {**ray, "num_gpus": 0.5, "num_cpus": 0}, "cuda", 2) == (0, [{"GPU": 0.5}] * 2)
    assert asked(tmp_path, {**ray, "num_cpus": 0}, workers=1) == (0, [{"CPU": 0.01}]), "Ray takes no empty group"


def test_labels_are_those_of_the_bundles(tmp_path: Path) -> None:
    """The process that drives the trial goes where nodes stay; there may be no CPU to give."""
    labels = {"labels": {"market": "spot"}, "stable_labels": {"role": "head"}, "accelerator_type": "H100"}
    sweep = build_sweep({"name": "s", "storage": str(tmp_path), "base": {**BASE, "execution": {
        "executor": "ray", "placement": "pack", **labels}}, "space": {"pruning.target": {"grid": [0.75]}}})
    group = Trials(sweep.member, (0,), "cpu", count_workers=lambda _: 2).resources({"pruning.target": 0.75})
    workers = {"market": "spot", "ray.io/accelerator-type": "H100"}
    assert group.bundles[1:] == [{"CPU": 1.0}] * 2
    assert not {"CPU", "GPU"} & group.bundles[0].keys()
    assert group._kwargs["bundle_label_selector"] == [{"role": "head"}, workers, workers]
    assert group.strategy == "PACK"


def test_a_trial_that_trains_in_its_own_process_asks_for_that(tmp_path: Path) -> None:
    assert asked(tmp_path, {"executor": "inline", "device": "cpu"}) == (1.0, [{"CPU": 1.0}])
    assert asked(tmp_path, {"executor": "inline", "num_cpus": 0}) == (0.01, [{"CPU": 0.01}])


def test_a_finished_setting_asks_for_next_to_nothing_as_long_as_it_is_all_there(tmp_path: Path) -> None:
    done = {"target0.75": {"status": "complete"}}
    ray = {"executor": "ray"}
    assert asked(tmp_path, ray, workers=1, recorded=done) == (0, [{"CPU": 1.0}]), "it has to be trained again"
    list(trials(tmp_path).reports(SETTING))
    assert asked(tmp_path, ray, recorded=done) == (0.01, [{"CPU": 0.01}])


# Reports


def test_a_trial_reports_its_milestones_and_then_that_it_is_over(tmp_path: Path) -> None:
    reports = list(trials(tmp_path).reports(SETTING))
    # At its target a setting is complete, so that no scheduler stops it there.
    assert milestones(reports) == [
        (1, 0, False, False), (2, 1, False, False), (3, 2, True, False), (4, 2, True, True)]
    stored = [RunDir(tmp_path, f"s-target0.75-seed{seed}").read_rounds() for seed in (0, 1)]
    for index, one in enumerate(reports[:3]):
        accuracies = [rounds[index]["average"]["validation"]["accuracy"] for rounds in stored]
        assert one["average/validation/accuracy"] == pytest.approx(np.mean(accuracies))
    assert figures(reports[3:]) == figures(reports[2:3])


def test_a_trial_that_is_stopped_gives_its_runs_back(tmp_path: Path) -> None:
    going = trials(tmp_path, pause=True).reports(SETTING)
    next(going)
    going.close()
    for seed in (0, 1):
        rundir = RunDir(tmp_path, f"s-target0.75-seed{seed}")
        assert (rundir.read_run() or {})["status"] == "stopped"
        assert rundir.held() is None
        assert len(rundir.read_rounds()) == 1


def test_tune_makes_a_step_of_each_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Outside of a Tuner it would make a folder in the user's home, and work in it.
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "tune"))
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    made = trials(tmp_path).trainable()({"pruning.target": np.float64(0.75)})
    found = []
    while not found or not found[-1].get("done"):
        found.append(made.train())
    assert [one["milestone"] for one in found] == [1, 2, 3, 4]
    assert made.reset({"pruning.target": 0.5})
    assert made.train()["sparsity"] == 0.0
    made.stop()
    assert RunDir(tmp_path, "s-target0.5-seed1").held() is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root in which a setting was carried to its end."""
    folder = tmp_path_factory.mktemp("trained")
    list(trials(folder).reports(SETTING))
    return folder


@pytest.fixture
def stored(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "stored"))


def again(storage: Path, at_sparsity: Sequence[float] = (), **entry: Any) -> list[Report]:
    """What the setting reports in a later attempt at its sweep, which knows that it is finished."""
    recorded = {label(SETTING): {"status": "complete", **entry}}
    return list(trials(storage, at_sparsity, recorded=recorded).reports(SETTING))


def num_attempts(storage: Path) -> int:
    return len(json.loads((storage / "runs/s-target0.75-seed0/run.json").read_text())["attempts"])


def test_what_is_finished_reports_the_same_again_and_is_not_touched(stored: Path) -> None:
    first = list(trials(stored).reports(SETTING))
    attempts = num_attempts(stored)
    found = again(stored)
    assert figures(found) == figures(first)
    assert milestones(found) == [(1, 0, True, False), (2, 1, True, False), (3, 2, True, False), (4, 2, True, True)]
    assert milestones(again(stored, at_sparsity=[0.3])) == [(1, 1, True, False), (2, 1, True, True)]
    assert num_attempts(stored) == attempts


def test_what_was_stopped_reports_as_far_as_it_came(stored: Path) -> None:
    assert milestones(again(stored, status="stopped", milestone=2)) == [(1, 0, False, False), (2, 1, False, True)]


def _without(path: Path, index: int) -> None:
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["round"] != index]
    path.write_text("".join(f"{line}\n" for line in lines))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "the last round is missing": lambda run: _without(run / "rounds.jsonl", 2),
    "a round in the middle is missing": lambda run: _without(run / "rounds.jsonl", 1),
    "no round is there": lambda run: (run / "rounds.jsonl").unlink(),
    "the run is not described": lambda run: (run / "run.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_what_is_not_all_there_any_more_is_made_whole_and_reported(stored: Path, damage: str, seed: int) -> None:
    first = again(stored)
    DAMAGES[damage](stored / f"runs/s-target0.75-seed{seed}")
    assert figures(again(stored)) == figures(first)
    assert len(RunDir(stored, f"s-target0.75-seed{seed}").read_rounds()) == 3


@pytest.mark.parametrize("status", ["complete", "stopped"])
def test_a_round_that_is_missing_is_not_mistaken_for_the_next_one(stored: Path, status: str) -> None:
    _without(stored / "runs/s-target0.75-seed1/rounds.jsonl", 1)
    found = again(stored, at_sparsity=[0.5], status=status, milestone=1)
    assert [one["round"] for one in found if one["milestone"] == 1] == [1]
    assert len(RunDir(stored, "s-target0.75-seed1").read_rounds()) == 3, "it was recorded once more"


def test_a_damaged_record_is_not_reported_but_named(stored: Path) -> None:
    path = stored / "runs/s-target0.75-seed1/rounds.jsonl"
    path.write_text(path.read_text().replace('"survivors": ', '"survivors": 1'))
    with pytest.raises(RunError, match=str(path)):
        again(stored)
