"""What a round keeps in an object store, and how many states may wait there."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.run.object_store_memory import RoundBytes, data_bytes, round_bytes, shortage
from swamp_ray.run.prepare import prepare
from tests.helpers import tiny

MB = 10**6


def test_a_round_of_a_run(tmp_path: Path) -> None:
    prepared = prepare(tiny(tmp_path))
    first, second = (round_bytes(prepared, plan) for plan in prepared.plan[:2])
    num, rest = prepared.layout.num_prunable, prepared.layout.num_rest
    samples = 136 * (36 + 8)  # images as uint8, labels as int64
    assert data_bytes(prepared.data) in (samples, samples + 136 * 36 * 3), "or images as float32"
    assert first.state == 4 * (num + rest)
    assert second.state == 4 * (round(num / 2) + rest)
    assert first.fixed == data_bytes(prepared.data) + prepared.initial.num_bytes + 2 * -(-num // 8)


def test_values_that_travel_count_as_well(tmp_path: Path) -> None:
    rewound, pruned = (prepare(tiny(tmp_path, rewind__weights=weights)) for weights in ("t0", "none"))
    one, other = (round_bytes(prepared, prepared.plan[1]) for prepared in (rewound, pruned))
    assert other.fixed - one.fixed == other.state


@pytest.mark.parametrize(("store", "workers", "asked", "room"), [
    (1000 * MB, 1, 8, 5),  # 0.8 x 1000 = 800: 100 fixed, two under way, five wait
    (1000 * MB, 4, 8, 2),
    (1000 * MB, 1, 3, 3),
    (100 * MB, 1, 8, 0),
    (1000 * MB, 20, 8, 0),
])
def test_no_more_states_wait_than_fit(store: float, workers: int, asked: int, room: int) -> None:
    needs = RoundBytes(fixed=100 * MB, state=100 * MB)
    assert needs.room_for_states(store, workers, asked) == room
    assert room == 0 or needs.needed(workers, room) <= 0.8 * store
    assert needs.needed(workers, room + 1) > 0.8 * store or room == asked


def test_it_is_said_what_does_not_fit() -> None:
    needs = RoundBytes(fixed=100 * MB, state=100 * MB)
    assert shortage(needs.needed(1, 0), 400 * MB) is None
    text = shortage(needs.needed(4, 0), 400 * MB)
    assert text is not None
    assert "needs about 0.60 GB" in text
    assert "which has 0.40 GB" in text
