"""The folder of one run, and the only place that knows the names of the files in it."""

from __future__ import annotations

import fcntl
import math
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.files import local_folder, make_folder, write_atomic
from swamp_ray.storage.jsonlines import LineWriter, dump_json, load_json, read_lines


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

    def hold(self) -> TextIO | None:
        """Claim the run for this process, until it ends or the returned file is closed.

        None where the file system has no locks.

        Raises:
            UserError: Another process holds the run; it is named.
        """
        make_folder(self.path)
        file = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(f"the run {self.name!r} is being worked on by {holder}", where=str(self.path),
                            do="Wait for it, watch it with swamp status, or choose another name with --name.") from None
        except OSError:
            file.close()
            return None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file

    def write_config(self, text: str) -> None:
        """Write the resolved configuration."""
        write_atomic(self.config_path, text.encode())

    def read_config(self) -> str | None:
        """The resolved configuration, None if there is no such run yet."""
        try:
            return self.config_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

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
            lines.append(record)

    def append_decision(self, record: Mapping[str, object]) -> None:
        """Record a decision; it is durable when this returns."""
        with LineWriter(self.decisions_path, durable=True) as lines:
            lines.append(record)

    def read_decisions(self) -> list[dict[str, Any]]:
        """All decisions, in the order in which they were made. Raises CorruptArtifactError if one is damaged."""
        return read_lines(self.decisions_path)

    def read_rounds(self) -> list[dict[str, Any]]:
        """The finished rounds in the order of rounds, each as last recorded; a run may record them in another."""
        last = {record["round"]: record for record in read_lines(self.rounds_path) if "round" in record}
        return [last[index] for index in sorted(last)]


def _ticket_decimals(sparsity: float) -> int:
    density = 1.0 - sparsity
    return 4 if density <= 0 else max(4, 1 - math.floor(math.log10(density)))
