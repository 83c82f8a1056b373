"""Differences of arms: paired by seed, with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from scipy import stats

from swamp_ray.config.reading import with_values
from swamp_ray.report.charts.accuracy import accuracy_charts
from swamp_ray.report.charts.comparison import comparisons, difference_charts
from swamp_ray.report.charts.drawing import svg_of
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.headline import findings
from swamp_ray.report.page.tables import comparison_table, differing_options, signed, summary_table


def made(run: ReportRun, arm: str, seed: int, values: Sequence[float]) -> ReportRun:
    """A run whose rounds, of sparsities 0 and 0.5, have these accuracies."""
    split = [{"accuracy": value, "loss": 1.0} for value in values]
    records = [{**record, "average": {"test": one, "validation": one}}
               for record, one in zip(run.records, split, strict=False)]
    return replace(run, arm=arm, config=with_values(run.config, {"seed": seed, "name": f"{arm}-{seed}"}),
                   rundir=type(run.rundir)(run.rundir.place, f"{arm}-{seed}"), records=records)


@pytest.fixture
def runs(swamp: ReportRun) -> list[ReportRun]:
    """Arms a (seeds 0 to 3) and b (seeds 1 to 3); b - a at sparsity 0.5: 0.02, 0.03, 0.04."""
    a = [made(swamp, "a", seed, (0.9, 0.5 + seed / 100)) for seed in range(4)]
    b = [made(swamp, "b", seed, (0.9, 0.51 + seed / 50)) for seed in (3, 1, 2)]
    return [*a, *b]


def test_pairs_have_equal_seeds(runs: list[ReportRun]) -> None:
    (one,) = comparisons(runs)
    assert (one.first, one.second, [level.sparsity for level in one.levels]) == ("a", "b", [0.0, 0.5])
    assert one.levels[1].seeds == (1, 2, 3)
    assert one.levels[1].difference == pytest.approx(0.03)


def test_intervals_are_those_of_a_paired_t_test(runs: list[ReportRun]) -> None:
    found = comparisons(runs)[0].levels[1].paired
    assert found is not None
    expected = stats.ttest_rel([0.53, 0.55, 0.57], [0.51, 0.52, 0.53])
    low, high = expected.confidence_interval()
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, expected.pvalue))


def test_the_table_shows_points_with_their_interval(runs: list[ReportRun]) -> None:
    table = comparison_table(comparisons(runs)[0], "accuracy")
    cells = dict(zip(table.headings, [cell.text for cell in table.rows[1]], strict=True))
    assert cells["a, test"] == "51.50 ± 1.29 (n = 4)"
    assert cells["difference (points)"] == "+3.00"
    assert cells["95 % interval"] == "+0.52 to +5.48"
    assert table.rows[1][4].value == pytest.approx(0.03)


def test_arms_stand_side_by_side_by_sparsity(runs: list[ReportRun]) -> None:
    table = summary_table(runs)
    assert table is not None
    assert table.headings == ("sparsity", "a (n = 4)", "b (n = 3)")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["0.0 %", "90.00 ± 0.00", "90.00 ± 0.00"], ["50.0 %", "51.50 ± 1.29", "55.00 ± 2.00"]]
    assert summary_table(runs[:1]) is None


def test_one_pair_has_no_interval(runs: list[ReportRun]) -> None:
    pair = [runs[1], runs[5]]
    level = comparisons(pair)[0].levels[1]
    assert (level.difference, level.paired) == (pytest.approx(0.02), None)
    assert "With one pair there is no interval" in comparison_table(comparisons(pair)[0], "accuracy").caption
    assert "there is no interval" in difference_charts(pair)[0].caption
    assert any("its spread is not known" in text for text in findings(pair))


def test_pairs_that_differ_equally_have_no_interval(runs: list[ReportRun]) -> None:
    alike = []
    for one in runs:
        shift = 0.01 if one.arm == runs[0].arm else 0.0
        records = [{**record, "average": {"test": {"accuracy": 0.5 + shift, "loss": 1.0}}} for record in one.records]
        alike.append(replace(one, records=records))
    levels = comparisons(alike)[0].levels
    assert all(level.paired is None for level in levels if len(level.seeds) > 1)
    assert any(abs(level.difference or 0) == pytest.approx(0.01) for level in levels)


def test_of_other_data_nothing_is_compared(runs: list[ReportRun]) -> None:
    other = replace(runs[-1], about={**runs[-1].about, "data": {"digest": "other"}})
    assert comparisons([*runs[:-1], other]) == []


def test_arms_without_common_seeds_stand_side_by_side(runs: list[ReportRun]) -> None:
    apart = [runs[0], *runs[4:]]
    (one,) = comparisons(apart)
    assert not one.is_paired
    assert difference_charts(apart) == []
    table = comparison_table(one, "accuracy")
    assert table.headings == ("sparsity", "a, test", "b, test")
    assert "nothing is paired" in table.caption


def test_with_many_arms_the_first_is_the_baseline(runs: list[ReportRun]) -> None:
    arms = [made(runs[0], name, 0, (0.9, 0.5)) for name in "pqrs"]
    assert [(one.first, one.second) for one in comparisons(arms)] == [("p", "q"), ("p", "r"), ("p", "s")]
    assert len(comparisons(arms[:3])) == 3


def test_the_headline_names_all_arms_at_their_common_sparsity(runs: list[ReportRun]) -> None:
    longer = [replace(run, records=run.records[:1]) if run.arm == "a" else run for run in runs]
    texts = list(findings(longer))
    assert texts[0].startswith("Test accuracy at 0.0 % sparsity: ")
    assert any("test accuracy 55.00 ± 2.00 % at 50.0 % sparsity" in text for text in texts)
    assert "b − a at 50.0 % sparsity: +3.00 points (95 % interval +0.52 to +5.48, 3 pairs)." in findings(runs)  # noqa: RUF001


def test_of_many_arms_the_headline_names_the_worst_and_the_best(runs: list[ReportRun]) -> None:
    arms = [made(runs[0], f"a_very_long_name_of_an_arm_number_{n}", 0, (0.9, 0.5 + n / 100)) for n in range(8)]
    texts = list(findings(arms))
    assert len(texts) == 1
    assert ": 8 arms from 50.00 % (a_very_long_name_of_an_arm_number_0) to 57.00 % (" in texts[0]
    # A layout that fails is a warning, and warnings fail tests.
    figures = [chart.figure for chart in [*difference_charts(arms), *accuracy_charts(arms)]]
    assert [svg_of(figure, "one")[:5] for figure in figures] == ["<?xml"] * 3
    assert min(axes.get_position().height * figure.get_figheight() for figure in figures for axes in figure.axes) > 2


@pytest.mark.parametrize(("value", "metric", "text"), [
    (0.0312, "accuracy", "+3.12"), (-0.0312, "accuracy", "−3.12"), (-0.00001, "accuracy", "0.00"),  # noqa: RUF001
    (0.12345, "loss", "+0.123"), (0.0, "loss", "0"),
])
def test_a_difference_has_its_sign(value: float, metric: str, text: str) -> None:
    assert signed(value, metric) == text


def test_options_in_which_arms_differ(both: list[ReportRun]) -> None:
    table = differing_options(both)
    assert table is not None
    assert {row[0].text: [cell.text for cell in row[1:]] for row in table.rows} == {
        "particles.count": ["1", "3"], "averaging.within": ["none", "swa"]}
    assert differing_options(both[:3]) is None
