"""What is trained in benchmarks/training.py: networks, data and sizes, by kind of device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.sparsity.compact import CompactState, compact_state
from swamp_ray.sparsity.masks import find_prunable
from swamp_ray.training.arithmetic import Arithmetic, resolve_arithmetic
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import TrainingRun, begin_training

DENSITY = 0.1


@dataclass(frozen=True)
class Case:
    """A network on some data.

    Attributes:
        model: Its name.
        shape: Of an input, ``(C, H, W)``.
        batch: Samples a step, by kind of device.
        steps: Of what is timed at once.
        augment: As in the config.
        data: ``cifar10``, replaced by noise of its shape where it is missing, or ``synthetic``.
    """

    model: str
    shape: tuple[int, int, int]
    batch: dict[str, int]
    steps: dict[str, int]
    augment: str = "none"
    data: str = "synthetic"

    def config(self, device: str, steps: int | None = None, batch: int | None = None) -> SwampConfig:
        """A run of the case whose epochs have ``steps`` steps."""
        batch = batch or self.batch[device]
        num = -(-(steps or self.steps[device]) * batch * 10 // 9) + 2
        if self.data == "cifar10" and has_cifar10():
            data: dict[str, Any] = {"name": "cifar10", "limit_train": min(num, 50_000), "limit_test": 500}
        else:
            data = {"name": "synthetic", "options": {
                "num_train": num, "num_test": 100, "num_classes": 10, "shape": list(self.shape)}}
        return build_config({
            "name": "benchmark", "data": data | {"augment": self.augment}, "model": {"name": self.model},
            "training": {"batch_size": batch, "lr": 0.02, "schedule": {"warmup": 0}}, "dense": {"length": 1},
            "round": {"length": 2000}, "averaging": {"within": "none"}, "execution": {"device": device}})


CASES = {
    "lenet_300_100": Case("lenet_300_100", (1, 28, 28), {"cpu": 128, "cuda": 128}, {"cpu": 60, "cuda": 400}),
    "digits_cnn": Case("digits_cnn", (1, 8, 8), {"cpu": 64, "cuda": 128}, {"cpu": 40, "cuda": 400}),
    "resnet20": Case("resnet20", (3, 32, 32), {"cpu": 64, "cuda": 128}, {"cpu": 3, "cuda": 120}, "crop_flip",
                     "cifar10"),
    "wrn_28_2": Case("wrn_28_2", (3, 32, 32), {"cpu": 32, "cuda": 128}, {"cpu": 2, "cuda": 120}, "crop_flip",
                     "cifar10"),
    "resnet50": Case("torchvision/resnet50", (3, 224, 224), {"cpu": 4, "cuda": 128}, {"cpu": 2, "cuda": 16}),
}


def has_cifar10() -> bool:
    """Whether the folder of data has it."""
    root = os.environ.get("SWAMP_DATA")
    return root is not None and any((Path(root) / name).exists()
                                    for name in ("cifar10-train.parquet", "cifar-10-batches-py"))


@cache
def data_of(case: str, device: str, steps: int | None = None, batch: int | None = None) -> Data:
    """A case's decoded data."""
    return load_data(CASES[case].config(device, steps, batch).data)


def arithmetic_of(config: SwampConfig, data: Data, device: str) -> Arithmetic:
    """As the product resolves it: one thread on the processor, bf16 on CUDA."""
    return resolve_arithmetic(config.execution, device, initial_model(config, data))


def start_of(config: SwampConfig, data: Data) -> tuple[CompactState, np.ndarray, dict[str, np.ndarray]]:
    """A ticket: the initialisation under a random mask."""
    model = initial_model(config, data)
    layout = find_prunable(model)
    mask = np.random.RandomState(0).rand(layout.num_prunable) < DENSITY
    state = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    return (compact_state(state, layout, mask, drop_outside=True), mask,
            {name: buffer.numpy() for name, buffer in model.named_buffers()})


def begun(trainer: ParticleTrainer, seed: int = 1) -> TrainingRun:
    """A particle's training run, as a worker begins it, with more epochs than are measured."""
    program = round_program(trainer.config, trainer.steps_per_epoch, 1, 0)
    return begin_training(trainer, TrainingSpec("benchmark", seed, program), *start_of(trainer.config, trainer.data))


def synchronise(device: str) -> None:
    """Wait for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()
