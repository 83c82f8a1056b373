"""Experiment trackers that a sweep writes to: MLflow and Weights & Biases, through Ray Tune's callbacks.

Trackers show what happens and nothing depends on them: what a tracker refuses once work has begun is logged, and the
sweep goes on. TensorBoard's files are written by Ray Tune itself.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS

from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError, nearest
from swamp_ray.sweep.schedulers import MILESTONE
from swamp_ray.user_code.extras import check_options, require

TRACKERS = ("mlflow", "wandb")

_log = logging.getLogger(__name__)
_MLFLOW = ("tracking_uri", "registry_uri", "experiment_name", "tags", "save_artifact", "log_params_on_trial_end")
_WANDB = ("project", "group", "api_key_file", "excludes", "log_config", "upload_timeout")
_WANDB_OWN = ("id", "name", "config", "config_exclude_keys", "config_include_keys", "allow_val_change", "reinit",
              "resume", "resume_from", "fork_from", "settings", "anonymous", "force", "tensorboard",
              "sync_tensorboard", "monitor_gym")
"""Arguments of wandb.init that belong to one run, or that Ray sets, or that do nothing in Ray's actor."""
_OFFLINE = ("offline", "disabled")
_SECRET = re.compile(r"(api_?key|token|password|passwd|secret|credential)(?!_file)", re.IGNORECASE)
_VARIABLES = {"mlflow": "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
              "wandb": "WANDB_API_KEY"}


def check_callbacks(sweep: Sweep) -> None:
    """What can be wrong with the trackers without asking them.

    Raises:
        UserError: There is no such tracker or option, a package is missing, or a secret is in the config.
    """
    for tracker, options in sweep.config.callbacks.items():
        where = f"callbacks.{tracker}"
        if tracker not in TRACKERS:
            raise UserError("there is no such tracker", got=tracker, where="callbacks",
                            do=f"{nearest(tracker, TRACKERS)} There are: {', '.join(TRACKERS)}. TensorBoard's files "
                               "are always written.".strip())
        _refuse_secrets(options, where, tracker)
        package = require(tracker, tracker, where)
        own = [] if tracker == "mlflow" else [name for name in inspect.signature(package.init).parameters
                                              if name not in (*_WANDB, *_WANDB_OWN)]
        check_options(options, [*(_MLFLOW if tracker == "mlflow" else _WANDB), *own], where)


def make_callbacks(sweep: Sweep) -> list[Callback]:
    """The trackers of a sweep, ready to write: servers have answered, and experiments exist.

    Raises:
        UserError: A tracker cannot be used.
    """
    check_callbacks(sweep)
    makers: dict[str, Callable[[Sweep, dict[str, Any]], Callback]] = {"mlflow": _mlflow, "wandb": _wandb}
    return [makers[tracker](sweep, dict(options)) for tracker, options in sweep.config.callbacks.items()]


def _refuse_secrets(value: Any, where: str, tracker: str) -> None:
    do = f"Configs are stored with the results. Set {_VARIABLES[tracker]} in the environment instead."
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _SECRET.search(str(key)):
                raise UserError("a secret does not belong into a config", where=f"{where}.{key}", do=do)
            _refuse_secrets(inner, f"{where}.{key}", tracker)
    elif isinstance(value, str) and "://" in value and urlsplit(value).password:
        raise UserError("a password does not belong into a config", where=where, do=do)


def _mlflow(sweep: Sweep, options: dict[str, Any]) -> Callback:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it greets each new database
    for option in ("tracking_uri", "registry_uri"):
        if options.get(option):
            options[option] = absolute_uri(options[option])
    options.setdefault("experiment_name", os.environ.get("MLFLOW_EXPERIMENT_NAME") or sweep.name)
    made = MlflowTracker(**options)
    try:
        made.setup()
    except Exception as error:
        raise UserError("MLflow cannot be used", where="callbacks.mlflow", do=f"Its own error: {error}") from error
    return made


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same in every working directory: Ray changes it for each trial."""
    for prefix in ("sqlite:///", "file:"):
        path = uri.removeprefix(prefix)
        if path != uri and not path.startswith("/") and path != ":memory:":
            return f"{prefix}{Path(path).expanduser().absolute()}"
    if "://" in uri or uri.startswith(("file:", "databricks", "uc:")):
        return uri
    return str(Path(uri).expanduser().absolute())


def _wandb(sweep: Sweep, options: dict[str, Any]) -> Callback:
    where = "callbacks.wandb"
    options.setdefault("project", os.environ.get("WANDB_PROJECT_NAME") or os.environ.get("WANDB_PROJECT") or sweep.name)
    options.setdefault("group", os.environ.get("WANDB_GROUP_NAME") or sweep.name)
    # The runs are written by actors, which may stand in another environment.
    mode = options.get("mode") or os.environ.get("WANDB_MODE")
    if mode:
        options["mode"] = mode
    for option in ("api_key_file", "dir"):
        if options.get(option):
            options[option] = str(Path(options[option]).expanduser().absolute())
    if "dir" in options:
        Path(options["dir"]).mkdir(parents=True, exist_ok=True)
    made = WandbTracker(**options)
    try:
        made.setup()
    except (OSError, ValueError) as error:
        raise UserError("Weights & Biases cannot be used", where=where,
                        do="Run 'wandb login', set WANDB_API_KEY, name an api_key_file, or set mode to offline. "
                           f"Its own error: {error}") from error
    return made


def tracked(result: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker is shown of a report: the sweep's own numbers, without Ray's."""
    return {name: float(value) for name, value in result.items() if name not in _RAYS
            and isinstance(value, bool | int | float)}


