"""How long a particle's step takes in each form and width of packing, measured on the device at hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError, first_line
from swamp_ray.sparsity.compact import pack_model
from swamp_ray.training.arithmetic import SINGLE, Arithmetic, form_and_width
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.program import Program, Rate, TrainingSpec
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import GradientRequest, TrainingRun, begin_training

WARM_UP_STEPS = 3
MIN_STEPS, MIN_S, MAX_S = 5, 0.5, 10.0
"""A form is measured for at least so many steps and seconds, and not much longer than MAX_S."""
GIVEN_UP = 1.1
"""Wider packs of a form are not tried once a particle's step takes so much longer than in the best one so far."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory that a pack may take: evaluations and other shapes need some too."""
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""By how much the losses of the first steps may differ from those of a particle that trains alone, relatively."""
RATE = 1e-3


@dataclass(frozen=True)
class PackingTime:
    """What was found of one form and width of packing.

    Attributes:
        packing: E.g. ``"stacked:4"``.
        step_s: Seconds of one step of one particle, a step of the pack divided by its width; None if it cannot be used.
        peak_bytes: Largest memory of the device that was taken; None on the CPU.
        refused: Why it cannot be used, or was not tried.
    """

    packing: str
    step_s: float | None = None
    peak_bytes: int | None = None
    refused: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)


def time_packings(
    config: SwampConfig, data: Data, arithmetic: Arithmetic, packings: Sequence[str]
) -> list[PackingTime]:
    """Measure forms of packing one after the other, those of a form by increasing width. Takes some seconds each.

    A form whose losses are not those of a particle alone is refused, as is one that the device has no memory for.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: Of particles that train alone; the caller applies it.
        packings: What to measure; ``single:1`` comes first, whether it is named or not.
    """
    alone = _measure(config, data, arithmetic.alone)
    reference = alone.losses
    found, best = [alone.measured], alone.measured.step_s or float("inf")
    given_up: dict[str, str] = {}
    for packing in packings:
        form = form_and_width(packing)[0]
        if packing == SINGLE:
            continue
        if form in given_up:
            found.append(PackingTime(packing, refused=given_up[form]))
            continue
        try:
            trial = _measure(config, data, arithmetic.packed(packing))
        except (UserError, RuntimeError, MemoryError) as error:
            given_up[form] = first_line(error)
            found.append(PackingTime(packing, refused=given_up[form]))
            continue
        measured = _judged(trial, reference, arithmetic)
        found.append(measured)
        if measured.step_s is None:
            given_up[form] = measured.refused
        elif measured.step_s > GIVEN_UP * best:
            given_up[form] = f"not tried: {packing} is slower already"
        else:
            best = min(best, measured.step_s)
    return found


@dataclass(frozen=True)
class _Trial:
    measured: PackingTime
    losses: np.ndarray


def _judged(trial: _Trial, reference: np.ndarray, arithmetic: Arithmetic) -> PackingTime:
    """The measurement, or why its form is of no use."""
    measured = trial.measured
    off = float(np.max(np.abs(trial.losses - reference) / np.maximum(np.abs(reference), 1e-6)))
    if not off <= TOLERANCE[arithmetic.precision]:
        return PackingTime(measured.packing, refused=f"its losses differ by {off:.2g} from those of a particle alone")
    if measured.peak_bytes is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        if measured.peak_bytes > USABLE_MEMORY * total:
            peak = f"{measured.peak_bytes / 2**30:.1f} GiB"
            return PackingTime(measured.packing, refused=f"it takes {peak} of the device")
    return measured


def _measure(config: SwampConfig, data: Data, arithmetic: Arithmetic) -> _Trial:
    """Train a few steps of as many particles as there are seats."""
    on_cuda = arithmetic.device == "cuda"
    _release(on_cuda)
    if arithmetic.packing == SINGLE:
        seats = [ParticleTrainer(config, data, arithmetic)]
        pack = None
    else:
        pack = Pack(config, data, arithmetic)
        seats = pack.seats
    runs = [_endless(_begin(seat, seed)) for seed, seat in enumerate(seats)]
    losses: list[Any] = []
    answers: Mapping[int, Gradients] = {}

    def step() -> None:
        nonlocal answers
        batches: dict[int, Batch] = {
            index: (next(run) if not answers else run.send(answers[index])).batch for index, run in enumerate(runs)}
        answers = pack.gradients(batches) if pack is not None else {0: seats[0].backward(batches[0])}

    with seats[0].randomness(0):
        for _ in range(WARM_UP_STEPS):
            step()
            losses.append(answers[0][0])
        values = np.array([float(loss) for loss in losses])  # waits for the device
        num, seconds = _timed(step, on_cuda)
    peak = torch.cuda.max_memory_allocated() if on_cuda else None
    measured = PackingTime(arithmetic.packing, seconds / num / arithmetic.width, peak)
    for run in runs:
        run.close()
    return _Trial(measured, values)


def _timed(step: Any, on_cuda: bool) -> tuple[int, float]:
    """How many steps were done in how many seconds."""
    num, began = 0, time.perf_counter()
    while True:
        step()
        num += 1
        elapsed = time.perf_counter() - began
        if (num >= MIN_STEPS and elapsed >= MIN_S) or elapsed >= MAX_S:
            if on_cuda:
                torch.cuda.synchronize()
            return num, time.perf_counter() - began


def _begin(trainer: ParticleTrainer, seed: int) -> TrainingRun:
    """A particle with half of its initial weights, and a rate at which little happens."""
    mask = np.random.default_rng(0).random(trainer.layout.num_prunable) < 0.5
    steps = trainer.steps_per_epoch
    program = Program(2**40, steps, Rate("constant", base=RATE, total=2**40), trainer.config.training.weight_decay)
    whole = np.ones_like(mask)
    packed = pack_model(trainer.model, trainer.layout, whole)
    packed = type(packed)(packed.values[mask], packed.rest)
    buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in named_buffers(trainer.model)}
    return begin_training(trainer, TrainingSpec("a measurement", seed, program), packed, mask, buffers)


def _endless(run: TrainingRun) -> Generator[GradientRequest, Gradients]:
    while True:
        yield from run.epoch_steps()


def _release(on_cuda: bool) -> None:
    """Let go of what the form before has taken."""
    gc.collect()
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
