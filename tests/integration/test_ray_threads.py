"""Several runs on Ray in threads of one process: they share its embedded Ray, and the last one ends it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.on_ray.cluster import connect
from swamp_ray.on_ray.own_token import VARIABLES
from tests.helpers import ticket_digests, tiny

pytestmark = pytest.mark.nightly

RAY: dict[str, Any] = {"execution__executor": "ray", "execution__num_workers": 1}
RUNS: dict[str, dict[str, Any]] = {
    "short": {"seed": 1, "particles__count": 1, "pruning__target": 0.5},
    "long": {"seed": 2, "round__length": 40},
    "other-network": {"seed": 3, "model__name": "lenet_300_100", "particles__count": 2},
}


@pytest.mark.slow
def test_runs_in_threads_share_one_ray_and_have_their_own_numbers(tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in VARIABLES}
    found: dict[str, Any] = {}

    def carry_out(name: str) -> None:
        try:
            found[name] = len(run(tiny(tmp_path / "ray", name=name, **RUNS[name], **RAY)).records)
        except BaseException as error:  # shown by the assertion below
            found[name] = error

    outer = connect(tiny(tmp_path).execution)
    threads = [threading.Thread(target=carry_out, args=(name,)) for name in RUNS]
    for thread in threads:
        thread.start()
    with pytest.raises(UserError, match="another run of this process uses another Ray"):
        connect(tiny(tmp_path, execution__address="127.0.0.1:1").execution)
    for thread in threads:
        thread.join()
    assert ray.is_initialized(), "a run that ends does not end the Ray that others use"
    outer.close()
    outer.close()

    for name, values in RUNS.items():
        alone = run(tiny(tmp_path / "inline", name=name, **values))
        assert found[name] == len(alone.records)
        assert ticket_digests(tmp_path / "ray", name) == ticket_digests(tmp_path / "inline", name)
    assert not ray.is_initialized()
    assert {name: os.environ.get(name) for name in VARIABLES} == before


def test_the_thread_that_started_ray_may_end_before_the_others(tmp_path: Path) -> None:
    shares: list[Any] = []
    first = threading.Thread(target=lambda: shares.append(connect(tiny(tmp_path).execution)))
    first.start()
    first.join()
    second = connect(tiny(tmp_path).execution)
    shares[0].close()
    seven: Any = ray.remote(lambda: 7)
    try:
        assert ray.get(seven.remote(), timeout=60) == 7
    finally:
        second.close()
    assert not ray.is_initialized()
