"""The folder of one sweep, and the only place that knows the names of the files in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.config.yaml_reading import load_stored_yaml
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.storage.json_lines import append_line, read_lines, salvage_lines
from swamp_ray.storage.named_folder import NamedFolder
from swamp_ray.storage.places import Spot

MAX_NAME = 60
"""Member runs are named after the sweep and their settings."""


class SweepDir(NamedFolder):
    """The files of one sweep under ``STORAGE/sweeps/<name>``. Its member runs lie under ``STORAGE/runs``."""

    kind = "sweep"
    longest_name = MAX_NAME
    other_name = "Choose another with --name, e.g. sparsity-x-particles."
    config_file = "sweep.yaml"
    record_file = "sweep.json"

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
        self.record.write(self._dump_record(record))

    def read_record(self) -> dict[str, Any]:
        """What ``sweep.json`` holds, empty if it is missing. Raises CorruptArtifactError if it is damaged."""
        return self._load_record() or {}

    def append_trial(self, record: Mapping[str, object]) -> None:
        """Record the state of a setting, durably; `record` has a key ``label``. The last record of a label counts."""
        append_line(self.trials, record)

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
