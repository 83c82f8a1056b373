"""Whatever fails, the same command ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import WEIGHTS, disturb, fault_kinds


@pytest.mark.chaos
def test_six_faults_change_no_byte_and_no_finished_particle_is_trained_again(tmp_path: Path) -> None:
    kinds = fault_kinds(6, seed=0)
    assert set(kinds) == set(WEIGHTS), "every kind is among them"
    tally = disturb(tmp_path, kinds, seed=0, say=print)
    assert [fault.kind for fault in tally.faults] == kinds
    assert tally.different == []
    assert tally.trained_again == []
    assert tally.num_starts > tally.num_runs >= 1
