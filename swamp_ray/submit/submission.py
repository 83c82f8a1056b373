"""A run or a sweep that is about to be submitted: its resolved config, and what of it must hold on a cluster."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swamp_ray.config.files import ConfigFile, read_config_file
from swamp_ray.config.reading import dump_config, load_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_reading import is_sweep, load_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.config.yaml_reading import dump_yaml
from swamp_ray.data.datasets import DATASETS, load_data
from swamp_ray.errors import UserError
from swamp_ray.on_ray.sending import sendable
from swamp_ray.run.name_check import CodeChanged
from swamp_ray.run.prepare import check_score_name, prepare
from swamp_ray.run.shared_code import adopt_path, named_import_paths
from swamp_ray.storage.places import is_url
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.submit.ignoring import IGNORE_FILES
from swamp_ray.submit.upload import Upload
from swamp_ray.sweep.search import check_search
from swamp_ray.sweep.trackers import check_callbacks
from swamp_ray.training.tasks import build_task
from swamp_ray.user_code.importing import is_import_path, load_object, refuse_main
from swamp_ray.user_code.project import explore

STOP_SLACK_S = 30
"""What a run may need beside `execution.grace_s` from the signal to its end."""
NEEDED: tuple[str, ...] = (
    "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "sklearn", "safetensors", "tensorboardX", "pydantic",
    "yaml", "click", "rich", "matplotlib",
)
"""Modules of what `requirements.txt` names."""
OPTIONAL = {"optuna": "optuna", "hyperopt": "hyperopt", "mlflow": "mlflow", "wandb": "wandb"}
"""Modules of searches and trackers, by name."""


@dataclass(frozen=True)
class Submission:
    """A run or a sweep with everything resolved.

    Attributes:
        run: The run, or the base run of the sweep.
        sweep: The sweep, None for a run.
        code_changed: What becomes of results of other user code under the same name.
    """

    run: SwampConfig
    sweep: Sweep | None = None
    code_changed: CodeChanged = "refuse"

    @property
    def kind(self) -> str:
        """``"run"`` or ``"sweep"``, which is also the command."""
        return "run" if self.sweep is None else "sweep"

    @property
    def name(self) -> str:
        """Name of the run or sweep."""
        return (self.run.name or "run") if self.sweep is None else self.sweep.name

    @property
    def text(self) -> str:
        """The resolved config as YAML, the base run of a sweep included."""
        if self.sweep is None:
            return dump_config(self.run)
        return dump_yaml(self.sweep.resolved())

    @property
    def base_id(self) -> str:
        """The same for every submission of this run to this storage root."""
        named = json.dumps([self.kind, self.name, self.run.storage])
        return f"swamp-{self.name}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"

    @property
    def stop_s(self) -> int:
        """Seconds that Ray waits after the signal to stop, before it kills."""
        return math.ceil(self.run.execution.grace_s) + STOP_SLACK_S

    @property
    def most_particles(self) -> int:
        """Particles of the largest round."""
        particles = self.run.particles
        return max([particles.count, *(stage.count for stage in particles.schedule)])

    def paths(self) -> dict[str, str]:
        """Files and folders that the cluster must see, by the option that names them."""
        found = {"data.root": None if self.run.data.download else self.run.data.root,
                 "start_from.path": self.run.start_from.path if self.run.start_from is not None else None}
        return {option: path for option, path in found.items()
                if path is not None and not is_url(path) and Path(path).is_absolute()}

    def own_code(self) -> dict[str, str]:
        """Import paths of the user's code, by the option that names them."""
        plain = self.run.model_dump(mode="json") if self.sweep is None else self.sweep.resolved()
        return named_import_paths(plain)

    def modules(self) -> list[str]:
        """Top-level modules that the cluster must have, those of the user's code left out."""
        found: list[str] = list(NEEDED)
        if is_url(self.run.storage):
            found.append("obstore")
        if self.sweep is not None:
            chosen = [self.sweep.config.search.name, *self.sweep.config.callbacks]
            found += [OPTIONAL[name] for name in chosen if name in OPTIONAL]
        return found


def read_submission(path: str | Path | ConfigFile, overrides: Sequence[str] = (), name: str | None = None,
                    storage: str | None = None) -> Submission:
    """A config file as it will run on the cluster.

    Raises:
        UserError: The config does not fit, or says something that no submitted run can do.
    """
    file = read_config_file(path)
    if is_sweep(file):
        sweep = load_sweep(file, [*overrides, "base.execution.address=auto"], storage, name, paths="expanded")
        submission = Submission(sweep.base, sweep)
        SweepDir("results", submission.name)
    else:
        run = load_config(file, [*overrides, "execution.address=auto"], paths="expanded")
        given = {"name": name, "storage": storage}
        submission = Submission(with_values(run, {key: value for key, value in given.items() if value is not None}))
        RunDir("results", submission.name)
    _check_reach(submission)
    return submission


