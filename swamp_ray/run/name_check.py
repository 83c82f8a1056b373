"""Refuses a run's name that was used with something else, and says what differs."""

from __future__ import annotations

from typing import Any, Literal

from swamp_ray.config.reading import differences, parse_stored_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.run_record import recipe_digests, start_digest, was_measured_with
from swamp_ray.storage.find import is_edited
from swamp_ray.storage.kept_sources import code_changes
from swamp_ray.storage.run_folder import RunDir, check_run_record

CodeChanged = Literal["refuse", "retrain"]
"""What becomes of a run whose user code has changed since it was begun."""


def check_name(rundir: RunDir, prepared: Prepared, code_changed: CodeChanged = "refuse") -> None:
    """Refuse a name that was used with another recipe, with other code or under another arithmetic.

    Args:
        rundir: The folder of that name.
        prepared: The run.
        code_changed: ``retrain``: what other code decides is trained anew under the same name.

    Raises:
        UserError: With the differences, old -> new.
    """
    _NameCheck(rundir).check(prepared, code_changed)


class _NameCheck:
    """What lies under a name, against a run that is to have it."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir

    def check(self, prepared: Prepared, code_changed: CodeChanged) -> None:
        """Compare recipe, data, code, start and arithmetic; the first that differs is refused, see `check_name`."""
        text = self._rundir.read_config()
        run = self._rundir.read_run()
        if run:
            check_run_record(run, self._rundir.run_json)
        if text is not None:
            then = parse_stored_config(text, source=str(self._rundir.config))
            changed = differences(then.full_recipe(), prepared.config.full_recipe())
            is_same_recipe = bool(run) and run.get("recipe") in recipe_digests(prepared)
            if (changed and is_same_recipe) or (not is_same_recipe and is_edited(self._rundir, run or {})):
                raise self._edited(changed)
            if changed:
                raise self._taken("with another recipe", changed)
            self._check_kept(prepared, then, run or {})
        elif run and run.get("recipe") not in (None, *recipe_digests(prepared)):
            raise self._taken("with another recipe", [f"its config.yaml is missing; digest of the recipe: "
                                                      f"{run['recipe'][:12]} -> {recipe_digests(prepared)[0][:12]}"])
        self._check_data(prepared, (run or {}).get("data", {}))
        if code_changed == "refuse" and text is not None:
            self._check_code(prepared)
        start = start_digest(prepared)
        if run and run.get("start") not in (None, start):
            raise self._taken("from another start", [f"start_from: {run['start'][:12]} -> {start[:12]}"])
        if run and run.get("arithmetic"):
            changed = differences(run["arithmetic"], prepared.arithmetic.as_dict())
            if changed:
                raise self._taken("under another arithmetic", changed)

    def _check_data(self, prepared: Prepared, then: dict[str, Any]) -> None:
        """Refuse other training samples; how networks are tested may change, and they are measured anew."""
        recipes = prepared.recipes
        old = then.get("training_digest")
        new = recipes.training_data
        if old is None:  # of an earlier version, which had one digest for all splits
            old = then.get("digest")
            new = old if old in recipes.before.data else prepared.data.digest
        if old is not None and old != new:
            raise self._taken("on other data", [f"data: {old[:12]} -> {new[:12]}"])

    def _check_kept(self, prepared: Prepared, then: SwampConfig, run: dict[str, Any]) -> None:
        """Refuse to measure in another way where the networks are not there any more."""
        if then.keep.particles == "all" or not self._rundir.read_rounds():
            return
        was = was_measured_with(prepared, run, then)
        if was is None or was == prepared.recipes.measured:
            return
        now = prepared.config
        changed = differences(
            {"averaging.statistics": then.averaging.statistics, "data.limit_test": then.data.limit_test},
            {"averaging.statistics": now.averaging.statistics, "data.limit_test": now.data.limit_test})
        raise UserError(
            f"the run {self._rundir.name!r} was measured in another way, and the states of its particles were not kept "
            f"(keep.particles: {then.keep.particles}) and cannot be measured anew:\n  " + "\n  ".join(changed) + "\n",
            do="Set these options as they were, to go on; or choose another name with --name: what was not kept is "
               "trained again then.", where=str(self._rundir.spot()))

    def _check_code(self, prepared: Prepared) -> None:
        changed = code_changes(self._rundir, prepared.config)
        if changed:
            raise UserError(
                f"the run {self._rundir.name!r} exists already with other code:\n  " + "\n  ".join(changed) + "\n",
                do="Choose another name with --name, undo the change, or go on with --code-changed retrain: what the "
                   "code decides is trained anew under this name.", where=str(self._rundir.spot()))

    def _edited(self, changed: list[str]) -> UserError:
        differing = "".join(f"\n  {line}" for line in changed)
        return UserError(
            f"config.yaml of the run {self._rundir.name!r} was changed after the run (recipe differs){differing}\n",
            do="Undo the change in that file, to go on with the run; or choose another name with --name.",
            where=str(self._rundir.config))

    def _taken(self, how: str, changed: list[str]) -> UserError:
        return UserError(
            f"the run {self._rundir.name!r} exists already {how}:\n  " + "\n  ".join(changed) + "\n",
            do="Choose another name with --name; finished particles that both have in common are shared.",
            where=str(self._rundir.spot()))
