"""The pieces of an analysis are done: in this process or on Ray, and none of them twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.items import Divided, Item, Row
from swamp_ray.analysis.progress import Progress
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.launch import connected, device_of
from swamp_ray.run.shared_code import Code
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.json_lines import Lines, dump_json, load_json, sealed, unsealed
from swamp_ray.storage.places import Spot
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.tables import counted, duration

Do = Callable[[Bench, Item], Any]


class Workplace(contextlib.ExitStack):
    """Where pieces are done; a cluster is joined, or an embedded Ray started, when that is needed first.

    Args:
        execution: On Ray or in this process, and what a worker gets.
        stopping: What the user or the system has asked for.
    """

    def __init__(self, execution: ExecutionConfig, stopping: Stopping) -> None:
        super().__init__()
        self.execution = execution
        self.stopping = stopping
        self._is_connected = False

    def connect(self) -> None:
        """Have a cluster, until the end of the block that this opens."""
        if not self._is_connected:
            self.enter_context(connected(self.execution))
            self._is_connected = True

    def device(self, config: SwampConfig) -> str:
        """Kind of device that the pieces are measured on."""
        if self.execution.executor == "ray" and self.execution.address is not None:
            self.connect()
        return device_of(config.model_copy(update={"execution": self.execution}))


def rows_of(divided: Divided, do: Do, bench: Bench, rounds: Sequence[int], place: Workplace, progress: Progress
            ) -> list[Row]:
    """The rows of an analysis; what was measured before is read, and each piece is kept as soon as it is measured.

    Args:
        divided: The analysis.
        do: Measures a piece; on Ray it travels by its name, so it has to be a function of a module.
        bench: The run.
        rounds: Which of them.
        place: Where the pieces are done.
        progress: Who is told.
    """
    items = divided.items(bench, rounds)
    if not items:
        raise UserError(f"there is nothing to measure in these rounds of {bench.rundir.name!r}", where="--round",
                        got=", ".join(map(str, rounds)), do="A line needs a second particle, or the next round.")
    keys = [item.key(bench) for item in items]
    spot = bench.rundir.analysis_items(items[0].what)
    known = read_items(spot)
    todo = [index for index, key in enumerate(keys) if key not in known]
    with progress.of(bench.rundir.name, len(items), len(items) - len(todo)):
        if todo:
            if divided.longest_s is not None and place.execution.executor == "inline":
                longest_s = divided.longest_s(bench, items[todo[0]]) * len(todo)
                progress.note(f"this takes up to {duration(longest_s)}; what is measured is kept if it is interrupted")
            with Lines(spot, durable=True) as lines:
                for number, value in _done(do, bench, [items[index] for index in todo], place, progress):
                    index = todo[number]
                    lines.append(sealed({"key": keys[index], "item": items[index].text, "value": value}))
                    known[keys[index]] = load_json(dump_json(value))
                    progress.done(items[index].text)
                    place.stopping.check()
    return divided.gather(bench, items, [known[key] for key in keys])


def kept_rows(divided: Divided, bench: Bench) -> list[Row]:
    """The rows of all that has been measured of the networks that the run has now."""
    items = divided.items(bench, bench.rounds)
    if not items:
        return []
    known = read_items(bench.rundir.analysis_items(items[0].what))
    found = []
    for item in items:
        with contextlib.suppress(UserError):  # of a network that is not stored any more nothing can be said
            key = item.key(bench)
            if key in known:
                found.append((item, known[key]))
    return divided.gather(bench, [item for item, _ in found], [value for _, value in found])


def read_items(spot: Spot) -> dict[str, Any]:
    """What was measured before, by name; a line that is damaged is as good as none."""
    found = {}
    for line in spot.read_appended().splitlines():
        with contextlib.suppress(ValueError, RecursionError, CorruptArtifactError, AttributeError, KeyError, TypeError):
            record = unsealed(load_json(line), spot)
            found[record["key"]] = record["value"]
    return found


def _done(do: Do, bench: Bench, items: Sequence[Item], place: Workplace, progress: Progress
          ) -> Iterator[tuple[int, Any]]:
    if place.execution.executor == "ray":
        yield from _on_ray(do, bench, items, place, progress)
        return
    for index, item in enumerate(items):
        progress.begins(item.text)
        yield index, do(bench, item)


def _on_ray(do: Do, bench: Bench, items: Sequence[Item], place: Workplace, progress: Progress
            ) -> Iterator[tuple[int, Any]]:
    from swamp_ray.on_ray.tasks import Farm, Shared, placed

    progress.note("starting Ray ...")
    place.connect()
    rundir = bench.rundir
    device = bench.arithmetic.device
    shared = Shared(bench_of, (rundir.place.uri, rundir.name, [placed(bench.data)], device, bench.code), do)
    farm = Farm(place.execution, device, rundir.place, shared, len(items), progress.note)
    progress.note(f"measuring on {counted(farm.num_workers, 'worker')}")
    try:
        yield from farm.run(items, place.stopping.check)
    finally:
        farm.close()


def bench_of(storage: str, name: str, data: list[Any], device: str, code: Code) -> Bench:
    """The bench of an actor, its network on the device; `data`: a list of one reference."""
    from swamp_ray.on_ray.tasks import fetched

    code.take_over()
    bench = Bench(RunDir(storage, name), fetched(data), device)
    _ = bench.trainer
    return bench
