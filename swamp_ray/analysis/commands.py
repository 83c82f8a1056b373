"""``swamp analyze``: what is measured of a run's networks, as plain values, as tables, and as files beside the run."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from swamp_ray.analysis.bench import Bench, Point, mean_point
from swamp_ray.analysis.calibration import calibration_rows, check_classification
from swamp_ray.analysis.growth import growth
from swamp_ray.analysis.paths import Line, line, plane
from swamp_ray.analysis.sharpness import NUM_DIRECTIONS, NUM_SAMPLES, sharpness
from swamp_ray.errors import UserError
from swamp_ray.locating import find_run
from swamp_ray.sparsity.masks import overlap
from swamp_ray.storage.places import Spot
from swamp_ray.storage.rundir import RunDir
from swamp_ray.tables import display_path, number, percent, short
from swamp_ray.training.data import Data

Row = dict[str, Any]
Say = Callable[[str], None]
SPLITS = ("train", "test")
MAX_PAIRS = 6
"""Pairs of particles a round whose lines are measured: all of up to four particles."""
GRID = 15


def connectivity(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """Lines between particles of a round, and between the averages of successive rounds."""
    rows = []
    for kind, index, names, first, second in _pairs(bench, rounds):
        say(f"round {index}: the line between {names[0]} and {names[1]}")
        found = line(bench.measure, first, second)
        rows.append({"kind": kind, "round": index, "sparsity": bench.sparsity(index), "first": names[0],
                     "second": names[1], "positions": list(found.positions), **_along(bench, found)})
    return rows


def _pairs(bench: Bench, rounds: Sequence[int]) -> Iterator[tuple[str, int, tuple[str, str], Point, Point]]:
    for index in rounds:
        particles = bench.particles(index)
        for a, b in list(combinations(range(len(particles)), 2))[:MAX_PAIRS]:
            yield "particles", index, (f"particle {a}", f"particle {b}"), particles[a], particles[b]
        if index + 1 in rounds:
            names = (f"average of round {index}", f"average of round {index + 1}")
            yield "rounds", index, names, bench.average(index), bench.average(index + 1)


def _along(bench: Bench, found: Line) -> Row:
    """Values and barriers of the metrics of which less is better."""
    names = ["loss", *(["error"] if "accuracy" in found.metrics[0]["test"] else [])]
    return {"values": {split: {name: found.values(split, name).tolist() for name in names} for split in SPLITS},
            "barrier": {split: {name: found.barrier(split, name) for name in names} for split in SPLITS}}


def landscape(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """The plane through the first three particles of each round; of a round with fewer, nothing."""
    rows = []
    for index in rounds:
        particles = bench.particles(index)
        if len(particles) < 3:
            continue
        say(f"round {index}: {GRID} x {GRID} points of the plane through particles 0, 1 and 2")
        found = plane(bench.measure, particles[:3], num_points=GRID)
        middle = bench.measure(mean_point(particles[:3]))
        rows.append({"round": index, "sparsity": bench.sparsity(index), "corners": found.corners.tolist(),
                     "at_the_average": {split: middle[split]["loss"] for split in SPLITS},
                     "first": found.first.tolist(), "second": found.second.tolist(),
                     "loss": {split: found.values(split, "loss").tolist() for split in SPLITS}})
    if not rows:
        raise UserError("a plane needs three particles, and no round has as many", where="RUN",
                        do="Analyse a run with particles.count of 3 or more.")
    return rows


def curvature(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """Curvature at each round's first particle and at its average."""
    rows = []
    for index in rounds:
        for name, point in (("particle 0", bench.particles(index)[0]), ("average", bench.average(index))):
            say(f"round {index}: curvature at the network {name!r}")
            found = sharpness(bench, index, point, NUM_SAMPLES, NUM_DIRECTIONS)
            rows.append({"round": index, "sparsity": bench.sparsity(index), "network": name, **found.as_dict()})
    return rows


