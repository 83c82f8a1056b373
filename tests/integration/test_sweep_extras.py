"""Searches and trackers in real runs of Ray Tune, with a stand-in for the training: it reports as a setting does."""

from __future__ import annotations

import importlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting, Sweep
from swamp_ray.sweep.schedulers import make_scheduler
from swamp_ray.sweep.search import InSpace, make_search
from swamp_ray.sweep.trackers import make_callbacks

METRIC = "average/validation/accuracy"
SPACE = {"training.lr": {"uniform": [0.0, 1.0]}, "pruning.scope": {"choice": ["global", "layer"]},
         "size & rate": {"choice": {"small/slow": {"training.batch_size": 32}, "large": {"training.batch_size": 64}}}}
BEST = 0.3


@pytest.fixture(scope="module", autouse=True)
def quiet_tune(cluster: None) -> Iterator[None]:
    """The shared Ray of two cores, without Tune's newer output."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AIR_NEW_OUTPUT", "0")
        yield


def accuracy(setting: Setting, milestone: int = 3) -> float:
    """A peak at BEST, lower with each milestone, as with growing sparsity."""
    bonus = 0.1 * (setting["pruning.scope"] == "global") + 0.1 * (setting["size & rate"] == "small/slow")
    return 0.7 + bonus - abs(setting["training.lr"] - BEST) - 0.05 * milestone


def trainable(folder: Path) -> Any:
    """Reports three milestones and that it is complete; then leaves a mark."""

    def setting(config: dict[str, Any]) -> None:
        bonus = 0.1 * (config["pruning.scope"] == "global") + 0.1 * (config["size & rate"] == "small/slow")
        peak = 0.7 + bonus - abs(config["training.lr"] - 0.3)
        for milestone in (1, 2, 3, 4):
            tune.report({"milestone": milestone, "sparsity": 0.5 + 0.1 * milestone, f"{METRIC}_se": 0.01,
                         METRIC: peak - 0.05 * min(milestone, 3), **({"complete": True} if milestone == 4 else {})})
        time.sleep(0.1)
        (folder / f"{config['training.lr']}").touch()

    return tune.with_resources(setting, {"cpu": 1})


def a_sweep(**values: Any) -> Sweep:
    return build_sweep({"name": "trying", "base": {}, "space": SPACE, "at_sparsity": [0.6, 0.7, 0.8]} | values)


class Silent(tune.ProgressReporter):
    """Shows nothing."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None:
        return None


