"""Ray Train's own configs, where they mean the same thing here."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from swamp_ray.errors import UserError

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig

__all__ = ["RunConfig", "ScalingConfig", "run_values", "scaling_values"]


_MADE_UP_NAME = re.compile(r"ray_train_run-\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}")
"""Ray's name for a run that has none."""
_READ = ("name", "storage_path", "failure_config")


def run_values(run_config: RunConfig) -> dict[str, Any]:
    """Config values for a run's name, storage and retries: those that the user has set, and not Ray's own defaults.

    Raises:
        UserError: The retries are not bounded, or something is set that has no meaning here.
    """
    # Ray fills in a name with the time and a folder of its own, where the user has given none.
    untouched = type(run_config)()
    unknown = [name for name in _set_fields(run_config, untouched) if name not in _READ]
    if unknown:
        raise UserError(f"{', '.join(unknown)} of RunConfig would have no effect", where="run_config",
                        do="Of a RunConfig name, storage_path and failure_config.max_failures are read.")
    values: dict[str, Any] = {}
    if run_config.name is not None and not _MADE_UP_NAME.fullmatch(run_config.name):
        values["name"] = run_config.name
    if run_config.storage_path is not None and run_config.storage_path != untouched.storage_path:
        values["storage"] = str(run_config.storage_path)
    failure = run_config.failure_config
    if failure is None:
        return values
    unknown = [name for name in _set_fields(failure, type(failure)()) if name != "max_failures"]
    if unknown:
        raise UserError(f"{', '.join(unknown)} of FailureConfig would have no effect",
                        where="run_config.failure_config",
                        do="Of a FailureConfig max_failures is read: how often a particle is tried again.")
    if failure.max_failures:
        if failure.max_failures < 0:
            raise UserError("retries must be bounded", got=failure.max_failures, where="failure_config.max_failures")
        values["execution.max_retries"] = failure.max_failures
    return values


def _set_fields(given: Any, untouched: Any) -> list[str]:
    """The fields of one of Ray's configs that differ from those of an untouched one."""
    names = [field.name for field in dataclasses.fields(given) if not field.name.startswith("_")]
    return [name for name in names if getattr(given, name) != getattr(untouched, name)]


def scaling_values(scaling_config: ScalingConfig) -> dict[str, Any]:
    """Config values for the number of workers, what each of them needs, and where they go.

    Raises:
        UserError: It asks for something that workers of particles do not have.
    """
    values: dict[str, Any] = {}
    if not isinstance(scaling_config.num_workers, int):
        raise UserError("the number of workers must be one number", got=str(scaling_config.num_workers),
                        where="scaling_config.num_workers")
    values["execution.num_workers"] = scaling_config.num_workers
    asked: Any = scaling_config.resources_per_worker
    resources: dict[str, float] = dict(asked or {})
    values["execution.device"] = "cuda" if scaling_config.use_gpu else "cpu"
    if "CPU" in resources:
        values["execution.num_cpus"] = resources.pop("CPU")
    if "GPU" in resources:
        values["execution.num_gpus"] = resources.pop("GPU")
    if resources:
        raise UserError("a worker's resources can be CPU and GPU", got=", ".join(resources),
                        where="scaling_config.resources_per_worker")
    return values | _placement_values(scaling_config)


def _placement_values(scaling_config: ScalingConfig) -> dict[str, Any]:
    strategy = str(scaling_config.placement_strategy)
    labels = scaling_config.label_selector
    if strategy not in ("PACK", "SPREAD"):
        raise UserError("the placement strategy must be PACK or SPREAD", got=strategy,
                        where="scaling_config.placement_strategy", do="Nodes may join and leave while a run works.")
    if isinstance(labels, list):
        raise UserError("all workers have the same labels", got=str(labels), where="scaling_config.label_selector",
                        do="Give one mapping.")
    if scaling_config.use_tpu:
        raise UserError("particles train on CPUs and GPUs", where="scaling_config.use_tpu")
    values: dict[str, Any] = {"execution.placement": strategy.lower(), "execution.labels": dict(labels or {})}
    if scaling_config.accelerator_type is not None:
        values["execution.accelerator_type"] = scaling_config.accelerator_type
    return values