def _check_reach(submission: Submission) -> None:
    """Refuse what means another thing on the cluster, or nothing."""
    run = submission.run
    prefix = "" if submission.sweep is None else "base."
    refuse_main(submission.own_code())
    if run.execution.executor == "inline":
        raise UserError("a submitted run needs executor ray: inline would train in the one process that drives the "
                        "run, on resources of the head node that Ray knows nothing about",
                        where=f"{prefix}execution.executor", do=f"Add --set {prefix}execution.executor=ray.")
    if not is_url(run.storage) and not Path(run.storage).is_absolute():
        raise UserError("a submitted run works in a folder that the cluster makes and removes again, so its storage "
                        "root must be an absolute path or an object store", got=run.storage, where="storage",
                        do="Give --storage: a folder that all nodes share, e.g. /mnt/shared/swamp, or s3://, gs:// or "
                           "az://.")
    if run.data.root is not None and not Path(run.data.root).is_absolute():
        raise UserError("data are not uploaded, so a submitted run needs the absolute path that they have on the "
                        "cluster's nodes", got=run.data.root, where=f"{prefix}data.root",
                        do="Give that path, or leave it out where SWAMP_DATA is set on the nodes.")


def check_here(submission: Submission, folder: Path) -> list[str]:
    """Check a config on this machine as far as that needs no data that lie elsewhere.

    Args:
        submission: What is to be submitted.
        folder: The folder of the user's code, from which it is imported.

    Returns:
        What was left to the cluster, one sentence each.

    Raises:
        UserError: What ``swamp check`` would refuse.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if submission.sweep is not None:
        check_search(submission.sweep)
        check_callbacks(submission.sweep)
    run = submission.run
    build_task(run.task)
    check_score_name(run)
    data = run.data.model_copy(update={"download": False})
    if is_import_path(run.data.name):
        load_object(run.data.name, "data.name")
    elif run.data.name in DATASETS and DATASETS[run.data.name].needs_root and not _is_here(run):
        if is_import_path(run.model.name):
            load_object(run.model.name, "model.name")
        return [f"the data of {run.data.name} are not on this machine: that they fit the model shows on the cluster"]
    try:
        loaded = load_data(data, run.task)
    except UserError as error:
        if not is_import_path(run.data.name):
            raise
        return [f"{run.data.name} cannot be loaded on this machine, which is left to the cluster: {error}"]
    if run.start_from is not None and not _checkpoint_is_here(run.start_from.path):
        run = run.model_copy(update={"start_from": None})
    sendable(prepare(run, "cpu", loaded))
    return []


def _is_here(run: SwampConfig) -> bool:
    root = run.data.root or os.environ.get("SWAMP_DATA")
    return root is not None and Path(root).is_dir()


def _checkpoint_is_here(path: str) -> bool:
    return not is_url(path) and Path(path).is_file()


def check_upload(submission: Submission, upload: Upload) -> list[str]:
    """Whether the code and the checkpoint that a config names are in the upload.

    Returns:
        Top-level modules that are not, and have to be installed on the cluster.

    Raises:
        UserError: Something lies in the folder, but is left out.
    """
    needed = []
    for option, path in submission.own_code().items():
        top = path.partition(":")[0].partition(".")[0]
        candidates = [f"{path.partition(':')[0].replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        if any(candidate in upload.sizes for candidate in candidates):
            continue
        for candidate in candidates:
            _refuse_left_out(upload, candidate, option)
        needed.append(top)
    needed += _check_imports(submission, upload)
    start = submission.run.start_from
    if start is not None and not is_url(start.path) and not Path(start.path).is_absolute():
        _refuse_left_out(upload, Path(start.path).as_posix(), "start_from.path")
        if Path(os.path.normpath(start.path)).as_posix() not in upload.sizes:
            raise UserError("the checkpoint is not in the folder that is uploaded", got=start.path,
                            where="start_from.path", do=f"Put it below {upload.folder}, or give an absolute path or a "
                            "URL that the cluster's nodes see.")
    return list(dict.fromkeys(needed))


def _by(reason: str) -> str:
    return f"{reason} names it" if reason in IGNORE_FILES else reason


def _check_imports(submission: Submission, upload: Upload) -> list[str]:
    """Top-level modules that the user's code imports from elsewhere than the folder; none is an installed package.

    Raises:
        UserError: A module that is imported lies in the folder, but is left out.
    """
    adopt_path([str(upload.folder)])
    elsewhere = []
    for option, path in submission.own_code().items():
        for name, part in explore([path.partition(":")[0]]).parts.items():
            if not part.location.file.is_relative_to(upload.folder):
                elsewhere.append(name.partition(".")[0])
                continue
            relative = part.location.file.relative_to(upload.folder).as_posix()
            if relative not in upload.sizes:
                _refuse_left_out(upload, relative, option)
    return elsewhere


def _refuse_left_out(upload: Upload, path: str, option: str) -> None:
    reason = upload.reason(path)
    if reason is not None and (upload.folder / path).exists():
        raise UserError(f"{path} is needed, but is left out of the upload ({_by(reason)})", where=option,
                        do="Correct the ignore file, or move what is needed. What holds keys is never uploaded: put "
                        "the keys into a file of their own, or into the nodes' environment.")
