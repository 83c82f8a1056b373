"""Figures inside a page: their text stays text, their names do not clash, their colours follow the page."""

from __future__ import annotations

import re

from swamp_ray.report.drawing import inline, png_of, svg_of
from swamp_ray.report.style import COLOURS, INK, arm_styles, new_figure, plain_axes, themed


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
