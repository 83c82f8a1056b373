"""Figures of runs and sweeps, and pages about runs: :func:`write_report` writes one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swamp_ray.report.page.writing import Written, write_report

__all__ = ["Written", "write_report"]


def __getattr__(name: str) -> Any:
    # When it is first used, so that a figure alone does not import all of them.
    if name not in __all__:
        raise AttributeError(f"module 'swamp_ray.report' has no attribute {name!r}")
    return getattr(importlib.import_module("swamp_ray.report.page.writing"), name)
