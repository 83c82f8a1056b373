"""Several particles on one device: packed into one process, or in several processes side by side."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from _measuring import spread
from _training_cases import CASES, arithmetic_of, begun, data_of, synchronise
from _training_loops import Epoch, in_turn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.training.arithmetic import Arithmetic, applied
from swamp_ray.training.packs.pack import Pack
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import TrainingRun

BATCH = {"lenet_300_100": 128, "digits_cnn": 64, "resnet20": 32, "wrn_28_2": 128}
STEPS = {"cpu": {"lenet_300_100": 15, "digits_cnn": 10, "resnet20": 1, "wrn_28_2": 1},
         "cuda": {"lenet_300_100": 200, "digits_cnn": 200, "resnet20": 50, "wrn_28_2": 50}}


def measure(case: str, form: str, widths: tuple[int, ...], device: str, repeats: int) -> list[dict[str, Any]]:
    """For each number of particles: images a second of all together, over those of one particle alone."""
    batch = BATCH[case] if device == "cpu" else None
    config = CASES[case].config(device, STEPS[device][case], batch)
    data = data_of(case, device, STEPS[device][case], batch)
    arithmetic = arithmetic_of(config, data, device)
    with applied(arithmetic):
        single = ParticleTrainer(config, data, arithmetic)
        alone = begun(single).epoch
        return [_packed(config, data, replace(arithmetic, packing=f"{form}:{width}"), single, alone, repeats)
                for width in widths]


def _packed(
    config: SwampConfig, data: Data, arithmetic: Arithmetic, single: ParticleTrainer, alone: Epoch, repeats: int
) -> dict[str, Any]:
    images = len(data.train) // config.training.batch_size * config.training.batch_size
    row: dict[str, Any] = {"particles": arithmetic.width, "batch": config.training.batch_size}
    try:
        times = in_turn({"alone": alone, "packed": _together(config, data, arithmetic, single)}, arithmetic.device,
                        repeats, 1)
        row["images_per_s"] = spread([arithmetic.width * images / one for one in times["packed"].own])
        row["over_one"] = spread([arithmetic.width * a / b for a, b in
                                  zip(times["alone"].own, times["packed"].own, strict=True)])
        if arithmetic.device == "cuda":
            row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    except Exception as error:  # what a form cannot do is a result too
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    finally:
        gc.collect()
        if arithmetic.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return row


def _together(config: SwampConfig, data: Data, arithmetic: Arithmetic, single: ParticleTrainer) -> Epoch:
    """An epoch of all particles of a pack."""
    pack = Pack(config, data, arithmetic, single.batches_by_split)
    runs = {seat: begun(trainer, seat) for seat, trainer in enumerate(pack.seats)}
    return lambda: _train_epoch(pack, runs)


def _train_epoch(pack: Pack, runs: Mapping[int, TrainingRun]) -> None:
    """Carry training runs through their current epochs side by side."""
    open_runs = {seat: run.epoch_steps() for seat, run in runs.items()}
    with pack.randomness():
        batches = {seat: next(steps).batch for seat, steps in open_runs.items()}
        while batches:
            answers = pack.gradients(batches)
            batches = {}
            for seat, answer in answers.items():
                with contextlib.suppress(StopIteration):
                    batches[seat] = open_runs[seat].send(answer).batch


def side_by_side(case: str, widths: tuple[int, ...], device: str, repeats: int) -> list[dict[str, Any]]:
    """The same with a process for each particle, all on one device, over one process alone."""
    rows = []
    for width in widths:
        context = multiprocessing.get_context("spawn")
        barrier, took = context.Barrier(width), context.Queue()
        processes = [context.Process(target=_one_of_several, args=(case, device, repeats, barrier, took))
                     for _ in range(width)]
        for process in processes:
            process.start()
        answers = [took.get(timeout=240) for _ in processes]
        for process in processes:
            process.join()
        errors = [answer for answer in answers if isinstance(answer, str)]
        if errors:
            rows.append({"particles": width, "error": errors[0]})
            continue
        total = [sum(rates) for rates in zip(*answers, strict=True)]
        row = {"particles": width, "images_per_s": spread(total)}
        if rows and "images_per_s" in rows[0]:
            row["over_one"] = spread([one / rows[0]["images_per_s"]["median"] for one in total])
        rows.append(row)
    return rows


def _one_of_several(case: str, device: str, repeats: int, barrier: Any, took: Any) -> None:
    try:
        config, data = CASES[case].config(device, STEPS[device][case]), data_of(case, device, STEPS[device][case])
        arithmetic = arithmetic_of(config, data, device)
        with applied(arithmetic):
            run = begun(ParticleTrainer(config, data, arithmetic))
            run.epoch()
            rates = []
            for _ in range(repeats):
                synchronise(device)
                barrier.wait(timeout=200)
                began = time.perf_counter()
                run.epoch()
                synchronise(device)
                rates.append(len(data.train) // config.training.batch_size * config.training.batch_size
                             / (time.perf_counter() - began))
        took.put(rates)
    except Exception as error:
        barrier.abort()
        took.put(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