def fit(sweep: Sweep, folder: Path, num_samples: int, concurrent: int = 1, search: Any = None) -> list[Any]:
    """The results of all settings, in the order in which they were suggested."""
    search = search or make_search(sweep, [])
    order: list[Setting] = []
    suggest = search.suggest

    def noted(trial_id: str) -> Any:
        found = suggest(trial_id)
        if isinstance(found, dict):
            order.append(found)
        return found

    search.suggest = noted
    folder.mkdir(exist_ok=True)
    # Reuse saves a second for each setting. It is safe only because the stand-in has nothing to tidy up: Ray gives a
    # stopped function two seconds, and fails the next setting on that actor if it takes longer.
    tuner = tune.Tuner(
        trainable(folder),
        tune_config=tune.TuneConfig(search_alg=search, scheduler=make_scheduler(sweep, 3), num_samples=num_samples,
                                    max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(name=sweep.name, storage_path=str(folder / "tune"), verbose=0,
                                  progress_reporter=Silent(), callbacks=make_callbacks(sweep)))
    grid = tuner.fit()
    results = [grid[index] for index in range(len(grid))]
    assert not any(result.error for result in results)
    return sorted(results, key=lambda result: order.index(result.config or {}))


def settings_of(results: list[Any]) -> list[Setting]:
    return [result.config for result in results]


def test_tensorboard_files_hold_the_milestones(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = fit(a_sweep(num_samples=2), tmp_path, 2, concurrent=2)
    assert settings_of(results) == a_sweep(num_samples=2).settings()
    for result in results:
        events = EventAccumulator(result.path)
        events.Reload()
        values = [event.value for event in events.Scalars(f"ray/tune/{METRIC}")]
        assert values == pytest.approx([accuracy(result.config, milestone) for milestone in (1, 2, 3, 3)])
        assert [event.value for event in events.Scalars("ray/tune/milestone")] == [1, 2, 3, 4]


SEARCHES = pytest.mark.parametrize(("name", "options"), [
    ("optuna", {"n_startup_trials": 6}),
    ("optuna", {"sampler": "GPSampler", "n_startup_trials": 6}),
    ("hyperopt", {"n_initial_points": 6}),
], ids=["optuna", "optuna-gp", "hyperopt"])


def alone(sweep: Sweep, num_samples: int) -> list[float]:
    """The accuracies that a search finds, without Ray and one after the other."""
    search: Any = make_search(sweep, [])
    found: list[float] = []
    for trial in map(str, range(num_samples)):
        setting = search.suggest(trial)
        found.append(accuracy(setting))
        search.on_trial_complete(trial, {"milestone": 4, METRIC: accuracy(setting), "complete": True})
    return found


@pytest.mark.extras
@SEARCHES
def test_a_search_finds_the_better_region(name: str, options: dict[str, Any]) -> None:
    # One search of 20 settings can have bad luck, even a good one: the mean over seeds has not.
    found = [alone(a_sweep(search={"name": name, "seed": seed, "options": options}), 20) for seed in range(6)]
    begun, learned = (sum(sum(part) for part in parts) / 36
                      for parts in ([one[:6] for one in found], [one[-6:] for one in found]))
    assert learned > begun + 0.05


def told(search: Any, name: str) -> list[float]:
    """The values that Optuna or HyperOpt know."""
    if name == "optuna":
        return [trial.value for trial in search._inner._ot_study.trials if trial.value is not None]
    return [-loss for loss in search._inner._hpopt_trials.losses() if loss is not None]


@pytest.mark.extras
@SEARCHES
def test_after_a_restart_a_search_learns_again_of_what_is_recorded(name: str, options: dict[str, Any],
                                                                  tmp_path: Path) -> None:
    sweep = a_sweep(search={"name": name, "options": options})
    first = settings_of(fit(sweep, tmp_path / "first", 8))
    search = make_search(sweep, first)
    second = settings_of(fit(sweep, tmp_path / "second", 12, search=search))
    assert second[:8] == first
    assert not any(setting in first for setting in second[8:])
    assert sorted(told(search, name)) == pytest.approx(sorted(map(accuracy, second)))


@pytest.mark.extras
@pytest.mark.parametrize("name", ["optuna", "hyperopt"])
def test_a_restart_does_not_draw_the_first_settings_again(name: str) -> None:
    sweep = a_sweep(search={"name": name})
    first: Any = make_search(sweep, [])
    drawn = [first.suggest(str(index)) for index in range(4)]
    assert drawn == [again.suggest(str(index)) for again in [make_search(sweep, [])] for index in range(4)]
    second: Any = make_search(sweep, drawn[:2])
    assert [second.suggest(str(index)) for index in range(2)] == drawn[:2]
    assert not any(second.suggest(str(index)) in drawn for index in range(2, 6))


@pytest.mark.extras
def test_optuna_counts_what_asha_stops_as_pruned_and_complete_settings_end_by_themselves(tmp_path: Path) -> None:
    states_of = importlib.import_module("optuna").trial.TrialState
    sweep = a_sweep(search={"name": "optuna"}, scheduler={"name": "asha"})
    search: Any = make_search(sweep, [])
    results = fit(sweep, tmp_path, 12, search=search)
    complete = [result for result in results if result.metrics.get("complete")]
    assert 0 < len(complete) < len(results)
    assert {path.name for path in tmp_path.iterdir() if path.name != "tune"} == {
        str(result.config["training.lr"]) for result in complete}
    assert isinstance(search, InSpace)
    inner: Any = search._inner
    states = [trial.state for trial in inner._ot_study.trials]
    assert states.count(states_of.COMPLETE) == len(complete)
    assert states.count(states_of.PRUNED) == len(results) - len(complete)
    stopped = {result.config["training.lr"]: result.metrics["milestone"] for result in results
               if result not in complete}
    assert {trial.params["training.lr"]: trial.last_step for trial in inner._ot_study.trials
            if trial.state == states_of.PRUNED} == stopped


def test_a_soft_median_lets_the_paused_finish(tmp_path: Path) -> None:
    sweep = a_sweep(num_samples=6, scheduler={"name": "median", "options": {"min_samples_required": 1,
                                                                            "hard_stop": False}})
    assert all(result.metrics["complete"] for result in fit(sweep, tmp_path, 6, concurrent=2))


# MLflow 3.17's models use an option that SQLAlchemy 2.1 has deprecated.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
@pytest.mark.extras
def test_mlflow_holds_runs_params_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = a_sweep(num_samples=3, callbacks={"mlflow": {"tracking_uri": "sqlite:///mlflow.db", "tags": {"team": "a"}}})
    results = fit(sweep, tmp_path / "sweep", 3, concurrent=2)
    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("trying").experiment_id])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["team"] for run in runs} == {"a"}
    by_lr = {float(run.data.params["training.lr"]): run for run in runs}
    for setting in settings_of(results):
        run = by_lr[setting["training.lr"]]
        assert run.data.params == {"training.lr": str(setting["training.lr"]), "size _ rate": setting["size & rate"],
                                   "pruning.scope": setting["pruning.scope"]}
        assert set(run.data.metrics) == {"milestone", "sparsity", METRIC, f"{METRIC}_se", "complete"}
        history = {one.step: one.value for one in client.get_metric_history(run.info.run_id, METRIC)}
        assert history == pytest.approx({milestone: accuracy(setting, min(milestone, 3)) for milestone in (1, 2, 3, 4)})


def wandb_records(file: Path) -> Iterator[Any]:
    """What W&B's local file holds: LevelDB's log format behind a header of seven bytes."""
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at:at + 7])
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield proto.Record.FromString(whole)
            whole = b""


@pytest.mark.extras
def test_wandb_offline_holds_config_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep = a_sweep(num_samples=1, callbacks={"wandb": {"mode": "offline", "dir": str(tmp_path / "out")}})
    setting = settings_of(fit(sweep, tmp_path / "sweep", 1))[0]
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in wandb_records(file):
        for update in (*record.run.config.update, *record.config.update):
            config["/".join([update.key, *update.nested_key]).strip("/")] = json.loads(update.value_json)
        if record.HasField("history"):
            history.append({item.key or item.nested_key[0]: json.loads(item.value_json)
                            for item in record.history.item})
        if record.HasField("run"):
            assert (record.run.project, record.run.run_group) == ("trying", "trying")
    assert {name: config[name] for name in setting} == setting
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    assert [row[METRIC] for row in history] == pytest.approx([accuracy(setting, min(step, 3)) for step in (1, 2, 3, 4)])
