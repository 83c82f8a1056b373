"""Starts the particle workers of a pool: which actor, with what, and on which node."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swamp_ray.data.samples import Data
from swamp_ray.on_ray.actors import ParticleActor, Spares, worker_environment
from swamp_ray.on_ray.cluster import living_nodes
from swamp_ray.on_ray.ranked_worker import start_ranked
from swamp_ray.run.capacity import Resources
from swamp_ray.run.placement import next_node, worker_labels
from swamp_ray.run.prepare import Prepared


class WorkerStarter:
    """Starts workers of one kind.

    Args:
        members: The runs that they work for.
        storage: Storage root.
        data: The runs' samples, in the object store.
        resources: What each worker takes up.
        in_group: Whether workers go into the placement group of this process, whose bundles have been placed.
        spares: Where actors are taken from; None: all are started.
    """

    def __init__(self, members: Sequence[Prepared], storage: str, data: ObjectRef[Data], resources: Resources,
                 in_group: bool, spares: Spares | None) -> None:
        self._members = members
        self._prepared = members[0]
        self._storage = storage
        self._data = data
        self._resources = resources
        self._in_group = in_group
        self._spares = spares
        self._node_of: dict[Any, str | None] = {}

    @property
    def kind(self) -> object:
        """What a spare worker has to have in common with those that are started here."""
        environment = worker_environment(self._prepared.config.execution)
        return tuple(self._resources.items()), tuple(environment.items()), self._prepared.arithmetic.ranks

    def start(self, present: Sequence[Any], starting: Sequence[Any]) -> Any:
        """A worker that was spare, or a new one.

        Args:
            present: The workers that there are.
            starting: Those of them that have not answered yet.
        """
        environment = worker_environment(self._prepared.config.execution)
        configs = [prepared.config for prepared in self._members]
        given = configs, [self._data], self._prepared.arithmetic, self._storage, self._prepared.code
        spare = None if self._spares is None else self._spares.take(self.kind)
        if spare is not None:
            spare.setup.remote(*given)
            return spare
        if self._prepared.arithmetic.ranks > 1:
            return start_ranked(given, environment)
        kind: Any = ray.remote(ParticleActor)
        node, where = self._next_place(present, starting)
        actor = kind.options(name=actor_name("particles", self._members, self._spares),
                             num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"], max_restarts=0,
                             runtime_env={"env_vars": environment}, **where).remote(*given)
        self._node_of[actor] = node
        return actor

    def forget(self, worker: Any) -> None:
        """Do not count a worker that is gone any more."""
        self._node_of.pop(worker, None)

    def _next_place(self, present: Sequence[Any], starting: Sequence[Any]) -> tuple[str | None, dict[str, Any]]:
        """Where the next worker goes: its node if that is decided here, and Ray's options for it."""
        execution = self._prepared.config.execution
        labels = worker_labels(execution)
        selector: dict[str, Any] = {"label_selector": labels} if labels else {}
        if self._in_group:
            return None, {}  # the group's bundles have been placed by the same labels
        nodes = living_nodes()
        if len(nodes) == 1:
            return None, selector
        node = next_node(nodes, execution, self._resources, self._count(present), self._count(starting))
        if node is None:
            return None, {**selector, "scheduling_strategy": "SPREAD"}
        # Should the node go meanwhile, another one will do, unless labels count.
        return node, {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=not labels)}

    def _count(self, workers: Sequence[Any]) -> Counter[str]:
        """How many of some workers were sent to each node."""
        nodes = [self._node_of.get(worker) for worker in workers]
        return Counter(node for node in nodes if node is not None)


def actor_name(task: str, members: Sequence[Prepared], spares: Spares | None) -> str:
    """What an actor is called in Ray's dashboard. Names are unique on a cluster; spares go from run to run."""
    run = members[0].config.name if spares is None and len(members) == 1 else None
    return f"{run or 'several runs'}: {task}, {uuid.uuid4().hex[:8]}"
