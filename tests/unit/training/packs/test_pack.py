"""A packed particle is the particle: whatever its seat and its neighbours, after any interruption."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swamp_ray.commands.check import packing_lines
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.data.trees import leaves, tree_map
from swamp_ray.errors import DivergedError, UserError
from swamp_ray.run.prepare import prepare
from swamp_ray.sparsity.compact import compact_state
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.training.arithmetic import Arithmetic, applied, packings, resolve_arithmetic
from swamp_ray.training.packs.cuda_graphs import CudaGraphGradients
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.results import Gradients, TrainedParticle
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import TrainingRun, begin_training
from tests.helpers import data_of, train_epoch, with_sections

THEIRS = '''
    import torch
    import torch.nn.functional as F
    from torch import nn
    from swamp_ray.training.tasks import Task

    class Odd(nn.Module):
        """Tied, unused and frozen parameters, a constant buffer, an extra dimension of weights."""

        def __init__(self, num_classes):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.third = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.third.weight = self.again.weight
            self.norm = nn.GroupNorm(2, 4)
            self.unused = nn.Linear(3, 2)
            self.frozen = nn.Parameter(torch.full((4, 1, 1), 1.5), requires_grad=False)
            self.register_buffer("scale", torch.tensor(0.5))
            self.head = nn.Linear(4, num_classes)

        def forward(self, x):
            x = F.gelu(self.norm(self.conv(x))) * self.frozen
            x = self.third(F.relu_(self.again(x))) * self.scale
            return self.head(x.mean((2, 3)))

    class Dropping(nn.Module):
        def __init__(self, num_classes, functional=False):
            super().__init__()
            self.drop = nn.Identity() if functional else nn.Dropout(0.1)
            self.functional = functional
            self.head = nn.Linear(36, num_classes)

        def forward(self, x):
            x = self.drop(x.flatten(1))
            return self.head(F.dropout(x, 0.2, self.training) if self.functional else x)

    class Branching(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.head = nn.Linear(36, num_classes)

        def forward(self, x):
            return self.head(x.flatten(1)) * (2.0 if x.mean() > 0 else 1.0)

    class Reader(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, num_classes)

        def forward(self, tokens):
            return self.head(self.encoder(self.embedding(tokens))[:, 0])

    class Reading(Task):
        primary = "accuracy"
        higher_is_better = True

        def loss(self, model, batch):
            weight = model.head.weight.square().mean()  # a task may use the network's parts as it likes
            return F.cross_entropy(model(batch["tokens"]).float(), batch["labels"]) + 0.1 * weight

        def predict(self, model, batch):
            return model(batch["tokens"]).float()

        def metrics(self, prediction, batch):
            return {"accuracy": (prediction.argmax(1) == batch["labels"]).float()}

    def text(num=48, length=6):
        import numpy as np
        draw = np.random.RandomState(2)
        tokens = draw.randint(0, 11, (num, length))
        split = {"tokens": tokens, "labels": (tokens[:, 0] > 5).astype(np.int64)}
        return {"train": split, "test": {name: part[:10] for name, part in split.items()}}
'''
MODULE = "their_packed_parts"
BASE: dict[str, Any] = {
    "data": {"name": "synthetic", "augment": "crop_flip", "crop_padding": 1,
             "options": {"num_train": 60, "num_test": 11, "num_classes": 3, "shape": [1, 6, 6]}},
    "model": {"name": "digits_cnn"},
    "training": {"batch_size": 9, "lr": 0.05, "schedule": {"warmup": 0}},
    "round": {"length": 2},
    "averaging": {"within": "swa", "start": 0.5},
}
SEEDS = (11, 12, 13)


@pytest.fixture(scope="module", autouse=True)
def _theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("theirs")
    (folder / f"{MODULE}.py").write_text(textwrap.dedent(THEIRS))
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop(MODULE, None)


def configured(**sections: Any) -> SwampConfig:
    return with_sections(BASE, **sections)


def arithmetic_of(config: SwampConfig, packing: str = "single:1", device: str = "cpu") -> Arithmetic:
    data = data_of(config)
    return resolve_arithmetic(config.execution, device, initial_model(config, data)).packed(packing)


def pack_of(config: SwampConfig, packing: str, device: str = "cpu") -> Pack:
    return Pack(config, data_of(config), arithmetic_of(config, packing, device))


def begin(seat: ParticleTrainer, seed: int, checkpoint: bytes | None = None, **changes: Any) -> TrainingRun:
    """A particle whose mask follows from its seed."""
    model = initial_model(seat.config, seat.data)
    mask = np.random.RandomState(seed).rand(seat.layout.num_prunable) < 0.6
    start = compact_state({clean_name(name): p for name, p in model.named_parameters()}, seat.layout, mask,
                       drop_outside=True)
    if changes.get("start") is not None:
        start = type(start)(np.full_like(start.values, changes["start"]), start.rest)
    buffers = {clean_name(name): b.numpy().copy() for name, b in model.named_buffers()}
    program = round_program(seat.config, seat.steps_per_epoch, 0, seed)
    return begin_training(seat, TrainingSpec(f"particle {seed}", seed, program), start, mask, buffers, checkpoint)


def alone(config: SwampConfig, seed: int, device: str = "cpu") -> TrainedParticle:
    with applied(arithmetic := arithmetic_of(config, device=device)):
        run = begin(ParticleTrainer(config, data_of(config), arithmetic), seed)
        while not run.done:
            run.epoch()
        return run.finish()


def together(pack: Pack, seeds: dict[int, int], stops: Sequence[int] = ()) -> dict[int, TrainedParticle]:
    """Train seeds by seat; at each of the stops (in steps) all of them go on from checkpoints."""
    with applied(pack.seats[0].arithmetic):
        runs = {seat: begin(pack.seats[seat], seed) for seat, seed in seeds.items()}
        for stop in stops:
            begun = list(runs.values())
            train_epoch(pack, runs, lambda begun=begun, stop=stop: min(run.step for run in begun) >= stop)
            saved = {seat: run.checkpoint() for seat, run in runs.items()}
            runs = {seat: begin(pack.seats[seat], seed, saved[seat]) for seat, seed in seeds.items()}
        while any(not run.done for run in runs.values()):
            train_epoch(pack, {seat: run for seat, run in runs.items() if not run.done})
        return {seat: run.finish() for seat, run in runs.items()}


def bits(result: TrainedParticle) -> tuple[Any, ...]:
    buffers = {name: array.tobytes() for name, array in result.evaluation.buffers.items()}
    return (result.compact.values.tobytes(), result.compact.rest.tobytes(), buffers, result.evaluation.metrics,
            result.as_trained, result.history)


def assert_close(packed: TrainedParticle, single: TrainedParticle, tolerance: float = 2e-4) -> None:
    for mine, other in ((packed.compact.values, single.compact.values), (packed.compact.rest, single.compact.rest)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max())))
    assert [one["loss"] for one in packed.history] == pytest.approx(
        [one["loss"] for one in single.history], rel=tolerance)
    assert packed.history[-1]["lr"] == single.history[-1]["lr"]


CASES: dict[str, dict[str, Any]] = {
    "convolutions with batch normalisation": {},
    "contiguous": {"execution": {"channels_last": False}, "averaging": {"within": "none"}},
    "matrices": {"model": {"name": "lenet_300_100"}, "averaging": {"within": "ema"}},
    "residual": {"model": {"name": "resnet8"},
                 "data": {"options": {"num_train": 30, "num_test": 5, "num_classes": 3, "shape": [3, 8, 8]}}},
    "adamw, clipped, in parts": {"training": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5, "micro_batch": 3}},
    "different rates, decays and lengths": {
        "particles": {"count": 3, "vary": {"lr": [0.05, 0.02], "weight_decay": [0.0, 0.01], "length": [2, 1, 2]}}},
    "odd parameters": {"model": {"name": f"{MODULE}:Odd"}},
    "a transformer, a task of one's own": {
        "data": {"name": f"{MODULE}:text", "augment": "none", "options": {}}, "model": {"name": f"{MODULE}:Reader"},
        "task": {"name": f"{MODULE}:Reading"}},
    "one class of label, smoothed": {"task": {"label_smoothing": 0.1}},
    "sharpness-aware": {"training": {"sam_rho": 0.1, "clip_norm": 0.5}, "averaging": {"within": "none"}},
    "sharpness-aware, in parts": {"training": {"sam_rho": 0.1, "micro_batch": 3}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_packed_particle_is_the_particle_to_within_rounding(case: dict[str, Any]) -> None:
    config = configured(**case)
    packed = together(pack_of(config, "stacked:3"), dict(enumerate(SEEDS)))
    for seat, seed in enumerate(SEEDS):
        assert_close(packed[seat], alone(config, seed))
    first, second, _ = packed.values()
    assert first.compact.values.tobytes() != second.compact.values.tobytes()


@pytest.mark.parametrize("case", [CASES["convolutions with batch normalisation"], CASES["matrices"],
                                  CASES["odd parameters"], CASES["sharpness-aware"]])
def test_neither_neighbours_nor_padding_change_a_bit(case: dict[str, Any]) -> None:
    """The seat may: normalisation of 48 channels, of which the last 16 are another loop's."""
    config = configured(**case)
    pack = pack_of(config, "stacked:3")
    full = together(pack, dict(enumerate(SEEDS)))
    assert bits(together(pack, {1: SEEDS[1]})[1]) == bits(full[1]), "padded"
    others = together(pack, {0: SEEDS[2], 1: SEEDS[1], 2: 99})
    assert bits(others[1]) == bits(full[1]), "with other neighbours"
    assert_close(others[0], full[2])
    assert bits(together(pack_of(config, "stacked:3"), {2: SEEDS[2]})[2]) == bits(full[2]), "in a pack that is new"


