"""What Ray Tune is given to hook into: who stops it, who watches it, and silence in place of its own output."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune import ProgressReporter, Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from swamp_ray.config.sweep_settings import Setting, Sweep, label
from swamp_ray.run.provenance import now
from swamp_ray.run.signals import Stopping
from swamp_ray.sweep.reporter import SweepReporter
from swamp_ray.sweep.trial import COMPLETE, plain_setting, reason_of

NO_ROOM_S = 60.0
"""After so long without any setting at work it is said that there is no room."""
STOP_SLACK_S = 10.0
"""What trials get to end in, on top of the time for their checkpoints."""


class Attempt(Protocol):
    """What the hooks know of the attempt at a sweep that they belong to.

    Attributes:
        running: When each running setting began, by label.
        lost: Settings whose process was lost.
        gave_up: Why the sweep cannot go on; empty while it can.
        is_alone: Whether the Ray is the sweep's own, which nobody else uses.
    """

    sweep: Sweep
    reporter: SweepReporter
    stopping: Stopping
    running: dict[str, float]
    lost: list[Setting]
    gave_up: str
    is_alone: bool

    def finished_before(self, key: str) -> bool:
        """Whether an earlier attempt has finished a setting, which then only reports again."""
        ...

    def write(self, setting: Setting, status: str, **values: Any) -> None:
        """Record a setting's state."""
        ...

    def ended(self, setting: Setting, status: str, milestone: int, reason: str = "") -> None:
        """Record that a setting has ended."""
        ...

    def counted(self) -> None:
        """Bring the record of what has been trained up to date, not too often."""
        ...

    def has_room(self) -> bool:
        """Whether the living nodes could hold a worker, whatever else they do."""
        ...


class Silent(ProgressReporter):
    """In place of Tune's own output."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None:
        """Nothing."""


class NoProgress(TrialProgressCallback):
    """In place of the lines that Tune prints about trials."""

    def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None:
        """Nothing."""


class Stop(Stopper):
    """Lets running trials write their checkpoints when the sweep is asked to stop, and then ends it."""

    def __init__(self, attempt: Attempt, signal: Any) -> None:
        self._attempt = attempt
        self._signal = signal
        self._until: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its results here."""
        return False

    def stop_all(self) -> bool:
        """Whether everything is to be ended now."""
        stopping = self._attempt.stopping
        if self._attempt.gave_up:
            return True
        if not stopping.asked():
            return False
        if self._until is None:
            grace_s = self._attempt.sweep.base.execution.grace_s
            self._until = time.monotonic() + grace_s + STOP_SLACK_S
            self._signal.ask.remote()
            self._attempt.reporter.stopping(grace_s)
        return stopping.impatient or not self._attempt.running or time.monotonic() > self._until

    def __reduce__(self) -> tuple[Any, ...]:
        return (_NeverStop, ())  # Tune pickles it into its own files, from which nothing is restored


class _NeverStop(Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return False


def _error_of(trial: Any) -> BaseException | None:
    """What a trial has failed of. Tune has just written it beside the trial, and copies it to its storage later."""
    try:
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # an error whose class is not known here
        return trial.get_error()


class Watch(tune.Callback):
    """Keeps the sweep's records, and passes on what happens."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._idle_since = time.monotonic()
        self._told = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting begins."""
        setting = plain_setting(trial.config)
        key = label(plain_setting(trial.config))
        self._attempt.running[key] = time.monotonic()
        if self._attempt.finished_before(key):
            return
        self._attempt.write(setting, "running", started=now())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any],
                        **info: Any) -> None:
        """A milestone."""
        self._attempt.counted()
        self._attempt.reporter.milestone(plain_setting(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting has reached its target, or the scheduler has stopped it, or the user has."""
        setting = plain_setting(trial.config)
        last = trial.last_result or {}
        key = label(setting)
        reached = int(last.get("milestone", 0))
        if self._attempt.finished_before(key):
            self._attempt.running.pop(key, None)
        elif last.get(COMPLETE):
            self._attempt.ended(setting, "complete", reached - 1)
        elif self._attempt.stopping.asked():
            self._attempt.ended(setting, "interrupted", reached)
        else:
            self._attempt.ended(setting, "stopped", reached,
                                f"by the scheduler at a sparsity of {100 * last.get('sparsity', 0.0):.4g} %")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A setting has failed."""
        setting = plain_setting(trial.config)
        error = _error_of(trial)
        reached = int((trial.last_result or {}).get("milestone", 0))
        if isinstance(error, RayActorError):
            self._attempt.lost.append(setting)
            self._attempt.ended(setting, "interrupted", reached, f"{reason_of(error)}; it is taken up again later")
        else:
            self._attempt.ended(setting, "failed", reached, reason_of(error))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Displays move. A cluster that has no room is not waited for in silence."""
        self._attempt.reporter.tick()
        if self._attempt.running:
            self._idle_since = time.monotonic()
            self._told = False
            return
        idle_s = time.monotonic() - self._idle_since
        if idle_s > self._attempt.sweep.config.execution.worker_deadline_s and not self._attempt.has_room():
            self._attempt.gave_up = (
                f"no node could hold a worker for {idle_s:.0f} s, because nodes have gone. What is finished is kept; "
                "once they are back, the same command goes on")
        elif idle_s > NO_ROOM_S and not self._told:
            self._told = True
            busy = "this machine is slow to start one" if self._attempt.is_alone else "others use the cluster"
            why = busy if self._attempt.has_room() else "no living node can hold its workers"
            self._attempt.reporter.warning(
                f"no setting has started for {NO_ROOM_S:.0f} s: {why}. The sweep goes on as soon as there is room; "
                "Ctrl-C stops it, and the same command goes on later")

    def __reduce__(self) -> tuple[Any, ...]:
        return (tune.Callback, ())  # Tune pickles it into its own files, from which nothing is restored
