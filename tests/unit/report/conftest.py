"""Two arms on the tiny data: imp with seeds 0, 1 and 2, swamp with seeds 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swamp_ray.launch import run
from swamp_ray.report.charts.style import themed
from swamp_ray.report.load.runs import ReportRun, read_runs
from swamp_ray.report.page import building
from tests.helpers import tiny

IMP = [f"imp-seed{seed}" for seed in range(3)]
SWAMP = [f"swamp-seed{seed}" for seed in range(2)]


@pytest.fixture(autouse=True)
def page_style() -> Iterator[None]:
    """Fonts and colours of a page, in which figures have to be legible."""
    with themed():
        yield


@pytest.fixture
def own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with the figures of accuracy alone: all of them take seconds to draw."""
    monkeypatch.setattr(building, "SECTIONS", ())


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with five finished runs; nobody changes them."""
    storage = tmp_path_factory.mktemp("study")
    for name in IMP:
        run(tiny(storage, name=name, seed=int(name[-1]), particles__count=1, averaging__within="none"))
    for name in SWAMP:
        run(tiny(storage, name=name, seed=int(name[-1])))
    return storage


@pytest.fixture(scope="session")
def both(study: Path) -> list[ReportRun]:
    """All of them, as a report reads them."""
    return read_runs([*IMP, *SWAMP], str(study))


@pytest.fixture(scope="session")
def swamp(study: Path) -> ReportRun:
    """One run of the arm with several particles."""
    return read_runs(["swamp-seed0"], str(study))[0]
