"""Options set one by one: ``--set key=value`` on a command line, dotted keys from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swamp_ray.config.yaml_reading import load_yaml
from swamp_ray.errors import UserError


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
    set_option(tree, key.strip(), parsed)
    return key.strip()


def set_option(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the option that a dotted key names in nested plain values; missing sections are created.

    Raises:
        UserError: A part of the key that should be a section is an option.
    """
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
