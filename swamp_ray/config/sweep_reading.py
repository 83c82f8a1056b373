"""Reads the configuration of a sweep: from a YAML file, a text, or plain values, with its base run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swamp_ray.config.files import ConfigFile, read_config_file
from swamp_ray.config.option_errors import explain
from swamp_ray.config.overrides import apply_overrides
from swamp_ray.config.paths import PathRule, expanded
from swamp_ray.config.plain_values import plain_value
from swamp_ray.config.reading import build_config, load_config, located, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep import SweepConfig
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.config.sweep_space import plain_space
from swamp_ray.config.yaml_reading import Scalar, load_yaml
from swamp_ray.errors import UserError

DEFAULT_NAME = "sweep"
"""Name of a sweep that neither its config nor a file names."""


def load_sweep(path: str | Path | ConfigFile, overrides: Sequence[str] = (), storage: str | None = None,
               name: str | None = None, base_values: Mapping[str, Any] | None = None,
               paths: PathRule = "absolute") -> Sweep:
    """Read a sweep's YAML file.

    Args:
        path: The file, ``-`` for standard input, or one that was read.
        overrides: ``KEY=VALUE``; a key of the sweep, or ``base.`` and a key of the base run.
        storage: In place of the file's storage root.
        name: In place of the file's name.
        base_values: Further options of the base run, by dotted key.
        paths: What becomes of relative paths, ``~`` and variables.

    Raises:
        UserError: The file cannot be read or does not fit, or its base config does not.
    """
    file = read_config_file(path)
    return parse_sweep(file.text, file.folder, overrides, file.source, storage, name or None, base_values,
                       default_name=file.name or DEFAULT_NAME, paths=paths)


def parse_sweep(text: str, folder: Path, overrides: Sequence[str] = (), source: str = "sweep",
                storage: str | None = None, name: str | None = None, base_values: Mapping[str, Any] | None = None,
                default_name: str = DEFAULT_NAME, paths: PathRule = "absolute") -> Sweep:
    """Like :func:`load_sweep`, from the text itself; ``folder`` is what the base config's path is relative to."""
    tree = load_yaml(text, "this is not valid YAML", source)
    if not isinstance(tree, dict):
        found = tree.value if isinstance(tree, Scalar) else tree
        raise UserError("a sweep must be a mapping with base and space", got=type(found).__name__, where=source)
    if not {"base", "space"} & tree.keys():
        raise UserError("this is not the config of a sweep, because it has neither base nor space", where=source,
                        do=f"If it is a run's, run it with: swamp run {source}")
    base_overrides = [one.removeprefix("base.") for one in overrides if one.startswith("base.")]
    apply_overrides(tree, [one for one in overrides if not one.startswith("base.")])
    given = {"name": name, "storage": storage}
    tree |= {key: value for key, value in given.items() if value is not None}
    if tree.get("name") is None:
        tree["name"] = default_name
    return build_sweep(tree, folder, source, base_overrides, base_values, paths)


def build_sweep(tree: Mapping[str, Any], folder: Path = Path(), source: str = "sweep",
                base_overrides: Sequence[str] = (), base_values: Mapping[str, Any] | None = None,
                paths: PathRule = "absolute") -> Sweep:
    """A sweep from nested values, of YAML or of Python.

    Raises:
        UserError: They do not fit, or the base config does not.
    """
    plain = _plain_sweep(tree, source, paths)
    try:
        config = SweepConfig.model_validate(plain)
    except ValidationError as error:
        raise UserError(explain(error, SweepConfig), where=source) from None
    base = _base(config, folder, source, base_overrides)
    storage = {"storage": config.storage} if config.storage is not None else {}
    base = with_values(base, {"name": config.name or DEFAULT_NAME, **storage, **(base_values or {})})
    refuse_ranks(base, f"{source}: base, particle.num_workers")
    return Sweep(config, located(base, paths), str(Path.cwd()) if paths == "absolute" else "")


def _plain_sweep(tree: Mapping[str, Any], source: str, paths: PathRule) -> dict[str, Any]:
    """A sweep's plain values: those of the base run and of the space have the types of the options that they set."""
    if not isinstance(tree, Mapping):
        raise UserError("a sweep must be a mapping with base and space", got=type(tree).__name__, where=source)
    apart = ("base", "space")
    plain = plain_value({key: value for key, value in tree.items() if key not in apart}, SweepConfig, source)
    if "base" in tree:
        base = tree["base"]
        base = base.model_dump(mode="json") if isinstance(base, SwampConfig) else base
        plain["base"] = plain_value(base, SwampConfig if isinstance(base, Mapping) else Any, source, "base")
    if "space" in tree:
        plain["space"] = plain_space(tree["space"], source, paths != "kept")
    return plain


def _base(config: SweepConfig, folder: Path, source: str, overrides: Sequence[str]) -> SwampConfig:
    where = f"{source}: base"
    if not isinstance(config.base, str):
        tree = dict(config.base)
        return build_config(tree, where, apply_overrides(tree, overrides))
    path = folder / expanded(config.base, where)
    try:
        file = read_config_file(path)
    except UserError as error:
        raise UserError(str(error), where=where) from error
    if is_sweep(file):
        raise UserError("the base config must be one of a run, but this is a sweep", got=str(path), where=where)
    return load_config(file, overrides, paths="kept")


def is_sweep(path: str | Path | ConfigFile) -> bool:
    """Whether a config is a sweep's: it has a space. Errors are left to whoever reads it.

    Of a pipe, only what :func:`~swamp_ray.config.files.read_config_file` has read can be asked for and then read.
    """
    try:
        tree = load_yaml(read_config_file(path).text, "", "")
    except UserError:
        return False
    return isinstance(tree, dict) and "space" in tree


def refuse_ranks(base: SwampConfig, where: str) -> None:
    """Ray Train makes a placement group for the ranks of a particle, which those of Tune's trials know nothing of.

    Raises:
        UserError: Particles are to train on several ranks.
    """
    if base.particle.num_workers > 1:
        raise UserError("particles of a sweep train in one process each", got=base.particle.num_workers, where=where,
                        do="Set particle.num_workers to 1, or start the settings one by one with 'swamp run'.")
