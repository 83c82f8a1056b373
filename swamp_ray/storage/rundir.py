"""The folder of one run, and the only place that knows the names of the files in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.files import local_folder, write_atomic
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.jsonlines import LineWriter, dump_json, load_json, read_lines, sealed, unsealed
from swamp_ray.storage.leases import EXPIRY_S, LEASE_FILE, Held, Lease, Leases, claim
from swamp_ray.storage.places import open_place


class RunDir:
    """The files of one run under ``STORAGE/runs/<name>``. Nothing is created before something is written.

    Args:
        storage: Storage root, a local folder.
        name: Name of the run: letters, digits, dot, underscore and hyphen.

    Raises:
        UserError: If the name is not allowed, or the storage root is not a local folder.
    """

    def __init__(self, storage: str | Path, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or not name.strip("."):
            raise UserError("a run's name must consist of 1 to 200 letters, digits, '.', '_' and '-'", got=name,
                            where="name", do="Choose another, e.g. resnet20-swamp.")
        self.storage = local_folder(storage)
        self.name = name

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.storage / "runs" / self.name

    @property
    def config_path(self) -> Path:
        """The configuration as resolved."""
        return self.path / "config.yaml"

    @property
    def run_json_path(self) -> Path:
        """Versions, command, hardware, attempts."""
        return self.path / "run.json"

    @property
    def rounds_path(self) -> Path:
        """One line a finished round."""
        return self.path / "rounds.jsonl"

    @property
    def results_path(self) -> Path:
        """One line an artifact that the run uses or works on."""
        return self.path / "results.jsonl"

    @property
    def decisions_path(self) -> Path:
        """One line for each thing that was decided because of a failure."""
        return self.path / "decisions.jsonl"

    @property
    def metrics_path(self) -> Path:
        """Every scalar as it happens."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_parquet_path(self) -> Path:
        """Every scalar as a table, written at the end."""
        return self.path / "metrics.parquet"

    @property
    def report_path(self) -> Path:
        """The run as one HTML file."""
        return self.path / "report.html"

    @property
    def tensorboard_path(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    def log_path(self, attempt: int, what: str) -> Path:
        """Log file of one particle or process, e.g. ``log_path(1, "round-03-particle-1")``; attempts count from 1."""
        return self.path / "logs" / f"attempt-{attempt}" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', what)}.log"

    def ticket_path(self, sparsity: float) -> Path:
        """Where the ticket of a sparsity in [0, 1] lies.

        Four decimals, and beyond a sparsity of 0.99 as many as show two digits of the density, so that two rounds of
        extreme sparsity never share a file and none of them is called 1.0000.
        """
        return self.path / "tickets" / f"{sparsity:.{_ticket_decimals(sparsity)}f}" / "model.safetensors"

    def relative(self, path: Path) -> str:
        """A path inside the storage root as text to be written into files: it stays true when the root moves."""
        return path.absolute().relative_to(self.storage).as_posix()

    @property
    def lease_key(self) -> str:
        """Where the lease of the process that works on the run lies."""
        return f"runs/{self.name}/{LEASE_FILE}"

    def hold(self, expiry_s: float = EXPIRY_S, say: Callable[[str], None] = lambda _: None) -> Lease:
        """Claim the run for this process, until it ends or the lease is released.

        A dead process on this machine is succeeded at once, one elsewhere when it has been silent for long enough.

        Args:
            expiry_s: Seconds without a sign of life.
            say: Told when a process elsewhere has to be watched.

        Raises:
            UserError: Another process holds the run; it is named.
            RunError: The storage cannot be read or written.
        """
        found = claim(self.leases(expiry_s), self.lease_key, this_process(self.name), say)
        if isinstance(found, Lease):
            return found
        raise UserError(f"the run {self.name!r} is being worked on by {found.holder or 'another process'}",
                        where=str(self.path),
                        do="Wait for it, watch it with swamp status, or choose another name with --name.")

    def held(self) -> Held | None:
        """Who works on the run, or did and was killed; None if nobody does."""
        return self.leases().look(self.lease_key)

    def leases(self, expiry_s: float = EXPIRY_S) -> Leases:
        """The leases of the storage root."""
        return Leases(open_place(self.storage), expiry_s)

    def write_config(self, text: str) -> None:
        """Write the resolved configuration."""
        write_atomic(self.config_path, text.encode())

    def read_config(self) -> str | None:
        """The resolved configuration, None if there is no such run yet."""
        try:
            return self.config_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise CorruptArtifactError(f"{self.config_path}: this is not the text that was written ({error.reason}). "
                                       "Restore the file, or delete it and run the same command again.") from error

    def write_run(self, record: Mapping[str, object]) -> None:
        """Replace ``run.json``."""
        write_atomic(self.run_json_path, dump_json(dict(record), indent=2) + b"\n")

    def read_run(self) -> dict[str, Any] | None:
        """What ``run.json`` holds, None if it is missing or empty. Raises CorruptArtifactError if it is damaged."""
        try:
            data = self.run_json_path.read_bytes()
        except FileNotFoundError:
            return None
        if not data:
            return None
        try:
            record = load_json(data)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise CorruptArtifactError(f"{self.run_json_path}: this is not the JSON object that was written. Restore "
                                       "the file or delete it; it only describes the run.")
        return record

    def append_round(self, record: Mapping[str, object]) -> None:
        """Record a finished round; `record` has a key ``round``. A later record of the same round replaces it."""
        if "round" not in record:
            raise ValueError("the record of a round needs the key 'round'")
        with LineWriter(self.rounds_path, durable=True) as lines:
            lines.append(sealed(record))

    def append_decision(self, record: Mapping[str, object]) -> None:
        """Record a decision; it is durable when this returns."""
        with LineWriter(self.decisions_path, durable=True) as lines:
            lines.append(record)

    def read_decisions(self) -> list[dict[str, Any]]:
        """All decisions, in the order in which they were made. Raises CorruptArtifactError if one is damaged."""
        return read_lines(self.decisions_path)

    def read_rounds(self) -> list[dict[str, Any]]:
        """The finished rounds in the order of rounds, each as last recorded; a run may record them in another."""
        records = [unsealed(record, self.rounds_path) for record in read_lines(self.rounds_path)]
        if wrong := [record["round"] for record in records if not isinstance(record.get("round", 0), int)]:
            raise CorruptArtifactError(f"{self.rounds_path}: {wrong[0]!r} is no round. The file was changed after it "
                                       "was written; restore it, or delete that line.")
        last = {record["round"]: record for record in records if "round" in record}
        return [last[index] for index in sorted(last)]

    def append_result(self, record: Mapping[str, object]) -> None:
        """Note an artifact before it is looked for, so that it is never without a run that names it."""
        with LineWriter(self.results_path, durable=True) as lines:
            lines.append(sealed(record))

    def read_results(self) -> list[dict[str, Any]]:
        """The artifacts that the run has noted, in order. Raises CorruptArtifactError if a line has changed."""
        return [unsealed(record, self.results_path) for record in read_lines(self.results_path)]


_RUN_TYPES: dict[str, type | tuple[type, ...]] = {
    "status": str, "primary": str, "start": str, "arithmetic": dict, "data": dict, "rounds": list, "attempts": list,
    "num_prunable": int, "higher_is_better": bool,
}
_ROUND_TYPES: dict[str, type | tuple[type, ...]] = {"index": int, "sparsity": (int, float)}
_ATTEMPT_TYPES: dict[str, type | tuple[type, ...]] = {
    "started": str, "host": str, "executor": str, "trained": int, "found": int, "incidents": list,
}
_INCIDENT_TYPES: dict[str, type | tuple[type, ...]] = {"time": str, "who": str, "reason": str}


def check_run_record(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a ``run.json`` that is JSON but not what a run writes.

    Raises:
        CorruptArtifactError: An entry is missing, or of another type.
    """
    wrong = _wrong_types(record, _RUN_TYPES, needed=False)
    for key, types in (("rounds", _ROUND_TYPES), ("attempts", _ATTEMPT_TYPES)):
        for entry in [] if key in wrong else record.get(key, []):
            wrong += [f"{key}: {name}" for name in _wrong_types(entry, types)]
    if not wrong:
        incidents = [incident for attempt in record.get("attempts", []) for incident in attempt["incidents"]]
        wrong = [f"incidents: {name}" for incident in incidents for name in _wrong_types(incident, _INCIDENT_TYPES)]
    if wrong:
        raise CorruptArtifactError(f"{path}: this is not what was written ({', '.join(wrong[:5])}). Restore the file "
                                   "or delete it; it only describes the run.")


def _wrong_types(record: Any, types: Mapping[str, type | tuple[type, ...]], needed: bool = True) -> list[str]:
    if not isinstance(record, Mapping):
        return ["no object"]
    looked_at = types if needed else types.keys() & record.keys()
    return [name for name in types if name in looked_at and not isinstance(record.get(name), types[name])]


def _ticket_decimals(sparsity: float) -> int:
    density = 1.0 - sparsity
    return 4 if density <= 0 else max(4, 1 - math.floor(math.log10(density)))
