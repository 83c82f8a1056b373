"""A sweep whose user code has changed since its settings were begun: found before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_settings import Setting, Sweep, label, setting_key
from swamp_ray.errors import UserError
from swamp_ray.run.name_check import CodeChanged
from swamp_ray.storage.kept_sources import code_changes
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir

SHOWN = 5
"""Settings that an error names for each change."""


@dataclass(frozen=True)
class CodeReport:
    """How today's user code differs from that of a sweep's settings.

    Attributes:
        begun: Labels of the settings of which a member was begun.
        changes: Lines that say what has changed, by label; settings whose code is the same have none.
    """

    begun: tuple[str, ...]
    changes: Mapping[str, list[str]]

    def lines(self) -> list[str]:
        """Each change once, with the settings that it concerns where these are not all."""
        concerned: dict[str, list[str]] = {}
        for key, texts in self.changes.items():
            for text in texts:
                concerned.setdefault(text, []).append(key)
        return [f"{text}{self._which(keys)}" for text, keys in concerned.items()]

    def _which(self, keys: list[str]) -> str:
        if len(keys) == len(self.begun):
            return ""
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        return f" (in {', '.join(keys[:SHOWN])}{more})"


def check_code(sweep: Sweep, sweepdir: SweepDir, code_changed: CodeChanged = "refuse") -> frozenset[str]:
    """Compare today's user code with that of all settings that were begun, the finished ones among them.

    Args:
        sweep: The sweep.
        sweepdir: Its folder.
        code_changed: ``retrain``: settings whose code has changed are not refused.

    Returns:
        Labels of the settings that have to be trained anew; none where ``code_changed`` is ``refuse``.

    Raises:
        UserError: Code has changed; the error says what, and in which settings.
        CorruptArtifactError: The records of settings are not what was written.
    """
    found = compare_code(sweep, sweepdir)
    if found.changes and code_changed == "refuse":
        raise UserError(
            f"the sweep {sweep.name!r} exists already with other code:\n  " + "\n  ".join(found.lines()) + "\n",
            do="Choose another name with --name, undo the change, or go on with --code-changed retrain: what the "
               "code decides is trained anew under this name.", where=str(sweepdir.spot()))
    return frozenset(found.changes)


def compare_code(sweep: Sweep, sweepdir: SweepDir) -> CodeReport:
    """How today's user code differs from that of all settings that were begun."""
    known = set(sweepdir.place.folders("runs"))
    manifests: dict[tuple[Any, ...], dict[str, Any]] = {}
    begun: list[str] = []
    changes: dict[str, list[str]] = {}
    for setting in _settings(sweep, sweepdir) if known else ():
        lines: dict[str, None] = {}
        members = [member for member in _members(sweep, setting) if member.name in known]
        for member in members:
            rundir = RunDir(sweepdir.place, str(member.name))
            try:
                lines |= dict.fromkeys(code_changes(rundir, member, manifests))
            except UserError as error:  # of a module that cannot be read: it is not the one that was trained
                lines[str(error)] = None
        if members:
            begun.append(label(setting))
        if lines:
            changes[label(setting)] = list(lines)
    return CodeReport(tuple(begun), changes)


def _settings(sweep: Sweep, sweepdir: SweepDir) -> Iterable[Setting]:
    """Those that are recorded, and those that are planned: a lost record does not hide a member."""
    found = {setting_key(record["setting"]): record["setting"] for record in sweepdir.read_trials().values()}
    if not sweep.config.is_adaptive:
        found |= {setting_key(setting): setting for setting in sweep.settings()}
    return found.values()


def _members(sweep: Sweep, setting: Setting) -> Iterator[SwampConfig]:
    for seed in sweep.config.seeds:
        try:
            yield sweep.member(setting, seed)
        except UserError:  # the setting cannot run, and the plan says why
            return
