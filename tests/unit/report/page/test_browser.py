"""The page in a browser: every figure is there, nothing sticks out on a phone, nothing is fetched, dark is dark."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from swamp_ray.report.page.writing import write_report
from tests.browser import Browser, find_browser
from tests.sweep_storage import trained_sweep
from tests.unit.report.conftest import IMP, SWAMP

pytestmark = pytest.mark.nightly

PHONE, A4, DESKTOP = 360, 680, 1200
READABLE_PX = 7.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    command = find_browser()
    if command is None:
        pytest.skip("needs Chromium or Chrome in PATH")
    return Browser(command, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(study, tmp_path_factory.mktemp("measured") / "study")
    return Path(write_report([*IMP, *SWAMP], str(copy), tmp_path_factory.mktemp("page") / "page.html").page)


def brightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_seen_and_nothing_sticks_out(browser: Browser, page: Path, dark: bool) -> None:
    for look in browser.look(page, [PHONE, DESKTOP], dark=dark):
        assert set(look["figures"]) == {f"figure-{path.stem}" for path in page.with_suffix("").glob("*.png")}
        assert {"figure-accuracy_against_sparsity", "figure-differences", "figure-reliability"} <= set(look["figures"])
        assert all(width > 250 and height > 100 for width, height in look["figures"].values())
        assert look["wide"] == []
        assert look["scroll"] <= look["width"]
        assert look["tables"] >= 9
        assert look["fetched"] == []
        assert min(height for _, _, height in look["texts"]) >= READABLE_PX
        # Text of the page and of its figures stands out from the ground, in both schemes.
        ground = brightness(look["ground"])
        assert (ground < 60) is dark
        assert abs(brightness(look["ink"]) - ground) > 150
        # Text in coloured cells stands on those.
        fills = {fill for figure, fill, _ in look["texts"] if figure.startswith(("figure-accuracy", "figure-diff"))}
        assert min(abs(brightness(fill) - ground) for fill in fills) > 70


def test_what_is_wider_than_a_phone_shows_that_it_can_be_scrolled(browser: Browser, page: Path) -> None:
    (phone,) = browser.look(page, [PHONE])
    assert any(places for places, _ in phone["scrolled"]), "tables of rounds"
    for places, hint in phone["scrolled"]:
        assert hint.startswith("sticky 0px")
        assert not hint.endswith("none")
        assert all(abs(place) < 1 for place in places), "the first column stays"
    for name, (width, _) in phone["figures"].items():
        assert width < PHONE or name.startswith("figure-timeline"), name


def test_print_cuts_nothing_off(browser: Browser, page: Path) -> None:
    (paper,) = browser.look(page, [A4], printed=True)
    assert paper["cut"] == []
    assert paper["scrolled"] == []


def test_all_figures_were_drawn_under_names_of_their_own(page: Path) -> None:
    text = page.read_text()
    assert 'class="note"' not in text
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert len(re.findall('<figure id="', text)) >= 12


def test_the_browser_has_nothing_to_complain_about(browser: Browser, page: Path) -> None:
    assert browser.complaints(page) == []


def test_complaints_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """The test above is worth as much as what it hears of."""
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'\">"
    (tmp_path / "broken.html").write_text(f"<!DOCTYPE html><html><head><script>throw new Error('no')</script>{policy}"
                                          "<script>blocked()</script></head></html>")
    complaints = browser.complaints(tmp_path / "broken.html")
    assert any("Error: no" in line for line in complaints)
    assert any("Content Security Policy" in line for line in complaints)
    wide = "<img src='http://swamp.invalid/a.png'><p style='width:400px'>wide</p>"
    (tmp_path / "wide.html").write_text(f"<!DOCTYPE html><html><head>{policy}</head><body>{wide}</body></html>")
    (look,) = browser.look(tmp_path / "wide.html", [PHONE])
    assert look["fetched"] == ["http://swamp.invalid/a.png"]
    assert look["scroll"] > PHONE
    assert len(look["wide"]) == 1


def test_the_page_of_a_sweep_is_seen_whole_on_a_phone_and_in_print(browser: Browser, tmp_path: Path) -> None:
    trained_sweep(tmp_path, seeds=2, space={"particles.count": {"grid": [1, 2]}})
    page = Path(write_report(["grid"], str(tmp_path)).page)
    for look in browser.look(page, [PHONE, DESKTOP]):
        assert set(look["figures"]) == {f"figure-{path.stem}" for path in page.with_suffix("").glob("*.png")}
        assert (look["wide"], look["fetched"]) == ([], [])
        assert look["scroll"] <= look["width"]
        assert min(height for _, _, height in look["texts"]) >= READABLE_PX
    (paper,) = browser.look(page, [A4], printed=True)
    assert (paper["cut"], paper["scrolled"]) == ([], [])
    assert browser.complaints(page) == []
