"""The analyses that are measured in pieces, and the file beside a run that keeps their figures."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import Any

from swamp_ray.analysis import items, lottery_pools
from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.calibration import NUM_BINS, calibration_rows
from swamp_ray.analysis.growth import MAX_SUBSETS, growth
from swamp_ray.analysis.items import Divided, Item, Row, by_round, stored_networks
from swamp_ray.analysis.progress import Progress
from swamp_ray.analysis.work import Workplace, rows_of
from swamp_ray.data.samples import Data
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.places import Spot
from swamp_ray.storage.run_folder import RunDir


def particles(bench: Bench, index: int) -> list[Row]:
    """Average and ensemble of 1, 2, ..., N particles of a round."""
    return [{"round": index, "sparsity": bench.sparsity(index), **asdict(one)} for one in growth(bench, index)]


def calibration(bench: Bench, index: int) -> list[Row]:
    """How far the probabilities of a round's average, particles and ensemble can be believed."""
    return calibration_rows(bench, index)


def pools(bench: Bench, index: int) -> list[Row]:
    """The Lottery Pool of a round."""
    return [lottery_pools.lottery_pool(bench, index)]


DIVIDED: dict[str, Divided] = {
    "connectivity": items.connectivity, "landscape": items.landscape, "curvature": items.curvature,
    "particles": by_round("particles", particles, "averages and ensembles of its particles", most=MAX_SUBSETS),
    "calibration": by_round("calibration", calibration, "probabilities of its average and its particles",
                            stored_networks, bins=NUM_BINS),
    lottery_pools.WHAT: by_round(lottery_pools.WHAT, pools, "its ticket interpolated with those of other rounds",
                                 lottery_pools.pool_networks, coefficients=list(lottery_pools.COEFFICIENTS))}
"""Analyses whose pieces can be measured side by side."""


def measure(bench: Bench, item: Item) -> Any:
    """A piece's figures, in whatever process."""
    return DIVIDED[item.what].measure(bench, item)


def measured(what: str, rundir: RunDir, data: Data | None = None, progress: Progress | None = None) -> Row:
    """Measure all rounds of a run in this process, keep the figures beside the run, and give what the file holds.

    Args:
        what: One of the analyses that are measured in pieces.
        rundir: The run.
        data: Its decoded data, where somebody has them.
        progress: Told of each piece.

    Raises:
        UserError: The states that are needed, or the data, are not there.
    """
    bench = Bench(rundir, data)
    place = Workplace(bench.config.execution.model_copy(update={"executor": "inline"}), Stopping())
    rows = rows_of(DIVIDED[what], measure, bench, bench.rounds, place, progress or Progress())
    head = {"run": rundir.name, "analysis": what}
    keep_rows(rundir.analysis(what), head, "rows", rows, whole=True)
    return {**head, "rows": rows}


def measure_calibration(rundir: RunDir, data: Data | None = None) -> Row:
    """Measure the calibration of all rounds of a run, keep it beside the run, and give what the file holds.

    Raises:
        UserError: The run's task is no classification, or its averages or its data are gone.
    """
    return measured("calibration", rundir, data)


def keep_rows(spot: Spot, head: Row, key: str, rows: list[Row], whole: bool) -> None:
    """Write rows to a file; those that are in it and are not measured again stay, unless everything was."""
    known: Row = {}
    data = spot.read()
    if data is not None:
        with contextlib.suppress(ValueError):  # a damaged file is written anew
            found = json.loads(data)
            known = found if isinstance(found, dict) else {}
    new = [_subject(row) for row in rows]
    older = [] if whole else [row for row in known.get(key, []) if _subject(row) not in new]
    spot.write((json.dumps({**known, **head, key: sorted([*older, *rows], key=_place)}, indent=1) + "\n").encode())


def _subject(row: Row) -> tuple[Any, ...]:
    """What a row is about."""
    return tuple(row.get(name) for name in ("kind", "round", "first", "second", "network", "count", "sparsity")
                 if not isinstance(row.get(name), list))


def _place(row: Row) -> tuple[float, float]:
    """By round; of a round in the order in which they were measured."""
    return row.get("round", row["first"] if isinstance(row.get("first"), int) else 0), row.get("count", 0)