def particles(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """Average and ensemble of 1, 2, ..., N particles."""
    rows = []
    for index in rounds:
        say(f"round {index}: averages and ensembles of its particles")
        rows += [{"round": index, "sparsity": bench.sparsity(index), **asdict(one)} for one in growth(bench, index)]
    return rows


def calibration(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """How far the probabilities of averages, particles and ensembles can be believed."""
    check_classification(bench)
    rows = []
    for index in rounds:
        say(f"round {index}: probabilities of its average and its particles")
        rows += calibration_rows(bench, index)
    return rows


def masks(bench: Bench, rounds: Sequence[int], say: Say) -> list[Row]:
    """Overlap (Jaccard index) of every two rounds' masks.

    Raises:
        UserError: A single round.
    """
    if len(rounds) < 2:
        raise UserError("masks are compared with each other, and there is only one round", where="--round")
    return [{"first": a, "second": b, "sparsities": [bench.sparsity(a), bench.sparsity(b)],
             "overlap": overlap(bench.mask(a), bench.mask(b))} for a, b in combinations(rounds, 2)]


def masks_of_runs(benches: Sequence[Bench]) -> list[Row]:
    """Overlap of the masks of every two runs at the sparsities that both have."""
    rows = []
    for one, other in combinations(benches, 2):
        if one.trainer.layout != other.trainer.layout:
            raise UserError(f"{one.rundir.name} and {other.rundir.name} prune different tensors", where="RUN...")
        found = {round(other.sparsity(index), 9): index for index in other.rounds}
        for index in one.rounds:
            if (same := found.get(round(one.sparsity(index), 9))) is not None:
                density = 1 - one.sparsity(index)
                rows.append({"first": one.rundir.name, "second": other.rundir.name, "sparsity": one.sparsity(index),
                             "overlap": overlap(one.mask(index), other.mask(same)),
                             "by_chance": density / (2 - density)})
    return rows


ANALYSES: dict[str, Callable[[Bench, Sequence[int], Say], list[Row]]] = {
    "connectivity": connectivity, "landscape": landscape, "curvature": curvature, "particles": particles,
    "calibration": calibration, "masks": masks}


def analyze(what: str, names: Sequence[str], storage: str | None, rounds: Sequence[int], as_json: bool) -> None:
    """Analyse runs, print tables (or JSON), and keep the figures beside each run.

    Raises:
        UserError: A run, a round or the states that are needed are not there.
    """
    console = Console(highlight=False, stderr=as_json)
    benches: list[Bench] = []
    for name in names:
        rundir = find_run(name, storage)
        benches.append(Bench(rundir, benches[0].data if benches and _same_data(benches[0], rundir) else None))
    results: dict[str, list[Row]] = {}
    for bench in benches:
        def say(text: str, name: str = bench.rundir.name) -> None:
            console.print(f"{name}: {text} ...", style="dim", soft_wrap=True)

        chosen = list(rounds) or bench.rounds
        for index in chosen:
            bench.sparsity(index)
        rows = ANALYSES[what](bench, chosen, say)
        spot = bench.rundir.analysis(what)
        _keep(spot, {"run": bench.rundir.name, "analysis": what}, "rows", rows, set(bench.rounds) == set(chosen))
        results[bench.rundir.name] = rows
        if not as_json:
            console.print(_table(what, bench, rows))
            console.print(f"all figures are in {display_path(str(spot))}", soft_wrap=True)
    between = masks_of_runs(benches) if what == "masks" and len(benches) > 1 else []
    for bench in benches if between else []:
        own = [row for row in between if bench.rundir.name in (row["first"], row["second"])]
        _keep(bench.rundir.analysis(what), {}, "between_runs", own, whole=False)
    if as_json:
        print(json.dumps({**results, **({"between": between} if between else {})}, indent=2))
    elif between:
        console.print(_between_table(between))


def measure_calibration(rundir: RunDir, data: Data | None = None, say: Say = lambda _: None) -> Row:
    """Measure the calibration of all rounds of a run, keep it beside the run, and give what the file holds.

    Args:
        rundir: The run.
        data: Its decoded data, where somebody has them.
        say: Told of each round.

    Raises:
        UserError: The run's task is no classification, or its averages or its data are gone.
    """
    bench = Bench(rundir, data)
    head = {"run": rundir.name, "analysis": "calibration"}
    rows = calibration(bench, bench.rounds, say)
    _keep(rundir.analysis("calibration"), head, "rows", rows, whole=True)
    return {**head, "rows": rows}


def _keep(spot: Spot, head: Row, key: str, rows: list[Row], whole: bool) -> None:
    """Write rows to a file; those that are in it and are not measured again stay, unless everything was."""
    known: Row = {}
    if (data := spot.read()) is not None:
        with contextlib.suppress(ValueError):  # a damaged file is written anew
            known = json.loads(data)
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


def _same_data(bench: Bench, rundir: RunDir) -> bool:
    return (rundir.read_run() or {}).get("data", {}).get("digest") == bench.data.digest


CAPTIONS = {
    "connectivity": "test error and loss: the largest excess over the straight line\nbetween the values at the ends; "
                    "the file has the training split as well",
    "curvature": f"of the mean loss of up to {NUM_SAMPLES:,} training images; ± standard error",
    "landscape": "test loss in the plane through particles 0, 1 and 2; the grid is in the file",
    "particles": "mean over all choices of so many particles; ± standard deviation over them",
    "calibration": "test split; ECE: mean distance of accuracy and confidence over 15 bins of\nthe largest "
                   "probability; particles: mean over them; the file has the bins",
    "masks": "overlap: weights in both over weights in either (Jaccard index);\n"
             "of a run's own masks, which are nested, it is the ratio of their densities",
}


def with_error(value: float, error: float) -> str:
    """A value with as many decimals as show two digits of its error."""
    if not error:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _table(what: str, bench: Bench, rows: Sequence[Row]) -> Table:
    columns = {"connectivity": _connectivity_cells, "landscape": _landscape_cells, "curvature": _curvature_cells,
               "particles": _particles_cells, "calibration": _calibration_cells, "masks": _masks_cells}[what]
    shown = [columns(row, bench) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=f"{what} of {bench.rundir.name}",
                  title_justify="left", caption=CAPTIONS.get(what), caption_justify="left")
    for heading in shown[0]:
        table.add_column(heading, justify="left" if heading in ("between", "network") else "right", no_wrap=True)
    for cells in shown:
        table.add_row(*cells.values())
    return table


def _connectivity_cells(row: Row, bench: Bench) -> dict[str, str]:
    cells = {"round": str(row["round"]), "sparsity": percent(row["sparsity"]),
             "between": f"{row['first']}, {row['second'].removeprefix('average of ').removeprefix('particle ')}"}
    barrier = row["barrier"]["test"]
    if "error" in barrier:
        cells["error barrier"] = f"{100 * barrier['error']:.2f} %"
    return cells | {"loss barrier": f"{barrier['loss']:.4f}"}


def _landscape_cells(row: Row, bench: Bench) -> dict[str, str]:
    flat = [value for line_ in row["loss"]["test"] for value in line_]
    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "lowest on the grid": f"{min(flat):.4f}",
            "at the average": f"{row['at_the_average']['test']:.4f}", "highest on the grid": f"{max(flat):.4f}"}


def _curvature_cells(row: Row, bench: Bench) -> dict[str, str]:
    def estimate(name: str) -> str:
        return with_error(row[name]["mean"], row[name]["standard_error"])

    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "network": row["network"],
            "trace": estimate("trace"), "sum w² H": estimate("scaled"), "largest": f"{row['largest']['value']:.3g}"}


