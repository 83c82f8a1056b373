"""Seeded blocks leave no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from swamp_ray.random_state import seeded


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def fail_in_a_block() -> None:
    with seeded(5):
        draw()
        raise KeyError


def test_a_block_depends_on_its_seed_only() -> None:
    with seeded(2**63 - 1):
        first = draw()
    draw()
    with seeded(2**63 - 1):
        assert draw() == first
    with seeded(2**31 - 1):
        assert not set(draw()) & set(first)


def test_generators_go_on_as_if_nothing_had_happened() -> None:
    with seeded(1):
        expected = [draw(), draw()]
    with seeded(1):
        first = draw()
        with pytest.raises(KeyError):
            fail_in_a_block()
        assert [first, draw()] == expected
