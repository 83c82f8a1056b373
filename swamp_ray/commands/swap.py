"""``swamp swap``: tables of what :mod:`swamp_ray.analysis.swap` finds, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from swamp_ray.analysis.swap import SIDES, Row, Swap, swap
from swamp_ray.commands.run_progress import Output, make_reporter
from swamp_ray.errors import UserError
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.find import find_run
from swamp_ray.text.metric_names import is_percent, short
from swamp_ray.text.tables import display_path, percent

CAPTION = ("difference: to what the same training gives under its own mask\n"
           "shuffled: within each layer, which keeps its density")


def swap_and_print(names: Sequence[str], storage: str | None, rounds: Sequence[int], execution: Mapping[str, Any],
                   quiet: bool, as_json: bool, stopping: Stopping | None = None) -> None:
    """Swap the masks of two runs, and print what came out.

    Raises:
        UserError: There is no such run, or the two cannot be swapped.
    """
    first, second = (find_run(name, storage) for name in names)
    if first.spot().location == second.spot().location:
        raise UserError("a run cannot be swapped with itself", got=first.name, where="RUN")
    console = Output(stderr=True, highlight=False, quiet=quiet) if as_json else Output(quiet=quiet, highlight=False)

    def say(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]" if not as_json else text, soft_wrap=True)

    def reporter() -> Reporter:
        return make_reporter(quiet or as_json)[0]

    given = {key: value for key, value in execution.items() if value is not None}
    if given:  # another machine than the runs had may hold fewer workers
        given["num_workers"] = None
    found = swap(first, second, rounds, execution=given, reporter=reporter, say=say, stopping=stopping)
    if as_json:
        print(json.dumps({"rows": found.rows, "effects": found.effects}, indent=2))
        return
    for effect in found.effects:
        console.print()
        console.print(cells_table([row for row in found.rows if row["round"] == effect["round"]], found.primary))
        console.print(effects_table(effect))
    console.print(f"all figures are in {display_path(found.spot)}; the cells are runs of their own, "
                  f"{_runs(found)}", soft_wrap=True)


def _runs(found: Swap) -> str:
    row = found.rows[0]
    return f"{row['first']}-swap-{row['second']}-..."


def cells_table(rows: Sequence[Row], primary: str) -> Table:
    """The cells of one round."""
    row = rows[0]
    title = f"{row['first']} and {row['second']} at {percent(row['sparsity'])} sparsity, {row['survivors']:,} weights"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=title, title_justify="left",
                  caption=CAPTION, caption_justify="left")
    is_share = is_percent(primary)
    for heading in ("mask of", "shuffled", "training of"):
        table.add_column(f"\n{heading}", overflow="fold", justify="center" if heading == "shuffled" else "left")
    unit = "%" if is_share else primary
    for heading in ("\nparticles", f"each\ntest {unit}", f"network\ntest {unit}",
                    f"difference\n{'points' if is_share else primary}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        is_own = row["mask"] == row["training"] and not row["shuffled"]
        table.add_row(row["mask_of"], "yes" if row["shuffled"] else "", row["training_of"], str(row["num_particles"]),
                      short(row["particles_mean"]["test"][primary], primary),
                      short(row["average"]["test"][primary], primary),
                      "own mask" if is_own else signed(row["difference"]["test"][primary], primary))
    return table


def effects_table(effect: Row) -> Table:
    """What the four unshuffled cells say, and the shuffled ones."""
    first = effect["first"]
    second = effect["second"]
    metric = effect["metric"]
    unit = ", in points" if is_percent(metric) else ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False, title=f"differences of test {metric}{unit}",
                  title_justify="left", caption_justify="left",
                  caption="one pair of runs: without an interval, which takes several seeds")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    lines = [(f"mask of {second}, not of {first} (both trainings)", effect["mask"]),
             (f"training of {second}, not of {first} (both masks)", effect["training"]),
             (f"interaction: the mask's effect under {second}'s training, minus under {first}'s",
              effect["interaction"]),
             *((f"mask of {name}, not shuffled (both trainings)", effect["shuffled"][side])
               for side, name in zip(SIDES, (first, second), strict=True))]
    for text, value in lines:
        table.add_row(text, signed(value, metric))
    return table


def signed(value: float, metric: str) -> str:
    """A difference with its sign."""
    return f"{'+' if value >= 0 else '-'}{short(abs(value), metric)}"
