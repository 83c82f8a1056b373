"""Normalisation as the network's author meant it: statistics that training leaves alone, and those of the batch."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray import SwampTrainer
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.run.prepare import prepare
from swamp_ray.seeding import derive_seed
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.training.arithmetic import resolve_arithmetic
from swamp_ray.training.normalisation import batchnorm_reestimation, uses_batch_statistics, without_single
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import begin_training
from tests.helpers import data_of, train_epoch, with_sections
from tests.unit.training.test_trainer import start_of

MODULE = "their_normalisation"
THEIRS = '''
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    def set_(norm):
        """Statistics that nothing else gives."""
        norm.running_mean.copy_(torch.linspace(-0.5, 0.5, norm.num_features))
        norm.running_var.copy_(torch.linspace(0.5, 2.0, norm.num_features))
        return norm

    class Frozen(nn.BatchNorm1d):
        """Always normalises by what it was built with."""
        def forward(self, x):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    class Deaf(nn.BatchNorm1d):
        """Moves its statistics at a pace of its own."""
        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.running_mean.lerp_(x.mean(0), 0.1)
                    self.running_var.lerp_(x.var(0), 0.1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    class Own(nn.BatchNorm1d):
        """Computes with its momentum, which must be a number."""
        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.running_mean.mul_(1 - self.momentum).add_(self.momentum * x.mean(0))
                    self.running_var.mul_(1 - self.momentum).add_(self.momentum * x.var(0))
                return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    class Net(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how
            kind = {"own class": Frozen, "deaf": Deaf, "by momentum": Own}.get(how, nn.BatchNorm1d)
            self.first, self.kept = nn.Linear(6, 8), set_(kind(8))
            self.second, self.live = nn.Linear(8, 8), nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 3)
            if how == "no momentum":
                self.kept.momentum = 0.0
            if how == "frozen parameters":
                for parameter in self.kept.parameters():
                    parameter.requires_grad_(False)
            if how == "statistics not tracked":
                self.kept.track_running_stats = False

        def train(self, mode=True):
            super().train(mode)
            if self.how in ("train", "late"):
                self.kept.eval()
            if self.how == "late" and mode:
                self.calls = getattr(self, "calls", 0) + 1
                self.kept.train(self.calls > 1)
            return self

        def forward(self, x):
            if self.how == "forward":
                self.kept.eval()
            x = self.first(x)
            if self.how == "function":
                kept = self.kept
                x = F.batch_norm(x, kept.running_mean, kept.running_var, kept.weight, kept.bias, False)
            else:
                x = self.kept(x)
            return self.head(F.relu(self.live(self.second(F.relu(x)))))

    class Instance(nn.Module):
        def __init__(self, momentum, kept):
            super().__init__()
            self.keeps = kept
            self.first = nn.Linear(6, 8)
            self.norm = set_(nn.InstanceNorm1d(4, momentum=momentum, track_running_stats=True))
            self.head = nn.Linear(8, 3)

        def train(self, mode=True):
            super().train(mode)
            if self.keeps:
                self.norm.eval()
            return self

        def forward(self, x):
            x = self.norm(self.first(x).reshape(len(x), 4, 2))
            return self.head(x.flatten(1))

    class Batch(nn.Module):
        """Normalises by the batch, in evaluation too."""
        def __init__(self, always_trains=False):
            super().__init__()
            self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=always_trains)
            self.head, self.always = nn.Linear(8, 3), always_trains

        def train(self, mode=True):
            super().train(mode)
            if self.always:
                self.norm.train()
            return self

        def forward(self, x):
            return self.head(F.relu(self.norm(self.first(x))))

    def vectors(num_train=60, num_test=21):
        draw = np.random.RandomState(0)
        def part(num):
            y = np.arange(num) % 3
            return (draw.randn(num, 6) + 2 * y[:, None]).astype(np.float32), y
        return {"train": part(num_train), "validation": part(20), "test": part(num_test)}
'''
BASE: dict[str, Any] = {
    "data": {"name": f"{MODULE}:vectors"},
    "model": {"name": f"{MODULE}:Net"},
    "training": {"batch_size": 10, "lr": 0.05, "schedule": {"warmup": 0}},
    "round": {"length": 2},
    "averaging": {"within": "swa", "start": 0.5},
}
MEAN, VARIANCE = torch.linspace(-0.5, 0.5, 8).numpy(), torch.linspace(0.5, 2.0, 8).numpy()


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{MODULE}.py").write_text(textwrap.dedent(THEIRS))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(MODULE, None)


def configured(**sections: Any) -> SwampConfig:
    return with_sections(BASE, **sections)


def of_net(how: str, **sections: Any) -> SwampConfig:
    return configured(model={"options": {"how": how}}, **sections)


def trainer_of(config: SwampConfig) -> ParticleTrainer:
    data = data_of(config)
    return ParticleTrainer(config, data, resolve_arithmetic(config.execution, "cpu", initial_model(config, data)))


def trained(trainer: ParticleTrainer) -> Any:
    program = round_program(trainer.config, trainer.steps_per_epoch, 0, 0)
    run = begin_training(trainer, TrainingSpec("a particle", 1, program), *start_of(trainer))
    while not run.done:
        run.epoch()
    return run.finish()


KEPT = ["train", "forward", "own class", "no momentum", "statistics not tracked"]


@pytest.mark.parametrize("within", ["swa", "none"])
@pytest.mark.parametrize("how", KEPT)
def test_statistics_that_training_leaves_alone_are_kept(how: str, within: str) -> None:
    trainer = trainer_of(of_net(how, averaging={"within": within}))
    buffers = trained(trainer).evaluation.buffers
    np.testing.assert_array_equal(buffers["kept.running_mean"], MEAN)
    np.testing.assert_array_equal(buffers["kept.running_var"], VARIANCE)
    assert np.abs(buffers["live.running_mean"]).min() > 0, "the other module's are estimated"
    assert buffers["live.num_batches_tracked"] == trainer.steps_per_epoch
    assert prepare(trainer.config).recipes.training({}, 0, "", "", None).recipe["kept_statistics"] == ["kept"]


@pytest.mark.parametrize("how", ["always", "frozen parameters", "by momentum"])
def test_statistics_that_training_moves_are_those_of_the_final_weights(how: str) -> None:
    """Frozen parameters alone keep no statistics: torch moves them, too."""
    trainer = trainer_of(of_net(how))
    buffers = trained(trainer).evaluation.buffers
    seen: list[Tensor] = []
    hook = trainer.model.get_submodule("kept").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in trainer.batches("train").one_pass(10, seed=None, drop_last=True):
            trainer.model.eval()(batch[0])
    hook.remove()
    mean = torch.stack([batch.mean(0) for batch in seen]).mean(0)
    variance = torch.stack([batch.var(0) for batch in seen]).mean(0)
    np.testing.assert_allclose(buffers["kept.running_mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(buffers["kept.running_var"], variance, rtol=1e-4, atol=1e-5)
    assert "kept_statistics" not in prepare(trainer.config).recipes.training({}, 0, "", "", None).recipe


@pytest.mark.parametrize(("momentum", "kept"), [(0.1, True), (None, False), (0.0, False), (0.1, False)])
def test_instance_normalisation_with_statistics(momentum: float | None, kept: bool) -> None:
    options = {"momentum": momentum, "kept": kept}
    config = configured(model={"name": f"{MODULE}:Instance", "options": options})
    found = trained(trainer_of(config)).evaluation.buffers["norm.running_mean"]
    unmoved = kept or not momentum
    assert np.allclose(found, torch.linspace(-0.5, 0.5, 4).numpy(), rtol=1e-4) == unmoved


def test_a_kept_module_trains_as_in_plain_torch() -> None:
    config = of_net("train", averaging={"within": "none"}, training={"momentum": 0.0, "weight_decay": 0.0})
    trainer = trainer_of(config)
    start, mask, buffers = start_of(trainer, density=1.1)
    program = round_program(config, trainer.steps_per_epoch, 0, 0)
    run = begin_training(trainer, TrainingSpec("a particle", 1, program), start, mask, buffers)
    batches: list[Any] = []
    rates = [program.rate.at(step) for step in range(program.num_steps)]
    model = initial_model(config, trainer.data)
    source = trainer.batches("train")
    while not run.done:
        run.epoch()
    for epoch in range(program.num_epochs):
        batches += source.one_pass(10, seed=derive_seed(1, "shuffle", epoch), drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train()
    for rate, (inputs, labels) in zip(rates, batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("how", ["train", "forward", "own class"])
def test_packed_particles_keep_statistics_too(how: str) -> None:
    config = of_net(how, averaging={"within": "none"})
    data = data_of(config)
    arithmetic = resolve_arithmetic(config.execution, "cpu", initial_model(config, data)).packed("stacked:2")
    pack = Pack(config, data, arithmetic)
    program = round_program(config, pack.seats[0].steps_per_epoch, 0, 0)
    runs = {seat: begin_training(trainer, TrainingSpec("a particle", seat, program), *start_of(trainer))
            for seat, trainer in enumerate(pack.seats)}
    while not runs[0].done:
        train_epoch(pack, runs)
    for run in runs.values():
        buffers = run.finish().evaluation.buffers
        np.testing.assert_array_equal(buffers["kept.running_mean"], MEAN)
        np.testing.assert_array_equal(buffers["kept.running_var"], VARIANCE)


@pytest.mark.parametrize(("how", "words"), [
    ("function", "training reads the statistics of 'kept' and never changes them"),
    ("deaf", r"the statistics of 'kept' \(Deaf\) are not moved by its momentum"),
])
def test_what_cannot_be_kept_or_estimated_is_refused_by_name_before_any_work(how: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(of_net(how))


def test_statistics_that_are_kept_only_at_first_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"training changes the statistic 'kept\.running_mean'"):
        trained(trainer_of(of_net("late")))


def test_a_module_that_waits_for_other_processes_is_re_estimated_by_one_alone() -> None:
    torch.manual_seed(0)
    synchronised = nn.SyncBatchNorm(3)
    plain = nn.BatchNorm1d(3)
    batches = [torch.randn(5, 3) for _ in range(3)]
    for norm in (synchronised, plain):
        with batchnorm_reestimation(norm):
            assert getattr(norm.forward, "__func__", None) is not nn.SyncBatchNorm.forward
            for batch in batches:
                norm(batch)
    assert all(torch.equal(a, b) for a, b in zip(synchronised.buffers(), plain.buffers(), strict=True))
    assert synchronised.forward.__func__ is nn.SyncBatchNorm.forward


# Statistics of the batch


@pytest.mark.parametrize(("model", "expected"), [
    (nn.BatchNorm1d(2), False), (nn.BatchNorm2d(2, track_running_stats=False), True), (nn.LayerNorm(2), False),
    (nn.InstanceNorm1d(2), False), (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), True),
])
def test_whether_a_prediction_depends_on_its_batch(model: nn.Module, expected: bool) -> None:
    modes = [module.training for module in model.modules()]
    assert uses_batch_statistics(model) == expected
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(("num_test", "always_trains"), [(21, False), (21, True), (25, False), (20, False)])
def test_a_network_without_statistics_is_evaluated_in_the_batches_that_the_docs_name(
    num_test: int, always_trains: bool
) -> None:
    config = configured(model={"name": f"{MODULE}:Batch", "options": {"always_trains": always_trains}},
                        data={"options": {"num_test": num_test}})
    assert "over batches of 10 in a fixed order" in prepare(config).caution
    trainer = trainer_of(config)
    found = trained(trainer).evaluation.metrics["test"]["accuracy"]
    inputs, labels = next(iter(trainer.batches("test").one_pass(num_test, seed=None, drop_last=False)))
    bounds = [0, 10, num_test] if num_test == 21 else [*range(0, num_test, 10), num_test]
    model = trainer.model.eval()
    with torch.no_grad():
        predictions = [model(inputs[first:last]) for first, last in itertools.pairwise(bounds)]
    assert found == pytest.approx(float((torch.cat(predictions).argmax(1) == labels).double().mean()))


@pytest.mark.parametrize(("sizes", "expected"), [
    ([3, 3, 1], [3, 4]), ([3, 2], [3, 2]), ([1], [1]), ([2, 1], [3]), ([], []),
])
def test_a_last_batch_of_one_sample_joins_the_one_before(sizes: list[int], expected: list[int]) -> None:
    rows = iter(torch.arange(float(sum(sizes))).split(sizes)) if sizes else iter(())
    found = list(without_single({"x": part, "y": (part, part * 2)} for part in rows))
    assert [len(batch["x"]) for batch in found] == expected
    assert sizes == [] or torch.cat([batch["y"][1] for batch in found]).tolist() == [2.0 * n for n in range(sum(sizes))]


def test_a_split_of_one_sample_is_refused_before_any_work() -> None:
    config = configured(model={"name": f"{MODULE}:Batch"}, data={"options": {"num_test": 1}})
    with pytest.raises(UserError, match="cannot be evaluated on a single sample"):
        prepare(config)
    assert prepare(of_net("always", data={"options": {"num_test": 1}})).caution == ""


@pytest.mark.parametrize("training", [{"batch_size": 1}, {"batch_size": 2, "micro_batch": 1}])
def test_batches_of_one_are_refused_before_any_work(training: dict[str, int]) -> None:
    with pytest.raises(UserError, match="fail on a training batch of 1"):
        prepare(of_net("always", training=training))


def test_stored_networks_without_statistics_are_evaluated_in_the_batches_of_their_run(tmp_path: Path) -> None:
    results = []
    for batch_size in (10, 12):
        config = configured(model={"name": f"{MODULE}:Batch"}, training={"batch_size": batch_size},
                            particles={"count": 1}, pruning={"target": 0.5, "rate": 0.5},
                            execution={"executor": "inline", "device": "cpu"})
        name = f"of-{batch_size}"
        config = config.model_copy(update={"name": name, "storage": str(tmp_path / "results")})
        results.append(SwampTrainer(config, quiet=True).fit())
        levels, _ = evaluate_runs([RunDir(tmp_path / "results", name)])
        assert [level.members[0]["test"] for level in levels] == [
            pytest.approx(record.average["test"]) for record in results[-1].rounds]
    with pytest.raises(UserError, match="the networks of of-10 and of-12 normalise by the batch at hand"):
        evaluate_runs([RunDir(tmp_path / "results", name) for name in ("of-10", "of-12")])
