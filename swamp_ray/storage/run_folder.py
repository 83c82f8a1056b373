"""The folder of one run, and the only place that knows the names of the files in it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.storage.json_lines import (
    CHECK_KEY,
    Lines,
    Salvaged,
    append_line,
    load_json,
    read_lines,
    salvage_lines,
)
from swamp_ray.storage.named_folder import NamedFolder
from swamp_ray.storage.place import check_key
from swamp_ray.storage.places import Spot
from swamp_ray.storage.records import RunRecord, wrong_fields


class RunDir(NamedFolder):
    """The files of one run under ``STORAGE/runs/<name>``."""

    kind = "run"
    longest_name = 200
    other_name = "Choose another, e.g. resnet20-swamp."
    config_file = "config.yaml"
    record_file = "run.json"

    @property
    def run_json(self) -> Spot:
        """Versions, command, hardware, attempts."""
        return self.record

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

    def analysis_ticket(self, what: str, folder: str) -> Spot:
        """A ticket that one of the analyses has made, in a folder of the name of the ticket that it is made from."""
        return self.spot(f"analysis/{what}/{folder}/model.safetensors")

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

    def write_config(self, text: str, *, private: bool = False) -> None:
        """Write the resolved configuration; `private`: it holds credentials, and nobody else may read it."""
        self.config.write(text.encode(), private=private)

    def write_run(self, record: Mapping[str, object], before: bytes | None = None) -> bytes:
        """Replace ``run.json``.

        Args:
            record: What it holds from now on.
            before: What it holds now, as far as the caller knows. An object store, which has no locks, replaces it on
                the condition that this is so; if it is not, only whoever still holds the run may go on.

        Returns:
            Its bytes.
        """
        data = self._dump_record(record)
        may_replace = self.place.has_locks or before is None
        if may_replace or not self.place.swap(self.run_json.key, data, expected=before or b""):
            self.run_json.write(data)
        return data

    def read_run(self) -> dict[str, Any] | None:
        """What ``run.json`` holds, None if it is missing or empty. Raises CorruptArtifactError if it is damaged."""
        return self._load_record()

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
        append_line(self.rounds, record)

    def put_rounds_aside(self) -> None:
        """Move the records of finished rounds to ``rounds.earlier.jsonl``, behind those that lie there already."""
        data = self.rounds.read_appended()
        whole_lines = data[:data.rfind(b"\n") + 1]
        if whole_lines:
            with Lines(self.spot("rounds.earlier.jsonl"), durable=True) as lines:
                lines.append_bytes(whole_lines)
        # Only now: a crash before leaves lines in both files, never in neither.
        self.place.remove_appended(self.rounds.key)

    def append_decision(self, record: Mapping[str, object]) -> None:
        """Record a decision; it is durable when this returns."""
        append_line(self.decisions, record)

    def read_decisions(self) -> list[dict[str, Any]]:
        """All decisions, in the order in which they were made. Raises CorruptArtifactError if one is damaged."""
        return read_lines(self.decisions)

    def read_rounds(self) -> list[dict[str, Any]]:
        """The finished rounds in the order of rounds, each as last recorded; a run may record them in another."""
        records = read_lines(self.rounds)
        wrong = [record["round"] for record in records if not isinstance(record.get("round", 0), int)]
        if wrong:
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
        append_line(self.results, record)

    def read_results(self) -> list[dict[str, Any]]:
        """The artifacts that the run has noted, in order. Raises CorruptArtifactError if a line has changed."""
        return read_lines(self.results)

    def logs(self, attempt: int) -> dict[str, Spot]:
        """The log files of an attempt, by what `log` calls them."""
        folder = f"{self.spot().key}/logs/attempt-{attempt}"
        return {name.removesuffix(".log"): Spot(self.place, f"{folder}/{name}")
                for name, _ in self.place.appended(folder) if name.endswith(".log")}

    def last_log_lines(self, num: int) -> list[tuple[Spot, str]]:
        """The logs that were written last, the newest at the end, each with its last line; empty ones are left out."""
        folder = f"{self.spot().key}/logs"
        found = [(modified, Spot(self.place, f"{folder}/{attempt}/{name}"))
                 for attempt in self.place.folders(folder)
                 for name, modified in self.place.appended(f"{folder}/{attempt}") if name.endswith(".log")]
        newest = [spot for _, spot in sorted(found, key=lambda one: one[0])[-num:]]
        texts = [(spot, spot.read_appended().decode(errors="replace").splitlines()) for spot in newest]
        return [(spot, lines[-1]) for spot, lines in texts if lines]


def check_run_record(record: Mapping[str, Any], path: Path | Spot) -> None:
    """Refuse a ``run.json`` that is JSON but not what a run writes.

    Raises:
        CorruptArtifactError: An entry is missing, or of another type.
    """
    wrong = wrong_fields(RunRecord, record)
    if wrong:
        raise CorruptArtifactError(f"{path}: this is not what was written ({', '.join(wrong[:5])}). Restore the file "
                                   "or delete it; it only describes the run.")


def _last_of_each(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    last = {record["round"]: record for record in records if "round" in record}
    return [last[index] for index in sorted(last)]


def _ticket_folder(sparsity: float) -> str:
    return f"{sparsity:.{_ticket_decimals(sparsity)}f}"


def _ticket_decimals(sparsity: float) -> int:
    density = 1.0 - sparsity
    return 4 if density <= 0 else max(4, 1 - math.floor(math.log10(density)))
