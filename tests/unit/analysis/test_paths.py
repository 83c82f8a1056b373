"""Lines and planes against functions whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from swamp_ray.analysis.bench import Metrics, Point, mean_point
from swamp_ray.analysis.paths import between, instability, line, plane


def point(*values: float) -> Point:
    return np.array(values, dtype=np.float32)


def bowl(x: Point) -> Metrics:
    """Convex: no line has a barrier."""
    return {"test": {"loss": float((x.astype(np.float64) ** 2).sum()), "accuracy": 1.0 - abs(float(x[0])) / 10}}


def two_wells(x: Point) -> Metrics:
    """Minima at x = -1 and 1, with a hill of height 1 between them."""
    return {"test": {"loss": (float(x[0]) ** 2 - 1) ** 2}}


def test_a_convex_function_has_no_barrier_and_dips() -> None:
    found = line(bowl, point(-1, 2), point(3, 0))
    assert found.positions == pytest.approx(np.linspace(0, 1, 11))
    assert found.barrier("test", "loss") == 0.0
    length = 20.0  # squared; t (1 - t) |b - a|^2 below the chord
    assert found.excess("test", "loss")[5] == pytest.approx(-0.25 * length)
    assert found.values("test", "error")[0] == pytest.approx(0.1)
    assert found.barrier("test", "error") == 0.0


def test_a_hill_between_two_minima_is_the_barrier() -> None:
    found = line(two_wells, point(-1, 5), point(1, 7))
    assert found.barrier("test", "loss") == pytest.approx(1.0)
    lower = line(two_wells, point(-1), point(0.5))  # the chord rises to 0.5625
    expected = max((x * x - 1) ** 2 - 0.5625 * share for share, x in
                   ((share, -1 + 1.5 * share) for share in np.linspace(0, 1, 11)))
    assert lower.barrier("test", "loss") == pytest.approx(expected)


@pytest.mark.parametrize(("values", "expected"), [([1.0, 3.0, 2.0], 1.5), ([2.0, 2.0], 0.0), ([1.0, 2.0, 3.0], 1.0),
                                                  ([3.0, 0.0, 1.0], 1.0)])
def test_the_excess_over_the_mean_of_the_ends_is_at_least_half_their_distance(
    values: list[float], expected: float
) -> None:
    assert instability(values) == pytest.approx(expected)


def test_the_ends_are_the_networks_themselves_and_the_middle_is_their_mean() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal(50).astype(np.float32) for _ in range(2))
    assert between(a, b, 0.0).tobytes() == a.tobytes()
    assert between(a, b, 1.0).tobytes() == b.tobytes()
    assert between(a, b, 0.5).tobytes() == mean_point([a, b]).tobytes()
    assert between(a, b, 0.3).dtype == np.float32
    with pytest.raises(ValueError, match="at least its two ends"):
        line(bowl, a, b, num_points=1)


def test_a_plane_holds_its_networks_at_their_distances_and_measures_what_is_there() -> None:
    networks = [point(0, 0, 1), point(3, 0, 1), point(1, 4, 1)]
    found = plane(bowl, networks, num_points=7, margin=0.5)
    np.testing.assert_allclose(found.corners, [[0, 0], [3, 0], [1, 4]], atol=1e-6)
    np.testing.assert_allclose([found.first[0], found.first[-1]], [-1.5, 4.5])
    np.testing.assert_allclose([found.second[0], found.second[-1]], [-2, 6])
    x, y = np.meshgrid(found.first, found.second)
    np.testing.assert_allclose(found.values("test", "loss"), x**2 + y**2 + 1, rtol=1e-5)


@pytest.mark.parametrize(("networks", "reason"), [
    ([point(0, 0), point(1, 1), point(2, 2)], "on one line"), ([point(1, 0), point(1, 0), point(0, 1)], "the same"),
    ([point(1, 0), point(0, 1)], "three networks")])
def test_what_spans_no_plane_is_refused(networks: list[Point], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plane(bowl, networks)
