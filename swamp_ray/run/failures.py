"""What kind of failure an error is, and what a user can do about it. docs/failures.md is about all of them."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Literal

from swamp_ray.config.sections import ParticlesConfig
from swamp_ray.errors import CorruptArtifactError, DivergedError, LostRankError, RunError
from swamp_ray.run.messages import JobSpec
from swamp_ray.storage.artifacts import DIVERGED, ArtifactStore
from swamp_ray.storage.json_lines import dump_json
from swamp_ray.user_code.blaming import out_of_memory

__all__ = ["FailureKind", "divergence_advice", "kind_of", "memory_error", "out_of_memory", "recall_divergence",
           "remember_divergence"]

FailureKind = Literal["machine", "diverged", "error"]

_LESS_MEMORY = ("Give a worker more of the machine (execution.num_gpus, execution.num_cpus); fewer run side by side "
                "then, and no result changes. Or make training.micro_batch or training.batch_size smaller, under a new "
                "name.")


def kind_of(error: BaseException) -> FailureKind:
    """The kind of an error that was raised by a job itself; what else its machine did to it, only an executor knows."""
    if isinstance(error, DivergedError):
        return "diverged"
    return "machine" if isinstance(error, LostRankError) or out_of_memory(error) else "error"


def memory_error(error: BaseException) -> RunError:
    """The same in words, with what to do; the first line is the system's own."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return RunError(f"out of memory: {reason}\n{_LESS_MEMORY}")


def remember_divergence(store: ArtifactStore, spec: JobSpec, error: DivergedError) -> None:
    """Store how a training run diverged, so that nobody trains it again only to see it diverge.

    Raises:
        RunError: The storage could not be written.
    """
    facts = {"step": error.step, "epoch": error.epoch, "lr": error.lr, "loss": error.loss, "work": str(spec.job)}
    # Storage keeps no NaN: numbers that are not finite become text.
    store.put(spec.named.name, {}, json.loads(dump_json(facts)), DIVERGED)


def recall_divergence(store: ArtifactStore, spec: JobSpec) -> DivergedError | None:
    """How a training run of this name diverged before, in this run or in another."""
    for name in spec.named.names:
        error = _recall(store, name, spec)
        if error is not None:
            return error
    return None


def _recall(store: ArtifactStore, name: str, spec: JobSpec) -> DivergedError | None:
    try:
        manifest = store.find(name, DIVERGED)
        if manifest is None:
            return None
        facts: dict[str, Any] = manifest.info
        return DivergedError(str(spec.job), int(facts["epoch"]), int(facts["step"]), float(facts["lr"]),
                             float(facts["loss"]))
    except (CorruptArtifactError, KeyError, TypeError, ValueError):
        # What cannot be read is found out again, by training.
        with contextlib.suppress(RunError):
            store.discard(name, DIVERGED)
        return None


def divergence_advice(particles: ParticlesConfig, where: str | None) -> str:
    """What to do about a divergence that ended a run.

    Args:
        particles: The policy that led to it.
        where: What holds the record of it.
    """
    other = {
        "stop": "set particles.on_failure to retry (another seed) or drop (go on without it)",
        "retry": "raise particles.max_reseeds, or set particles.on_failure to drop (go on without it)",
        "drop": "lower particles.min_count, or set particles.on_failure to retry (another seed)",
    }[particles.on_failure]
    text = ("Lower training.lr, lengthen the warm-up, or set training.clip_norm, under a new name. Or, under the same "
            f"name, {other}.")
    if where is not None:
        text += f" The divergence is recorded and not trained again; to try again all the same, delete {where}"
    return text
