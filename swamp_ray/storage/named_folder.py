"""What the folders of a run and of a sweep have in common: where files lie, who works on it, config and record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.json_lines import CHECK_KEY, dump_json, is_sealed, load_json, sealed
from swamp_ray.storage.leases import EXPIRY_S, LEASE_FILE, HeldLease, Lease, Leases, claim, held_by
from swamp_ray.storage.local import shown
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot, as_place


class NamedFolder:
    """A folder ``STORAGE/<kind>s/<name>``. Nothing is created before something is written.

    Args:
        storage: Storage root: a folder, a URL, or its place.
        name: Its name: letters, digits, dot, underscore and hyphen.

    Raises:
        UserError: If the name is not allowed, or the storage root is none.
    """

    kind: ClassVar[str]
    longest_name: ClassVar[int]
    other_name: ClassVar[str]
    """What somebody does whose name is not allowed."""
    config_file: ClassVar[str]
    record_file: ClassVar[str]

    def __init__(self, storage: str | Path | Place, name: str) -> None:
        if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{self.longest_name}}}", name) or not name.strip("."):
            raise UserError(f"a {self.kind}'s name must consist of 1 to {self.longest_name} letters, digits, '.', '_' "
                            "and '-'", got=shown(name), where="name", do=self.other_name)
        self.place = as_place(storage)
        self.name = name

    def spot(self, file: str = "") -> Spot:
        """A file by its name in the folder; ``""``: the folder itself."""
        return Spot(self.place, f"{self.kind}s/{self.name}/{file}".rstrip("/"))

    @property
    def config(self) -> Spot:
        """The configuration as resolved."""
        return self.spot(self.config_file)

    @property
    def record(self) -> Spot:
        """What it says about itself: plan, attempts, state."""
        return self.spot(self.record_file)

    @property
    def lease_key(self) -> str:
        """Where the lease of the process that works on it lies."""
        return self.spot(LEASE_FILE).key

    def hold(self, expiry_s: float = EXPIRY_S, say: Callable[[str], None] = lambda _: None) -> Lease:
        """Claim it for this process, until it ends or the lease is released.

        A dead process on this machine is succeeded at once, one elsewhere when it has been silent for long enough.

        Args:
            expiry_s: Seconds without a sign of life.
            say: Told when a process elsewhere has to be watched.

        Raises:
            UserError: Another process holds it; the process is named.
            RunError: The storage cannot be read or written.
        """
        found = claim(self.leases(expiry_s), self.lease_key, this_process(self.name), say)
        if isinstance(found, Lease):
            return found
        raise UserError(f"the {self.kind} {self.name!r} is being worked on by {found.holder or 'another process'}",
                        where=str(self.spot()),
                        do="Wait for it, watch it with swamp status, or choose another name with --name.")

    def held_by(self, lease: Lease) -> Self:
        """The same folder, whose files are written only while a lease is held: it is confirmed before each write."""
        return type(self)(held_by(self.place, lease), self.name)

    def held(self) -> HeldLease | None:
        """Who works on it, or did and was killed; None if nobody does."""
        return self.leases().look(self.lease_key)

    def leases(self, expiry_s: float = EXPIRY_S) -> Leases:
        """The leases of the storage root."""
        return Leases(self.place, expiry_s)

    def read_config(self) -> str | None:
        """The configuration as resolved, None if there is none of this name yet."""
        data = self.config.read()
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CorruptArtifactError(f"{self.config}: this is not the text that was written ({error.reason}). "
                                       "Restore the file, or delete it and run the same command again.") from error

    def _dump_record(self, record: Mapping[str, object]) -> bytes:
        return dump_json(sealed(record), indent=2) + b"\n"

    def _load_record(self) -> dict[str, Any] | None:
        """The record, None if it is missing or empty. Raises CorruptArtifactError if it is damaged."""
        data = self.record.read()
        if not data:
            return None
        try:
            record = load_json(data)
        except (ValueError, RecursionError):
            raise self._damaged(f"the JSON object that was written, but {len(data):,} bytes that are no JSON") from None
        if not isinstance(record, dict):
            raise self._damaged(f"the JSON object that was written, but a {type(record).__name__}")
        if not is_sealed(record):
            raise self._damaged("what was written: it has changed since, and has another checksum")
        return {key: value for key, value in record.items() if key != CHECK_KEY}

    def _damaged(self, what: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self.record}: this is not {what}. Restore the file or delete it; it only "
                                    f"describes the {self.kind}.")
