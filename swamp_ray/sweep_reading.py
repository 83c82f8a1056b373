"""Reads the configuration of a sweep: from a YAML file, a text, or plain values, with its base run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from swamp_ray.config import SwampConfig
from swamp_ray.config_reading import (
    apply_overrides,
    build_config,
    explain,
    load_config,
    load_yaml,
    parse_config,
    read_config_text,
    with_values,
)
from swamp_ray.errors import UserError
from swamp_ray.sweep_config import Sweep, SweepConfig


def load_sweep(path: str | Path, overrides: Sequence[str] = (), storage: str | None = None, name: str | None = None,
               base_values: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep's YAML file.

    Args:
        path: The file.
        overrides: ``KEY=VALUE``; a key of the sweep, or ``base.`` and a key of the base run.
        storage: In place of the file's storage root.
        name: In place of the file's name.
        base_values: Further options of the base run, by dotted key.

    Raises:
        UserError: The file cannot be read or does not fit, or its base config does not.
    """
    path = Path(path)
    return parse_sweep(read_config_text(path), path.parent, overrides, str(path), storage, name or None, base_values,
                       default_name=path.stem)


def parse_sweep(text: str, folder: Path, overrides: Sequence[str] = (), source: str = "sweep",
                storage: str | None = None, name: str | None = None, base_values: Mapping[str, Any] | None = None,
                default_name: str = "sweep") -> Sweep:
    """Like :func:`load_sweep`, from the text itself; ``folder`` is what the base config's path is relative to."""
    tree = load_yaml(text, "this is not valid YAML", source)
    if not isinstance(tree, dict):
        raise UserError("a sweep must be a mapping with base and space", got=type(tree).__name__, where=source)
    if not {"base", "space"} & tree.keys():
        raise UserError("this is not the config of a sweep, because it has neither base nor space", where=source,
                        do=f"If it is a run's, run it with: swamp run {source}")
    base_overrides = [one.removeprefix("base.") for one in overrides if one.startswith("base.")]
    apply_overrides(tree, [one for one in overrides if not one.startswith("base.")])
    given = {"name": name, "storage": storage}
    tree |= {key: value for key, value in given.items() if value is not None}
    if tree.get("name") is None:
        tree["name"] = default_name
    return build_sweep(tree, folder, source, base_overrides, base_values)


def build_sweep(tree: Mapping[str, Any], folder: Path = Path(), source: str = "sweep",
                base_overrides: Sequence[str] = (), base_values: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep from nested plain values.

    Raises:
        UserError: They do not fit, or the base config does not.
    """
    try:
        config = SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, SweepConfig), where=source) from None
    base = _base(config, folder, source, base_overrides)
    storage = {"storage": config.storage} if config.storage is not None else {}
    base = with_values(base, {"name": config.name or "sweep", **storage, **(base_values or {})})
    refuse_ranks(base, f"{source}: base, particle.num_workers")
    return Sweep(config, base)


def _base(config: SweepConfig, folder: Path, source: str, overrides: Sequence[str]) -> SwampConfig:
    if isinstance(config.base, str):
        path = folder / Path(config.base).expanduser()
        if path.is_dir():
            raise UserError("the base config must be a file", got=str(path), where=f"{source}: base")
        if is_sweep(path):
            raise UserError("the base config must be one of a run, but this is a sweep", got=str(path),
                            where=f"{source}: base")
        if not path.is_file():
            raise UserError("the base config does not exist", got=str(path), where=f"{source}: base")
        return load_config(path, overrides)
    if not overrides:
        return build_config(config.base, f"{source}: base")
    return parse_config(yaml.safe_dump(config.base), overrides, f"{source}: base")


def is_sweep(path: str | Path) -> bool:
    """Whether a YAML file is a sweep's: it has a space. Errors are left to whoever reads it."""
    try:
        tree = load_yaml(Path(path).read_text(encoding="utf-8"), "", "")
    except (OSError, UnicodeDecodeError, UserError):
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
