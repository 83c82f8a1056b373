"""SWAMP on Ray: sparse networks by iterative magnitude pruning with averaged particles.

Public names are imported when they are first used, so that ``import swamp_ray`` and ``swamp --help`` are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swamp_ray.former_modules import install
from swamp_ray.version import __version__

if TYPE_CHECKING:
    from swamp_ray.api import Result, SwampSweep, SwampTrainer, SweepResult, tune_trainable
    from swamp_ray.config.reading import load_config
    from swamp_ray.config.schema import SwampConfig
    from swamp_ray.errors import DivergedError, RunError, SwampError, UserError
    from swamp_ray.storage.tickets import Ticket, load_ticket
    from swamp_ray.training.tasks import Classification, Regression, Task

__all__ = [
    "Classification",
    "DivergedError",
    "Regression",
    "Result",
    "RunError",
    "SwampConfig",
    "SwampError",
    "SwampSweep",
    "SwampTrainer",
    "SweepResult",
    "Task",
    "Ticket",
    "UserError",
    "__version__",
    "load_config",
    "load_ticket",
    "tune_trainable",
]

_HOMES = {
    "Classification": "training.tasks",
    "DivergedError": "errors",
    "Regression": "training.tasks",
    "Result": "api",
    "RunError": "errors",
    "SwampConfig": "config.schema",
    "SwampError": "errors",
    "SwampSweep": "api",
    "SwampTrainer": "api",
    "SweepResult": "api",
    "Task": "training.tasks",
    "Ticket": "storage.tickets",
    "UserError": "errors",
    "load_config": "config.reading",
    "load_ticket": "storage.tickets",
    "tune_trainable": "api",
}

install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swamp_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"swamp_ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
