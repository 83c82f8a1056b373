"""One particle: the same bits after any interruption, averages as torch computes them, and clear failures."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.trees import split_batch
from swamp_ray.errors import CorruptArtifactError, DivergedError, UserError
from swamp_ray.sparsity.compact import CompactState, compact_state, full_state
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.training.arithmetic import applied, resolve_arithmetic
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.results import TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import begin_training
from tests.helpers import data_of, with_sections

THEIRS = '''
    import random
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn
    from swamp_ray.training.tasks import Task

    class Net(nn.Module):
        """Convolution, normalisation, dropout; what else is asked for."""

        def __init__(self, num_classes, dropout=0.2, norm=True, count=False, chance=False, extra=False):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, bias=False)
            self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(4 * 36, num_classes)
            self.chance = chance
            if extra:
                self.unused = nn.Linear(3, 2)
                self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
            if count:
                self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if hasattr(self, "calls") and self.training:
                self.calls += 1
            x = F.relu(self.norm(self.conv(x)))
            if self.chance and self.training:
                x = x * (0.9 + 0.2 * random.random()) * (0.9 + 0.2 * np.random.rand())
            return self.head(self.dropout(x).flatten(1))

    def wrapped(num_classes):
        return nn.DataParallel(Net(num_classes))

    class Deep(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.flat = nn.Conv2d(1, 2, 3)
            self.deep = nn.Conv3d(1, 2, (2, 1, 1))
            self.head = nn.Linear(72, num_classes)

        def forward(self, x):
            return self.head(self.deep(self.flat(x)[:, None]).flatten(1))

    def layers(hidden):
        sizes = [5, *hidden, 3]
        parts = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            parts += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*parts[:-1])

    def vectors(num=40):
        draw = np.random.RandomState(0)
        x = draw.randn(num, 5)
        return {"train": (x, np.arange(num) % 3), "test": (x[:10], np.arange(10) % 3)}

    def curve(num=50):
        draw = np.random.RandomState(1)
        x = draw.randn(num, 3)
        y = np.sin(x[:, :1]) + x[:, 1:2]
        return {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}

    def text(num=48, length=6):
        draw = np.random.RandomState(2)
        tokens = draw.randint(0, 11, (num, length))
        split = {"tokens": tokens, "labels": (tokens[:, 0] > 5).astype(np.int64)}
        return {"train": split, "test": {name: part[:10] for name, part in split.items()}}

    class Reader(nn.Module):
        def __init__(self, num_classes, dropout=0.1):
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, num_classes)

        def forward(self, tokens):
            return self.head(self.encoder(self.embedding(tokens))[:, 0])

    class Reading(Task):
        primary = "accuracy"
        higher_is_better = True

        def loss(self, model, batch):
            return F.cross_entropy(model(batch["tokens"]).float(), batch["labels"])

        def predict(self, model, batch):
            return model(batch["tokens"]).float()

        def metrics(self, prediction, batch):
            return {"accuracy": (prediction.argmax(1) == batch["labels"]).float()}
'''
MODULE = "their_particle_parts"
PICTURES = {"name": "synthetic", "augment": "crop_flip", "crop_padding": 1,
            "options": {"num_train": 50, "num_test": 11, "num_classes": 3, "shape": [1, 8, 8]}}
BASE: dict[str, Any] = {
    "data": {**PICTURES, "validation": 0.1},
    "model": {"name": f"{MODULE}:Net"},
    "training": {"batch_size": 10, "lr": 0.05, "clip_norm": 1.0, "schedule": {"warmup": 0}},
    "round": {"length": 4},
    "averaging": {"within": "swa", "start": 0.5},
}


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    (folder / f"{MODULE}.py").write_text(textwrap.dedent(THEIRS))
    return folder


@pytest.fixture(autouse=True)
def _importable(module_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(module_folder))
    yield
    sys.modules.pop(MODULE, None)


def configured(**sections: Any) -> SwampConfig:
    return with_sections(BASE, **sections)


def trainer_of(config: SwampConfig) -> ParticleTrainer:
    data = data_of(config)
    arithmetic = resolve_arithmetic(config.execution, "cpu", initial_model(config, data))
    return ParticleTrainer(config, data, arithmetic)


def start_of(trainer: ParticleTrainer, density: float = 0.5) -> tuple[CompactState, np.ndarray, dict[str, np.ndarray]]:
    """Read-only, as out of Ray's object store."""
    model = initial_model(trainer.config, trainer.data)
    mask = np.random.RandomState(4).rand(trainer.layout.num_prunable) < density
    packed = compact_state({clean_name(name): p for name, p in model.named_parameters()}, trainer.layout, mask,
                        drop_outside=True)
    buffers = {clean_name(name): b.numpy().copy() for name, b in model.named_buffers()}
    for array in (packed.values, packed.rest, mask, *buffers.values()):
        array.flags.writeable = False
    return packed, mask, buffers


