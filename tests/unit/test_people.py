"""Commands and the Python interface on one finished tiny run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from ray.train import FailureConfig, RunConfig, ScalingConfig
from rich.console import Console

from swamp_ray import SwampTrainer, UserError, load_ticket
from swamp_ray.cli import main
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.commands.run_progress import LiveReporter, PlainReporter
from swamp_ray.launch import run
from swamp_ray.run.capacity import capacity, pool_size
from swamp_ray.storage.find import find_run
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.training.trainer import ParticleTrainer
from tests.helpers import TINY, tiny


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs with different seeds: tiny and other."""
    folder = tmp_path_factory.mktemp("people")
    run(tiny(folder))
    run(tiny(folder, name="other", seed=1))
    return folder


def swamp(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


def test_help_has_an_example_and_imports_nothing_heavy() -> None:
    commands = ["run", "check", "status", "evaluate", "doctor", "prune-storage"]
    code = ("import sys; from swamp_ray.cli import main\n"
            f"for command in {commands}:\n"
            "    print('== ' + command)\n"
            "    main([command, '--help'], prog_name='swamp', standalone_mode=False)\n"
            "    heavy = {'torch', 'ray', 'pandas', 'sklearn'} & set(sys.modules)\n"
            "    assert not heavy, (command, heavy)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in commands:
        help_text = done.stdout.partition(f"== {command}\n")[2].partition("\n== ")[0]
        assert f"swamp {command}" in help_text.partition("Example")[2], command


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "swamp_ray", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: swamp")


def test_flags_win_over_set_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "from_file.yaml"
    tree = {key: value for key, value in TINY.items() if key != "name"}
    path.write_text(yaml.safe_dump({**tree, "pruning": {"target": 0.0}, "seed": 3}))
    done = swamp("run", str(path), "--set", "seed=5", "--set", "execution.executor=ray", "--executor", "inline",
                 "--storage", str(tmp_path / "s"), "--quiet")
    assert done.exit_code == 0, done.output
    assert done.output == "", "quiet means quiet"
    config = yaml.safe_load((tmp_path / "s/runs/from_file/config.yaml").read_text())
    assert (config["seed"], config["execution"]["executor"], config["name"]) == (5, "inline", "from_file")


def test_plain_output_is_a_few_lines_a_round(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    done = swamp("run", str(path), "--storage", str(tmp_path / "s"))
    assert done.exit_code == 0, done.output
    lines = done.output.partition("round   sparsity")[0].splitlines()
    assert sum(line.startswith("round ") for line in lines) == 3
    assert len(lines) < 15
    assert str(tmp_path / "s/runs/tiny/tickets/0.7500/model.safetensors") in done.output.replace("\n", "")


def test_the_live_display_shows_rounds_and_goes_away(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=100, record=True, highlight=False)
    with console.capture():
        reporter = LiveReporter(console)
        run(tiny(tmp_path), reporter)
        frame = Console(width=100, record=True, quiet=False)
        with frame.capture() as capture:
            frame.print(reporter._render())
    assert reporter._live is None
    assert "rounds 3/3" in capture.get()
    assert "particles 9/9" in capture.get()
    assert "100%" in capture.get()


def test_warnings_and_failures_are_always_shown() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        reporter = PlainReporter(console)
        reporter.warning("something [odd]")
    assert "warning: something [odd]" in capture.get()


def test_check_prints_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    done = swamp("check", str(path), "--storage", str(tmp_path / "never"))
    assert done.exit_code == 0, done.output
    for words in ("features.0.weight", "27,472", "13,736", "6,868", "75.0 %", "a round's mask 3.4 kB",
                  "device memory of a particle: about ", "executor inline"):
        assert words in done.output
    assert not (tmp_path / "never").exists()
    too_many = swamp("check", str(path), "--set", "execution.executor=ray", "--set", "execution.num_gpus=512")
    assert "on this machine it cannot run" in too_many.output
    thin = swamp("check", str(path), "--set", "pruning.scope=uniform", "--set", "pruning.target=0.9995")
    assert "leaves no weight in features.0.weight" in thin.output.replace("\n", " ")


def test_status_of_a_complete_run_and_of_none(storage: Path) -> None:
    done = swamp("status", "tiny", "--storage", str(storage))
    assert done.exit_code == 0
    assert "tiny: complete, 3 of 3 rounds" in done.output
    assert "10 trained, 0 found" in done.output
    assert swamp("status", str(storage / "runs" / "tiny")).output == done.output
    wrong = swamp("status", "tny", "--storage", str(storage))
    assert wrong.exit_code == 2
    assert "Did you mean 'tiny'?" in wrong.output


def test_status_of_an_unfinished_run_names_what_is_missing(storage: Path, tmp_path: Path) -> None:
    rundir = find_run("tiny", str(storage))
    target = tmp_path / "runs" / "half"
    target.mkdir(parents=True)
    (target / "config.yaml").write_bytes(Path(rundir.config.location).read_bytes())
    record = rundir.read_run() or {}
    RunDir(tmp_path, "half").write_run({**record, "status": "running"})
    (target / "rounds.jsonl").write_text(Path(rundir.rounds.location).read_text().splitlines()[0] + "\n{torn")
    done = swamp("status", "half", "--storage", str(tmp_path))
    assert "half: stopped without a word (killed?); the same command goes on, 1 of 3 rounds" in done.output
    assert "missing: rounds 1 (50.0 %), 2 (75.0 %)" in done.output


def test_evaluation_of_a_run_gives_its_recorded_metrics(storage: Path) -> None:
    rundir = find_run("tiny", str(storage))
    levels, _ = evaluate_runs([rundir])
    for level, record in zip(levels, rundir.read_rounds(), strict=True):
        for split in ("validation", "test"):
            assert level.members[0][split] == pytest.approx(record["average"][split], abs=1e-6)
        assert level.ensemble is None


def test_an_ensemble_is_the_mean_of_softmax_outputs(storage: Path) -> None:
    runs = [find_run(name, str(storage)) for name in ("tiny", "other")]
    levels, _ = evaluate_runs(runs)
    prepared = run(tiny(storage)).prepared
    trainer = ParticleTrainer(prepared.config, prepared.data, prepared.arithmetic)
    for level, first, second in zip(levels, runs[0].read_rounds(), runs[1].read_rounds(), strict=True):
        outputs, labels = [], np.zeros(0)
        for record in (first, second):
            load_ticket(storage / record["ticket"]).load_into(trainer.model)
            trainer.model.eval()
            batches = list(trainer.batches("test").one_pass(7, seed=None, drop_last=False))
            with torch.no_grad():
                outputs.append(torch.cat([trainer.model(batch[0]).softmax(1) for batch in batches]))
            labels = torch.cat([batch[1] for batch in batches]).numpy()
        mean = ((outputs[0] + outputs[1]) / 2).numpy()
        assert level.ensemble is not None
        assert level.ensemble["test"]["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).mean()))
        likelihood = -np.log(mean[np.arange(len(labels)), labels]).mean()
        assert level.ensemble["test"]["loss"] == pytest.approx(float(likelihood), rel=1e-4)


def test_runs_of_other_arithmetic_are_evaluated_on_the_same_samples(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage / "runs" / "tiny", tmp_path / "runs" / "again")
    config = tmp_path / "runs" / "again" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["execution"]["channels_last"] = False
    config.write_text(yaml.safe_dump(values))
    for record in find_run("again", str(tmp_path)).read_rounds():
        (tmp_path / record["ticket"]).parent.mkdir(parents=True)
        shutil.copy(storage / record["ticket"], tmp_path / record["ticket"])
    levels, _ = evaluate_runs([find_run("tiny", str(storage)), find_run("again", str(tmp_path))])
    for level in levels:
        assert level.ensemble is not None
        for split in ("validation", "test"):
            assert level.members[1][split] == pytest.approx(level.members[0][split], abs=1e-5)
            assert level.ensemble[split] == pytest.approx(level.members[0][split], abs=1e-5)


def test_runs_that_cannot_be_compared_are_refused(storage: Path, tmp_path: Path) -> None:
    run(tiny(storage, name="split", data__split_seed=7, pruning__target=0.0))
    with pytest.raises(UserError, match="other data or another split"):
        evaluate_runs([find_run("tiny", str(storage)), find_run("split", str(storage))])
    started = json.loads(swamp("evaluate", "tiny", "--storage", str(storage), "--json").output)
    assert [round(level["sparsity"], 4) for level in started] == [0.0, 0.5, 0.75]
    table = swamp("evaluate", "tiny", "other", "--storage", str(storage))
    assert "ensemble" in table.output
    assert "left out" not in table.stderr


def test_evaluate_names_the_rounds_that_not_every_run_has(storage: Path) -> None:
    run(tiny(storage, name="shorter", pruning__target=0.5))
    done = swamp("evaluate", "tiny", "shorter", "--storage", str(storage))
    assert "tiny has 1 more round (75.0 % sparsity), left out" in done.stderr
    assert "shorter has" not in done.stderr
    assert "75.0 %" not in done.stdout


def test_the_trainer_returns_metrics_and_tickets(tmp_path: Path) -> None:
    result = SwampTrainer(tiny(tmp_path), quiet=True).fit()
    assert len(result.summary) == 3
    assert list(result.summary["sparsity"]) == [record.sparsity for record in result.rounds]
    assert set(result.metrics["kind"]) >= {"round", "particle_epoch", "dense_epoch"}
    assert result.ticket().sparsity == pytest.approx(0.75)
    assert result.ticket(0.5).sparsity == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"There are: 0\.0000, 0\.5000, 0\.7500"):
        result.ticket(0.6)
    assert all(Path(path).is_file() for path in result.ticket_paths)


def test_ray_trains_own_configs_mean_the_same_here(tmp_path: Path) -> None:
    trainer = SwampTrainer(
        TINY,
        run_config=RunConfig(name="named", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=5)),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 0.5}))
    execution = trainer.config.execution
    assert (trainer.config.name, trainer.config.storage) == ("named", str(tmp_path))
    assert (execution.max_retries, execution.num_workers, execution.num_cpus, execution.device) == (5, 2, 0.5, "cpu")
    with pytest.raises(UserError, match="CPU and GPU"):
        SwampTrainer(TINY, scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"custom": 1}))


