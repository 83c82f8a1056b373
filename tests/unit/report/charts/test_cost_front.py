"""The front of arms that no other beats at the same cost or less."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from swamp_ray.analysis.best_arms import Verdict
from swamp_ray.report.charts.cost_front import cost_charts, front
from swamp_ray.report.load.sweep_arms import ArmLevel
from swamp_ray.text.metric_names import Metric


def test_the_front_by_hand() -> None:
    points = [(10.0, 0.9), (5.0, 0.8), (20.0, 0.85), (10.0, 0.95), (5.0, 0.7), (30.0, 0.96)]
    assert front(points, higher_is_better=True) == [1, 3, 5]
    assert front(points, higher_is_better=False) == [4]


def test_no_point_beats_one_of_the_front_and_each_other_is_beaten() -> None:
    random = np.random.default_rng(0)
    points = [(float(cost), float(value)) for cost, value in random.integers(0, 12, (60, 2))]
    found = front(points, higher_is_better=True)

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    assert not any(beats(one, points[index]) for index, one in product(found, points))
    kept = {points[index] for index in found}
    assert all(point in kept or any(beats(one, point) for one in kept) for point in points)
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def level(arm: str, mean: float, total: float, critical: float, flops: float = float("nan")) -> ArmLevel:
    cost = {"total_epochs": total, "critical_epochs": critical, "dense_flops": flops, "sparse_flops": flops}
    return ArmLevel(arm, 0.9, {0: mean - 0.01, 1: mean + 0.01}, cost, Verdict("best"))


def test_each_face_has_its_own_front_and_one_that_nobody_knows_has_none() -> None:
    levels = [level("IMP", 0.95, 100, 100), level("SWAMP", 0.94, 100, 25), level("poor", 0.90, 100, 100)]
    charts = cost_charts(levels, [0.9], Metric("accuracy"), higher_is_better=True)
    assert [chart.name for chart in charts] == ["total_epochs_front", "critical_epochs_front"]
    found = [dict(zip(chart.data["arm"], chart.data["on_front"], strict=True)) for chart in charts]
    assert found == [{"IMP": True, "SWAMP": False, "poor": False}, {"IMP": True, "SWAMP": True, "poor": False}]
    assert charts[0].data["standard_deviation"].tolist() == pytest.approx([0.0141421] * 3, rel=1e-4)
