"""Sums over all weights whose bits do not depend on the machine's cores.

BLAS, which numpy asks for ``@`` and ``numpy.linalg.norm``, divides them among as many threads as it has.
"""

from __future__ import annotations

import math

import numpy as np


def inner(first: np.ndarray, second: np.ndarray) -> float:
    """The inner product of two vectors."""
    return float(np.sum(first * second))


def norm(vector: np.ndarray) -> float:
    """The Euclidean norm."""
    return math.sqrt(inner(vector, vector))