_RAYS = {*AUTO_RESULT_KEYS, "done", "trial_id", "experiment_tag", "should_checkpoint"}


def _lenient(tracker: str, what: str, action: Callable[[], object]) -> None:
    """Do something that must not end the sweep: an exception in a callback would."""
    try:
        action()
    except Exception as error:
        _log.warning("%s did not take %s: %s", tracker, what, error)


class MlflowTracker(MLflowLoggerCallback):
    """Ray's callback, with milestones for steps, our numbers only, and names that MLflow takes."""

    def log_trial_start(self, trial: Any) -> None:
        """A run for the setting."""
        _lenient("MLflow", f"the start of {trial}", lambda: self._start(trial))

    def _start(self, trial: Any) -> None:
        util = self.mlflow_util
        if trial not in self._trial_runs:
            run = util.start_run(tags={**(self.tags or {}), "trial_name": str(trial)}, run_name=str(trial))
            self._trial_runs[trial] = run.info.run_id
        if not self.log_params_on_trial_end:
            self._params(trial)

    def _params(self, trial: Any) -> None:
        named = {mlflow_name(entry): value for entry, value in trial.config.items()}
        self.mlflow_util.log_params(run_id=self._trial_runs[trial], params_to_log=named)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """The numbers of a milestone."""
        numbers = {mlflow_name(name): value for name, value in tracked(result).items()}
        step = int(result.get(MILESTONE, iteration))
        _lenient("MLflow", f"a milestone of {trial}", lambda: self.mlflow_util.log_metrics(
            run_id=self._trial_runs[trial], metrics_to_log=numbers, step=step))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Finished, or failed."""
        _lenient("MLflow", f"the end of {trial}", lambda: self._end(trial, failed))

    def _end(self, trial: Any, failed: bool) -> None:
        if self.log_params_on_trial_end:
            self._params(trial)
        if self.should_save_artifact:
            self.mlflow_util.save_artifacts(run_id=self._trial_runs[trial], dir=trial.local_path)
        self.mlflow_util.end_run(run_id=self._trial_runs[trial], status="FAILED" if failed else "FINISHED")


def mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits, and ``_-./ :``; slashes and dots stay."""
    return re.sub(r"[^\w\-./ :]", "_", name).strip("/") or "_"


class WandbTracker(WandbLoggerCallback):
    """Ray's callback, with milestones for steps and our numbers only, that needs no API key to work offline."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Find the key, unless nothing is sent."""
        # Ray looks for offline in the environment only.
        before = os.environ.get("WANDB_MODE")
        if self.kwargs.get("mode") in _OFFLINE:
            os.environ["WANDB_MODE"] = self.kwargs["mode"]
        try:
            super().setup(*args, **kwargs)
        finally:
            if before is None:
                os.environ.pop("WANDB_MODE", None)
            else:
                os.environ["WANDB_MODE"] = before

    def log_trial_start(self, trial: Any) -> None:
        """A run for the setting."""
        _lenient("W&B", f"the start of {trial}", lambda: super(WandbTracker, self).log_trial_start(trial))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """The numbers of a milestone."""
        numbers = {name: value for name, value in tracked(result).items() if math.isfinite(value)}
        numbers |= {"training_iteration": int(result.get(MILESTONE, iteration))}
        if self.log_config:
            numbers |= {"config": result.get("config", {})}
        _lenient("W&B", f"a milestone of {trial}",
                 lambda: super(WandbTracker, self).log_trial_result(iteration, trial, numbers))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Finished, or failed."""
        _lenient("W&B", f"the end of {trial}", lambda: super(WandbTracker, self).log_trial_end(trial, failed))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Wait until everything is written."""
        _lenient("W&B", "the rest", lambda: super(WandbTracker, self).on_experiment_end(trials, **info))
