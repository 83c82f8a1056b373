"""What small runs give is pinned bit by bit, on the machine where it was pinned; test_pinned.py holds it on all."""

from __future__ import annotations

import json

import pytest

from tests.old_results import FILE, INLINE, ON_RAY, machine, results

PINNED = json.loads(FILE.read_text())
QUICK = ("swamp", "imp_erk", "packed", "resumed")
OTHERS = [case for case in (*INLINE, *ON_RAY) if case not in QUICK]
elsewhere = pytest.mark.skipif(PINNED["machine"] != machine(), reason="last bits were pinned on another processor")


@elsewhere
@pytest.mark.parametrize("case", QUICK)
def test_bits_are_those_of_before(case: str) -> None:
    assert results(case) == PINNED["results"][case]


@elsewhere
@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_bits_of_every_arm_and_executor_are_those_of_before(case: str) -> None:
    assert results(case) == PINNED["results"][case]


def test_one_run_inline_and_on_ray_has_the_same_pinned_bits() -> None:
    found = PINNED["results"]
    assert found["swamp"] == found["swamp_on_ray"]
    assert found["packed"] == found["packed_on_ray"]
    assert found["swept"] == found["swept_on_ray"]
