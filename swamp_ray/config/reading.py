"""Configs as people write them: YAML, ``--set``, the resolved copy, and errors in a YAML user's words.

Precedence: defaults < file < ``--set``. An unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swamp_ray.config.files import ConfigFile, read_config_file
from swamp_ray.config.option_errors import explain
from swamp_ray.config.overrides import apply_overrides, set_option
from swamp_ray.config.paths import PathRule, absolute, expanded
from swamp_ray.config.plain_values import plain_value
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.yaml_reading import Scalar, dump_yaml, load_stored_yaml, load_yaml
from swamp_ray.errors import UserError

DEFAULT_NAME = "swamp"
"""Name of a run that neither its config nor a file names."""


def load_config(path: str | Path | ConfigFile, overrides: Sequence[str] = (),
                paths: PathRule = "absolute") -> SwampConfig:
    """Read a YAML file and apply ``key=value`` overrides.

    Args:
        path: The YAML file, ``-`` for standard input, or one that was read.
        overrides: Entries such as ``"pruning.target=0.9"``; values are YAML.
        paths: What becomes of relative paths, ``~`` and variables.

    Returns:
        The config; a run that it does not name is called as the file, or ``swamp`` where a pipe has no name.

    Raises:
        UserError: The file cannot be read, is no YAML mapping, or does not fit the config; every problem is
            named with its option path.
    """
    file = read_config_file(path)
    config = located(parse_config(file.text, overrides, source=file.source), paths)
    return config if config.name is not None else config.model_copy(update={"name": file.name or DEFAULT_NAME})


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "config") -> SwampConfig:
    """Like :func:`load_config`, from the YAML text itself; ``source`` names it in errors, and paths stay as written."""
    return _config_of(load_yaml(text, "this is not valid YAML", source), overrides, source)


def parse_stored_config(text: str, source: str) -> SwampConfig:
    """The config of a run as its folder holds it: what :func:`dump_config` has written, or an earlier version."""
    return _config_of(load_stored_yaml(text, "this is not valid YAML", source), (), source)


def _config_of(tree: Any, overrides: Sequence[str], source: str) -> SwampConfig:
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        found = tree.value if isinstance(tree, Scalar) else tree
        raise UserError("a config must be a mapping of sections", got=type(found).__name__, where=source)
    return build_config(tree, source, apply_overrides(tree, overrides))


def located(config: SwampConfig, paths: PathRule = "absolute") -> SwampConfig:
    """A config with its paths expanded, and absolute: a run's workers may stand in another folder.

    Raises:
        UserError: A variable is not set, or a home folder not known.
    """
    if paths == "kept":
        return config
    given = {"storage": config.storage, "data.root": config.data.root,
             "start_from.path": None if config.start_from is None else config.start_from.path}
    place = absolute if paths == "absolute" else expanded
    values = {key: place(path, key) for key, path in given.items() if path is not None}
    changed = {key: path for key, path in values.items() if path != given[key]}
    return with_values(config, changed) if changed else config


def build_config(tree: Mapping[str, Any], source: str = "config", overridden: Sequence[str] = ()) -> SwampConfig:
    """A config from nested values, with errors in the words of :class:`UserError`.

    Args:
        tree: Sections, options, values: from YAML, or Python's, NumPy's and pandas' own.
        source: Where they come from, for errors.
        overridden: Dotted keys that come from ``--set``: errors in them are not the file's.
    """
    plain = plain_value(tree, SwampConfig, source)
    try:
        return SwampConfig.model_validate(plain)
    except ValidationError as error:
        places = [".".join(map(str, problem["loc"])) for problem in error.errors(include_url=False)]
        blamed = all(any(f"{place}.".startswith(f"{key}.") for key in overridden) for place in places)
        raise UserError(explain(error), where="--set" if blamed else source) from None


def dump_config(config: SwampConfig) -> str:
    """The resolved config as YAML, in the order of the sections; reading it back gives an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def with_values(config: SwampConfig, values: Mapping[str, Any]) -> SwampConfig:
    """A copy with some dotted keys set, e.g. ``{"execution.executor": "inline"}``, validated again."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        set_option(tree, key, value)
    return build_config(tree)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two nested mappings differ."""
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        left = old.get(key)
        right = new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} -> {right!r}")
    return lines
