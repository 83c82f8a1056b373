"""What share of a device's peak a particle's loop reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _measuring import spread
from _training_cases import CASES, arithmetic_of, begun, data_of
from _training_loops import in_turn
from torch.utils.flop_counter import FlopCounterMode

from swamp_ray.training.arithmetic import applied
from swamp_ray.training.trainer import ParticleTrainer


def measure(case: str, device: str, repeats: int) -> dict[str, Any]:
    """Matrix rate and bandwidth of the device, FLOPs of a training image, and the loop's share of the matrix rate."""
    config, data = CASES[case].config(device), data_of(case, device)
    arithmetic = arithmetic_of(config, data, device)
    with applied(arithmetic):
        trainer = ParticleTrainer(config, data, arithmetic)
        flops = flops_of(trainer)
        run = begun(trainer)
        steps = trainer.steps_per_epoch
        kind = torch.bfloat16 if arithmetic.precision == "bf16" else torch.float32
        loops = {"loop": run.epoch, "matrix": lambda: _matrix(device, kind)}
        times = in_turn(loops, device, repeats, 1)
        copied = in_turn({"copy": _copy(device)}, device, repeats, 1)
    images_per_s = [steps * config.training.batch_size / one for one in times["loop"].own]
    matrix = [_matrix_flops(device) / one for one in times["matrix"].own]
    return {
        "precision": arithmetic.precision, "flops_per_image": flops,
        "loop_images_per_s": spread(images_per_s), "matrix_flops_per_s": spread(matrix),
        "copy_bytes_per_s": spread([2 * _COPIED[device] / one for one in copied["copy"].own]),
        "share_of_matrix_rate": spread([flops * a / b for a, b in zip(images_per_s, matrix, strict=True)]),
    }


def flops_of(trainer: ParticleTrainer) -> float:
    """Floating-point operations of forward and backward pass for one image; a multiplication and an addition are 2."""
    batch = next(iter(trainer.batches("train").one_pass(4, seed=None, drop_last=True)))
    trainer.model.train()
    with FlopCounterMode(display=False) as counter, trainer.randomness(0):
        trainer.backward(batch)
    trainer.model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 4


_SIZE = {"cpu": 1024, "cuda": 8192}
_TIMES = {"cpu": 4, "cuda": 20}
_COPIED = {"cpu": 2**28, "cuda": 2**32}


def _matrix_flops(device: str) -> float:
    return 2.0 * _SIZE[device] ** 3 * _TIMES[device]


def _matrix(device: str, kind: torch.dtype) -> None:
    a = torch.ones(_SIZE[device], _SIZE[device], dtype=kind, device=device)
    out = torch.empty_like(a)
    for _ in range(_TIMES[device]):
        torch.mm(a, a, out=out)


def _copy(device: str) -> Callable[[], Any]:
    source = torch.ones(_COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
