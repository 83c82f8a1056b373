"""Results and checkpoints, shared by all runs of a storage root: all there and verified, or not there.

Each artifact has a name (64 hex digits, see `swamp_ray.storage.names`) and lies in
``STORAGE/artifacts/xx/<name>/``. Payloads lie there under the SHA-256 of their bytes; a manifest ``<slot>.json``,
written last, says which payloads belong together. Without a manifest nothing exists.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swamp_ray.errors import CorruptArtifactError, MissingPayloadError, RunError, UserError
from swamp_ray.storage.local import TEMPORARY_SUFFIX
from swamp_ray.storage.names import canonical_json, digest_bytes
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import as_place
from swamp_ray.storage.retrying import PassingError

RESULT = "result"
CHECKPOINT = "checkpoint"
DIVERGED = "diverged"
"""How a training run diverged: a fact that belongs to its name, like a result."""

MANIFEST_FORMAT = 1
STALE_S = 3600.0
"""A file that no manifest names may be about to be named by another writer; older than this, nobody will."""

_ROOT = "artifacts"
_NAME = re.compile(r"[0-9a-f]{64}")
_SLOT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9]{1,16})?")


_ADVICE = " Delete the folder"


def without_advice(error: CorruptArtifactError) -> str:
    """What is damaged, for those who see to it themselves."""
    return str(error).partition(_ADVICE)[0].removesuffix(".")


@dataclass(frozen=True)
class FileEntry:
    """One payload: SHA-256 of its bytes (64 hex digits) and their number."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What one slot of an artifact consists of: payloads by file name, and small facts as JSON."""

    name: str
    slot: str
    files: dict[str, FileEntry]
    info: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of all payloads."""
        return sum(entry.size for entry in self.files.values())


class ArtifactStore:
    """The artifacts under one storage root, which all nodes see.

    The slot ``"result"`` belongs to its first writer; every other slot, such as ``"checkpoint"``, to its last.

    Args:
        storage: Storage root: a folder, a URL, or its place. Artifacts lie in its subfolder ``artifacts``.
    """

    def __init__(self, storage: str | Path | Place) -> None:
        self.place = as_place(storage)

    def put(self, name: str, files: Mapping[str, bytes], info: Mapping[str, object], slot: str = RESULT) -> Manifest:
        """Store payloads and then the manifest that makes them exist.

        Args:
            name: The artifact, 64 hex digits.
            files: Payloads by file name, e.g. ``"weights.safetensors"``.
            info: Facts about them, JSON without NaN.
            slot: ``"result"`` keeps what a first writer finished, whatever is given here; another slot is replaced
                and the payloads that no slot names any more are removed.

        Returns:
            The manifest that now holds, for a result perhaps another writer's.

        Raises:
            RunError: If the storage could not be written; what was there before is unharmed.
        """
        key = _manifest_key(name, slot)
        data = _dump(name, slot, {file: FileEntry(digest_bytes(payload), len(payload))
                                  for file, payload in files.items()}, info)
        manifest = _parse(data)
        previous = self._sound(name, slot)
        if slot == RESULT and previous is not None and self._is_whole(previous):
            return previous
        self._write_payloads(manifest, files)
        first_wins = slot == RESULT and previous is None
        if not self.place.write(key, data, keep_existing=first_wins):
            winner = self._sound(name, slot)
            if winner is not None:
                return winner
            self.place.write(key, data)
        # A second writer of the same checkpoints may have removed a payload between our writing and naming it.
        self._write_payloads(manifest, files, only_missing=True)
        self._sweep(name, f"{slot}.json", dropped=previous)
        return manifest

    def write(self, name: str, file: str, data: bytes) -> FileEntry:
        """Store one payload of a result that :meth:`finish` will make exist; several processes may write some each.

        Raises:
            RunError: If the storage could not be written.
        """
        entry = FileEntry(digest_bytes(data), len(data))
        self.place.write(_payload_key(name, file, entry), data)
        return entry

    def finish(self, name: str, files: Mapping[str, FileEntry], info: Mapping[str, object]) -> Manifest:
        """Let a result exist, whose payloads have been written within the last hour.

        Returns:
            The manifest that now holds, perhaps another writer's.

        Raises:
            RunError: If the storage could not be written.
        """
        previous = self._sound(name, RESULT)
        if previous is not None and self._is_whole(previous):
            return previous
        data = _dump(name, RESULT, files, info)
        if not self.place.write(_manifest_key(name, RESULT), data, keep_existing=previous is None):
            winner = self._sound(name, RESULT)
            if winner is not None:
                return winner
            self.place.write(_manifest_key(name, RESULT), data)
        self._sweep(name, f"{RESULT}.json", dropped=previous)
        return _parse(data)

    def find(self, name: str, slot: str = RESULT) -> Manifest | None:
        """The manifest of a slot; None if nothing was finished there.

        Raises:
            CorruptArtifactError: If the manifest is not what was written.
            RunError: If the storage could not be read.
        """
        key = _manifest_key(name, slot)
        try:
            data = self.place.read(key)
        except FileNotFoundError:
            return None
        if not data:
            return None
        try:
            return parse_manifest(data, name, slot)
        except CorruptArtifactError as error:
            raise self._corrupt(key, str(error)) from error

    def read(self, manifest: Manifest, file: str) -> bytes:
        """The verified bytes of one payload.

        Raises:
            MissingPayloadError: If they are not there.
            CorruptArtifactError: If they are not those that were written.
            RunError: If the storage could not be read.
        """
        entry = manifest.files[file]
        key = _payload_key(manifest.name, file, entry)
        try:
            data = self.place.read(key)
        except FileNotFoundError as error:
            raise MissingPayloadError(str(self._corrupt(
                key, f"the payload {file} of slot {manifest.slot!r} is missing"))) from error
        if len(data) != entry.size:
            raise self._corrupt(key, f"the payload {file} has {len(data)} bytes instead of {entry.size}")
        if digest_bytes(data) != entry.sha256:
            raise self._corrupt(key, f"the bytes of the payload {file} have changed")
        return data

    def discard(self, name: str, slot: str) -> None:
        """Remove a slot, damaged or not, and the payloads that no other slot names. No error if it is absent."""
        key = _manifest_key(name, slot)
        dropped = self._sound(name, slot)
        if self.place.size(key) is not None:
            self.place.remove(key)
            self._sweep(name, None, dropped)

    def delete_payload(self, name: str, file: str) -> None:
        """Remove a payload of a result and keep its manifest: what it says stays true, and the bytes can be made again.

        No error if the result or the payload is not there; a payload that another slot names as well is kept.
        """
        manifest = self._sound(name, RESULT)
        others = [found for slot in (CHECKPOINT,) if (found := self._sound(name, slot)) is not None]
        if manifest is None or file not in manifest.files:
            return
        if any(manifest.files[file] in found.files.values() for found in others):
            return
        self.place.remove(_payload_key(name, file, manifest.files[file]), durable=False)

    def lacks(self, name: str, file: str) -> bool:
        """Whether a result is finished but one of its payloads is not there any more."""
        manifest = self._sound(name, RESULT)
        if manifest is None or file not in manifest.files:
            return False
        return self.place.size(_payload_key(name, file, manifest.files[file])) is None

    def file_names(self, name: str) -> list[str]:
        """Which files a finished result consists of, whether or not their payloads are still there; else none."""
        manifest = self._sound(name, RESULT)
        return [] if manifest is None else list(manifest.files)

    def check_writable(self) -> None:
        """Try that the storage root takes files.

        Raises:
            UserError: It does not.
            RunError: It fails in a way that may pass, and did so for as long as its patience lasts.
        """
        key = f"{_ROOT}/.probe-{uuid.uuid4().hex[:12]}"
        try:
            self.place.write(key, b"")
            self.place.remove(key, durable=False)
        except (RunError, OSError) as error:
            if isinstance(error.__cause__, PassingError):
                raise
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            reason = getattr(cause, "strerror", None) or error
            kind = "a folder that can be written" if self.place.path_of("") is not None else "writable"
            raise UserError(f"the storage root must be {kind} ({reason})", where="storage", got=self.place.uri,
                            do="Choose another with --storage, or change its rights.") from error

    def where(self, name: str, slot: str) -> str:
        """What to delete, to make a slot absent by hand."""
        return str(self.place.locate(_manifest_key(name, slot)))

    def _sound(self, name: str, slot: str) -> Manifest | None:
        """The manifest, None also if it is damaged: for those who are about to replace or remove it."""
        try:
            return self.find(name, slot)
        except CorruptArtifactError:
            return None

    def _is_whole(self, manifest: Manifest) -> bool:
        return all(self.place.size(_payload_key(manifest.name, file, entry)) == entry.size
                   for file, entry in manifest.files.items())

    def _write_payloads(self, manifest: Manifest, files: Mapping[str, bytes], only_missing: bool = False) -> None:
        for file, entry in manifest.files.items():
            key = _payload_key(manifest.name, file, entry)
            # One that is there already is written again: it might be damaged.
            if not only_missing or self.place.size(key) != entry.size:
                self.place.write(key, files[file])

    def _corrupt(self, key: str, what: str) -> CorruptArtifactError:
        location = self.place.locate(key)
        folder = self.place.locate(key.rpartition("/")[0])
        return CorruptArtifactError(f"{location}: {what}.{_ADVICE} {folder} and run the same command again: what is "
                                    "missing is computed anew.")

    def _sweep(self, name: str, newest: str | None, dropped: Manifest | None) -> None:
        """Remove payloads that only `dropped` named, and what writers that died left behind long ago.

        Long ago is measured against `newest`, a manifest that has just been written, by the place's clock, which may
        not be this machine's. Nothing is removed while a manifest is damaged, since it could name anything. Failing to
        remove is no failure: the files are in nobody's way and the next sweep finds them.
        """
        folder = _folder(name)
        candidates = {payload_name(*item) for item in dropped.files.items()} if dropped else set[str]()
        with contextlib.suppress(OSError, RunError):
            entries = self.place.entries(folder)
            slots = [_slot_of(entry.name) for entry in entries]
            manifests = [self.find(name, slot) for slot in slots if slot is not None]
            named = {payload_name(*item) for found in manifests if found for item in found.files.items()}
            now = next((entry.modified_s for entry in entries if entry.name == newest), -math.inf)
            for entry in entries:
                is_ours = _NAME.fullmatch(entry.name[:64]) or entry.name.endswith(TEMPORARY_SUFFIX)
                if is_ours and entry.name not in named and (entry.name in candidates
                                                            or now - entry.modified_s > STALE_S):
                    self.place.remove(f"{folder}/{entry.name}", durable=False)


def _folder(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"an artifact's name must be 64 hex digits, but got {name!r}")
    return f"{_ROOT}/{name[:2]}/{name}"


def _manifest_key(name: str, slot: str) -> str:
    if not _SLOT.fullmatch(slot):
        raise ValueError(f"a slot must be up to 32 of a-z, 0-9 and '-', but got {slot!r}")
    return f"{_folder(name)}/{slot}.json"


def _payload_key(name: str, file: str, entry: FileEntry) -> str:
    return f"{_folder(name)}/{payload_name(file, entry)}"


def _slot_of(file: str) -> str | None:
    """The slot whose manifest a file is, None for another file."""
    slot, dot, suffix = file.rpartition(".")
    return slot if dot and suffix == "json" and _SLOT.fullmatch(slot) else None


def parse_manifest(data: bytes, name: str, slot: str) -> Manifest:
    """The manifest of a slot from its bytes.

    Raises:
        CorruptArtifactError: They are not what was written for this slot of this artifact.
    """
    try:
        manifest = _parse(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptArtifactError(f"the manifest is damaged ({error})") from error
    if (manifest.name, manifest.slot) != (name, slot):
        raise CorruptArtifactError("the manifest belongs to another artifact")
    return manifest


def payload_name(file: str, entry: FileEntry) -> str:
    """Under which name a payload lies in its artifact's folder."""
    return entry.sha256 + Path(file).suffix


