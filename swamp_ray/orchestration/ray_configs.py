"""Ray Train's own configs, where they mean the same thing here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swamp_ray.errors import UserError

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig

__all__ = ["RunConfig", "ScalingConfig", "run_values", "scaling_values"]


def run_values(run_config: RunConfig) -> dict[str, Any]:
    """Config values for a run's name, storage and retries.

    Raises:
        UserError: The retries are not bounded.
    """
    values: dict[str, Any] = {}
    if run_config.name is not None:
        values["name"] = run_config.name
    if run_config.storage_path is not None:
        values["storage"] = str(run_config.storage_path)
    failure = run_config.failure_config
    if failure is not None and failure.max_failures:
        if failure.max_failures < 0:
            raise UserError("retries must be bounded", got=failure.max_failures, where="failure_config.max_failures")
        values["execution.max_retries"] = failure.max_failures
    return values


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
    strategy, labels = str(scaling_config.placement_strategy), scaling_config.label_selector
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
