"""What does the orchestration cost?

One worker: the rounds on Ray with one particle worker, against the same run with `executor: inline`. Two workers: the
rounds on Ray with two workers, against two plain loops side by side in two processes that train the same particles and
evaluate the same averages, half each, without a driver. Rounds are timed from the end of the dense phase, when all
workers are warm, to the last record; the start-up of Ray is reported apart. Each repetition runs both sides in turn.

    python benchmarks/orchestration.py --repeats 5
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from _measuring import spread, write

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec, RoundRecord
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.state import State
from swamp_ray.sparsity.masks import to_bits
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.tickets import load_ticket

CONFIG: dict[str, Any] = {
    "name": "orchestration",
    "data": {"name": "synthetic",
             "options": {"num_train": 1000, "num_test": 200, "num_classes": 10, "shape": [3, 32, 32]}},
    "model": {"name": "resnet8"},
    "training": {"batch_size": 64, "lr": 0.05},
    "dense": {"length": 3},
    "round": {"length": 4},
    "averaging": {"within": "swa", "start": 0.5},
    "particles": {"count": 2},
    "pruning": {"target": 0.75, "rate": 0.5},
    "execution": {"device": "cpu"},
}


class Clock(Reporter):
    """When the executor started, the dense phase ended, and the last round was recorded."""

    def __init__(self) -> None:
        self.items: list[JobSpec] = []
        self.began = self.ready = self.warm = self.ended = 0.0

    def executor_starting(self, executor: str) -> None:
        """Start-up begins."""
        self.began = time.perf_counter()

    def executor_started(self, num_workers: int) -> None:
        """Start-up ends."""
        self.ready = time.perf_counter()

    def job_submitted(self, spec: JobSpec) -> None:
        """Remember the job."""
        self.items.append(spec)

    def job_finished(self, job: Job, found: bool) -> None:
        """The dense phase ends."""
        if job.kind == "dense":
            self.warm = time.perf_counter()

    def round_finished(self, record: RoundRecord) -> None:
        """The last of these counts."""
        self.ended = time.perf_counter()

    @property
    def rounds_s(self) -> float:
        """Wall time of the rounds."""
        return self.ended - self.warm


def measure(config: SwampConfig) -> Clock:
    """One run in a storage of its own."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as storage:
        run(with_values(config, {"storage": storage}), clock)
    return clock


def side_by_side(config: SwampConfig, storage: str, items: list[JobSpec], barrier: Any, took: Any) -> None:
    """A plain loop in a process of its own: some of the jobs of a finished run, one after the other."""
    from swamp_ray.run.worker import Worker

    prepared = prepare(config)
    start = State(*_rewind_point(prepared, storage))
    masks = {index: to_bits(mask) for index, mask in _masks(prepared, storage).items()}
    with tempfile.TemporaryDirectory() as own:
        shutil.copytree(Path(storage) / "artifacts", Path(own) / "artifacts", dirs_exist_ok=True)
        store = ArtifactStore(own)
        for spec in items:
            store.discard(spec.named.name, "result")
        worker = Worker(config, prepared.data, prepared.arithmetic, own)
        barrier.wait()
        began = time.perf_counter()
        for spec in items:
            for _ in worker.run(spec, start, masks[spec.job.round], None):
                pass
        took.put(time.perf_counter() - began)


def _rewind_point(prepared: Any, storage: str) -> tuple[Any, Any]:
    import numpy as np

    from swamp_ray.sparsity.compact import full_state
    from swamp_ray.storage.states import read_state

    store = ArtifactStore(storage)
    recipes, layout = prepared.recipes, prepared.layout
    initial = recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
    ones = np.ones(layout.num_prunable, dtype=bool)
    named = recipes.training(prepared.dense.as_dict(), prepared.particle_seed(-1, 0), initial,
                             recipes.mask_digest(ones), None)
    manifest = store.find(named.name)
    assert manifest is not None
    return full_state(read_state(store, manifest), layout, ones), prepared.initial.buffers


def _masks(prepared: Any, storage: str) -> dict[int, Any]:
    import numpy as np

    masks = {}
    for path in (Path(storage) / "runs" / "orchestration" / "tickets").glob("*/model.safetensors"):
        ticket = load_ticket(path)
        flat = [ticket.masks[layer.name].numpy().reshape(-1) for layer in prepared.layout.layers]
        masks[int(ticket.meta["round"])] = np.concatenate(flat)
    return masks


def loops(config: SwampConfig, storage: str, items: list[JobSpec]) -> float:
    """Wall time of two loops side by side: even particles and even evaluations, and the odd ones."""
    halves: list[list[JobSpec]] = [[], []]
    for spec in items:
        if spec.job.kind != "dense":
            halves[(spec.job.particle if spec.job.kind == "particle" else spec.job.round) % 2].append(spec)
    context = multiprocessing.get_context("spawn")
    barrier, took = context.Barrier(2), context.Queue()
    processes = [context.Process(target=side_by_side, args=(config, storage, half, barrier, took)) for half in halves]
    for process in processes:
        process.start()
    times = [took.get() for _ in processes]
    for process in processes:
        process.join()
    return max(times)


def main() -> None:
    """Measure both questions and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4, help="length of a round")
    arguments = parser.parse_args()
    base = with_values(build_config(CONFIG), {"round.length": arguments.epochs})
    inline = with_values(base, {"execution.executor": "inline"})
    rows: dict[str, list[float]] = {name: [] for name in (
        "inline_s", "ray_1_worker_s", "ray_2_workers_s", "two_loops_s", "ray_start_s", "ratio_1", "ratio_2")}
    with tempfile.TemporaryDirectory() as storage:
        reference = Clock()
        run(with_values(inline, {"storage": storage}), reference)
        for repeat in range(arguments.repeats):
            plain = measure(inline).rounds_s
            one = measure(with_values(base, {"execution.num_workers": 1}))
            two = measure(with_values(base, {"execution.num_workers": 2}))
            both = loops(inline, storage, reference.items)
            values = (plain, one.rounds_s, two.rounds_s, both, one.ready - one.began, one.rounds_s / plain,
                      two.rounds_s / both)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            print(f"{repeat + 1}/{arguments.repeats}: inline {plain:.2f} s, Ray with one worker {one.rounds_s:.2f} s "
                  f"(x {values[5]:.3f}); two loops {both:.2f} s, Ray with two workers {two.rounds_s:.2f} s "
                  f"(x {values[6]:.3f})", flush=True)
    result = {name: spread(values) for name, values in rows.items()}
    print(f"one worker / inline: {result['ratio_1']['median']:.3f} (target 1.03); "
          f"two workers / two loops: {result['ratio_2']['median']:.3f} (target 1.1)")
    write("orchestration", {"config": CONFIG | {"round": {"length": arguments.epochs}}, "targets": {
        "ratio_1": 1.03, "ratio_2": 1.1}, **result})


if __name__ == "__main__":
    main()
