"""What docs/sweeps.md shows is what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from swamp_ray.config.sweep_reading import build_sweep, load_sweep
from swamp_ray.sweep import schedulers as scheduling
from swamp_ray.sweep import search as searching
from swamp_ray.sweep import trackers as tracking
from swamp_ray.sweep.results import EPOCHS, LEADING

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "sweeps.md").read_text()
CONFIGS = REPOSITORY / "configs" / "sweeps"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def table_of(section: str) -> list[list[str]]:
    """The cells of the first table after a heading, in code quotes or not."""
    text = PAGE.partition(f"\n## {section}\n")[2]
    rows = re.search(r"^\|(?:.+\|\n)+", text, re.M)
    assert rows is not None, section
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_sweep_of_the_page_means_what_it_says() -> None:
    whole, *parts = (yaml.safe_load(text) for text in blocks("yaml"))
    sweep = build_sweep(whole, CONFIGS, "docs/sweeps.md")
    assert len(sweep.settings()) == 3 * 2 * 4
    assert sweep.config.seeds == (0, 1, 2)
    assert {kind for domain in sweep.config.space.values() for kind in domain.model_dump(exclude_none=True)} == {
        "grid", "choice", "uniform", "loguniform"}
    space: dict[str, Any] = {"training.lr": {"loguniform": [0.01, 0.5]}}
    for part in parts:
        build_sweep({"base": {}, "space": space, **part})


def test_every_shipped_sweep_is_on_the_page_with_its_question() -> None:
    listed = {row[0][1:].partition("]")[0] for row in table_of("How a sweep is written")}
    assert listed == {path.name for path in CONFIGS.glob("*.yaml")}


def test_searches_schedulers_and_their_defaults_are_those_of_the_code() -> None:
    named = "package.module:function"
    assert [names(row[0])[0] for row in table_of("Searching")] == [*searching.SEARCHES, named]
    schedulers = {names(row[0])[0]: row for row in table_of("Stopping early")}
    assert list(schedulers) == [*scheduling.SCHEDULERS, named]
    for name in scheduling.SCHEDULERS:
        options = dict(re.findall(r"`(\w+)` \((\w+)\)", schedulers[name][2]))
        assert {key: yaml.safe_load(value) for key, value in options.items()} == scheduling._OPTIONS[name]
    assert set(re.findall(r"^  (\w+): \{", "\n".join(blocks("yaml")[3:]), re.M)) == set(tracking.TRACKERS)


def test_columns_of_the_results_are_on_the_page() -> None:
    text = PAGE.partition("\n## Results\n")[2]
    listed = {name for line in text.splitlines() if line.startswith("| `") for name in names(line.split("|")[1])}
    assert {*LEADING, *EPOCHS} <= listed


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_page_can_be_read_and_names_what_there_is(code: str) -> None:
    import swamp_ray

    tree = ast.parse(code)
    taken = [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "swamp_ray"
             for name in node.names]
    assert all(hasattr(swamp_ray, name) for name in taken)
    for path in re.findall(r'"(configs/[^"]+)"', code):
        load_sweep(REPOSITORY / path)