@pytest.mark.parametrize(("precision", "sam_rho"), [("fp32", None), ("bf16", None), ("fp32", 0.1)])
def test_stopped_after_any_steps_packed_particles_end_with_the_same_bits(
    precision: str, sam_rho: float | None
) -> None:
    config = configured(execution={"precision": precision}, averaging={"within": "swa", "start": 0.25},
                        training={"sam_rho": sam_rho})
    pack = pack_of(config, "stacked:2")
    undisturbed = together(pack, {0: 11, 1: 12})
    disturbed = together(pack, {0: 11, 1: 12}, stops=[2, 6, 9])
    assert {seat: bits(result) for seat, result in disturbed.items()} == {
        seat: bits(result) for seat, result in undisturbed.items()}


def test_particles_at_different_places_of_their_training_can_be_packed() -> None:
    config = configured()
    pack = pack_of(config, "stacked:2")
    undisturbed = together(pack, {0: 11, 1: 12})
    with applied(pack.seats[0].arithmetic):
        late = begin(pack.seats[0], 11)
        train_epoch(pack, {0: late}, lambda: late.step == 4)  # in the middle of the first epoch
        runs = {0: begin(pack.seats[0], 11, late.checkpoint()), 1: begin(pack.seats[1], 12)}
        while any(not run.done for run in runs.values()):
            train_epoch(pack, {seat: run for seat, run in runs.items() if not run.done})
        assert {seat: bits(run.finish()) for seat, run in runs.items()} == {
            seat: bits(result) for seat, result in undisturbed.items()}