def begin(trainer: ParticleTrainer, seed: int = 1, checkpoint: bytes | None = None, density: float = 0.5) -> Any:
    program = round_program(trainer.config, trainer.steps_per_epoch, 0, 0)
    job = TrainingSpec("round 2, particle 1", seed, program)
    return begin_training(trainer, job, *start_of(trainer, density), checkpoint)


def complete(run: Any) -> TrainedParticle:
    while not run.done:
        run.epoch()
    return run.finish()


def train(config: SwampConfig, seed: int = 1, density: float = 0.5) -> TrainedParticle:
    return complete(begin(trainer_of(config), seed, density=density))


def bits(result: TrainedParticle) -> tuple[Any, ...]:
    buffers = {name: array.tobytes() for name, array in result.evaluation.buffers.items()}
    return (result.compact.values.tobytes(), result.compact.rest.tobytes(), buffers, result.evaluation.metrics,
            result.as_trained, result.history)


CASES = [
    {"averaging": {"within": within}, "training": {"optimizer": optimizer, **extra}, **more}
    for within, optimizer, extra, more in [
        ("swa", "sgd", {"nesterov": True}, {}),
        ("ema", "sgd", {}, {"round": {"length": "13 steps"}}),
        ("none", "sgd", {"micro_batch": 5}, {}),
        ("swa", "adamw", {"lr": 0.01}, {"execution": {"fused": False}}),
        ("none", "adamw", {"lr": 0.01}, {"execution": {"channels_last": False}}),
        ("ema", "adamw", {"lr": 0.01, "decay_norm_and_bias": False}, {"execution": {"precision": "bf16"}}),
        ("none", "sgd", {"sam_rho": 0.1}, {}),
        ("swa", "adamw", {"lr": 0.01, "sam_rho": 0.05, "micro_batch": 5}, {"execution": {"precision": "bf16"}}),
    ]
]


@pytest.mark.parametrize("case", CASES)
def test_resumed_after_any_epoch_it_ends_with_the_same_bits(case: dict[str, Any]) -> None:
    config = configured(**case)
    run = begin(trainer_of(config))
    checkpoints = [run.checkpoint()]
    while not run.done:
        run.epoch()
        checkpoints.append(run.checkpoint())
    undisturbed = bits(run.finish())
    for checkpoint in checkpoints:
        torch.manual_seed(len(checkpoint))
        assert bits(complete(begin(trainer_of(config), checkpoint=checkpoint))) == undisturbed


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_any_step_it_ends_with_the_same_bits(case: dict[str, Any]) -> None:
    config = configured(**case)
    undisturbed = bits(train(config))
    trainer = trainer_of(config)
    run = begin(trainer)
    num_steps, stops = run.job.program.num_steps, 0
    while not run.done:
        whole = run.epoch(lambda: True)
        assert (whole is None) == bool(run.step % trainer.steps_per_epoch and not run.done)
        checkpoint = run.checkpoint()
        torch.manual_seed(stops)
        run = begin(trainer, checkpoint=checkpoint)
        stops += 1
    assert stops == num_steps
    assert bits(run.finish()) == undisturbed


def test_resumed_in_another_process(tmp_path: Path, module_folder: Path) -> None:
    config = configured(averaging={"within": "ema"})
    run = begin(trainer_of(config))
    run.epoch()
    (tmp_path / "run.pt").write_bytes(run.checkpoint())
    expected = bits(complete(run))
    script = textwrap.dedent(f"""
        import pickle, sys, torch
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        torch.set_num_threads(1)
        import test_trainer as here
        config = here.configured(averaging={{"within": "ema"}})
        run = here.begin(here.trainer_of(config), checkpoint=Path("run.pt").read_bytes())
        assert run.step == 4
        Path("bits.pickle").write_bytes(pickle.dumps(here.bits(here.complete(run))))
    """)
    repository = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([repository, str(module_folder)])
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": path})
    assert pickle.loads((tmp_path / "bits.pickle").read_bytes()) == expected


