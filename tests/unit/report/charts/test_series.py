"""Values round by round, and means over the seeds of an arm."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from swamp_ray.report.charts.accuracy import accuracy_against_epochs, accuracy_against_sparsity
from swamp_ray.report.charts.series import AVERAGE, ENSEMBLE, PARTICLES, dense_value, means, points
from swamp_ray.report.load.runs import ReportRun


def test_means_are_over_the_seeds_of_an_arm(both: list[ReportRun]) -> None:
    imp = [run for run in both if run.arm == "imp"]
    for found in (one for one in means(points(both)) if one.arm == "imp"):
        values = [record["average"]["test"]["accuracy"] for run in imp for record in run.records
                  if record["sparsity"] == pytest.approx(found.sparsity)]
        assert (found.value, found.deviation) == (statistics.fmean(values), statistics.stdev(values))
        assert found.num == len(values) == 3


def test_a_run_that_is_still_going_on_bends_no_mean(both: list[ReportRun]) -> None:
    imp = [run for run in both if run.arm == "imp"]
    shorter = [replace(imp[0], records=imp[0].records[:-1]), *imp[1:]]
    assert {one.num for one in means(points(imp))} == {3}
    assert means(points(shorter)) == means(points(imp[1:]))
    assert len([point for point in points(shorter) if point.sparsity == 0.5]) == 3


def test_the_mean_of_particles_stands_beside_their_average_only_where_there_are_several(both: list[ReportRun]) -> None:
    assert {point.network for point in points(both) if point.arm == "imp"} == {AVERAGE}
    assert {point.network for point in points(both) if point.arm == "swamp"} == {AVERAGE, PARTICLES}


def test_the_ensemble_is_that_of_all_particles(swamp: ReportRun) -> None:
    rows = [{"round": 1, "count": count, "ensemble": {"test": {"accuracy": count / 10}}} for count in (1, 2, 3)]
    found = points([replace(swamp, analyses={"particles": {"rows": rows}})])
    assert [(point.round, point.value) for point in found if point.network == ENSEMBLE] == [(1, 0.3)]


def test_the_dense_network_is_that_of_the_round_without_a_mask(both: list[ReportRun], swamp: ReportRun) -> None:
    first = [run for run in both if run.arm == both[0].arm]
    assert len(first) < len(both)
    assert dense_value(both) == statistics.fmean(run.records[0]["mean"]["test"]["accuracy"] for run in first)
    assert dense_value([replace(swamp, records=swamp.records[1:])]) is None


def test_what_is_drawn_is_in_the_data(both: list[ReportRun]) -> None:
    data = accuracy_against_sparsity(both).data
    single = data[(data["what"] == "seed") & (data["network"] == AVERAGE)]
    recorded = [record["average"]["test"]["accuracy"] for run in both for record in run.records]
    assert single["accuracy"].tolist() == recorded
    assert single["weights_left"].tolist() == [1 - record["sparsity"] for run in both for record in run.records]
    assert data[data["what"] == "dense"]["accuracy"].tolist() == [dense_value(both)]


def test_several_particles_stand_further_right(both: list[ReportRun]) -> None:
    data = accuracy_against_epochs(both)[0].data
    last = data[(data["what"] == "mean over seeds") & (data["sparsity"] == 0.75)].set_index("arm")["epochs"]
    # One dense epoch, then three rounds of 2 epochs: of one particle, and of three.
    assert last.to_dict() == {"imp": 1 + 3 * 2, "swamp": 1 + 3 * 3 * 2}


def test_without_recorded_epochs_there_is_no_such_chart(swamp: ReportRun) -> None:
    without = swamp.metrics[swamp.metrics["kind"] == "round"]
    assert accuracy_against_epochs([replace(swamp, metrics=without)]) == []
