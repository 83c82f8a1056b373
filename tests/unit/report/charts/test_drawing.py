"""Figures inside a page: their text stays text, their names do not clash, their colours follow the page."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import pytest

from swamp_ray.report.charts.drawing import inline, png_of, svg_of
from swamp_ray.report.charts.style import COLOURS, INK, arm_styles, new_figure, plain_axes, themed
from swamp_ray.report.page.building import LONGEST_STEM, file_stem


def drawn(colour: str = COLOURS[1]) -> str:
    with themed():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], color=colour, marker="o")
        axes.set_xlabel("weights <left> & more")
        plain_axes(axes)
        return svg_of(figure, "one")


def test_text_stays_text() -> None:
    assert "weights &lt;left&gt; &amp; more" in drawn()


def test_the_same_figure_gives_the_same_text() -> None:
    assert drawn() == drawn()


def test_colours_follow_the_page() -> None:
    svg = inline(drawn(), "one", "label", (4.8, 3.3))
    assert "var(--arm-1)" in svg
    assert "var(--ink)" in svg
    assert "var(--paper)" in svg
    assert not re.search(f"{INK}|{COLOURS[1]}", svg, re.I)
    assert "DejaVu" not in svg


def test_a_colour_that_is_nobodys_stays() -> None:
    assert "#123456" in inline(drawn("#123456"), "one", "label", (4.8, 3.3))


def test_names_of_two_figures_do_not_clash() -> None:
    first, second = (inline(drawn(), name, "label", (4.8, 3.3)) for name in ("first", "second"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        used = {name for pair in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg) for name in pair if name}
        assert used
        assert used <= own


def test_what_is_read_out_is_escaped() -> None:
    assert 'aria-label="&lt;b&gt; &quot;x&quot;"' in inline(drawn(), "one", '<b> "x"', (4.8, 3.3))


def test_png_repeats() -> None:
    with themed():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1])
        assert png_of(figure) == png_of(figure)


def test_arms_have_styles_of_their_own() -> None:
    names = [f"arm-{number}" for number in range(18)]
    styles = arm_styles([*names, *names])
    assert list(styles) == names
    assert len({(style.colour, style.marker, style.line) for style in styles.values()}) == 18
    assert arm_styles(names[:2])["arm-1"] == styles["arm-1"]


@pytest.mark.parametrize(("name", "shown"), [
    ("cost in $ or $_{", "cost in $ or $_{"), (r"a$\frac{$x", r"a$\frac{$x"), ("$x^2$", "$x^2$"), ("精度", "精度"),
    ("acc\x1b]0;T\x07", "acc\ufffd]0;T\ufffd"), ("a\u202eb", "a\ufffdb"), ("nul\x00", "nul\ufffd"),
])
def test_a_name_is_drawn_as_it_is(name: str, shown: str) -> None:
    with themed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], label=name)
        axes.set_xlabel(name)
        axes.set_yticks([0, 1], [name, "b"])
        axes.legend()
        svg = svg_of(figure, "one")
        png_of(figure)
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if (element.tag).endswith("}text")]
    assert texts.count(shown) == 3


def test_files_of_long_names_and_of_names_that_look_alike() -> None:
    long = "a" * 5000
    assert len(file_stem(long)) == LONGEST_STEM
    assert file_stem(long) != file_stem(long + "b")
    assert file_stem("learning_acc/x") == "learning_acc_x"
    taken = ["learning_acc_x"]
    others = {file_stem(name, taken) for name in ("learning_acc:x", "learning_acc x", "learning_ACC/x")}
    assert len(others) == 3
    assert not others & set(taken)
