"""The memory of a particle as it is foreseen, against what torch's own accounting says of one that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data import batches as batches_module
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.sparsity.compact import compact_model
from swamp_ray.training.arithmetic import Arithmetic, applied, resolve_arithmetic
from swamp_ray.training.memory_estimate import MemoryEstimate, TracedStep, estimate_memory
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.peak_memory import PeakMemory
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.tasks import Classification
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import begin_training


def config_of(model: str, batch_size: int, **training: Any) -> SwampConfig:
    """Two steps of it, each with a snapshot after the first."""
    execution = {"device": "cpu", **training.pop("execution", {})}
    return build_config({
        "data": {"name": "synthetic", "options": {"num_train": 3 * batch_size, "num_test": 20, "num_classes": 10,
                                                  "shape": [3, 32, 32]}},
        "model": {"name": model},
        "training": {"batch_size": batch_size, "schedule": {"warmup": 0}, **training},
        "round": {"length": "2 steps"},
        "averaging": {"start": 0.4, "every": "1 step"},
        "execution": execution,
    })


def setting(config: SwampConfig, device: str = "cpu") -> tuple[SwampConfig, Data, Arithmetic]:
    data = load_data(config.data)
    return config, data, resolve_arithmetic(config.execution, device, initial_model(config, data))


def train(config: SwampConfig, data: Data, arithmetic: Arithmetic) -> None:
    """A whole particle under a mask, with its evaluation."""
    with applied(arithmetic):
        trainer = ParticleTrainer(config, data, arithmetic)
        mask = np.ones(trainer.layout.num_prunable, dtype=bool)
        packed = compact_model(trainer.model, trainer.layout, mask)
        mask[::3] = False
        packed = type(packed)(packed.values[mask], packed.rest)
        buffers = {name: buffer.cpu().numpy().copy() for name, buffer in named_buffers(trainer.model)}
        program = round_program(config, trainer.steps_per_epoch, 0, 0)
        run = begin_training(trainer, TrainingSpec("a particle", 1, program), packed, mask, buffers)
        while not run.done:
            run.epoch()
        run.finish()


def allocated_bytes(folder: Path, *given: Any) -> int:
    """The most that torch's allocator had given out at one moment of a training."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(*given)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


# What is not foreseen is what kernels take for themselves, and samples that lie in numpy's memory.
@pytest.mark.parametrize(("config", "within"), [
    (config_of("resnet20", 32), 0.03),
    (config_of("resnet20", 32, micro_batch=8, optimizer="adamw", execution={"precision": "bf16"}), 0.03),
    (config_of("wrn_28_2", 8), 0.03),
    pytest.param(config_of("vgg16_bn", 4, momentum=0.0), 0.05, marks=pytest.mark.nightly),
    (config_of("lenet_300_100", 64, momentum=0.0), 0.1),
], ids=lambda value: f"{value.model.name}-{value.training.optimizer}" if isinstance(value, SwampConfig) else "")
def test_what_is_foreseen_is_what_is_allocated(config: SwampConfig, within: float, tmp_path: Path) -> None:
    given = setting(config)
    assert estimate_memory(*given).num_bytes == pytest.approx(allocated_bytes(tmp_path, *given), rel=within)


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "batch_size"), [("wrn_28_2", 512), ("resnet20", 1024), ("vgg16_bn", 256)])
def test_what_is_foreseen_is_what_a_gpu_has_allocated(model: str, batch_size: int) -> None:
    # Deterministic: otherwise the search for the fastest kernels takes what it likes.
    given = setting(config_of(model, batch_size, execution={"device": "cuda", "deterministic": True}), "cuda")
    memory = PeakMemory(torch.device("cuda", torch.cuda.current_device()))
    train(*given)
    assert estimate_memory(*given).num_bytes == pytest.approx(memory.read_bytes(), rel=0.25)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_passes", [1, 2])