def test_damaged_checkpoints_are_refused_and_cost_only_their_epochs() -> None:
    trainer = trainer_of(configured())
    run = begin(trainer)
    run.epoch()
    checkpoint = run.checkpoint()
    undisturbed = bits(complete(run))
    pieces = [checkpoint[:length] for length in range(0, len(checkpoint), len(checkpoint) // 15)]
    for damaged in [*pieces, checkpoint[:-1], b"junk", b"\x80\x02}q\x00.", pickle.dumps([1, 2]), bytes(1000)]:
        with pytest.raises(CorruptArtifactError, match="a checkpoint of round 2, particle 1"):
            begin(trainer, checkpoint=damaged)
    assert bits(complete(begin(trainer))) == undisturbed


@pytest.mark.parametrize("other", [{"seed": 2}, {"config": {"averaging": {"within": "none"}}},
                                   {"config": {"training": {"lr": 0.02}}}])
def test_a_checkpoint_of_another_job_is_refused(other: dict[str, Any]) -> None:
    run = begin(trainer_of(configured()))
    run.epoch()
    with pytest.raises(CorruptArtifactError, match="belongs to another job"):
        begin(trainer_of(configured(**other.get("config", {}))), other.get("seed", 1), run.checkpoint())


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, plain: bool) -> None:
    target, file = tmp_path / "executed", tmp_path / "run.pt"
    if plain:
        file.write_bytes(pickle.dumps({"step": Malicious(target)}, protocol=2))
    else:
        torch.save({"step": Malicious(target)}, file)
    with pytest.raises(CorruptArtifactError):
        begin(trainer_of(configured()), checkpoint=file.read_bytes())
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()  # it would have been


def test_global_random_state_does_not_matter_and_is_left_alone() -> None:
    config = configured(model={"options": {"chance": True}})
    expected = bits(train(config))
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    assert bits(train(config)) == expected
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]


def test_what_ran_before_in_the_same_trainer_does_not_matter() -> None:
    trainer = trainer_of(configured())
    expected = bits(train(configured()))
    begin(trainer, seed=9).epoch()
    begin(trainer, seed=8)
    batch = next(iter(trainer.batches("train").one_pass(10, seed=0, drop_last=True)))
    trainer.backward(batch)  # stopped within a step: gradients are left behind
    assert bits(complete(begin(trainer))) == expected
    trainer.evaluate(*start_of(trainer, density=0.9))
    assert bits(complete(begin(trainer))) == expected


def test_metrics_between_epochs_do_not_matter() -> None:
    expected = bits(train(configured()))
    run = begin(trainer_of(configured()))
    while not run.done:
        run.epoch()
        run.trainer.metrics(("validation",))
    assert bits(run.finish()) == expected


@pytest.mark.parametrize(("data", "dropout"), [({"augment": "none"}, 0.0), ({"augment": "crop_flip"}, 0.2)])
def test_particles_share_their_start_and_differ_by_their_seed(data: dict[str, Any], dropout: float) -> None:
    trainer = trainer_of(configured(data=data, model={"options": {"dropout": dropout}}))
    starts, ends = [], []
    for seed in (1, 2):
        run = begin(trainer, seed)
        starts.append(torch.cat([p.detach().ravel() for p in run.parameters]).clone())
        ends.append(complete(run))
    assert torch.equal(*starts)
    assert not np.array_equal(ends[0].compact.values, ends[1].compact.values)
    assert ends[0].history[0]["loss"] != ends[1].history[0]["loss"]


def named(trainer: ParticleTrainer, result: TrainedParticle) -> dict[str, np.ndarray]:
    return full_state(result.compact, trainer.layout, start_of(trainer)[1])


def test_swa_is_torchs_average_of_the_same_trajectory() -> None:
    trainer = trainer_of(configured())
    run, twin = begin(trainer), AveragedModel(trainer.model)
    while not run.done:
        if run.epoch().epoch > 2:
            twin.update_parameters(trainer.model)
    assert run.mean.count == 2
    found = named(trainer, run.finish())
    for name, expected in twin.module.named_parameters():
        np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_ema_is_torchs_average_of_the_same_trajectory() -> None:
    trainer = trainer_of(configured(averaging={"within": "ema", "ema_decay": 0.8}))
    run, twin = begin(trainer), AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    take_step = run.take_step

    def followed(lr: float) -> None:
        take_step(lr)
        twin.update_parameters(trainer.model)

    run.take_step = followed
    found = named(trainer, complete(run))
    for name, expected in twin.module.named_parameters():
        np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro", [None, 5])
