"""``swamp analyze``: what is measured of a run's networks, as plain values, as tables, and as files beside the run."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from itertools import combinations

from rich import box
from rich.console import Console
from rich.table import Table

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.items import Row
from swamp_ray.analysis.lottery_pools import WHAT as LOTTERY_POOLS
from swamp_ray.analysis.lottery_pools import keep_pool
from swamp_ray.analysis.measuring import DIVIDED, keep_rows, measure
from swamp_ray.analysis.paths import instability
from swamp_ray.analysis.progress import make_progress
from swamp_ray.analysis.sharpness import NUM_SAMPLES
from swamp_ray.analysis.work import Workplace, kept_rows, rows_of
from swamp_ray.errors import UserError
from swamp_ray.process_state import computing
from swamp_ray.run.capacity import check_address, check_device
from swamp_ray.run.signals import Stopping, handled
from swamp_ray.sparsity.masks import overlap
from swamp_ray.storage.find import config_of, find_run
from swamp_ray.storage.kept_sources import changes_in_words
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.text.metric_names import number, short, shown_primary
from swamp_ray.text.output import Output
from swamp_ray.text.tables import display_path, percent


def masks(bench: Bench, rounds: Sequence[int]) -> list[Row]:
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
        if one.layout != other.layout:
            raise UserError(f"{one.rundir.name} and {other.rundir.name} prune different tensors", where="RUN...")
        found = {round(other.sparsity(index), 9): index for index in other.rounds}
        for index in one.rounds:
            same = found.get(round(one.sparsity(index), 9))
            if same is not None:
                density = 1 - one.sparsity(index)
                rows.append({"first": one.rundir.name, "second": other.rundir.name, "sparsity": one.sparsity(index),
                             "overlap": overlap(one.mask(index), other.mask(same)),
                             "by_chance": density / (2 - density)})
    return rows


def analyze(what: str, names: Sequence[str], storage: str | None, rounds: Sequence[int], as_json: bool,
            executor: str | None = None, address: str | None = None, stopping: Stopping | None = None) -> None:
    """Analyse runs, print tables (or JSON), and keep the figures beside each run.

    Args:
        what: The analysis.
        names: Of the runs, or the paths of their folders.
        storage: Storage root; default ``./results``.
        rounds: Which of them; default: all.
        as_json: Print JSON, and all else to standard error.
        executor: ``"ray"`` or ``"inline"``; default: inline, unless an address is given.
        address: A running Ray cluster; default: the runs' own, or an embedded Ray.
        stopping: As for :func:`swamp_ray.launch.run`.

    Raises:
        UserError: A run, a round or the states that are needed are not there, or the cluster is not.
    """
    console = Output(highlight=False, stderr=as_json)
    rundirs = [find_run(name, storage) for name in names]
    for rundir in rundirs:
        text = changes_in_words(rundir, config_of(rundir))
        if text:
            print(f"warning: {text}", file=sys.stderr)
    with handled(stopping) as stopping, _workplace(rundirs[0], executor, address, stopping) as place, _alone(place):
        benches: list[Bench] = []
        for rundir in rundirs:
            data = benches[0].data if benches and _same_data(benches[0], rundir) else None
            benches.append(Bench(rundir, data, place.device(config_of(rundir))))
        _analyze(what, benches, rounds, as_json, console, place)


def _alone(place: Workplace) -> contextlib.AbstractContextManager[None]:
    """In this process nothing else is computed meanwhile; on Ray others may compute here."""
    return computing() if place.execution.executor == "inline" else contextlib.nullcontext()


def _workplace(rundir: RunDir, executor: str | None, address: str | None, stopping: Stopping) -> Workplace:
    execution = config_of(rundir).execution
    chosen = executor or ("inline" if address is None else "ray")
    execution = execution.model_copy(update={"executor": chosen, "address": address or execution.address})
    check_address(execution)
    check_device(execution)
    return Workplace(execution, stopping)


def _analyze(what: str, benches: Sequence[Bench], rounds: Sequence[int], as_json: bool, console: Console,
             place: Workplace) -> None:
    results: dict[str, list[Row]] = {}
    for bench in benches:
        chosen = list(rounds) or bench.rounds
        for index in chosen:
            bench.sparsity(index)
        spot = bench.rundir.analysis(what)
        head = {"run": bench.rundir.name, "analysis": what}
        if what in DIVIDED:
            rows = rows_of(DIVIDED[what], measure, bench, chosen, place, make_progress(console))
            keep_rows(spot, head, "rows", kept_rows(DIVIDED[what], bench), whole=True)
        else:
            rows = masks(bench, chosen)
            keep_rows(spot, head, "rows", rows, set(bench.rounds) == set(chosen))
        spots = [keep_pool(bench, row) for row in rows] if what == LOTTERY_POOLS else []
        results[bench.rundir.name] = rows
        if not as_json:
            console.print(_table(what, bench, rows))
            console.print(f"all figures are in {display_path(str(spot))}", soft_wrap=True)
            for ticket in spots:
                console.print(f"ticket: {display_path(str(ticket))}", soft_wrap=True)
    between = masks_of_runs(benches) if what == "masks" and len(benches) > 1 else []
    for bench in benches if between else []:
        own = [row for row in between if bench.rundir.name in (row["first"], row["second"])]
        keep_rows(bench.rundir.analysis(what), {}, "between_runs", own, whole=False)
    if as_json:
        print(json.dumps({**results, **({"between": between} if between else {})}, indent=2))
    elif between:
        console.print(_between_table(between))


def _same_data(bench: Bench, rundir: RunDir) -> bool:
    return (rundir.read_run() or {}).get("data", {}).get("digest") == bench.data.digest


CAPTIONS = {
    "connectivity": "test split; barrier, of the error: the largest excess over the straight line between "
                    "the values at the ends (Entezari et al., 2022); over mean: the largest value minus "
                    "the mean of the ends (Frankle et al., 2020); the file has the training split as well",
    "curvature": f"of the mean loss of up to {NUM_SAMPLES:,} training images; ± standard error",
    "landscape": "test loss in the plane through particles 0, 1 and 2; the grid is in the file",
    "particles": "mean over all choices of so many particles; ± standard deviation over them",
    "calibration": "test split; ECE: mean distance of accuracy and confidence over 15 bins of the largest "
                   "probability; particles: mean over them; the file has the bins",
    LOTTERY_POOLS: "validation chooses who enters, with which coefficient (Yin et al., 2023); test is only reported",
    "masks": "overlap: weights in both over weights in either (Jaccard index); "
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
               "particles": _particles_cells, "calibration": _calibration_cells, "masks": _masks_cells,
               LOTTERY_POOLS: _pool_cells}[what]
    shown = [columns(row, bench) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=f"{what} of {bench.rundir.name}",
                  title_justify="left", caption=CAPTIONS.get(what), caption_justify="left")
    for heading in shown[0]:
        justify = "left" if heading in ("between", "network", "entered") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for cells in shown:
        table.add_row(*cells.values())
    return table


def _connectivity_cells(row: Row, bench: Bench) -> dict[str, str]:
    second = row["second"].removeprefix("average of round ").removeprefix("particle ")
    cells = {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "between": f"{row['first']}, {second}"}
    barrier = row["barrier"]["test"]
    if "error" in barrier:
        cells["barrier"] = f"{100 * barrier['error']:.2f} %"
        cells["over mean"] = f"{100 * instability(row['values']['test']['error']):.2f} %"
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
    primary = shown_primary(bench.task)
    spread = f" ± {short(row['spread']['test'][primary], primary)}" if row["num_subsets"] > 1 else ""
    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "particles": str(row["count"]),
            "choices": str(row["num_subsets"]),
            "average test": number(row["average"]["test"][primary], primary) + spread,
            "ensemble test": _of_ensemble(row["ensemble"]["test"], primary)}


def _of_ensemble(found: dict[str, float], name: str) -> str:
    """A metric; an ensemble has no loss of its own where the task's metrics have none."""
    return number(found[name], name) if name in found else "-"


def _calibration_cells(row: Row, bench: Bench) -> dict[str, str]:
    test = row["test"]
    return {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "network": row["network"],
            "loss": f"{test['loss']:.4f}", "accuracy": f"{100 * test['accuracy']:.2f} %",
            "ECE": f"{100 * test['ece']:.2f} %"}


def _pool_cells(row: Row, bench: Bench) -> dict[str, str]:
    primary = shown_primary(bench.task)
    entered = [f"{member['round']} ({member['coefficient']:g})" for member in row["members"]]
    cells = {"round": str(row["round"]), "sparsity": percent(row["sparsity"]), "entered": ", ".join(entered) or "none"}
    for split in ("validation", "test"):
        before = number(row["before"][split][primary], primary)
        cells[split] = f"{before} -> {number(row['after'][split][primary], primary)}"
    return cells


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
