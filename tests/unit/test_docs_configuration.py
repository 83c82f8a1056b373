"""docs/configuration.md is what docs/generate_configuration.py writes now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from swamp_ray.config.reading import build_config, parse_config
from swamp_ray.config.sweep import SweepConfig
from swamp_ray.config.sweep_reading import build_sweep

DOCS = Path(__file__).resolve().parents[2] / "docs"
SWEEP = "# Configuration of a sweep"
SPACE = {"training.lr": {"grid": [0.1]}}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", DOCS / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(page: str) -> list[tuple[str, str, str]]:
    """Section, option and default of every row of a part of the page."""
    found: list[tuple[str, str, str]] = []
    section = ""
    for line in page.splitlines():
        if heading := re.fullmatch(r"#+ (.+)", line):
            section = "" if heading[1] == "The top level" else heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| .* \| (required|none|`[^|]*`) \| [^|]+ \|", line):
            found.append((section, row[1], row[2].strip("`")))
    return found


def of_runs(generator: ModuleType) -> str:
    return generator.page().partition(SWEEP)[0]


def of_sweeps(generator: ModuleType) -> str:
    return generator.page().partition(SWEEP)[2]


def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
    """Dotted names of all options; mappings of the user's own are one option."""
    found: set[str] = set()
    for key, value in tree.items():
        is_section = isinstance(value, dict) and key not in (
            "options", "space", "base", "callbacks", "labels", "stable_labels")
        found |= leaves(value, f"{prefix}{key}.") if is_section else {prefix + key}  # type: ignore[arg-type]
    return found


def test_page_is_up_to_date(generator: ModuleType) -> None:
    assert (DOCS / "configuration.md").read_text() == generator.page(), "run: python docs/generate_configuration.py"


def test_page_has_every_option_of_the_resolved_config(generator: ModuleType) -> None:
    listed = {".".join(filter(None, [section, name])) for section, name, _ in options(of_runs(generator))}
    stages = {"particles.schedule[].sparsity", "particles.schedule[].count", "averaging.lr[].sparsity",
              "averaging.lr[].lr"}
    resolved = build_config({"start_from": {"path": "x"}}).model_dump(mode="json")
    assert listed == leaves(resolved) | stages


def test_page_has_every_option_of_a_sweep(generator: ModuleType) -> None:
    listed = {".".join(filter(None, [section, name])) for section, name, _ in options(of_sweeps(generator))}
    domain = {f"space.ENTRY.{kind}" for kind in ("grid", "choice", "uniform", "loguniform")}
    tree = {"base": {}, "space": SPACE, "budget": {"epochs": 100}}
    resolved = SweepConfig.model_validate(tree).model_dump(mode="json")
    assert listed == leaves(resolved) | domain


def test_defaults_on_the_page_are_those_of_the_config(generator: ModuleType) -> None:
    written = [(section, name, default) for section, name, default in options(of_runs(generator))
               if default not in ("required", "none")]
    lines = [f"{section}.{name}".strip(".") + f"={default}" for section, name, default in written]
    assert len(lines) > 50
    assert parse_config("", [line for line in lines if not line.startswith("start_from")]) == build_config({})


def test_defaults_on_the_page_are_those_of_a_sweep(generator: ModuleType) -> None:
    tree: dict[str, Any] = {}
    for section, name, default in options(of_sweeps(generator)):
        # A budget is not there by default, but has a default of its own.
        if default not in ("required", "none") and section != "budget":
            (tree.setdefault(section, {}) if section else tree)[name] = yaml.safe_load(default)
    assert len(tree) > 5
    needed = {"base": {}, "space": SPACE}
    assert build_sweep({**tree, **needed}) == build_sweep(needed)
