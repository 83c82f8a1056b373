"""Whatever fails, the same command ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import WEIGHTS, disturb, fault_kinds


@pytest.mark.chaos
@pytest.mark.parametrize("kinds", [
    pytest.param(["worker", "averager", "node", "driver", "write"], id="one of each kind"),
    pytest.param(fault_kinds(20, seed=0), id="twenty", marks=pytest.mark.nightly),
])
def test_faults_change_no_byte_and_no_finished_particle_is_trained_again(tmp_path: Path, kinds: list[str]) -> None:
    assert set(kinds) == set(WEIGHTS), "every kind is among them"
    tally = disturb(tmp_path, kinds, seed=0, say=print)
    assert [fault.kind for fault in tally.faults] == kinds
    assert tally.different == []
    assert tally.trained_again == []
    assert tally.num_starts > tally.num_runs >= 1