def _dump(name: str, slot: str, files: Mapping[str, FileEntry], info: Mapping[str, object]) -> bytes:
    entries = {file: {"sha256": entry.sha256, "size": entry.size} for file, entry in files.items()}
    body = {"format": MANIFEST_FORMAT, "name": name, "slot": slot, "files": entries, "info": dict(info)}
    return canonical_json({**body, "check": digest_bytes(canonical_json(body))})


def _parse(data: bytes) -> Manifest:
    """The manifest with these bytes. Raises ValueError, TypeError, KeyError or AttributeError if it is not one."""
    body = json.loads(data)
    if canonical_json(body) != data or body.pop("check") != digest_bytes(canonical_json(body)):
        raise ValueError("its checksum does not fit")
    if body["format"] != MANIFEST_FORMAT:
        raise ValueError(f"it has format {body['format']}, but this version reads {MANIFEST_FORMAT}")
    files = {file: FileEntry(entry["sha256"], entry["size"]) for file, entry in body["files"].items()}
    for file, entry in files.items():
        # These become paths, so that even a forged manifest must not lead out of its folder.
        if not _FILE.fullmatch(file) or not _NAME.fullmatch(entry.sha256) or not isinstance(entry.size, int):
            raise ValueError(f"it names an impossible file {file!r}")
    if not isinstance(body["info"], dict):
        raise ValueError("its info is not an object")
    return Manifest(body["name"], body["slot"], files, body["info"])
