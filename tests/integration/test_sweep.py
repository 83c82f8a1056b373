"""Sweeps on a real local Ray with two CPUs: what they train, what they share, and what interrupts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from ray import tune

from swamp_ray import tune_trainable
from swamp_ray.cli import main
from swamp_ray.commands.sweep_progress import write_all
from swamp_ray.config.reading import load_config
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Setting, Sweep
from swamp_ray.errors import RunError, UserError
from swamp_ray.launch import run
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.members import Team
from swamp_ray.sweep.reporter import SweepReporter
from swamp_ray.sweep.run import SweepOutcome, run_sweep
from tests.helpers import TINY, command_line, descendants, ticket_digests, tiny, wait_for


def sweep_of(storage: Path, space: dict[str, Any], executor: str = "inline", base: dict[str, Any] | None = None,
             **values: Any) -> Sweep:
    run_of = {**TINY, **(base or {}), "execution": {**TINY["execution"], "executor": executor}}
    return build_sweep({"name": "s", "storage": str(storage), "base": run_of, "space": space, **values})


class Watcher(SweepReporter):
    """Remembers what became of settings, and calls a function at each change."""

    def __init__(self, at: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        self.states: list[tuple[str, str]] = []
        self.milestones: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._at = at

    def setting_changed(self, record: Mapping[str, Any]) -> None:
        self.states.append((record["label"], record["status"]))
        self._at(record)

    def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
        self.milestones[json.dumps(setting)] += 1

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def logged(storage: Path) -> Counter[str]:
    """How often each result was trained to its end, by its name, from the logs of the jobs."""
    found: Counter[str] = Counter()
    for path in storage.glob("runs/*/logs/*/*.log"):
        name = ""
        for line in path.read_text().splitlines():
            if ", result " in line:
                name = line.rpartition(" ")[2]
            if ": finished, " in line:
                found[name] += 1
    return found


def members(outcome: SweepOutcome) -> list[str]:
    return [name for record in outcome.records.values() for name in record["runs"]]


@pytest.fixture(scope="module", params=[
    pytest.param([3], id="targets"), pytest.param([1, 3], id="targets and counts", marks=pytest.mark.nightly)])
def grid(cluster: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
         ) -> tuple[Sweep, SweepOutcome]:
    """A sweep on Ray's workers that is finished; it is only read."""
    space = {"pruning.target": {"grid": [0.5, 0.75]}, "particles.count": {"grid": request.param}}
    sweep = sweep_of(tmp_path_factory.mktemp("grid"), space, "ray", seeds=2)
    return sweep, run_sweep(sweep)


def test_a_grid_trains_exactly_the_distinct_particles_and_each_member_is_a_run(
    grid: tuple[Sweep, SweepOutcome], tmp_path: Path
) -> None:
    sweep, outcome = grid
    swept = Path(sweep.base.storage)
    assert {record["status"] for record in outcome.records.values()} == {"complete"}
    plan = outcome.plan
    counts = {int(setting["particles.count"]) for setting in sweep.settings()}
    # Of each seed two and three rounds. Round 0 is the same three particles for all settings, and round 1 of one count
    # the same for both targets.
    later = sum(counts)
    assert (plan.named("particle"), plan.num_distinct("particle")) == (2 * 5 * later, 2 * (3 + later + later))
    trained = logged(swept)
    assert set(trained.values()) == {1}
    assert len(trained) == outcome.trained == plan.num_distinct("particle") + plan.num_distinct("dense")
    for target, count in ((0.75, max(counts)), (0.5, min(counts))):
        setting = {"pruning.target": target, "particles.count": count}
        member = sweep.member(setting, 1)
        stored = swept / "runs" / str(member.name) / "config.yaml"
        alone = load_config(stored, [f"storage={tmp_path / 'alone'}", "execution.executor=inline"])
        run(alone)
        digests = ticket_digests(tmp_path / "alone", str(alone.name))
        assert digests == ticket_digests(swept, str(member.name))
        assert len(digests) == len(RunDir(tmp_path / "alone", str(alone.name)).read_rounds())
    write_all(outcome.sweepdir)
    frame = pd.read_parquet(swept / "sweeps/s/results.parquet")
    assert len(frame) == sum(len(RunDir(swept, name).read_rounds()) for name in members(outcome))


