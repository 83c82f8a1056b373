"""Actors asked without Ray: the classes know nothing of where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from swamp_ray.on_ray.actors import AveragingActor
from swamp_ray.run.shard import Shard
from swamp_ray.sparsity.masks import Layer, Layout
from swamp_ray.sparsity.selection import Group, here
from tests.helpers import tiny


def test_a_shard_in_an_actor_takes_the_arguments_that_a_shard_of_this_process_takes(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    layout = Layout((Layer("layer", (4, 5), "linear", 0),), ())
    actor = AveragingActor([config, config], layout, str(tmp_path), 0)
    shard = Shard(config, layout, str(tmp_path))
    scores = np.arange(20, dtype=np.float32)
    shard.scores = scores
    actor.call(1, setattr, "scores", scores)
    group = Group(0, 20, 7)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((group, 16672), {}), ((group,), {"upper": 16672}), ((), {"group": group, "upper": 16672})]
    for args, kwargs in given:
        expected = here(shard)(Shard.lower_counts, *args, **kwargs)()
        assert expected.sum() > 0
        np.testing.assert_array_equal(actor.call(1, Shard.lower_counts, *args, **kwargs), expected)
    assert actor.call(0, Shard.lower_counts, group=group, upper=16672).sum() == 0, "the other run's shard has no scores"
