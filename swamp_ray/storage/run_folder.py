"""The folder of one run, and the only place that knows the names of the files in it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swamp_ray.errors import CorruptArtifactError, RunError, UserError
from swamp_ray.storage.append import growing, move_growing, read_growing
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.json_lines import (
    CHECK_KEY,
    Salvaged,
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
from swamp_ray.storage.place import Place, check_key
from swamp_ray.storage.places import Spot, as_place, local_path
from swamp_ray.storage.records import JobLine, is_job_line, parse_job_lines


class RunDir:
    """The files of one run under ``STORAGE/runs/<name>``. Nothing is created before something is written.

    What the run itself reads and writes are spots of its storage root. The ``..._path`` are where the same files lie in
    a local one; in an object store they are errors.

    Args:
        storage: Storage root: a folder, a URL, or its place.
        name: Name of the run: letters, digits, dot, underscore and hyphen.

    Raises:
        UserError: If the name is not allowed, or the storage root is none.
    """

    def __init__(self, storage: str | Path | Place, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or not name.strip("."):
            raise UserError("a run's name must consist of 1 to 200 letters, digits, '.', '_' and '-'", got=shown(name),
                            where="name", do="Choose another, e.g. resnet20-swamp.")
        self.place = as_place(storage)
        self.name = name

    def spot(self, file: str = "") -> Spot:
        """A file of the run by its name in the run's folder; ``""``: the folder itself."""
        return Spot(self.place, "/".join(filter(None, [f"runs/{self.name}", file])))

    @property
    def config(self) -> Spot:
        """The configuration as resolved."""
        return self.spot("config.yaml")

    @property
    def run_json(self) -> Spot:
        """Versions, command, hardware, attempts."""
        return self.spot("run.json")

    @property
    def rounds(self) -> Spot:
        """One line a finished round."""
        return self.spot("rounds.jsonl")

    @property
    def results(self) -> Spot:
        """One line an artifact that the run uses or works on."""
        return self.spot("results.jsonl")

    @property
    def decisions(self) -> Spot:
        """One line for each thing that was decided because of a failure."""
        return self.spot("decisions.jsonl")

    @property
    def metrics(self) -> Spot:
        """Every scalar as it happens."""
        return self.spot("metrics.jsonl")

    @property
    def jobs(self) -> Spot:
        """What became of jobs: a line when a worker is given one, after each epoch, and when it has ended."""
        return self.spot("jobs.jsonl")

    @property
    def metrics_parquet(self) -> Spot:
        """Every scalar as a table, written at the end."""
        return self.spot("metrics.parquet")

    @property
    def report(self) -> Spot:
        """The run as one HTML file."""
        return self.spot("report.html")

    @property
    def start(self) -> Spot:
        """The ticket that the run starts from, where it was made for it."""
        return self.spot("start.safetensors")

    def analysis(self, what: str) -> Spot:
        """Figures of one of the analyses of the run."""
        return self.spot(f"analysis/{what}.json")

    def analysis_items(self, what: str) -> Spot:
        """What one of the analyses has measured so far: one line a piece of work, under the name of what decides it."""
        return self.spot(f"analysis/{what}-items.jsonl")

    @property
    def tensorboard(self) -> Spot:
        """Folder of TensorBoard event files."""
        return self.spot("tensorboard")

    def log(self, attempt: int, what: str) -> Spot:
        """Log file of one particle or process, e.g. ``log(1, "round-03-particle-1")``; attempts count from 1."""
        return self.spot(f"logs/attempt-{attempt}/{re.sub(r'[^A-Za-z0-9._-]', '_', what)}.log")

    def ticket(self, sparsity: float) -> Spot:
        """Where the ticket of a sparsity in [0, 1] lies.

        Four decimals, and beyond a sparsity of 0.99 as many as show two digits of the density, so that two rounds of
        extreme sparsity never share a file and none of them is called 1.0000.
        """
        return self.spot(f"tickets/{_ticket_folder(sparsity)}/model.safetensors")

    def tickets(self, sparsities: Sequence[float]) -> list[Spot]:
        """Where the tickets of a run's rounds lie, in the order of rounds.

        As :meth:`ticket` says; rounds that only differ further behind the point, as in a network of a few weights or at
        a very small rate, are numbered: ``0.7500``, ``0.7500-2``.
        """
        folders = [_ticket_folder(sparsity) for sparsity in sparsities]
        numbers = [folders[:index].count(folder) + 1 for index, folder in enumerate(folders)]
        return [self.spot(f"tickets/{folder}{f'-{number}' if number > 1 else ''}/model.safetensors")
                for folder, number in zip(folders, numbers, strict=True)]

    @property
    def storage(self) -> Path:
        """The storage root."""
        return local_path(self.place)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return local_path(self.spot())

    @property
    def config_path(self) -> Path:
        """See `config`."""
        return local_path(self.config)

    @property
    def run_json_path(self) -> Path:
        """See `run_json`."""
        return local_path(self.run_json)

    @property
    def rounds_path(self) -> Path:
        """See `rounds`."""
        return local_path(self.rounds)

    @property
    def results_path(self) -> Path:
        """See `results`."""
        return local_path(self.results)

    @property
    def decisions_path(self) -> Path:
        """See `decisions`."""
        return local_path(self.decisions)

    @property
    def metrics_path(self) -> Path:
        """See `metrics`."""
        return local_path(self.metrics)

    @property
    def jobs_path(self) -> Path:
        """See `jobs`."""
        return local_path(self.jobs)

    @property
    def metrics_parquet_path(self) -> Path:
        """See `metrics_parquet`."""
        return local_path(self.metrics_parquet)

    @property
    def report_path(self) -> Path:
        """See `report`."""
        return local_path(self.report)

    @property
    def tensorboard_path(self) -> Path:
        """See `tensorboard`."""
        return local_path(self.tensorboard)

    def log_path(self, attempt: int, what: str) -> Path:
        """See `log`."""
        return local_path(self.log(attempt, what))

    def ticket_path(self, sparsity: float) -> Path:
        """See `ticket`."""
        return local_path(self.ticket(sparsity))

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
                        where=str(self.spot()),
                        do="Wait for it, watch it with swamp status, or choose another name with --name.")

    def held_by(self, lease: Lease) -> RunDir:
        """The same folder, whose files are written only while a lease is held: it is confirmed before each write."""
        return RunDir(held_by(self.place, lease), self.name)

    def held(self) -> HeldLease | None:
        """Who works on the run, or did and was killed; None if nobody does."""
        return self.leases().look(self.lease_key)

    def leases(self, expiry_s: float = EXPIRY_S) -> Leases:
        """The leases of the storage root."""
        return Leases(self.place, expiry_s)

    def write_config(self, text: str, *, private: bool = False) -> None:
        """Write the resolved configuration; `private`: it holds credentials, and nobody else may read it."""
        self.config.write(text.encode(), private=private)

    def read_config(self) -> str | None:
        """The resolved configuration, None if there is no such run yet."""
        data = self.config.read()
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CorruptArtifactError(f"{self.config}: this is not the text that was written ({error.reason}). "
                                       "Restore the file, or delete it and run the same command again.") from error

    def write_run(self, record: Mapping[str, object], before: bytes | None = None) -> bytes:
        """Replace ``run.json``.

        Args:
            record: What it holds from now on.
            before: What it holds now, as far as the caller knows. An object store, which has no locks, replaces it on
                the condition that this is so; if it is not, only whoever still holds the run may go on.

        Returns:
            Its bytes.
        """
        data = dump_json(sealed(record), indent=2) + b"\n"
        has_locks = isinstance(self.run_json.location, Path)
        if has_locks or before is None or not self.place.swap(self.run_json.key, data, expected=before):
            self.run_json.write(data)
        return data

    def read_run(self) -> dict[str, Any] | None:
        """What ``run.json`` holds, None if it is missing or empty. Raises CorruptArtifactError if it is damaged."""
        data = self.run_json.read()
        if not data:
            return None
        try:
            record = load_json(data)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise CorruptArtifactError(f"{self.run_json}: this is not the JSON object that was written. Restore "
                                       "the file or delete it; it only describes the run.")
        if not is_sealed(record):
            raise CorruptArtifactError(f"{self.run_json}: this is not what was written: it has changed since. Restore "
                                       "the file or delete it; it only describes the run.")
        return {key: value for key, value in record.items() if key != CHECK_KEY}

    def unverified(self, *files: Spot) -> list[str]:
        """Names of files that hold something without a checksum, as older versions wrote it.

        Args:
            files: Of JSON lines; ``run.json`` is looked at in any case.
        """
        found = []
        data = self.run_json.read()
        with contextlib.suppress(ValueError, RecursionError):
            record = load_json(data) if data else None
            if isinstance(record, dict) and CHECK_KEY not in record:
                found.append("run.json")
        for spot in files:
            # What cannot be read is told by those who need it.
            with contextlib.suppress(RunError, OSError):
                found += [spot.key.rpartition("/")[2]] if salvage_lines(spot).unverified else []
        return found

    def append_round(self, record: Mapping[str, object]) -> None:
        """Record a finished round; `record` has a key ``round``. A later record of the same round replaces it."""
        if "round" not in record:
            raise ValueError("the record of a round needs the key 'round'")
        with contextlib.closing(open_lines(self.rounds, durable=True)) as lines:
            lines.append(sealed(record))

    def put_rounds_aside(self) -> None:
        """Move the records of finished rounds to ``rounds.earlier.jsonl``, behind those that lie there already."""
        move_growing(self.rounds, self.spot("rounds.earlier.jsonl"))

    def append_decision(self, record: Mapping[str, object]) -> None:
        """Record a decision; it is durable when this returns."""
        with contextlib.closing(open_lines(self.decisions, durable=True)) as lines:
            lines.append(sealed(record))

    def read_decisions(self) -> list[dict[str, Any]]:
        """All decisions, in the order in which they were made. Raises CorruptArtifactError if one is damaged."""
        return read_lines(self.decisions)

    def read_rounds(self) -> list[dict[str, Any]]:
        """The finished rounds in the order of rounds, each as last recorded; a run may record them in another."""
        records = read_lines(self.rounds)
        if wrong := [record["round"] for record in records if not isinstance(record.get("round", 0), int)]:
            raise CorruptArtifactError(f"{self.rounds}: {wrong[0]!r} is no round. The file was changed after it "
                                       "was written; restore it, or delete that line.")
        return _last_of_each(records)

    def salvage_rounds(self) -> Salvaged:
        """As `read_rounds`, of the lines that hold; which do not is said."""
        found = salvage_lines(self.rounds, lambda record: isinstance(record.get("round", 0), int))
        return replace(found, records=tuple(_last_of_each(found.records)))

    def ticket_of(self, record: Mapping[str, Any]) -> Spot:
        """Where the ticket of a finished round lies: in this folder, whatever it was called when that was recorded."""
        recorded = record.get("ticket")
        inside = re.fullmatch(r"runs/[^/]+/(.+)", recorded) if isinstance(recorded, str) else None
        spot = self.spot(inside[1]) if inside else Spot(self.place, str(recorded))
        try:
            check_key(spot.key)
        except ValueError:
            spot = None
        if spot is None or not recorded or not isinstance(recorded, str):
            raise CorruptArtifactError(
                f"{self.rounds}: what stands there as the path of the ticket of round {record.get('round')} is none "
                f"({str(recorded)[:200]!r}). The file was changed after it was written; restore it, or delete that "
                "line and run the same command again.")
        return spot

    def append_result(self, record: Mapping[str, object]) -> None:
        """Note an artifact before it is looked for, so that it is never without a run that names it."""
        with contextlib.closing(open_lines(self.results, durable=True)) as lines:
            lines.append(sealed(record))

    def read_results(self) -> list[dict[str, Any]]:
        """The artifacts that the run has noted, in order. Raises CorruptArtifactError if a line has changed."""
        return read_lines(self.results)

    def salvage_jobs(self) -> list[JobLine]:
        """What can be read of ``jobs.jsonl``, in order."""
        return parse_job_lines(salvage_lines(self.jobs, is_job_line).records)

    def logs(self, attempt: int) -> dict[str, Spot]:
        """The log files of an attempt, by what `log` calls them."""
        folder = f"{self.spot().key}/logs/attempt-{attempt}"
        return {name.removesuffix(".log"): Spot(self.place, f"{folder}/{name}")
                for name, _ in growing(self.place, folder) if name.endswith(".log")}

    def last_log_lines(self, num: int) -> list[tuple[Spot, str]]:
        """The logs that were written last, the newest at the end, each with its last line; empty ones are left out."""
        folder = f"{self.spot().key}/logs"
        found = [(modified, Spot(self.place, f"{folder}/{attempt}/{name}"))
                 for attempt in self.place.folders(folder)
                 for name, modified in growing(self.place, f"{folder}/{attempt}") if name.endswith(".log")]
        newest = [spot for _, spot in sorted(found, key=lambda one: one[0])[-num:]]
        texts = [(spot, read_growing(spot).decode(errors="replace").splitlines()) for spot in newest]
        return [(spot, lines[-1]) for spot, lines in texts if lines]


_RUN_TYPES: dict[str, type | tuple[type, ...]] = {
    "status": str, "primary": str, "start": str, "arithmetic": dict, "data": dict, "rounds": list, "attempts": list,
    "num_prunable": int, "higher_is_better": bool, "shown_as": dict,
}
_ROUND_TYPES: dict[str, type | tuple[type, ...]] = {"index": int, "sparsity": (int, float)}
_ATTEMPT_TYPES: dict[str, type | tuple[type, ...]] = {
    "started": str, "host": str, "executor": str, "trained": int, "found": int, "incidents": list,
}
_INCIDENT_TYPES: dict[str, type | tuple[type, ...]] = {"time": str, "who": str, "reason": str}


def check_run_record(record: Mapping[str, Any], path: Path | Spot) -> None:
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


def _last_of_each(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    last = {record["round"]: record for record in records if "round" in record}
    return [last[index] for index in sorted(last)]


def _ticket_folder(sparsity: float) -> str:
    return f"{sparsity:.{_ticket_decimals(sparsity)}f}"


def _ticket_decimals(sparsity: float) -> int:
    density = 1.0 - sparsity
    return 4 if density <= 0 else max(4, 1 - math.floor(math.log10(density)))
