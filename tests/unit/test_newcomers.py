"""What somebody meets who tries the tool for the first time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ray.train import FailureConfig, RunConfig, UserCallback
from torch import nn

from swamp_ray import SwampTrainer, UserError
from swamp_ray.config.reading import build_config, parse_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.on_ray.train_configs import run_values
from swamp_ray.run.prepare import prepare
from swamp_ray.storage.find import find_run, find_sweep
from swamp_ray.training.program import round_program
from tests.helpers import TINY, tiny


def network() -> nn.Module:
    return nn.Linear(64, 10)


class Net(nn.Linear):
    def __call__(self, *_: object) -> object:
        return None

    @staticmethod
    def build() -> nn.Module:
        return network()


class TestShortTrainings:
    @pytest.mark.parametrize("length", ["2 epochs", "3 epochs", "1.5 epochs", "0.5 epochs", "7 steps", "1 step"])
    def test_have_one_snapshot_of_their_last_weights(self, length: str) -> None:
        program = round_program(parse_config("", [f"round.length={length}"]), 10, 0, 0)
        taken = [done for done in range(1, program.num_steps + 1) if program.snapshot_after(done)]
        assert taken == [program.num_steps]

    @pytest.mark.parametrize(("length", "taken"), [("4 epochs", [40]), ("8 epochs", [70, 80]), ("85 steps", [70, 80])])
    def test_longer_ones_are_as_they_were(self, length: str, taken: list[int]) -> None:
        program = round_program(parse_config("", [f"round.length={length}"]), 10, 0, 0)
        assert [done for done in range(1, program.num_steps + 1) if program.snapshot_after(done)] == taken

    @pytest.mark.parametrize("overrides", [["averaging.start=0.9"], ["averaging.every=2"], ["averaging.every=1.5"]])
    def test_what_was_chosen_is_still_refused(self, overrides: list[str]) -> None:
        with pytest.raises(UserError, match="none would be taken"):
            parse_config("round: {length: 2}", overrides)

    def test_say_so(self, tmp_path: Path) -> None:
        short = prepare(with_values(tiny(tmp_path), {"averaging.start": 0.75, "averaging.every": 1, "round.length": 2}))
        assert "SWA takes one snapshot there, the last weights" in short.short_trainings[0]
        long = prepare(with_values(tiny(tmp_path), {"averaging.start": 0.75, "averaging.every": 1, "round.length": 4}))
        assert long.short_trainings == []

    @pytest.mark.parametrize(("length", "warmup"), [("1 epoch", 5), ("0.5 epochs", 2), ("3 steps", 1), ("1 step", 0)])
    def test_without_averaging_warm_up_over_their_first_half(self, length: str, warmup: int) -> None:
        program = round_program(parse_config("averaging: {within: none}", [f"round.length={length}"]), 10, 0, 0)
        assert program.rate.warmup == warmup

    @pytest.mark.parametrize("length", ["11 steps", "2 epochs", "40 epochs"])
    def test_longer_ones_warm_up_for_an_epoch(self, length: str) -> None:
        program = round_program(parse_config("averaging: {within: ema}", [f"round.length={length}"]), 10, 0, 0)
        assert program.rate.warmup == 10

    @pytest.mark.parametrize(("values", "is_told"), [
        ({"round.length": 1}, True), ({"round.length": 2}, False),
        ({"round.length": 1, "training.schedule.warmup": 0}, False),
    ])
    def test_a_shorter_warm_up_is_told(self, values: dict[str, object], is_told: bool, tmp_path: Path) -> None:
        config = with_values(tiny(tmp_path), {"averaging.within": "none"} | values)
        assert ["too short for a warm-up" in text for text in prepare(config).short_trainings] == [True] * is_told


class TestCode:
    @pytest.mark.parametrize(("code", "path"), [
        (network, f"{__name__}:network"), (Net, f"{__name__}:Net"), (Net.build, f"{__name__}:Net.build"),
        (nn.Identity, "torch.nn.modules.linear:Identity"),
    ])
    def test_is_taken_as_it_is(self, code: object, path: str) -> None:
        assert build_config({"model": {"name": code}}).model.name == path

    @pytest.mark.parametrize("code", [lambda: network(), Net(1, 1), TestShortTrainings().test_say_so])
    def test_without_a_name_is_refused(self, code: object) -> None:
        with pytest.raises(UserError, match=r"model\.name: this cannot be found by its name"):
            build_config({"model": {"name": code}})

    def test_of_a_function_inside_another(self) -> None:
        def inside() -> None: ...

        with pytest.raises(UserError, match="at the top level of a module"):
            build_config({"data": {"name": inside}})


class TestRaysRunConfig:
    @pytest.mark.parametrize(("given", "values"), [
        (RunConfig(), {}), (RunConfig(name="mine"), {"name": "mine"}),
        (RunConfig(storage_path="/a"), {"storage": "/a"}),
        (RunConfig(failure_config=FailureConfig(max_failures=2)), {"execution.max_retries": 2}),
        (RunConfig(name="ray_train_run-mine"), {"name": "ray_train_run-mine"}),
    ])
    def test_counts_as_far_as_it_was_set(self, given: RunConfig, values: dict[str, object]) -> None:
        assert run_values(given) == values

    @pytest.mark.parametrize(("given", "named"), [
        (RunConfig(callbacks=[UserCallback()]), "callbacks"),
        (RunConfig(worker_runtime_env={"pip": ["x"]}), "worker_runtime_env"),
        (RunConfig(failure_config=FailureConfig(controller_failure_limit=3)), "controller_failure_limit"),
    ])
    def test_without_meaning_is_refused_by_name(self, given: RunConfig, named: str) -> None:
        with pytest.raises(UserError, match=rf"{named} of .* would have no effect"):
            SwampTrainer(TINY, run_config=given)


class TestFilesAndFolders:
    def test_a_trainer_takes_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("seed: 4")
        assert SwampTrainer(tmp_path / "mine.yaml").config.name == "mine"
        assert SwampTrainer(str(tmp_path / "mine.yaml")).config.seed == 4
        with pytest.raises(UserError, match="a mapping of its sections, or the path of a file"):
            SwampTrainer(3)  # pyright: ignore[reportArgumentType]
        assert SwampTrainer(SwampConfig(seed=5)).config.seed == 5

    def test_a_run_without_its_config_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "runs" / "q").mkdir(parents=True)
        (tmp_path / "sweeps" / "s").mkdir(parents=True)
        with pytest.raises(UserError, match=r"the folder of the run 'q' has no config\.yaml"):
            find_run("q", str(tmp_path))
        with pytest.raises(UserError, match=r"the folder of the sweep 's' has no sweep\.yaml"):
            find_sweep("s", str(tmp_path))

    def test_a_result_is_printed_in_a_line(self, tmp_path: Path) -> None:
        logging.disable()
        result = SwampTrainer(tiny(tmp_path), quiet=True).fit()
        assert "Result(path=" in f"{result}"
        assert "rounds to" in repr(result)
        assert len(repr(result)) < 500 + len(str(tmp_path))


ODD_LOSSES = """
from torch.nn import functional
from swamp_ray import Classification

class Vector(Classification):
    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

class Number(Vector):
    def loss(self, model, batch):
        return super().loss(model, batch).mean().item()

class Nothing(Vector):
    def loss(self, model, batch):
        return None
"""


@pytest.mark.parametrize(("task", "got"), [
    ("Vector", "a tensor of shape [2]"), ("Number", "'float'"), ("Nothing", "'NoneType'"),
])
def test_a_loss_that_is_no_single_number_is_refused(
    task: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_losses.py").write_text(ODD_LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"loss\(\) of the task .* must return a tensor with a single") as caught:
        prepare(tiny(tmp_path, task__name=f"odd_losses:{task}"))
    assert got in str(caught.value)
