"""The averaging actors of a pool: one a shard, started anew when one has died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from swamp_ray.on_ray.actors import AveragingActor, Spares
from swamp_ray.on_ray.start_workers import actor_name
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.shard import num_shards


class Averagers:
    """Starts averaging actors when they are needed.

    Args:
        members: The runs that they average for.
        storage: Storage root.
        spares: Where actors are taken from, and left; None: all are started, and ended.
    """

    def __init__(self, members: Sequence[Prepared], storage: str, spares: Spares | None) -> None:
        self._members = members
        self._prepared = members[0]
        self._storage = storage
        self._spares = spares
        self._num_shards = num_shards(self._prepared.config, self._prepared.layout)
        self._actors: dict[int, Any] = {}
        self._dead: set[str] = set()

    def actors(self) -> list[Any]:
        """One actor a shard, in order; those that have died are started anew."""
        for index in range(self._num_shards):
            if index not in self._actors:
                self._actors[index] = self._start(index)
        return [self._actors[index] for index in range(self._num_shards)]

    @property
    def living(self) -> list[Any]:
        """The actors that are there, as far as is known."""
        return list(self._actors.values())

    @property
    def num_dead(self) -> int:
        """How many actors have died so far."""
        return len(self._dead)

    def leave(self) -> None:
        """Leave all actors to the next pool, where there are spares."""
        if self._spares is None:
            return
        for actor in self._actors.values():
            self._spares.keep(self._kind, actor)
        self._actors.clear()

    def forget(self) -> None:
        """Forget all actors; whoever calls has ended them."""
        self._actors.clear()

    def died(self, error: BaseException) -> bool:
        """Whether an error means that an averaging actor is gone; it is not used any more then."""
        known = {actor._actor_id.hex(): index for index, actor in self._actors.items()}
        dead = error.actor_id if isinstance(error, RayActorError) else None
        if dead in self._dead:  # other members of the pool hear of the same death
            return True
        if isinstance(error, ObjectLostError) or (isinstance(error, RayActorError) and dead not in known):
            return False
        # An error that names no actor, such as a lack of memory, may concern any of them.
        for name, index in known.items():
            if dead in (None, name):
                ray.kill(self._actors.pop(index))
                self._dead.add(name)
        return True

    @property
    def _kind(self) -> object:
        return "averager", tuple(self._prepared.config.execution.stable_labels.items())

    def _start(self, index: int) -> Any:
        configs = [prepared.config for prepared in self._members]
        given = configs, self._prepared.layout, self._storage, index, self._prepared.code.part("pruning.score")
        spare = None if self._spares is None else self._spares.take(self._kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        kind: Any = ray.remote(AveragingActor)
        labels = self._prepared.config.execution.stable_labels
        name = actor_name("average", self._members, self._spares)
        return kind.options(name=name, num_cpus=0, max_restarts=0, label_selector=labels or None,
                            scheduling_strategy="SPREAD" if self._num_shards > 1 else None).remote(*given)
