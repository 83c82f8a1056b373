"""docs/configuration.md is what docs/generate_configuration.py writes now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from swamp_ray.config import build_config, parse_config

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", DOCS / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(page: str) -> list[tuple[str, str, str]]:
    """Section, option and default of every row."""
    found: list[tuple[str, str, str]] = []
    section = ""
    for line in page.splitlines():
        if heading := re.fullmatch(r"#+ (.+)", line):
            section = "" if heading[1] == "The top level" else heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| .* \| (required|none|`[^|]*`) \| [^|]+ \|", line):
            found.append((section, row[1], row[2].strip("`")))
    return found


def test_page_is_up_to_date(generator: ModuleType) -> None:
    assert (DOCS / "configuration.md").read_text() == generator.page(), "run: python docs/generate_configuration.py"


def test_page_has_every_option_of_the_resolved_config(generator: ModuleType) -> None:
    listed = {".".join(filter(None, [section, name])) for section, name, _ in options(generator.page())}

    def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            is_section = isinstance(value, dict) and key != "options"
            found |= leaves(value, f"{prefix}{key}.") if is_section else {prefix + key}  # type: ignore[arg-type]
        return found

    stages = {"particles.schedule[].sparsity", "particles.schedule[].count"}
    resolved = build_config({"start_from": {"path": "x"}}).model_dump(mode="json")
    assert listed == leaves(resolved) | stages


def test_defaults_on_the_page_are_those_of_the_config(generator: ModuleType) -> None:
    written = [(section, name, default) for section, name, default in options(generator.page())
               if default not in ("required", "none")]
    lines = [f"{section}.{name}".strip(".") + f"={default}" for section, name, default in written]
    assert len(lines) > 50
    assert parse_config("", [line for line in lines if not line.startswith("start_from")]) == build_config({})
