"""Which settings are stopped early: Ray Tune's schedulers, with milestones for time.

A setting reports once for each milestone (1, 2, ...). A report with ``complete`` comes from a setting that has
reached its own target: there is nothing left to save, so that it is recorded and never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError
from swamp_ray.user_code.extras import call, check_call, check_options, unknown_name
from swamp_ray.user_code.importing import is_import_path, load_object

MILESTONE = "milestone"
COMPLETE = "complete"
SCHEDULERS = ("none", "asha", "median")

_WHERE = "scheduler.name"
_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "asha": {"grace_period": 1, "reduction_factor": 2},
    "median": {"grace_period": 1, "min_samples_required": 3, "hard_stop": True},
}


class Halving(ASHAScheduler):
    """ASHA over milestones: at each rung only the best settings go on, one in ``reduction_factor``."""

    def __init__(self, num_milestones: int, metric: str, mode: str, grace_period: int = 1,
                 reduction_factor: float = 2) -> None:
        # With stop_last_trials Ray ends whoever reaches max_t, and files late results under early rungs.
        super().__init__(time_attr=MILESTONE, metric=metric, mode=mode, max_t=num_milestones,
                         grace_period=grace_period, reduction_factor=reduction_factor, stop_last_trials=False)
        self._grace_period = grace_period

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """They are set."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, or stop."""
        if _is_lost(self._metric, result):
            # Nothing is worse than NaN for Ray, so that such a setting would pass every rung.
            judged = result.get(MILESTONE, 0) >= self._grace_period
            decision = TrialScheduler.STOP if judged else TrialScheduler.CONTINUE
        else:
            decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get(COMPLETE) else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Keep the last result, if it is a number."""
        if not _is_lost(self._metric, result):
            super().on_trial_complete(tune_controller, trial, result)


class MedianOverMilestones(MedianStoppingRule):
    """Stops a setting whose mean over the milestones so far is worse than the median of the others' means.

    Ray's rule takes a setting's best value in place of its mean. Accuracy falls from milestone to milestone, so the
    best value would nearly always be the first one, and nobody who collapses later would be stopped.
    """

    def __init__(self, metric: str, mode: str, grace_period: int = 1, min_samples_required: int = 3,
                 hard_stop: bool = True) -> None:
        # Without the slice Ray pauses settings while it waits for samples, which ends their workers.
        super().__init__(time_attr=MILESTONE, metric=metric, mode=mode, grace_period=grace_period,
                         min_samples_required=min_samples_required, min_time_slice=math.inf,  # pyright: ignore
                         hard_stop=hard_stop)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """They are set."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, pause or stop."""
        if MILESTONE not in result or result[MILESTONE] <= self._reached(trial):
            return TrialScheduler.CONTINUE  # started again: it has been judged here
        if result.get(COMPLETE):
            self._results[trial].append(result)
            return TrialScheduler.CONTINUE
        if _is_lost(self._metric, result) and result[MILESTONE] >= self._grace_period:
            return TrialScheduler.STOP
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Keep the last result, if it is new."""
        if result.get(MILESTONE, 0) > self._reached(trial):
            super().on_trial_complete(tune_controller, trial, result)

    def _reached(self, trial: Any) -> int:
        results = self._results.get(trial)
        return results[-1][MILESTONE] if results else 0

    def _best_result(self, trial: Any) -> Any:
        return self._running_mean(trial, math.inf)


def _is_lost(metric: str | None, result: Mapping[str, Any]) -> bool:
    value = result.get(metric or "")
    return isinstance(value, float) and not math.isfinite(value)


def make_scheduler(sweep: Sweep, num_milestones: int) -> TrialScheduler:
    """The scheduler that a sweep names. It knows metric and mode: ``TuneConfig`` needs neither.

    Args:
        sweep: The sweep.
        num_milestones: How many milestones all settings report.

    Raises:
        UserError: There is no such scheduler, or its options do not fit.
    """
    check_scheduler(sweep, num_milestones)
    config = sweep.config
    name = sweep.config.scheduler.name
    options: dict[str, Any] = {**config.scheduler.options}
    if is_import_path(name):
        return call(load_object(name, _WHERE), _WHERE, TrialScheduler, num_milestones=num_milestones,
                    metric=config.metric, mode=config.mode, **options)
    if name == "asha":
        return Halving(num_milestones, config.metric, config.mode, **options)
    if name == "median":
        return MedianOverMilestones(config.metric, config.mode, **options)
    return FIFOScheduler()


def check_scheduler(sweep: Sweep, num_milestones: int | None) -> None:
    """What can be wrong with a scheduler, milestones included where their number is known.

    Raises:
        UserError: There is no such scheduler, or its options do not fit.
    """
    config = sweep.config
    name = sweep.config.scheduler.name
    options = dict(config.scheduler.options)
    if is_import_path(name):
        keywords = {"num_milestones": num_milestones, "metric": config.metric, "mode": config.mode} | options
        check_call(load_object(name, _WHERE), (), keywords, _WHERE)
        return
    if name not in SCHEDULERS:
        raise unknown_name(name, SCHEDULERS, _WHERE)
    check_options(options, _OPTIONS[name], "scheduler.options")
    given = _OPTIONS[name] | options
    for option in ("grace_period", "min_samples_required"):
        if option in given:
            check_count(given[option], f"scheduler.options.{option}")
    if num_milestones is not None and "grace_period" in given and given["grace_period"] > num_milestones:
        raise UserError(f"must be at most the number of milestones, {num_milestones}, or nothing is ever stopped",
                        got=given["grace_period"], where="scheduler.options.grace_period")
    factor = given.get("reduction_factor", 2)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 < factor < math.inf:
        raise UserError("must be a number above 1: one setting in so many goes on", got=factor,
                        where="scheduler.options.reduction_factor")
    if not isinstance(given.get("hard_stop", True), bool):
        raise UserError("must be true or false", got=given["hard_stop"], where="scheduler.options.hard_stop")


def check_count(value: Any, where: str) -> None:
    """Whether an option is a whole number of at least 1.

    Raises:
        UserError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError("must be a whole number of at least 1", got=value, where=where)
