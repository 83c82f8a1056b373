"""What analyses have stored, as pictures: lines, barriers, planes, curvature, growth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.report.charts.chart import Chart
from swamp_ray.report.charts.curvature import curvature_charts
from swamp_ray.report.charts.growth import growth_charts
from swamp_ray.report.charts.paths import connectivity_charts, landscape_charts
from swamp_ray.report.load.runs import ReportRun
from tests.figures import drawn, flaws, made_run, points, record

Draw = Callable[[Sequence[ReportRun]], list[Chart]]
ROUNDS = 4


def analysed(folder: Path, name: str, analysis: str, rows: list[dict[str, Any]], **values: Any) -> ReportRun:
    return made_run(folder, name, [record(index, 0.4**index) for index in range(ROUNDS)],
                    analyses={analysis: {"rows": rows}}, **values)


def line(index: int, kind: str, second: str, height: float) -> dict[str, Any]:
    values = {"error": [0.1, 0.1 + height, 0.1], "loss": [1.0, 1.0 + height, 1.0]}
    return {"kind": kind, "round": index, "sparsity": 1 - 0.4**index, "first": "one", "second": second,
            "positions": [0.0, 0.5, 1.0], "values": {"test": values},
            "barrier": {"test": {"error": height, "loss": height}}}


def connected(folder: Path, name: str, **values: Any) -> ReportRun:
    """In round r the two lines between particles have the barriers 0.01 r and 0.03 r, that between rounds 0.2."""
    rows = [line(index, "particles", f"particle {n}", (0.01, 0.03)[n] * index)
            for index in range(ROUNDS) for n in (0, 1)]
    return analysed(folder, name, "connectivity", [*rows, line(0, "rounds", "next", 0.2)], **values)


def bowl(folder: Path, name: str, **values: Any) -> ReportRun:
    grid = [-1.0, 0.0, 1.0, 2.0]
    rows = [{"round": index, "sparsity": 1 - 0.4**index, "corners": [[0, 0], [1, 0], [0.5, 1]], "first": grid,
             "second": grid, "loss": {"test": [[0.1 + x * x + y * y for x in grid] for y in grid]},
             "at_the_average": {"test": 0.2}} for index in range(ROUNDS)]
    return analysed(folder, name, "landscape", rows, **values)


def curved(folder: Path, name: str, factor: float = 1.0, **values: Any) -> ReportRun:
    rows = [{"round": index, "sparsity": 1 - 0.4**index, "network": network,
             "trace": {"mean": factor * 10.0**index, "standard_error": 0.5}, "scaled": {"mean": 2.0,
                                                                                        "standard_error": 0.1},
             "largest": {"value": 3.0, "residual": 0.01}} for index in range(ROUNDS) for network in ("particle 0",
                                                                                                     "average")]
    return analysed(folder, name, "curvature", rows, **values)


def grown(folder: Path, name: str, **values: Any) -> ReportRun:
    rows = [{"round": index, "sparsity": 1 - 0.4**index, "count": count, "num_subsets": 3,
             "average": {"test": {"accuracy": 0.5 + 0.1 * count}}, "ensemble": {"test": {"accuracy": 0.9}}}
            for index in range(ROUNDS) for count in (1, 2, 3)]
    return analysed(folder, name, "particles", rows, **values)


def test_barriers_and_lines(tmp_path: Path) -> None:
    lines, barriers = connectivity_charts([connected(tmp_path, "a")])
    assert (lines.name, barriers.name) == ("lines_a", "barriers")
    assert len(drawn(lines)) == 9 * 3
    middle = drawn(lines)[(drawn(lines)["round"] == 3) & (drawn(lines)["position"] == 0.5)]
    assert middle["error"].tolist() == pytest.approx([0.13, 0.19])
    particles = drawn(barriers)[drawn(barriers)["kind"] == "particles"].groupby("round")["barrier"].mean()
    assert particles.tolist() == pytest.approx([0.0, 0.02, 0.04, 0.06])
    ends = drawn(barriers).set_index("kind")["over_mean_of_ends"]
    assert ends["rounds"] == pytest.approx(0.2), "both ends have the same error"
    thick = barriers.figure.axes[0].lines[0]
    assert [y for _, y in points(thick)] == pytest.approx([0.0, 2.0, 4.0, 6.0]), "percent, dense first"


def test_a_plane_has_its_particles_and_their_average_marked(tmp_path: Path) -> None:
    (chart,) = landscape_charts([bowl(tmp_path, "a")])
    data = drawn(chart)
    assert len(data) == ROUNDS * 16
    assert data[(data["first"] == 1.0) & (data["second"] == 2.0)]["loss"].tolist() == pytest.approx([5.1] * ROUNDS)
    particles, average = chart.figure.axes[0].lines
    assert points(particles) == [[0, 0], [1, 0], [0.5, 1]]
    assert points(average) == [[0.5, pytest.approx(1 / 3)]]


def test_a_plane_that_is_flat_or_not_finite_is_drawn(tmp_path: Path) -> None:
    rows = bowl(tmp_path, "a").analyses["landscape"]["rows"]
    rows[0]["loss"]["test"] = [[0.0] * 4] * 4
    rows[1]["loss"]["test"][0][0] = float("inf")
    (chart,) = landscape_charts([analysed(tmp_path, "b", "landscape", rows)])
    assert flaws(chart.figure) == []


def test_curvature_is_the_mean_over_seeds_with_the_error_of_each(tmp_path: Path) -> None:
    runs = [curved(tmp_path, f"a{seed}", factor, arm="a", seed=seed) for seed, factor in enumerate((1.0, 3.0))]
    (chart,) = curvature_charts(runs)
    traces = drawn(chart)[(drawn(chart)["measure"] == "trace") & (drawn(chart)["network"] == "average")]
    assert traces["value"].tolist() == [1, 10, 100, 1000, 3, 30, 300, 3000]
    assert set(traces["error"]) == {0.5}
    means = [[y for _, y in points(one)] for one in chart.figure.axes[0].lines]
    assert [2.0, 20.0, 200.0, 2000.0] in means


def test_growth_is_by_round_and_number_of_particles(tmp_path: Path) -> None:
    (chart,) = growth_charts([grown(tmp_path, "a")])
    data = drawn(chart)
    found = data[(data["network"] == "average") & (data["round"] == 2)].sort_values("particles")
    assert found["accuracy"].tolist() == pytest.approx([0.6, 0.7, 0.8])


@pytest.mark.parametrize("draw", [connectivity_charts, landscape_charts, curvature_charts, growth_charts])
def test_nothing_stored_nothing_drawn(tmp_path: Path, draw: Draw) -> None:
    assert draw([]) == draw([made_run(tmp_path, "bare", [record(0, 1.0)])]) == []


@pytest.mark.parametrize(("draw", "make"), [(connectivity_charts, connected), (landscape_charts, bowl),
                                            (curvature_charts, curved), (growth_charts, grown)])
def test_several_arms_are_legible(tmp_path: Path, draw: Draw, make: Callable[..., ReportRun]) -> None:
    runs = [make(tmp_path, f"an-arm-with-a-long-name-{number}") for number in range(4)]
    for chart in draw(runs)[-2:]:
        assert flaws(chart.figure) == [], chart.name
