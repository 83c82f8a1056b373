"""When it is said that jobs wait for workers."""

from __future__ import annotations

import pytest

from swamp_ray.on_ray import workers as module
from swamp_ray.on_ray.workers import Workers


def workers_of(places: int) -> Workers:
    return Workers(start=lambda: None, most=2, places=lambda: places, need="1 CPU and 1 GPU")


@pytest.mark.parametrize(("places", "why"), [(0, "no living node can hold one"), (3, "busy or slow to start it")])
def test_it_is_said_once_what_is_waited_for(places: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NO_PLACE_S", 0)
    monkeypatch.setattr(module, "NO_ANSWER_S", 0)
    waiting = workers_of(places)
    text = waiting.silence()
    assert text is not None
    assert "a worker needs 1 CPU and 1 GPU" in text
    assert why in text
    assert waiting.silence() is None


def test_nothing_is_said_at_once() -> None:
    assert workers_of(0).silence() is None
    assert workers_of(3).silence() is None
