"""Lines and planes through weight space: what is measured between networks, and how high the barrier is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swamp_ray.analysis.bench import Metrics, Point
from swamp_ray.analysis.vectors import inner, norm

NUM_POINTS = 11


@dataclass(frozen=True)
class Line:
    """What was measured on the straight line between two networks.

    Attributes:
        positions: Share of the way from the first to the second, increasing from 0 to 1.
        metrics: By position.
    """

    positions: tuple[float, ...]
    metrics: tuple[Metrics, ...]

    def values(self, split: str, name: str) -> np.ndarray:
        """One metric along the line, float64 ``[points]``; ``"error"`` is 1 - accuracy."""
        if name == "error":
            return 1.0 - self.values(split, "accuracy")
        return np.array([one[split][name] for one in self.metrics])

    def barrier(self, split: str, name: str) -> float:
        """The largest excess over the straight line between the values at the ends (Entezari et al., 2022); at least 0.

        Args:
            split: Of the data.
            name: A metric of which less is better: ``"loss"``, ``"error"``.
        """
        return float(self.excess(split, name).max())

    def excess(self, split: str, name: str) -> np.ndarray:
        """How far a metric lies above the straight line between its values at the ends, ``[points]``."""
        values = self.values(split, name)
        share = np.array(self.positions)
        return values - ((1 - share) * values[0] + share * values[-1])


def instability(values: Sequence[float]) -> float:
    """The largest value on a line minus the mean of the values at its ends (Frankle et al., 2020).

    Unlike the barrier, it is at least half the distance between the ends, also where nothing rises between them.

    Args:
        values: A metric of which less is better at points of the line, in their order, both ends included.
    """
    return max(values) - (values[0] + values[-1]) / 2


def line(measure: Callable[[Point], Metrics], first: Point, second: Point, num_points: int = NUM_POINTS) -> Line:
    """Measure equally spaced points of a line, its ends included.

    Raises:
        ValueError: Fewer than two points.
    """
    if num_points < 2:
        raise ValueError(f"a line has at least its two ends, but got {num_points} points")
    positions = tuple(float(share) for share in np.linspace(0.0, 1.0, num_points))
    return Line(positions, tuple(measure(between(first, second, share)) for share in positions))


def between(first: Point, second: Point, share: float) -> Point:
    """A point of a line, computed in float64; the ends are the networks themselves, to the bit."""
    if share in (0.0, 1.0):
        return first if share == 0.0 else second
    return ((1.0 - share) * first.astype(np.float64) + share * second.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Plane:
    """What was measured in the plane through three networks.

    Attributes:
        corners: Coordinates of the three, float64 ``[3, 2]``, in units of the weights' Euclidean distance.
        first, second: Coordinates of the grid along both axes.
        metrics: By row (second axis) and column (first axis).
    """

    corners: np.ndarray
    first: np.ndarray
    second: np.ndarray
    metrics: tuple[tuple[Metrics, ...], ...]

    def values(self, split: str, name: str) -> np.ndarray:
        """One metric on the grid, float64 ``[rows, columns]``; ``"error"`` is 1 - accuracy."""
        if name == "error":
            return 1.0 - self.values(split, "accuracy")
        return np.array([[one[split][name] for one in row] for row in self.metrics])


@dataclass(frozen=True)
class Grid:
    """Points of the plane through three networks, which reaches beyond them by a share of their extent.

    The first axis points from the first network to the second; the second one is orthogonal to it (Garipov et al.,
    2018).

    Attributes:
        corners, first, second: As of :class:`Plane`.
    """

    corners: np.ndarray
    first: np.ndarray
    second: np.ndarray
    _axes: tuple[np.ndarray, np.ndarray, np.ndarray]

    def row(self, index: int) -> list[Point]:
        """The networks of a row, from left to right."""
        origin, along, across = self._axes
        return [(origin + x * along + self.second[index] * across).astype(np.float32) for x in self.first]


def grid(networks: Sequence[Point], num_points: int = 21, margin: float = 0.2) -> Grid:
    """The points, so many along each axis.

    Raises:
        ValueError: The networks lie on one line, or are not three.
    """
    origin, along, across = axes = _axes(networks)
    corners = np.array([[inner(point - origin, along), inner(point - origin, across)]
                        for point in (network.astype(np.float64) for network in networks)])
    low = corners.min(axis=0)
    high = corners.max(axis=0)
    pad = margin * (high - low)
    first, second = (np.linspace(low[axis] - pad[axis], high[axis] + pad[axis], num_points) for axis in (0, 1))
    return Grid(corners, first, second, axes)


def plane(
    measure: Callable[[Point], Metrics], networks: Sequence[Point], num_points: int = 21, margin: float = 0.2
) -> Plane:
    """Measure all points of a grid.

    Raises:
        ValueError: The networks lie on one line, or are not three.
    """
    points = grid(networks, num_points, margin)
    rows = tuple(tuple(measure(point) for point in points.row(index)) for index in range(num_points))
    return Plane(points.corners, points.first, points.second, rows)


def _axes(networks: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An origin and two orthonormal directions, float64."""
    if len(networks) != 3:
        raise ValueError(f"a plane goes through three networks, but got {len(networks)}")
    origin, second, third = (network.astype(np.float64) for network in networks)
    along = second - origin
    across = third - origin
    length = norm(along)
    if length == 0.0:
        raise ValueError("the first two networks are the same")
    along /= length
    across = across - inner(across, along) * along
    height = norm(across)
    if height <= 1e-9 * length:
        raise ValueError("the three networks lie on one line")
    return origin, along, across / height