def test_one_that_diverges_leaves_the_others_as_they_are() -> None:
    config = configured()
    pack = pack_of(config, "stacked:2")
    expected = bits(together(pack, {1: 12})[1])
    with applied(pack.seats[0].arithmetic):
        runs = {0: begin(pack.seats[0], 11, start=1e30), 1: begin(pack.seats[1], 12)}
        with pytest.raises(DivergedError, match="particle 11"):
            train_epoch(pack, runs)
    with applied(pack.seats[0].arithmetic):
        run = begin(pack.seats[1], 12)
        while not run.done:  # beside weights that are not finite, which are padding now
            train_epoch(pack, {1: run})
        assert bits(run.finish()) == expected


def test_the_process_s_random_numbers_are_left_alone() -> None:
    pack = pack_of(configured(), "stacked:2")
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(5)
    np.random.seed(5)
    together(pack, {0: 11, 1: 12})
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


class Rerun:
    """A recording without CUDA: the same memory for inputs, outputs and gradients, filled by computing again."""

    def __init__(self, trainer: ParticleTrainer, batch: Batch) -> None:
        self._trainer, self.batch = trainer, tree_map(torch.clone, batch)
        buffers = [buffer.clone() for buffer in trainer.model.buffers()]
        self.outputs: Gradients = trainer.backward(self.batch)
        self.gradients: list[Tensor | None] = [p.grad for p in trainer.model.parameters()]
        with torch.no_grad():
            for buffer, value in zip(trainer.model.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def replay(self, batch: Batch) -> None:
        for place, value in zip(leaves(self.batch), leaves(batch), strict=True):
            place.copy_(value)
        for parameter in self._trainer.model.parameters():
            parameter.grad = None
        loss, metrics = self._trainer.backward(self.batch)
        for parameter, place in zip(self._trainer.model.parameters(), self.gradients, strict=True):
            if place is not None and parameter.grad is not None:
                place.copy_(parameter.grad)
            parameter.grad = None
        self.outputs[0].copy_(loss)
        for name, value in metrics.items():
            self.outputs[1][name].copy_(value)

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("case", [{}, CASES["adamw, clipped, in parts"], CASES["odd parameters"],
                                  CASES["sharpness-aware"]])
def test_replayed_steps_give_the_bits_of_a_particle_alone(case: dict[str, Any]) -> None:
    """What is not CUDA's of the form ``graphs``: fixed memory for batches, results and gradients, in turns."""
    config = configured(**case)
    pack = pack_of(config, "graphs:2")
    pack._joint = CudaGraphGradients(pack.seats, Rerun)
    for _ in range(2):  # the second time, recordings are there
        packed = together(pack, {0: 11, 1: 12}, stops=[3])
        assert bits(packed[0]) == bits(alone(config, 11))
        assert bits(packed[1]) == bits(alone(config, 12))


@pytest.mark.slow
def test_a_stacked_computation_can_be_compiled() -> None:
    compiled = together(pack_of(configured(execution={"compile": True}), "stacked:2"), {0: 11, 1: 12})
    plain = together(pack_of(configured(), "stacked:2"), {0: 11, 1: 12})
    for seat in (0, 1):
        assert_close(compiled[seat], plain[seat])


@pytest.mark.gpu
@pytest.mark.parametrize("packing", ["stacked:3", "graphs:3"])
@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "different" not in name])
def test_packed_on_a_gpu(case: dict[str, Any], packing: str) -> None:
    config = configured(**{**case, "execution": {"deterministic": True, "precision": "fp32"}})
    pack = pack_of(config, packing, "cuda")
    packed = together(pack, dict(enumerate(SEEDS)))
    for seat, seed in enumerate(SEEDS):
        assert_close(packed[seat], alone(config, seed, "cuda"), tolerance=5e-3)
    assert bits(together(pack, {1: SEEDS[0]}, stops=[2])[1]) == bits(packed[0])