def test_a_step_without_computing_takes_what_two_small_ones_say(precision: str, num_passes: int) -> None:
    config, data, _ = setting(config_of("resnet8", 32))
    step = TracedStep(initial_model(config, data), Classification(), precision, num_passes)
    few = torch.zeros(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64)
    for size in (4, 32, 512):
        # In bfloat16, statistics of some hundred bytes are rounded where they are computed.
        assert step.from_small_steps(few, size) == pytest.approx(step.without_computing(few, size), rel=1e-3)


class Looks(nn.Module):
    """Looks at a value, which only computing gives; may refuse to compute as well."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__()
        self.layer, self.refuses = nn.Linear(4, 3), refuses

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.refuses:
            raise ArithmeticError("no")
        return self.layer(inputs) * (2.0 if self.layer.bias.sum().item() > 0 else 1.0)


def test_a_network_that_looks_at_values_is_really_run() -> None:
    few = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    step = TracedStep(Looks(), Classification(), "fp32")
    with pytest.raises(Exception, match="_local_scalar_dense"):
        step.without_computing(few, 100)
    plain = TracedStep(nn.Linear(4, 3), Classification(), "fp32")
    assert plain.peak_bytes(few, 100) <= step.peak_bytes(few, 100) <= 2 * plain.peak_bytes(few, 100)
    with pytest.raises(ArithmeticError):
        TracedStep(Looks(refuses=True), Classification(), "fp32").peak_bytes(few, 100)


def test_what_is_counted() -> None:
    config, data, cpu = setting(config_of("lenet_300_100", 8, execution={"precision": "fp32"}))
    weights = sum(p.nbytes for p in initial_model(config, data).parameters())
    prunable = 4 * (3072 * 300 + 300 * 100 + 100 * 10)
    one = estimate_memory(config, data, cpu)
    # Weights, momentum and the mean in float64.
    assert one.weights == 4 * weights + prunable
    assert estimate_memory(config, data, cpu, masked=False).weights == 4 * weights
    adamw = config.training.model_copy(update={"optimizer": "adamw"})
    assert estimate_memory(config.model_copy(update={"training": adamw}), data, cpu).weights == 5 * weights + prunable
    two = estimate_memory(config, data, cpu, num_members=2)
    assert two == MemoryEstimate(2 * one.weights, 2 * one.step, one.data), "particles of one process share the data"


def test_samples_count_where_they_lie_on_the_device() -> None:
    config, data, cpu = setting(config_of("lenet_300_100", 8, execution={"precision": "fp32"}))
    cuda = resolve_arithmetic(config.execution, "cuda", initial_model(config, data))
    images, labels = ([split.arrays[part].nbytes for split in (data.train, data.validation, data.test)]  # type: ignore[union-attr]
                      for part in (0, 1))
    order = estimate_memory(config, data, cpu).data - 4 * images[0] - labels[0]
    assert order > 0
    # On a GPU all splits; the one that is trained on as floats, since nothing is cropped or mirrored.
    assert estimate_memory(config, data, cuda).data == order + 4 * images[0] + sum(images[1:]) + sum(labels)
    held = config.execution.model_copy(update={"data_on_device": False})
    elsewhere = config.model_copy(update={"execution": held})
    assert estimate_memory(elsewhere, data, cuda).data == order
    cropped = build_config({**config.model_dump(mode="json"), "data": {
        **config.data.model_dump(mode="json"), "augment": "crop_flip"}})
    assert estimate_memory(*setting(cropped)).data == order + labels[0]


def test_batches_that_a_gpu_is_given_together_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config, data, cpu = setting(config_of("lenet_300_100", 64, execution={"precision": "fp32"}))
    cuda = resolve_arithmetic(config.execution, "cuda", initial_model(config, data))
    alone = estimate_memory(config, data, cpu).step
    together = estimate_memory(config, data, cuda).step
    assert together >= alone + 64 * (4 * 3072 + 8), "an epoch has two batches"
    monkeypatch.setitem(batches_module.GROUP_BYTES, "cuda", 64 * 3072)
    assert estimate_memory(config, data, cuda).step == alone


def test_nothing_of_the_network_is_changed() -> None:
    config, data, cpu = setting(config_of("resnet8", 8))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    estimate_memory(config, data, cpu)
    assert torch.equal(torch.get_rng_state(), before)
