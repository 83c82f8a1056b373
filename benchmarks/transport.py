"""How many bytes travel a particle?

Runs real rounds on Ray and measures, for every particle, the serialised size of what is sent to its worker for it (the
job and the round's mask) and of what comes back (outcome and state), against 4 x (density x P + rest) + P / 8. The
rewind weights, which are put into the object store once a run, are reported apart.

    python benchmarks/transport.py
"""

from __future__ import annotations

import argparse
import math
import tempfile
from typing import Any

import ray
from _measuring import write

from swamp_ray import launch as running
from swamp_ray.config.reading import build_config, with_values
from swamp_ray.method.events import Job
from swamp_ray.on_ray import executor as ray_executor
from swamp_ray.run.messages import JobFinishedReport, JobSpec, Outcome, Report
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.state import State

CONFIG: dict[str, Any] = {
    "name": "transport",
    "data": {"name": "synthetic",
             "options": {"num_train": 128, "num_test": 32, "num_classes": 10, "shape": [3, 32, 32]}},
    "training": {"batch_size": 32, "lr": 0.05},
    "dense": {"length": 0},
    "round": {"length": 2},
    "averaging": {"within": "none"},
    "particles": {"count": 2},
    "pruning": {"target": 0.99, "rate": 0.7},
    "execution": {"device": "cpu"},
}


def serialised_bytes(value: Any) -> int:
    """Size of a value as Ray stores or sends it."""
    context = ray._private.worker.global_worker.get_serialization_context()  # pyright: ignore
    return context.serialize(value).total_bytes


class MeasuringExecutor(ray_executor.RayExecutor):
    """Weighs everything that passes; once for each particle it is sent to or comes from."""

    measured: dict[Job, dict[str, int]]
    once: dict[str, int]

    def __init__(self, prepared: Prepared, storage: str) -> None:
        super().__init__(prepared, storage)
        self.measured, self.once, self._sizes = {}, {}, {}
        MeasuringExecutor.last = self

    def put(self, value: Any) -> Any:
        """Weigh what is broadcast."""
        handle = super().put(value)
        self._sizes[handle] = serialised_bytes(value)
        if isinstance(value, State):
            self.once["rewind_weights"] = self.once.get("rewind_weights", 0) + self._sizes[handle]
        return handle

    def submit(self, spec: JobSpec, start: Any, mask_bits: Any, values: Any, urgent: bool) -> None:
        """Weigh a job."""
        sent = serialised_bytes(spec) + self._sizes[mask_bits] + (self._sizes[values] if values is not None else 0)
        self.measured[spec.job] = {"sent": sent, "returned": 0}
        super().submit(spec, start, mask_bits, values, urgent)

    def wait(self, timeout_s: float) -> list[Report]:
        """Weigh what comes back."""
        reports = list(super().wait(timeout_s))
        for report in reports:
            if isinstance(report, JobFinishedReport):
                self._weigh(report.job, report.outcome)
        return reports

    def _weigh(self, job: Job, outcome: Outcome) -> None:
        pieces = self._states.get(job, [])
        size = serialised_bytes(outcome) + sum(serialised_bytes(ray.get(piece)) for piece in pieces)
        self.measured[job]["returned"] = size

    last: Any = None


def measure(model: str, target: float) -> list[dict[str, Any]]:
    """A row a round: bytes of its largest particle, and what the formula says."""
    with tempfile.TemporaryDirectory() as storage:
        config = with_values(build_config(CONFIG), {"storage": storage, "model.name": model, "pruning.target": target})
        prepared = running.prepare(config, "cpu")
        store, rundir = running.ArtifactStore(storage), running.RunDir(storage, "transport")
        journal = running.Journal(rundir, store)
        journal.open(prepared)
        running.Driver(prepared, store, journal, Reporter(), MeasuringExecutor).run()
        journal.close("complete")
    executor = MeasuringExecutor.last
    rows = []
    for plan in prepared.plan:
        found = [executor.measured[Job("particle", plan.index, n)] for n in range(plan.num_particles)]
        largest = max(found, key=lambda entry: entry["sent"] + entry["returned"])
        formula = 4 * (plan.survivors + prepared.layout.num_rest) + math.ceil(prepared.layout.num_prunable / 8)
        total = largest["sent"] + largest["returned"]
        rows.append({"model": model, "sparsity": round(plan.sparsity, 4), **largest, "total": total,
                     "formula": formula, "limit": round(1.05 * formula + 2048),
                     "within": total <= 1.05 * formula + 2048, "once": dict(executor.once)})
    return rows


def main() -> None:
    """Measure two networks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "wrn_28_2"])
    parser.add_argument("--target", type=float, default=0.99)
    arguments = parser.parse_args()
    rows = [row for model in arguments.models for row in measure(model, arguments.target)]
    print(f"{'model':<10} {'sparsity':>8} {'sent':>10} {'returned':>10} {'total':>10} {'formula':>10} {'ratio':>6}")
    for row in rows:
        print(f"{row['model']:<10} {row['sparsity']:>8.4f} {row['sent']:>10,} {row['returned']:>10,} "
              f"{row['total']:>10,} {row['formula']:>10,} {row['total'] / row['formula']:>6.3f}"
              f"{'' if row['within'] else '  over the target'}")
    write("transport", {"target": "total <= 1.05 x formula + 2 KiB", "rows": rows})


if __name__ == "__main__":
    main()