def test_normalisation_statistics_are_re_estimated_on_the_training_split(micro: int | None) -> None:
    config = configured(training={"micro_batch": micro, "batch_size": 10}, data={"validation": 0.06},
                        model={"options": {"dropout": 0.0}}, averaging={"statistics": "unaugmented"})
    trainer = trainer_of(config)
    assert len(trainer.data.train) == 47  # seven samples are left over
    result = complete(begin(trainer))
    twin = initial_model(config, trainer.data)
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in named(trainer, result).items()},
                         strict=False)
    inputs = torch.cat([batch[0] for batch in trainer.batches("train").one_pass(47, seed=None, drop_last=False)])
    update_bn(inputs[:40].split(micro or 10), twin)
    for name, expected in twin.named_buffers():
        np.testing.assert_allclose(result.evaluation.buffers[name], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_statistics_that_training_left_are_reported_without_averaging_only() -> None:
    assert train(configured()).as_trained is None
    assert train(configured(averaging={"within": "ema"})).as_trained is None
    assert train(configured(averaging={"within": "none"}, model={"options": {"norm": False}})).as_trained is None
    run = begin(trainer_of(configured(averaging={"within": "none"})))
    while not run.done:
        run.epoch()
    expected = run.trainer.metrics(("validation", "test"))
    result = run.finish()
    assert result.as_trained == expected
    assert result.as_trained != result.evaluation.metrics
    assert set(result.evaluation.metrics) == {"validation", "test"}


def test_history_and_progress() -> None:
    run = begin(trainer_of(configured(round={"length": "6 steps"}, averaging={"within": "none"})))
    first, second = run.epoch(), run.epoch()
    assert (first.epoch, first.num_epochs, first.step, second.epoch, second.step) == (1, 2, 4, 2, 6)
    assert second.lr == pytest.approx(0.05 * (1 + np.cos(np.pi * 5 / 6)) / 2)
    assert 0 <= second.metrics["accuracy"] <= 1
    assert second.samples_per_s > 0
    assert [entry["epoch"] for entry in run.finish().history] == [1, 2]


def test_divergence_names_particle_epoch_step_and_rate() -> None:
    run = begin(trainer_of(configured(training={"lr": 1e30, "clip_norm": None})))
    with pytest.raises(DivergedError) as caught:
        complete(run)
    error = caught.value
    assert (error.particle, error.epoch, error.step) == ("round 2, particle 1", 0, 1)
    assert error.lr == pytest.approx(run.job.program.rate.at(1))
    assert "round 2, particle 1 diverged: the loss was" in str(error)
    assert "at step 1 (epoch 0, learning rate" in str(error)


def test_weights_that_the_last_step_blew_up_are_no_result() -> None:
    config = configured(training={"lr": 3e38, "clip_norm": None}, round={"length": "1 step"},
                        averaging={"within": "none"}, model={"options": {"norm": False}})
    run = begin(trainer_of(config))
    with torch.no_grad():
        run.parameters[0].mul_(1e3)
    with pytest.raises(DivergedError, match=r"round 2, particle 1 diverged.*step 0"):
        complete(run)


def test_state_that_is_no_parameter_is_refused_after_the_first_epoch() -> None:
    run = begin(trainer_of(configured(model={"options": {"count": True}})))
    with pytest.raises(UserError, match=r"model\.name: training changes the buffer 'calls', which is no normalisation"):
        run.epoch()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_and_unused_parameters(optimizer: str) -> None:
    trainer = trainer_of(configured(model={"options": {"extra": True}}, training={"optimizer": optimizer}))
    start, mask, _ = start_of(trainer)
    before, run = full_state(start, trainer.layout, mask), begin(trainer)
    run.epoch()
    after = named(trainer, complete(begin(trainer, checkpoint=run.checkpoint())))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {"frozen", "unused.weight", "unused.bias"}


def test_names_of_a_wrapped_network_are_clean() -> None:
    config = configured(model={"name": f"{MODULE}:wrapped"})
    result = train(config)
    assert set(result.evaluation.buffers) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert bits(train(config)) == bits(result)


VECTORS = {"data": {"name": f"{MODULE}:vectors", "augment": "none", "options": {}},
           "round": {"length": 6}, "averaging": {"within": "none"}}
KEPT_1, KEPT_2 = [0, 2, 3, 6], [1, 4, 5]


def keep(rows: list[int], columns: list[int], shape: tuple[int, int]) -> np.ndarray:
    part = np.zeros(shape, dtype=bool)
    part[np.ix_(rows, columns)] = True
    return part.ravel()


@pytest.mark.parametrize("training", [
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "clip_norm": 0.2, "lr": 0.3},
    {"momentum": 0.9, "weight_decay": 0.02, "clip_norm": 0.2, "lr": 0.3, "micro_batch": 3},
    {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.1, "lr": 0.02, "micro_batch": 4},
])
def test_a_particle_without_some_neurons_is_a_particle_of_the_smaller_network(training: dict[str, Any]) -> None:
    """Same losses, same surviving weights, to 1e-4: sums over neurons run in another order."""
    def trainer(hidden: list[int]) -> ParticleTrainer:
        training_section = {"batch_size": 12, **training}
        return trainer_of(configured(**VECTORS, training=training_section,
                                     model={"name": f"{MODULE}:layers", "options": {"hidden": hidden}}))

    large, small = trainer([7, 6]), trainer([4, 3])
    mask = np.concatenate([keep(KEPT_1, list(range(5)), (7, 5)), keep(KEPT_2, KEPT_1, (6, 7)),
                           keep([0, 1, 2], KEPT_2, (3, 6))])
    weights = {name: p.detach().numpy() for name, p in initial_model(large.config, large.data).named_parameters()}
    packed = compact_state(weights, large.layout, mask, drop_outside=True)
    cut = {**weights, "0.bias": weights["0.bias"][KEPT_1], "2.bias": weights["2.bias"][KEPT_2]}
    rest = np.concatenate([cut[name] for name in ("0.bias", "2.bias", "4.bias")])
    everything = np.ones(small.layout.num_prunable, dtype=bool)
    job = TrainingSpec("dense", 5, round_program(large.config, large.steps_per_epoch, 0, 0))
    found = complete(begin_training(large, job, packed, mask, {}))
    expected = complete(begin_training(small, job, CompactState(packed.values, rest), everything, {}))
    assert [e["loss"] for e in found.history] == pytest.approx([e["loss"] for e in expected.history], rel=1e-4)
    np.testing.assert_allclose(found.compact.values, expected.compact.values, rtol=1e-4, atol=1e-5)
    assert np.abs(found.compact.values - packed.values).max() > 0.02


