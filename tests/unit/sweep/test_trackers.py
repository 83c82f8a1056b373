"""The trackers of a sweep: what is refused before anything starts, and what they are shown."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError
from swamp_ray.sweep import trackers as tracking
from swamp_ray.sweep.trackers import absolute_uri, check_callbacks, make_callbacks, mlflow_name, tracked


def sweep(**callbacks: dict[str, Any]) -> Sweep:
    return build_sweep({"base": {}, "space": {"training.lr": {"choice": [0.1, 0.2]}}, "callbacks": callbacks})


def init(entity: str | None = None, project: str | None = None, dir: str | None = None, id: str | None = None,
         tags: list[str] | None = None, mode: str | None = None) -> None:
    """As wandb.init."""


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages seem to be installed."""
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))


def test_without_callbacks_there_are_none() -> None:
    assert make_callbacks(sweep()) == []


@pytest.mark.parametrize(("tracker", "options", "text"), [
    ("mlfow", {}, "callbacks: there is no such tracker, but got 'mlfow'. Did you mean 'mlflow'? There are: mlflow, "
                  "wandb. TensorBoard's files are always written."),
    ("mlflow", {"experiment": "x"}, "Did you mean 'experiment_name'? There are: tracking_uri, registry_uri"),
    ("wandb", {"tag": ["x"]}, "Did you mean 'tags'? There are: project, group, api_key_file, excludes"),
    ("wandb", {"id": "one"}, "callbacks.wandb: there is no such option, but got 'id'"),
    ("wandb", {"api_key": "abc123"}, "callbacks.wandb.api_key: a secret does not belong into a config. Configs are "
                                     "stored with the results. Set WANDB_API_KEY in the environment instead."),
    ("mlflow", {"tracking_token": "abc123"}, "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and"),
    ("mlflow", {"tags": {"db_password": "abc123"}}, "callbacks.mlflow.tags.db_password: a secret does not belong"),
    ("mlflow", {"tracking_uri": "https://me:abc123@mlflow.example"}, "callbacks.mlflow.tracking_uri: a password does"),
    ("mlflow", {"registry_uri": "postgresql://me:abc123@db/mlflow"}, "callbacks.mlflow.registry_uri: a password does"),
])
def test_mistakes_are_found_before_anything_starts(tracker: str, options: dict[str, Any], text: str,
                                                   packages: None) -> None:
    with pytest.raises(UserError) as caught:
        check_callbacks(sweep(**{tracker: options}))
    assert text in str(caught.value)
    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize(("tracker", "options"), [
    ("mlflow", {"tracking_uri": "https://mlflow.example", "experiment_name": "x", "tags": {"team": "a"}}),
    ("wandb", {"project": "x", "entity": "team", "api_key_file": "~/key", "mode": "offline", "tags": ["token budget"]}),
])
def test_right_options_pass(tracker: str, options: dict[str, Any], packages: None) -> None:
    check_callbacks(sweep(**{tracker: options}))


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_missing_package_comes_with_the_command(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=rf"needs the package {tracker}.*pip install 'swamp_ray\[{tracker}\]'"):
        check_callbacks(sweep(**{tracker: {}}))


@pytest.mark.parametrize(("given", "meant"), [
    ("mlruns", "{here}/mlruns"),
    ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
    ("file:mlruns", "file:{here}/mlruns"),
    ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ("file:///data/mlruns", "file:///data/mlruns"),
    ("/data/mlruns", "/data/mlruns"),
    ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ("databricks", "databricks"),
])
def test_uris_mean_the_same_in_every_folder(given: str, meant: str, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri(given) == meant.format(here=tmp_path)


def test_a_tracker_is_shown_the_sweeps_own_numbers() -> None:
    result = {"milestone": 2, "sparsity": 0.9, "average/validation/accuracy": 0.8, "complete": True, "done": False,
              "training_iteration": 2, "pid": 77, "timestamp": 5, "time_total_s": 1.5, "node_ip": "10.0.0.1",
              "trial_id": "12345e67", "hostname": "x", "config": {"training.lr": 0.1}, "label": "lr0.1"}
    assert tracked(result) == {"milestone": 2.0, "sparsity": 0.9, "average/validation/accuracy": 0.8, "complete": 1.0}


@pytest.mark.parametrize(("name", "taken"), [
    ("average/validation/accuracy", "average/validation/accuracy"),
    ("pruning.target", "pruning.target"),
    ("size & rate (both)", "size _ rate _both_"),
])
def test_names_for_mlflow(name: str, taken: str) -> None:
    assert mlflow_name(name) == taken


def test_a_tracker_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ConnectionError("no route to host")

    with caplog.at_level(logging.WARNING):
        tracking._lenient("MLflow", "a milestone of lr0.1", refuse)
    assert "MLflow did not take a milestone of lr0.1: no route to host" in caplog.text


def test_offline_needs_no_key_and_leaves_the_environment(packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("ray.air.integrations.wandb.wandb", SimpleNamespace(ensure_configured=lambda: None,
                                                                           api=SimpleNamespace(api_key=None)))
    made: Any = make_callbacks(sweep(wandb={"mode": "offline"}))[0]
    assert (made.project, made.group, made.kwargs["mode"]) == ("sweep", "sweep", "offline")
    assert "WANDB_MODE" not in os.environ
    with pytest.raises(UserError, match="WANDB_API_KEY, name an api_key_file, or set mode to offline"):
        make_callbacks(sweep(wandb={}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    from_environment: Any = make_callbacks(sweep(wandb={}))[0]
    assert from_environment.kwargs["mode"] == "offline"
    assert os.environ["WANDB_MODE"] == "offline"