def test_ray_trains_placement_means_the_same_here() -> None:
    execution = SwampTrainer(TINY, scaling_config=ScalingConfig(
        num_workers=2, use_gpu=True, placement_strategy="SPREAD", accelerator_type="H100",
        label_selector={"market": "spot"})).config.execution
    assert (execution.placement, execution.accelerator_type, execution.labels) == ("spread", "H100", {"market": "spot"})
    assert SwampTrainer(TINY, scaling_config=ScalingConfig(num_workers=2)).config.execution.placement == "pack"
    wrong: Any
    for wrong in ({"placement_strategy": "STRICT_PACK"}, {"label_selector": [{"a": "b"}, {"a": "c"}]}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SwampTrainer(TINY, scaling_config=ScalingConfig(num_workers=2, **wrong))


@pytest.mark.parametrize(("nodes", "asked", "fit"), [
    ([{"CPU": 4, "GPU": 2}], {"CPU": 1, "GPU": 1}, 2),
    ([{"CPU": 4, "GPU": 2}], {"CPU": 1, "GPU": 0.4}, 4),
    ([{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], {"CPU": 1, "GPU": 2}, 0),
    ([{"CPU": 3}], {"CPU": 0.5, "GPU": 0}, 6),
    ([{"CPU": 3, "GPU": 1}], {"CPU": 0, "GPU": 0.1}, 10),
])
def test_workers_fit_on_nodes_and_not_across_them(
    nodes: list[dict[str, float]], asked: dict[str, float], fit: int
) -> None:
    assert capacity(nodes, asked) == fit


def test_no_more_workers_than_particles() -> None:
    execution = tiny(Path("x")).execution
    assert pool_size(execution, "cpu", 3, [{"CPU": 64.0}]) == 3