@pytest.mark.parametrize(("model", "reason"), [
    ({"name": f"{MODULE}:Dropping"}, r"random numbers in layer 'drop' \(Dropout\)"),
    ({"name": f"{MODULE}:Dropping", "options": {"functional": True}}, "random numbers in the network's own code"),
    ({"name": f"{MODULE}:Branching"}, "vmap cannot transform"),
])
def test_networks_that_cannot_be_packed_are_refused_by_name(
    tmp_path: Path, model: dict[str, Any], reason: str
) -> None:
    asked = configured(model=model, execution={"particles_per_worker": 2, "executor": "inline", "device": "cpu"})
    with pytest.raises(UserError, match=reason) as caught:
        prepare(asked)
    assert "execution.particles_per_worker" in str(caught.value)
    left_open = configured(model=model, execution={"particles_per_worker": "auto", "executor": "inline"})
    prepared = prepare(left_open, "cpu")
    assert (prepared.arithmetic.packing, prepared.open_packings) == ("single:1", ())
    [line] = packing_lines(prepared, LocalPlace(tmp_path))
    assert line.startswith("packing: particles train one by one: ")
    assert re.search(reason, line)


@pytest.mark.parametrize(("values", "device", "num", "expected"), [
    ({}, "cuda", 4, ["single:1"]),
    ({"particles_per_worker": 3}, "cpu", 4, ["stacked:3"]),
    ({"particles_per_worker": 3}, "cuda", 4, ["stacked:3", "graphs:3"]),
    ({"particles_per_worker": 3, "packing": "graphs"}, "cuda", 4, ["graphs:3"]),
    ({"packing": "graphs"}, "cuda", 4, ["graphs:1"]),
    ({"particles_per_worker": "auto"}, "cpu", 1, ["single:1"]),
    ({"particles_per_worker": "auto"}, "cpu", 3, ["single:1", "stacked:2", "stacked:3"]),
    ({"particles_per_worker": "auto"}, "cuda", 4,
     ["single:1", "stacked:2", "stacked:4", "graphs:1", "graphs:2", "graphs:4"]),
    ({"particles_per_worker": "auto", "packing": "stacked"}, "cuda", 100,
     ["single:1", "stacked:2", "stacked:4", "stacked:8", "stacked:16"]),
    ({"particles_per_worker": "auto"}, "cuda", 1, ["single:1", "graphs:1"]),
])
def test_what_a_config_leaves_open(values: dict[str, Any], device: str, num: int, expected: list[str]) -> None:
    assert packings(ExecutionConfig(**values), device, num) == expected


@pytest.mark.parametrize("wrong", [0, -1, "many", 2.5, 100, True, "2"])
def test_how_many_particles_a_worker_trains_is_refused_in_one_sentence(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"particles_per_worker: must be auto or a whole number from 1 to 64"):
        configured(execution={"particles_per_worker": wrong})


def test_graphs_without_cuda_and_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device"):
        prepare(configured(execution={"packing": "graphs", "executor": "inline"}), "cpu")
    for wrong in ({"execution": {"particles_per_worker": 2}, "particle": {"num_workers": 3}},
                  {"execution": {"packing": "stacked"}}):
        with pytest.raises(UserError, match="particles_per_worker"):
            configured(**wrong)
