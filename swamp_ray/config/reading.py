"""Configs as people write them: YAML, ``--set``, the resolved copy, and errors in a YAML user's words.

Precedence: defaults < file < ``--set``. An unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from swamp_ray.config.fields import leaf_types
from swamp_ray.config.files import ConfigFile, read_config_file
from swamp_ray.config.paths import PathRule, absolute, expanded
from swamp_ray.config.plain_values import inside, settled
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.yaml_reading import Scalar, dump_yaml, load_stored_yaml, load_yaml
from swamp_ray.errors import UserError, nearest

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
    plain = settled(tree, SwampConfig, source)
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
        _set(tree, key, value)
    return build_config(tree)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two nested mappings differ."""
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} -> {right!r}")
    return lines


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set options from ``KEY=VALUE`` in nested plain values; returns the keys. Raises UserError for anything else."""
    return [_override(tree, override) for override in overrides]


def _override(tree: dict[str, Any], override: str) -> str:
    """Set one option; returns its key."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError("an override must look like KEY=VALUE", got=override, where="--set",
                        do="For example --set pruning.target=0.9.")
    parsed = load_yaml(value, f"the value of {key} is not valid YAML", "--set")
    _set(tree, key.strip(), parsed)
    return key.strip()


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for part in parents:
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, dict):
            raise UserError(f"{key} cannot be set: {part} is not a section", where="--set")
        # A copy, because an anchor of YAML may stand for the same mapping elsewhere.
        child = node[part] = dict(child)
        node = child
    node[leaf] = value


def explain(error: ValidationError, model: type[BaseModel] = SwampConfig) -> str:
    """Pydantic's errors in a YAML user's words, each with its option path.

    Args:
        error: What validation raised.
        model: What was validated, for the names of known options.
    """
    texts: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        place = tuple(part for part in problem["loc"] if not _is_kind(part))
        path = ".".join(str(part) for part in place)
        text = _explain_one(problem, place, path, model)
        if text not in texts.setdefault(path, []):
            texts[path].append(text)
    lines = [(f"{path}: " if path else "") + " or ".join(found) for path, found in texts.items()]
    return lines[0] if len(lines) == 1 else "several options are wrong:\n" + "\n".join(f"  - {line}" for line in lines)


def _is_kind(part: str | int) -> bool:
    """Whether a part of pydantic's path is no option, but one of the kinds of values that an option may have."""
    return part == "str" or str(part).startswith(("function-", "literal[", "bool", "tuple[", "dict["))


def _explain_one(problem: Any, place: Sequence[str | int], path: str, model: type[BaseModel]) -> str:
    text: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _no_such_option(str(place[-1]), _keys_at(place[:-1], model))
    if problem["type"] == "value_error" and not place:
        return text
    text = _PLAIN.get(str(problem["type"])) or text.replace("Input should be", "must be")
    got = problem.get("input")
    if isinstance(got, Mapping) or problem["type"] == "missing":
        return text
    return f"{text}, but got {'nothing' if got is None else str(got).lower() if isinstance(got, bool) else repr(got)}"


def _no_such_option(name: str, known: Sequence[str]) -> str:
    return " ".join(filter(None, ["there is no such option.", nearest(name, known), f"Known here: {', '.join(known)}"]))


def annotation_of(key: str) -> Any:
    """The type of the option that a dotted key names; Any inside options that are mappings, and for unknown keys."""
    annotation: Any = SwampConfig
    for part in key.split("."):
        annotation = inside(annotation, part)
    return annotation


def unknown_key(key: str) -> str | None:
    """What is wrong with a dotted key; None if it names an option, or something inside an option that is a mapping."""
    place: list[str] = []
    for part in key.split("."):
        known = _keys_at(place, SwampConfig)
        if not known:
            return None if _is_mapping(place) else f"{'.'.join(place)} is an option, not a section"
        if part not in known:
            return _no_such_option(part, known)
        place.append(part)
    return None


def _is_mapping(place: Sequence[str]) -> bool:
    section = _section_at(place[:-1], SwampConfig)
    return dict in {get_origin(kind) for kind in leaf_types(section.model_fields[place[-1]].annotation)}


# Pydantic's types of errors in a YAML user's words.
_PLAIN = {
    "missing": "is missing",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, such as {a: 1}",
    "model_type": "must be a section: a mapping of options",
    "model_attributes_type": "must be a section: a mapping of options",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text (in quotes, where YAML would read something else)",
}


def _keys_at(place: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    return list(getattr(_section_at(place, model), "model_fields", {}))


def _section_at(place: Sequence[str | int], model: type[BaseModel]) -> Any:
    """The section at a path, None where an option stands."""
    section: Any = model
    for part in place:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = _section_of(field.annotation) if field is not None else section
    return section


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part)) is not None), None)