@pytest.mark.usefixtures("cluster")
def test_asha_stops_what_is_behind_at_a_milestone_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    """The first three learn nothing, at a rate of almost 0; with one setting at a time the best comes last but one."""
    space = {"training.lr": {"grid": [0.05, 1e-7, 2e-7, 0.04]}, "pruning.target": {"grid": [0.75]}}
    sweep = sweep_of(tmp_path, space, seeds=2, metric="average/validation/loss", mode="min", at_sparsity=[0.0, 0.5],
                     scheduler={"name": "asha"}, execution={"max_concurrent": 1})
    first = Watcher()
    outcome = run_sweep(sweep, first)
    states = {key: record["status"] for key, record in outcome.records.items()}
    rates = {record["setting"]["training.lr"]: record["status"] for record in outcome.records.values()}
    assert rates[0.05] == "complete"
    assert rates[1e-7] == rates[2e-7] == "stopped"
    for record in outcome.records.values():
        for name in record["runs"]:
            rundir = RunDir(tmp_path, name)
            rounds = rundir.read_rounds()
            assert rundir.held() is None, "leases are given back"
            # It was held at the milestone: nothing of the next round has begun.
            assert len(rounds) == (3 if record["status"] == "complete" else record["milestone"])
            assert max(line["round"] for line in rundir.read_results()) == len(rounds) - 1
    before = logged(tmp_path)
    again = Watcher()
    assert {key: one["status"] for key, one in run_sweep(sweep, again).records.items()} == states
    assert logged(tmp_path) == before
    assert not again.states, "what was finished only reports again, for whom the scheduler may compare with it"


@pytest.mark.usefixtures("cluster")
def test_a_setting_that_fails_is_shown_and_spoils_nothing(tmp_path: Path) -> None:
    space = {"training.lr": {"grid": [1e30, 0.05]}, "averaging.start": {"grid": [0.5, 0.9]}}
    watcher = Watcher()
    outcome = run_sweep(sweep_of(tmp_path, space), watcher)
    found = {(record["setting"]["training.lr"], record["setting"]["averaging.start"]): record
             for record in outcome.records.values()}
    assert found[0.05, 0.5]["status"] == "complete"
    assert found[1e30, 0.5]["status"] == "failed"
    assert "diverged" in found[1e30, 0.5]["reason"]
    assert "Traceback" not in found[1e30, 0.5]["reason"]
    assert found[0.05, 0.9]["status"] == "failed"
    assert "none would be taken" in found[0.05, 0.9]["reason"]
    assert any("2 settings cannot run" in text for text in watcher.warnings)
    assert len(outcome.failed) == 3
    again = run_sweep(sweep_of(tmp_path, space), Watcher())
    assert {key: one["status"] for key, one in again.records.items()} == {
        key: one["status"] for key, one in outcome.records.items()}


@pytest.mark.usefixtures("cluster")
def test_a_trial_whose_process_is_killed_is_taken_up_again(tmp_path: Path) -> None:
    killed: list[int] = []

    class Kills(Watcher):
        def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
            if not killed:
                killed.extend(_trial_processes())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    watcher = Kills()
    sweep = sweep_of(tmp_path / "swept", {"pruning.target": {"grid": [0.9]}}, at_sparsity=[0.0], base={
        "round": {"length": 20}})
    outcome = run_sweep(sweep, watcher)
    assert killed
    assert [status for _, status in watcher.states] == ["running", "interrupted", "running", "complete"]
    assert set(logged(tmp_path / "swept").values()) == {1}
    (name,) = members(outcome)
    undisturbed = sweep_of(tmp_path / "alone", {"pruning.target": {"grid": [0.9]}}, base={"round": {"length": 20}})
    run(undisturbed.member({"pruning.target": 0.9}, 0))
    assert ticket_digests(tmp_path / "swept", name) == ticket_digests(tmp_path / "alone", name)


def _trial_processes() -> list[int]:
    lines = subprocess.run(["ps", "-eo", "pid,ppid,cmd"], capture_output=True, text=True, check=True).stdout
    own = set(descendants(os.getpid()))
    return [int(line.split()[0]) for line in lines.splitlines()
            if re.search(r"ray::(Swamp|ResourceTrainable)", line) and int(line.split()[0]) in own]


@pytest.mark.usefixtures("cluster")
def test_what_can_never_fit_is_refused_with_the_numbers_before_anything_starts(tmp_path: Path) -> None:
    space = {"particles.count": {"grid": [1, 2]}}
    sweep = sweep_of(tmp_path, space, "ray")
    greedy = build_sweep({**sweep.resolved(), "base": {**sweep.resolved()["base"], "execution": {
        "device": "cpu", "num_cpus": 3}}})
    with pytest.raises(UserError, match=r"no node can hold .* needs 3 CPU \(the largest node has 2"):
        run_sweep(greedy)
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.usefixtures("cluster")
def test_a_setting_without_any_worker_fails_after_the_deadline_and_can_be_resumed(tmp_path: Path) -> None:
    """The cluster has taken all workers away; what a cluster without room looks like from inside a trial."""
    config = tiny(tmp_path, execution__executor="ray", execution__num_cpus=50)
    with pytest.raises(RunError, match=r"no worker for \d+ s: each needs 50 CPU.*the same command goes on"):
        list(Team([config], "cpu", num_workers=1, worker_deadline_s=1.0).milestones())
    rundir = RunDir(tmp_path, "tiny")
    assert (rundir.read_run() or {})["status"] == "failed"
    assert rundir.held() is None
    assert len(list(Team([tiny(tmp_path)], "cpu").milestones())) == 3