@pytest.mark.parametrize("micro", [1, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro: int) -> None:
    sections = {**VECTORS, "model": {"name": f"{MODULE}:layers", "options": {"hidden": [8]}}}
    whole = train(configured(**sections, training={"batch_size": 12}))
    parts = train(configured(**sections, training={"batch_size": 12, "micro_batch": micro}))
    np.testing.assert_allclose(parts.compact.values, whole.compact.values, rtol=1e-4, atol=1e-5)
    for a, b in zip(parts.history, whole.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_regression_from_ones_own_data() -> None:
    result = train(configured(
        data={"name": f"{MODULE}:curve", "augment": "none", "options": {}}, task={"name": "regression"},
        model={"name": "mlp", "options": {"hidden": [8], "num_classes": 1}}, averaging={"within": "none"},
        training={"schedule": {"name": "constant", "warmup": 0}}, round={"length": 20}), density=0.8)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert set(result.evaluation.metrics["test"]) == {"loss"}


@pytest.mark.parametrize("micro", [None, 6])
def test_a_text_transformer_with_a_task_of_its_own(micro: int | None) -> None:
    config = configured(
        data={"name": f"{MODULE}:text", "augment": "none", "options": {}}, task={"name": f"{MODULE}:Reading"},
        model={"name": f"{MODULE}:Reader"}, round={"length": 15},
        training={"optimizer": "adamw", "lr": 0.03, "batch_size": 12, "micro_batch": micro})
    trainer = trainer_of(config)
    assert {layer.kind for layer in trainer.layout.layers} == {"attention", "linear"}
    run = begin(trainer, density=0.9)
    run.epoch()
    checkpoint = run.checkpoint()
    result = complete(run)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert result.evaluation.metrics["test"]["accuracy"] >= 0.8
    assert bits(complete(begin(trainer_of(config), checkpoint=checkpoint, density=0.9))) == bits(result)


def test_bf16_keeps_float32_weights_and_its_own_numbers() -> None:
    trainer = trainer_of(configured(execution={"precision": "bf16"}, model={"options": {"dropout": 0.0}}))
    low = complete(begin(trainer))
    full = train(configured(model={"options": {"dropout": 0.0}}))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert low.compact.values.dtype == np.float32
    assert not np.array_equal(low.compact.values, full.compact.values)
    assert low.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=0.05)


def test_memory_layouts_agree() -> None:
    results = []
    for channels_last in (True, False):
        config = configured(execution={"channels_last": channels_last}, model={"options": {"dropout": 0.0}})
        trainer = trainer_of(config)
        weight = trainer.model.get_parameter("conv.weight")
        assert initial_model(config, trainer.data).get_parameter("conv.weight").is_contiguous()
        inputs = next(iter(trainer.batches("test").one_pass(4, seed=None, drop_last=False)))[0]
        assert inputs.shape == (4, 1, 8, 8)
        assert weight.is_contiguous(memory_format=torch.channels_last) or not channels_last
        results.append(complete(begin(trainer)))
    np.testing.assert_allclose(results[0].compact.values, results[1].compact.values, rtol=1e-2, atol=1e-4)


def test_channels_last_leaves_five_dimensions_alone() -> None:
    trainer = trainer_of(configured(model={"name": f"{MODULE}:Deep"}))
    assert trainer.arithmetic.channels_last
    assert complete(begin(trainer)).history


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["resnet8", "lenet_300_100"])
@pytest.mark.parametrize("training", [{}, {"clip_norm": 1.0, "micro_batch": 5}, {"sam_rho": 0.1}])
def test_no_step_of_an_epoch_waits_for_the_gpu(model: str, training: dict[str, Any]) -> None:
    config = build_config({
        "data": {"name": "synthetic", "augment": "crop_flip", "options": {"num_train": 112, "shape": [3, 16, 16]}},
        "model": {"name": model}, "training": {"batch_size": 10, "schedule": {"warmup": 0}, **training},
        "round": {"length": 3}, "averaging": {"every": "2 steps"}, "execution": {"device": "cuda"}})
    data = load_data(config.data)
    arithmetic = resolve_arithmetic(config.execution, "cuda", initial_model(config, data))
    with applied(arithmetic):
        trainer = ParticleTrainer(config, data, arithmetic)
        run = begin(trainer)
        run.epoch()  # what is used for the first time may be waited for
        steps = run.epoch_steps()
        pending = next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(config.training.gradients_per_step * trainer.steps_per_epoch - 1):
                pending = steps.send(trainer.backward(pending.batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with pytest.raises(StopIteration):
            steps.send(trainer.backward(pending.batch))


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    compiled = train(configured(execution={"compile": True}, model={"options": {"dropout": 0.0}}))
    plain = train(configured(model={"options": {"dropout": 0.0}}))
    np.testing.assert_allclose(compiled.compact.values, plain.compact.values, rtol=1e-2, atol=1e-3)


def test_a_batch_larger_than_the_split_is_refused() -> None:
    trainer = trainer_of(configured(training={"batch_size": 46}))
    with pytest.raises(UserError, match=r"training\.batch_size: .*\(45 samples\), but got 46"):
        _ = trainer.steps_per_epoch


Pair = namedtuple("Pair", ["left", "right"])


def test_parts_of_a_nest() -> None:
    rows = torch.arange(5)
    parts = split_batch({"a": (rows, [rows * 10]), "b": Pair(rows, rows)}, 2)
    assert [part["a"][1][0].tolist() for part in parts] == [[0, 10], [20, 30], [40]]
    assert isinstance(parts[0]["b"], Pair)
    assert isinstance(parts[0]["a"], tuple)
    assert [part.tolist() for part in split_batch(rows, 3)] == [[0, 1, 2], [3, 4]]


def test_nothing_is_written_to_the_start() -> None:
    trainer = trainer_of(configured())
    packed, mask, buffers = start_of(trainer)
    copies = [array.copy() for array in (packed.values, packed.rest, *buffers.values())]
    complete(begin(trainer))
    for array, copy in zip((packed.values, packed.rest, *buffers.values()), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert isinstance(trainer.model, nn.Module)
    assert mask.dtype == bool
