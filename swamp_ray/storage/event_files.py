"""TensorBoard's event files: one TensorBoard run for each network and each training, so that their curves overlay.

Written with the package's own file writer, which needs no thread: the lines of a job come together, when it has ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.local import opened_folder
from swamp_ray.storage.places import Spot, working_folder

PLACING = ("time", "kind", "round", "particle", "epoch", "step")
"""Fields of a line of metrics that say what it is about; all others are values."""
AVERAGE = "average"
NETWORKS = ("particles_mean", "particles_std")
_files = itertools.count()


@dataclass(frozen=True)
class Scalar:
    """A point of a chart.

    Attributes:
        run: What TensorBoard calls a run, and draws as a curve of its own: a folder below the event files' folder.
        tag: What TensorBoard gives a chart of its own.
        step: The horizontal position.
        value: The vertical one.
    """

    run: str
    tag: str
    step: int
    value: float


def scalars(line: Mapping[str, Any]) -> Iterator[Scalar]:
    """The points of a line of metrics.

    What changes from epoch to epoch is in ``epoch/NAME`` against steps, with a run a training (``dense``,
    ``round-02/particle-01``). What is measured at the end is in ``round/SPLIT/NAME`` against rounds, with a run a
    network: ``average``, ``particles_mean``, ``particle-01``. Standard deviations have charts of their own.
    """
    for name, value in line.items():
        if name in PLACING or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        run, tag, step = _place(line, name)
        yield Scalar(run, tag, step, value)


def _place(line: Mapping[str, Any], name: str) -> tuple[str, str, int]:
    """Run, tag and step of one value."""
    kind = str(line.get("kind", "scalars"))
    what = kind.removeprefix("particle_").removeprefix("dense_")
    what = "round" if what == "end" else what
    axis = next((field for field in ("step", "epoch") if field in line), None)
    if axis is not None:
        numbers = [f"{key}-{line[key]:02d}" for key in ("round", "particle") if key in line]
        return "/".join(numbers) or kind.removesuffix("_epoch"), f"{what}/{name}", line[axis]
    if "particle" in line:
        return f"particle-{line['particle']:02d}", f"{what}/{name}", line.get("round", 0)
    if kind == "round":
        network, _, rest = name.partition("/")
        of_particles = network in NETWORKS
        group = network if network == "particles_std" else "round"
        return network if of_particles else AVERAGE, f"{group}/{rest if of_particles else name}", line.get("round", 0)
    return kind.partition("_")[0], f"{what}/{name}", line.get("round", 0)


class EventFiles:
    """TensorBoard's files: written where they belong, or uploaded from a temporary folder at the end.

    Args:
        spot: Their folder.
        afresh: What the folder holds so far is out of date: TensorBoard is told to leave it out.

    Raises:
        UserError: tensorboardX is not installed.
        RunError: A link is in the way of the folder.
    """

    def __init__(self, spot: Spot, afresh: bool = False) -> None:
        _check_package()
        self._afresh = afresh
        self._ending = contextlib.ExitStack()
        self._folder = self._ending.enter_context(working_folder(spot, keep=True))
        self._buffered: dict[str, list[tuple[Scalar, float]]] = {}
        self._open: dict[str, Any] = {}
        self._begun: set[str] = set()
        self._gave_up = False
        if afresh and spot.place.entries(spot.key):
            # Files of an earlier version lie in the folder itself.
            self._buffered[""] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Take the numbers of a line of metrics; they are written by the next :meth:`flush`."""
        for scalar in scalars(line):
            self._buffered.setdefault(scalar.run, []).append((scalar, line["time"]))

    def flush(self) -> None:
        """Write what was added. After a failure, such as a full disk, nothing more is written: no run fails of it."""
        buffered = self._buffered
        self._buffered = {}
        if self._gave_up:
            return
        try:
            for run, points in buffered.items():
                self._write(run, points)
        except (OSError, RunError):
            self._gave_up = True

    def close(self) -> None:
        """End the files; that one could not be uploaded is no reason for a run to fail."""
        self.flush()
        for writer in self._open.values():
            with contextlib.suppress(OSError):
                writer.close()
        self._open.clear()
        with contextlib.suppress(RunError):
            self._ending.close()

    def _write(self, run: str, points: list[tuple[Scalar, float]]) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar as summary_of

        messages: Any = event_pb2
        writer = self._open.get(run) or self._opened(run)
        self._open[run] = writer
        for point, time_ in points:
            summary = summary_of(point.tag, point.value)
            writer.write_event(messages.Event(wall_time=time_, step=point.step, summary=summary))
        writer.flush()
        if "/" in run:
            # A training's lines come at once; a run of many particles would hold hundreds of open files.
            self._open.pop(run).close()

    def _opened(self, run: str) -> Any:
        """A new file of a run. Its name is its own even if another was begun in the same second."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2
        folder = self._folder / run
        with opened_folder(folder, self._folder, make=True):
            pass  # it is there now, and no link leads to it
        writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{next(_files):06d}")
        if self._afresh and run not in self._begun:
            restart = messages.SessionLog(status=messages.SessionLog.START)
            writer.write_event(messages.Event(step=0, session_log=restart))
        self._begun.add(run)
        return writer


def _check_package() -> None:
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("TensorBoard files need the package tensorboardX", where="tensorboard",
                        do="Install it with: pip install tensorboardX")
