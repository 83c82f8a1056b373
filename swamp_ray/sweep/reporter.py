"""What a sweep tells whoever watches it; every method may be left as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swamp_ray.config.sweep_settings import Setting, Sweep
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.plan import SweepPlan


class SweepReporter:
    """A silent watcher; the consoles derive from it."""

    def sweep_started(self, sweep: Sweep, plan: SweepPlan, sweepdir: SweepDir) -> None:
        """The plan stands; nothing has been started yet."""

    def ray_starting(self) -> None:
        """Ray is being started, or joined."""

    def setting_changed(self, record: Mapping[str, Any]) -> None:
        """A setting has begun or ended: its record, as in ``trials.jsonl``."""

    def milestone(self, setting: Setting, result: Mapping[str, Any]) -> None:
        """A setting has reported."""

    def warning(self, text: str) -> None:
        """Something the user should know."""

    def stopping(self, grace_s: float) -> None:
        """The sweep was asked to stop; running particles have so many seconds for a checkpoint."""

    def tick(self) -> None:
        """Called often, for displays that move."""

    def sweep_finished(self, complete: bool) -> None:
        """Nothing more will come; called however the sweep ends."""
