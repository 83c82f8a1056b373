"""Which states of particles stay in the storage once their round is over."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from swamp_ray.config.reading import parse_stored_config
from swamp_ray.errors import SwampError
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import delete_state
from swamp_ray.storage.usage import other_runs, read_usage


class StateKeeper:
    """Deletes the states that a policy does not keep; their manifests, and with them all metrics, stay.

    A state that another run of the storage root keeps by a policy of its own, or has noted for a round that it has not
    recorded yet, stays: it is looked at again whenever a round is recorded.

    Args:
        policy: ``"all"``, ``"last"`` (of the last recorded round) or ``"none"``.
        store: Artifacts of the storage root.
        rundir: The run.
    """

    def __init__(self, policy: str, store: ArtifactStore, rundir: RunDir) -> None:
        self._policy = policy
        self._store = store
        self._rundir = rundir
        self._last = -1
        self._kept: dict[int, list[str]] = {}

    def recorded(self, index: int, names: Sequence[str]) -> None:
        """A round is averaged, evaluated and recorded; these are its particles."""
        if self._policy == "all":
            return
        self._kept[index] = list(names)
        self._last = max(self._last, index)
        over = [found for found in self._kept if self._policy == "none" or found < self._last]
        # What cannot be removed, or not be judged, stays: that costs space and nothing else.
        with contextlib.suppress(SwampError, OSError):
            needed = self._needed_elsewhere() if over else set[str]()
            for found in over:
                self._kept[found] = [name for name in self._kept[found] if not self._delete(name, needed)]

    def _delete(self, name: str, needed: set[str]) -> bool:
        if name in needed:
            return False
        delete_state(self._store, name)
        return True

    def _needed_elsewhere(self) -> set[str]:
        return {name for other in other_runs(self._rundir) for name in _kept_by(other)}


def _kept_by(rundir: RunDir) -> set[str]:
    """States that a run still needs, or keeps by a policy of its own."""
    usage = read_usage(rundir)
    text = rundir.read_config()
    policy = "all" if text is None else parse_stored_config(text, source=str(rundir.config)).keep.particles
    last = max(usage.recorded, default=-1)
    return {use.name for use in usage.uses if use.kind in ("trunk", "particle") and (
        policy == "all" or use.round not in usage.recorded or (policy == "last" and use.round == last))}