@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_a_finished_setting_whose_records_were_lost_is_made_whole(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"particles.count": {"grid": [1]}}, seeds=2)
    first = run_sweep(sweep)
    one, other = members(first)
    before, trained = ticket_digests(tmp_path, one), logged(tmp_path)
    shutil.rmtree(tmp_path / "runs" / one)
    lines = (tmp_path / "runs" / other / "rounds.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs" / other / "rounds.jsonl").write_text("".join(lines[:-1]))
    watcher = Watcher()
    again = run_sweep(sweep, watcher)
    assert [status for _, status in watcher.states] == ["running", "complete"]
    assert ticket_digests(tmp_path, one) == before
    assert [len(RunDir(tmp_path, name).read_rounds()) for name in (one, other)] == [3, 3]
    assert set(logged(tmp_path)) <= set(trained), "everything was found"
    assert again.trained == first.trained


def test_another_space_under_the_same_name_is_refused_with_the_difference(grid: tuple[Sweep, SweepOutcome]) -> None:
    storage = Path(grid[0].base.storage)
    space = {"particles.count": grid[0].resolved()["space"]["particles.count"]}
    before = (storage / "sweeps/s/sweep.yaml").read_bytes()
    with pytest.raises(UserError, match=r"space\.pruning\.target\.grid: \[0\.5, 0\.75\] -> \[0\.5, 0\.9\]"):
        run_sweep(sweep_of(storage, {**space, "pruning.target": {"grid": [0.5, 0.9]}}, "ray", seeds=2))
    assert (storage / "sweeps/s/sweep.yaml").read_bytes() == before


@pytest.mark.usefixtures("cluster")
def test_a_tuner_of_the_users_own(tmp_path: Path) -> None:
    trainable, resources = tune_trainable({**TINY, "storage": str(tmp_path)}, seeds=(0, 1), at_sparsity=(0.5,))
    results = tune.Tuner(
        tune.with_resources(trainable, resources), param_space={"pruning.target": tune.grid_search([0.75, 0.5])},
        tune_config=tune.TuneConfig(metric="average/validation/loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0)).fit()
    assert not results.errors
    for result in results:
        assert result.metrics is not None
        target = result.metrics["config"]["pruning.target"]
        values = [RunDir(tmp_path, f"tiny-target{target}-seed{seed}").read_rounds()[1]["average"]["validation"]["loss"]
                  for seed in (0, 1)]
        assert result.metrics["sparsity"] == 0.5
        assert result.metrics["average/validation/loss"] == pytest.approx(sum(values) / 2, abs=1e-12)
        assert result.metrics["average/validation/loss_se"] == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-12)


# As its user sees it: in a process of its own

SLOW: dict[str, Any] = {**TINY, "round": {"length": 6}}
SLOW_GRID = {"training.lr": {"grid": [0.05, 0.1]}}


def command(folder: Path) -> list[str]:
    """Arguments of swamp."""
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({"base": SLOW, "space": SLOW_GRID, "seeds": 2}))
    return ["sweep", str(path), "--storage", str(folder / "results")]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "swamp_ray", *command(folder)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def begun(folder: Path) -> bool:
    """Whether some particles are finished and others at work."""
    return len(logged(folder / "results")) > 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Tickets of each member of the slow grid, run alone."""
    storage = tmp_path_factory.mktemp("undisturbed")
    sweep = build_sweep({"name": "s", "storage": str(storage), "seeds": 2, "space": SLOW_GRID,
                         "base": {**SLOW, "execution": {**TINY["execution"], "checkpoint_interval_s": 60.0}}})
    found = {}
    for setting in sweep.settings():
        for seed in (0, 1):
            config = sweep.member(setting, seed)
            run(config)
            found[str(config.name)] = ticket_digests(storage, str(config.name))
    return found


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_or_killed_it_goes_on_to_the_same_bytes(
    tmp_path: Path, number: signal.Signals, undisturbed: dict[str, dict[str, str]]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: begun(tmp_path), process)
    below = descendants(process.pid)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    finished = set(logged(tmp_path / "results"))
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert "Run the same command again to go on" in output
        assert "Traceback" not in output
    deadline = time.monotonic() + 30
    # Ray's own agents may stay for a while.
    while any(command_line(pid) and "Agent" not in command_line(pid) for pid in below):
        assert time.monotonic() < deadline, "its processes end with it"
        time.sleep(0.1)
    again = CliRunner().invoke(main, command(tmp_path))
    output = again.output
    assert again.exit_code == 0, output
    trained = logged(tmp_path / "results")
    assert finished < set(trained)
    assert f"trained: {len(trained)} particles and dense phases" in output, "what was trained before counts as well"
    assert set(trained.values()) == {1}, "nothing that was finished is trained again"
    assert {name: ticket_digests(tmp_path / "results", name) for name in undisturbed} == undisturbed
    assert "2 of 2 settings" in output


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_ends_it_in_good_order_although_ray_is_gone(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(lambda: begun(tmp_path), process)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Run the same command again to go on" in output
    assert json.loads((tmp_path / "results/sweeps/s/sweep.json").read_text())["status"] == "interrupted"
    again = start(tmp_path)
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0, output
    assert set(logged(tmp_path / "results").values()) == {1}
