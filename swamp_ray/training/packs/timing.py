"""How long a particle's step takes in each form and width of packing, measured on the device at hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError, first_line
from swamp_ray.sparsity.compact import compact_model
from swamp_ray.training.arithmetic import SINGLE, Arithmetic, form_and_width
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.program import Program, Rate, TrainingSpec
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import GradientRequest, TrainingRun, begin_training

WARM_UP_STEPS = 3
MIN_STEPS = 5
MIN_S = 0.5
MAX_S = 10.0
"""A packing is timed for at least so many steps and seconds, and not much longer than MAX_S."""
TOO_SLOW = 1.1
"""Wider packs of a form are not tried once a particle's step takes this many times that of the best packing so far."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory that a pack may take: evaluations and other shapes need some too."""
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest relative difference of the first steps' losses from those of a particle that trains alone."""
RATE = 1e-3
"""Learning rate of the timed steps, at which weights hardly change."""


@dataclass(frozen=True)
class PackingTime:
    """The timing of one form and width of packing.

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
    """Time forms of packing one after the other, those of a form by increasing width. Takes some seconds each.

    A form whose losses are not those of a particle alone is refused, as is one that the device has no memory for.

    Args:
        config: The run.
        data: Its decoded data.
        arithmetic: Of particles that train alone; the caller applies it.
        packings: What to time; ``single:1`` comes first, whether it is named or not.
    """
    single = _time_packing(config, data, arithmetic.alone)
    best_s = single.time.step_s or float("inf")
    found = [single.time]
    refused: dict[str, str] = {}
    for packing in packings:
        if packing == SINGLE:
            continue
        form = form_and_width(packing)[0]
        if form in refused:
            found.append(PackingTime(packing, refused=refused[form]))
            continue
        try:
            timed = _time_packing(config, data, arithmetic.packed(packing))
        except (UserError, RuntimeError, MemoryError) as error:
            refused[form] = first_line(error)
            found.append(PackingTime(packing, refused=refused[form]))
            continue
        accepted = _accepted(timed, single.losses, arithmetic)
        found.append(accepted)
        if accepted.step_s is None:
            refused[form] = accepted.refused
        elif accepted.step_s > TOO_SLOW * best_s:
            refused[form] = f"not tried: {packing} is slower already"
        else:
            best_s = min(best_s, accepted.step_s)
    return found


@dataclass(frozen=True)
class _Timed:
    """A timing, and the losses of the first steps."""

    time: PackingTime
    losses: np.ndarray


def _accepted(timed: _Timed, reference: np.ndarray, arithmetic: Arithmetic) -> PackingTime:
    """The timing, or a refusal where losses or memory rule the form out."""
    packing = timed.time.packing
    differences = np.abs(timed.losses - reference) / np.maximum(np.abs(reference), 1e-6)
    largest = float(np.max(differences))
    if not largest <= TOLERANCE[arithmetic.precision]:  # not >: the difference may be NaN
        return PackingTime(packing, refused=f"its losses differ by {largest:.2g} from those of a particle alone")
    peak_bytes = timed.time.peak_bytes
    if peak_bytes is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        if peak_bytes > USABLE_MEMORY * total:
            return PackingTime(packing, refused=f"it takes {peak_bytes / 2**30:.1f} GiB of the device")
    return timed.time


def _time_packing(config: SwampConfig, data: Data, arithmetic: Arithmetic) -> _Timed:
    """Train a few steps of as many particles as there are seats."""
    on_cuda = arithmetic.device == "cuda"
    _free_memory(on_cuda)
    pack = None if arithmetic.packing == SINGLE else Pack(config, data, arithmetic)
    seats = [ParticleTrainer(config, data, arithmetic)] if pack is None else pack.seats
    runs = [_endless(_begin(seat, seed)) for seed, seat in enumerate(seats)]
    batches: dict[int, Batch] = {}

    def evaluate() -> Any:
        """Compute a gradient for every particle, and let it go on; the loss of the first one."""
        answers = {0: seats[0].backward(batches[0])} if pack is None else pack.gradients(batches)
        for index, run in enumerate(runs):
            batches[index] = run.send(answers[index]).batch
        return answers[0][0]

    def step() -> Any:
        """Take one step of every particle; the loss of the first one, under SAM where its gradient was taken."""
        losses = [evaluate() for _ in range(config.training.gradients_per_step)]
        return losses[-1]

    with seats[0].randomness(0):
        for index, run in enumerate(runs):
            batches[index] = next(run).batch
        losses = [step() for _ in range(WARM_UP_STEPS)]
        values = np.array([float(loss) for loss in losses])  # synchronises with the device
        num_steps, seconds = _timed(step, on_cuda)
    peak = torch.cuda.max_memory_allocated() if on_cuda else None
    for run in runs:
        run.close()
    return _Timed(PackingTime(arithmetic.packing, seconds / num_steps / arithmetic.width, peak), values)


def _timed(step: Any, on_cuda: bool) -> tuple[int, float]:
    """How many steps were taken in how many seconds."""
    num = 0
    began = time.perf_counter()
    while True:
        step()
        num += 1
        elapsed = time.perf_counter() - began
        is_enough = num >= MIN_STEPS and elapsed >= MIN_S
        if is_enough or elapsed >= MAX_S:
            if on_cuda:
                torch.cuda.synchronize()
            return num, time.perf_counter() - began


def _begin(trainer: ParticleTrainer, seed: int) -> TrainingRun:
    """A training run of half of the initial weights at a small learning rate."""
    mask = np.random.default_rng(0).random(trainer.layout.num_prunable) < 0.5
    steps = trainer.steps_per_epoch
    program = Program(2**40, steps, Rate("constant", base=RATE, total=2**40), trainer.config.training.weight_decay)
    whole = np.ones_like(mask)
    packed = compact_model(trainer.model, trainer.layout, whole)
    packed = type(packed)(packed.values[mask], packed.rest)
    buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in named_buffers(trainer.model)}
    return begin_training(trainer, TrainingSpec("a measurement", seed, program), packed, mask, buffers)


def _endless(run: TrainingRun) -> Generator[GradientRequest, Gradients]:
    while True:
        yield from run.epoch_steps()


def _free_memory(on_cuda: bool) -> None:
    """Free the memory of the packing that was timed before."""
    gc.collect()
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