def _particles_cells(row: Row, bench: Bench) -> dict[str, str]:
    primary = bench.trainer.task.primary
    spread = f" ± {short(row['spread']['test'][primary], primary)}" if row["num_subsets"] > 1 else ""
    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "particles": str(row["count"]),
            "choices": str(row["num_subsets"]),
            "average test": number(row["average"]["test"][primary], primary) + spread,
            "ensemble test": number(row["ensemble"]["test"][primary], primary)}


def _calibration_cells(row: Row, bench: Bench) -> dict[str, str]:
    test = row["test"]
    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "network": row["network"],
            "loss": f"{test['loss']:.4f}", "accuracy": f"{100 * test['accuracy']:.2f} %",
            "ECE": f"{100 * test['ece']:.2f} %"}


def _masks_cells(row: Row, bench: Bench) -> dict[str, str]:
    sparsities = " and ".join(percent(value) for value in row["sparsities"])
    return {"rounds": f"{row['first']} and {row['second']}", "sparsities": sparsities,
            "overlap": f"{row['overlap']:.4f}"}


def _between_table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title="masks of different runs",
                  title_justify="left", caption="by chance: of random masks of that density")
    for heading in ("runs", "sparsity", "overlap", "by chance"):
        table.add_column(heading, justify="left" if heading == "runs" else "right")
    for row in rows:
        table.add_row(f"{row['first']}, {row['second']}", percent(row["sparsity"]), f"{row['overlap']:.4f}",
                      f"{row['by_chance']:.4f}")
    return table
