"""Captions are right for one run, one seed of each arm, and several: no mean of one, no plural of one."""

from __future__ import annotations

import re

import pytest

from swamp_ray.report.charts.accuracy import accuracy_against_sparsity
from swamp_ray.report.charts.arms import each_arm
from swamp_ray.report.charts.comparison import comparisons, difference_charts
from swamp_ray.report.charts.spread import distances_to_average
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.contents import ACCURACY, DIFFERENCES, SECTIONS
from swamp_ray.report.page.headline import findings
from swamp_ray.report.page.html import tight
from swamp_ray.report.page.tables import comparison_table, summary_table


@pytest.mark.parametrize(("counts", "words"), [
    ({"a": 1}, "one run"), ({"a": 4}, "4 runs"), ({"a": 1, "b": 1}, "one run of each arm"),
    ({"a": 2, "b": 2}, "2 runs of each arm"), ({"a": 5, "b": 4}, "runs (a 5, b 4)"),
    ({name: 1 + (name == "c") for name in "abcde"}, "1 to 2 runs of each arm")])
def test_runs_are_counted_in_words(counts: dict[str, int], words: str) -> None:
    assert each_arm(counts) == words


def chosen(both: list[ReportRun], *names: str) -> list[ReportRun]:
    return [run for run in both if run.name in names]


def test_one_run_has_no_mean_and_no_range(both: list[ReportRun]) -> None:
    swamp = chosen(both, "swamp-seed0")
    text = accuracy_against_sparsity(swamp).caption
    assert text.endswith("One seed, so that there is no spread to show.")
    assert "Dense: the mean over the particles in the round without a mask." in text
    assert distances_to_average(swamp)[0].caption.endswith("One run.")
    assert "Dense: the round without a mask." in accuracy_against_sparsity(chosen(both, "imp-seed0")).caption


def test_one_seed_of_each_arm_is_one_pair(both: list[ReportRun]) -> None:
    pair = chosen(both, "imp-seed0", "swamp-seed0")
    assert accuracy_against_sparsity(pair).caption.endswith("One seed of each arm, so that there is no spread to show.")
    caption = difference_charts(pair)[0].caption
    assert caption.startswith("The difference of two runs with the same seed")
    assert "one pair." in caption
    assert caption.endswith("With one pair there is no interval.")


def test_several_seeds_are_counted_and_unfinished_ones_are_said_to_be_left_out(both: list[ReportRun]) -> None:
    text = accuracy_against_sparsity(both).caption
    assert "Dense: the mean over the 3 runs of imp in the round without a mask." in text
    assert "over seeds (imp 3, swamp 2); points" in text
    assert "Mean ± standard deviation over seeds (imp 3, swamp 2)." in list(findings(both))
    table = summary_table(both)
    assert table is not None
    assert table.caption.endswith("over the n seeds.")
    behind = [ReportRun(**{**vars(both[0]), "records": both[0].records[:-1]}), *both[1:]]
    assert "over 2 seeds of each arm, those that have come furthest" in accuracy_against_sparsity(behind).caption


def test_points_are_said_to_be_moved_only_where_they_are(both: list[ReportRun]) -> None:
    assert "moved sideways" not in difference_charts(both)[0].caption


def test_pairs_that_differ_equally_are_not_called_one_pair(both: list[ReportRun]) -> None:
    records = both[0].records
    a, b = ([ReportRun(**{**vars(run), "arm": arm, "records": records}) for run in both[:2]] for arm in "ab")
    runs = [*a, *b]
    assert any("2 pairs of runs that differ equally" in text for text in findings(runs))
    assert "Where all pairs differ equally there is no interval." in comparison_table(
        comparisons(runs)[0], "accuracy").caption
    assert difference_charts(runs)[0].caption.endswith("Where all pairs differ equally there is no interval.")


def test_a_name_stays_with_its_number() -> None:
    assert re.split(" ", tight("imp 96.24 ± 1.38 %, swamp 97.21 ± 1.18 %; dense")) == [
        "imp\u00a096.24\u00a0±\u00a01.38\u00a0%,", "swamp\u00a097.21\u00a0±\u00a01.18\u00a0%;", "dense"]


def test_no_caption_of_a_page_counts_in_the_wrong_number(both: list[ReportRun]) -> None:
    pair = ["imp-seed0", "swamp-seed0"]
    for runs in (*(chosen(both, name) for name in pair), chosen(both, *pair), both):
        for section in (ACCURACY, DIFFERENCES, *SECTIONS):
            for chart in (chart for draw in section.draw for chart in draw(runs)):
                assert not re.search(r"\b1 (run|seed|pair|round|job|arm|particle)s\b|an arm's runs|1 run an arm",
                                     chart.caption), chart.caption
                assert chart.caption.endswith("."), chart.caption
