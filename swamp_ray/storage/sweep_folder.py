"""The folder of one sweep, and the only place that knows the names of the files in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.config.yaml_reading import load_stored_yaml
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.json_lines import (
    CHECK_KEY,
    dump_json,
    is_sealed,
    load_json,
    open_lines,
    read_lines,
    salvage_lines,
    sealed,
)
from swamp_ray.storage.leases import EXPIRY_S, LEASE_FILE, HeldLease, Lease, Leases, claim, held_by
from swamp_ray.storage.local import shown
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot, as_place

MAX_NAME = 60
"""Member runs are named after the sweep and their settings."""


class SweepDir:
    """The files of one sweep under ``STORAGE/sweeps/<name>``. Its member runs lie under ``STORAGE/runs``.

    Args:
        storage: Storage root: a folder, a URL, or its place.
        name: Name of the sweep: letters, digits, dot, underscore and hyphen.

    Raises:
        UserError: If the name is not allowed, or the storage root is none.
    """

    def __init__(self, storage: str | Path | Place, name: str) -> None:
        if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}", name) or not name.strip("."):
            raise UserError(f"a sweep's name must consist of 1 to {MAX_NAME} letters, digits, '.', '_' and '-'",
                            got=shown(name), where="name", do="Choose another with --name, e.g. sparsity-x-particles.")
        self.place, self.name = as_place(storage), name

    def spot(self, file: str = "") -> Spot:
        """A file of the sweep by its name in the sweep's folder; ``""``: the folder itself."""
        return Spot(self.place, "/".join(filter(None, [f"sweeps/{self.name}", file])))

    @property
    def config(self) -> Spot:
        """The sweep as resolved, its base run included."""
        return self.spot("sweep.yaml")

    @property
    def record(self) -> Spot:
        """Plan, attempts, state."""
        return self.spot("sweep.json")

    @property
    def trials(self) -> Spot:
        """One line whenever a setting's state changes."""
        return self.spot("trials.jsonl")

    @property
    def parquet(self) -> Spot:
        """A row for each setting, seed and round."""
        return self.spot("results.parquet")

    @property
    def csv(self) -> Spot:
        """The same as text."""
        return self.spot("results.csv")

    @property
    def tune(self) -> Spot:
        """Folder of Ray Tune's own files: TensorBoard events, progress.csv."""
        return self.spot("tune")

    def figure(self, name: str, kind: str) -> Spot:
        """A figure, e.g. ``figure("curves", "svg")``."""
        return self.spot(f"figures/{name}.{kind}")

    @property
    def lease_key(self) -> str:
        """Where the lease of the process that works on the sweep lies."""
        return f"sweeps/{self.name}/{LEASE_FILE}"

    def hold(self, expiry_s: float = EXPIRY_S, say: Callable[[str], None] = lambda _: None) -> Lease:
        """Claim the sweep for this process, until it ends or the lease is released.

        Args:
            expiry_s: Seconds without a sign of life after which a process elsewhere is succeeded.
            say: Told when a process elsewhere has to be watched.

        Raises:
            UserError: Another process holds the sweep; it is named.
        """
        found = claim(Leases(self.place, expiry_s), self.lease_key, this_process(self.name), say)
        if isinstance(found, Lease):
            return found
        raise UserError(f"the sweep {self.name!r} is being worked on by {found.holder or 'another process'}",
                        where=str(self.spot()),
                        do="Wait for it, watch it with swamp status, or choose another name with --name.")

    def held_by(self, lease: Lease) -> SweepDir:
        """The same folder, whose files are written only while a lease is held: it is confirmed before each write."""
        return SweepDir(held_by(self.place, lease), self.name)

    def held(self) -> HeldLease | None:
        """Who works on the sweep, or did and was killed; None if nobody does."""
        return Leases(self.place).look(self.lease_key)

    def read_config(self) -> str | None:
        """The sweep as resolved, None if there is none of this name yet."""
        data = self.config.read()
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CorruptArtifactError(f"{self.config}: this is not the text that was written ({error.reason}). "
                                       "Restore the file, or delete it and run the same command again.") from error

    def read_sweep(self) -> Sweep | None:
        """The sweep as resolved. Raises CorruptArtifactError if its file is not what was written."""
        text = self.read_config()
        if text is None:
            return None
        try:
            tree = load_stored_yaml(text, "this is not valid YAML", str(self.config))
            return build_sweep(tree, source=str(self.config), paths="kept")
        except (UserError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CorruptArtifactError(f"{self.config}: this is not the sweep that was written ({reason}). Restore the "
                                       "file, or delete it and run the same command again.") from error

    def write_record(self, record: Mapping[str, object]) -> None:
        """Replace ``sweep.json``."""
        self.record.write(dump_json(sealed(record), indent=2) + b"\n")

    def read_record(self) -> dict[str, Any]:
        """What ``sweep.json`` holds, empty if it is missing. Raises CorruptArtifactError if it is damaged."""
        data = self.record.read()
        if not data:
            return {}
        got = f"{len(data):,} bytes that are no JSON"
        with contextlib.suppress(ValueError, RecursionError):
            record = load_json(data)
            if isinstance(record, dict) and is_sealed(record):
                return {key: value for key, value in record.items() if key != CHECK_KEY}
            got = "another checksum" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise CorruptArtifactError(f"{self.record}: this is not the JSON object that was written, but got {got}. "
                                   "Restore the file or delete it; it only describes the sweep.")

    def append_trial(self, record: Mapping[str, object]) -> None:
        """Record the state of a setting, durably; `record` has a key ``label``. The last record of a label counts."""
        with contextlib.closing(open_lines(self.trials, durable=True)) as lines:
            lines.append(sealed(record))

    def read_trials(self) -> dict[str, dict[str, Any]]:
        """The last record of each setting by its label, in the order in which settings were begun."""
        found: dict[str, dict[str, Any]] = {}
        for record in read_lines(self.trials):
            if not _is_trial(record):
                raise CorruptArtifactError(f"{self.trials}: a line is not what was written. Restore the file, or "
                                           "delete that line.")
            found[record["label"]] = record
        return found

    def salvage_trials(self) -> tuple[dict[str, dict[str, Any]], str]:
        """What can still be read of the records of settings, and a sentence about damaged lines; empty without any."""
        lines = salvage_lines(self.trials, _is_trial)
        found = {record["label"]: record for record in lines.records}
        if not lines.damaged:
            return found, ""
        first, *others = lines.damaged
        more = f" and {len(others)} more" if others else ""
        return found, (f"{self.trials}: not what was written: line {first}{more}. What is shown of settings "
                       "may be older than that. Restore the file, or delete these lines.")


def _is_trial(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("label"), str) and isinstance(record.get("setting"), dict)
