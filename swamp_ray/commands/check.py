"""``swamp check``: what a config would do, before it does it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from swamp_ray.commands.run_progress import header
from swamp_ray.config.rules import SEES_NO_DATA
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_settings import Sweep, describe, label, shown_value
from swamp_ray.errors import SwampError
from swamp_ray.on_ray.choose_packing import WORDS, recorded_choice
from swamp_ray.on_ray.sending import sendable
from swamp_ray.process_state import computing
from swamp_ray.run.capacity import pool_size, this_machine
from swamp_ray.run.costs import planned_costs
from swamp_ray.run.disk_space import estimate, free_bytes
from swamp_ray.run.name_check import check_name
from swamp_ray.run.object_store_memory import round_bytes
from swamp_ray.run.older_runs import knowing_older_runs
from swamp_ray.run.prepare import Prepared, device_kind, prepare
from swamp_ray.run.starting_weights import skips_own, take_whole_start_
from swamp_ray.run.state import State, state_of
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.storage.place import Place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.text.costs import cost_text, short_flops
from swamp_ray.text.metric_names import number, shown_primary
from swamp_ray.text.output import Output
from swamp_ray.text.tables import counted, display_path, percent, size, told_apart
from swamp_ray.training.arithmetic import SINGLE, applied, form_and_width
from swamp_ray.training.cost import Cost
from swamp_ray.training.memory_estimate import estimate_memory
from swamp_ray.training.trainer import ParticleTrainer, initial_model

if TYPE_CHECKING:
    from swamp_ray.sweep.plan import SweepPlan


def print_plan(config: SwampConfig) -> None:
    """Validate a config against its data and network, and print rounds, layers, bytes and waves.

    Raises:
        UserError: Whatever ``swamp run`` would refuse.
    """
    prepared = sendable(prepare(config))
    console = Output(highlight=False)
    rundir = RunDir(config.storage, config.name or "run")
    for line in header(prepared, str(rundir.spot())):
        console.print(line, soft_wrap=True)
    console.print(_data_line(prepared), soft_wrap=True)
    console.print(layers_table(prepared))
    console.print(rounds_table(prepared))
    for line in [*cost_lines(prepared), *mask_lines(prepared), *checkpoint_lines(prepared)]:
        console.print(line, soft_wrap=True)
    for line in [memory_line(prepared), *traffic_lines(prepared), *space_lines(prepared), *warnings(prepared)]:
        console.print(line, soft_wrap=True)
    for line in [*packing_lines(prepared, rundir.place), workers_line(prepared), *name_lines(prepared, rundir)]:
        console.print(line, soft_wrap=True)


def print_sweep_plan(sweep: Sweep) -> None:
    """Validate a sweep and print its settings, what they share, bytes and workers.

    Raises:
        UserError: Whatever ``swamp sweep`` would refuse.
    """
    # Ray Tune takes seconds to import, and a run's plan does without it.
    from swamp_ray.sweep.plan import plan_sweep
    from swamp_ray.sweep.search import check_search
    from swamp_ray.sweep.trackers import check_callbacks

    check_search(sweep)
    check_callbacks(sweep)
    plan = plan_sweep(sweep, device_kind(sweep.base), [this_machine()])
    check_search(sweep, plan.num_milestones)
    console = Output(highlight=False)
    for line in sweep_header(sweep):
        console.print(line, soft_wrap=True)
    if not sweep.config.is_adaptive:
        console.print(settings_table(sweep, plan))
    for key, reason in plan.invalid.items():
        console.print(f"[yellow]cannot run: {escape(describe(plan.excluded[key]))}: {escape(reason)}[/yellow]",
                      soft_wrap=True)
    for line in sweep_lines(sweep, plan):
        console.print(line, soft_wrap=True)
    for text in plan.remarks:
        console.print(f"[yellow]warning: {escape(text)}[/yellow]", soft_wrap=True)
    for line in _sweep_name_lines(sweep):
        console.print(line, soft_wrap=True)


def _sweep_name_lines(sweep: Sweep) -> list[str]:
    """Why ``swamp sweep`` would refuse the sweep's name: it was used with another space or base, or other code."""
    from swamp_ray.sweep.code_check import check_code
    from swamp_ray.sweep.run import check_space

    sweepdir = SweepDir(sweep.base.storage, sweep.name)
    try:
        check_space(sweep, sweepdir)
        check_code(sweep, sweepdir)
    except SwampError as error:
        return [f"[yellow]warning: swamp sweep would refuse this: {escape(str(error))}[/yellow]"]
    return []


def sweep_header(sweep: Sweep) -> list[str]:
    """Two lines that say what is swept and where its results go."""
    config = sweep.config
    base = sweep.base
    seeds = f"{len(config.seeds)} seed{'s' * (len(config.seeds) > 1)}"
    count = (f"{config.num_samples} settings by {config.search.name}" if config.is_adaptive
             else f"{len(sweep.settings())} settings")
    place = SweepDir(base.storage, sweep.name).spot()
    swept = {key.partition(".")[0] for key in [*config.space, *config.varied]}
    what = "" if swept & {"model", "data"} else f"{base.model.name} on {base.data.name}"
    return [f"[bold]{escape(sweep.name)}[/bold]: {count} of {escape(', '.join(config.space))}, each with {seeds}; "
            f"{what}",
            f"results in {display_path(str(place))}"]


def settings_table(sweep: Sweep, plan: SweepPlan) -> Table:
    """One row a setting, in the order of the file: its particles and epochs, what one of its seeds costs, workers."""
    table = _table("settings")
    for entry in sweep.config.space:
        table.add_column(f"\n{escape(entry)}")
    for heading in ("\nparticles", "\nepochs", "epochs\na seed", "one after\nthe other", "training\nFLOPs",
                    "with the\nmasks", "\nworkers"):
        table.add_column(heading, justify="right")
    for setting in sweep.settings():
        key = label(setting)
        found = plan.trainings.get(key)
        numbers = ("-",) * 7 if found is None else (
            str(sum(one.kind == "particle" for one in found)), f"{sum(one.epochs for one in found):,.4g}",
            *_cost_cells(plan.costs[key]), str(plan.workers[key]))
        table.add_row(*(escape(shown_value(value)) for value in setting.values()), *numbers)
    return table


def sweep_lines(sweep: Sweep, plan: SweepPlan) -> list[str]:
    """What is shared, written and compared."""
    config = sweep.config
    lines = []
    if not config.is_adaptive:
        at_most = "" if plan.is_exact else "at most "
        named = plan.named("particle")
        distinct = plan.num_distinct("particle")
        trunks = ""
        if plan.named("trunk"):
            trunks = f"{counted(plan.named('trunk'), 'trunk')}, {plan.num_distinct('trunk'):,} distinct; "
        lines.append(f"names {named:,} particles, of which {at_most}{distinct:,} are distinct and trained; "
                     f"{trunks}"
                     f"{counted(plan.named('dense'), 'dense phase')}, {plan.num_distinct('dense'):,} distinct; "
                     f"{plan.distinct_epochs:,.6g} epochs in all")
        free = free_bytes(sweep.base.storage)
        left = "" if free is None else f"; {size(free)} are free in {sweep.base.storage}"
        lines.append(f"writes about {size(plan.num_bytes)}{left}")
    if config.compares:
        milestones = ", ".join(percent(value) for value in config.at_sparsity) or "every round"
        lines.append(f"compares {config.metric} ({config.mode}) at {milestones}; search {config.search.name}, "
                     f"scheduler {config.scheduler.name}")
    return lines


def _data_line(prepared: Prepared) -> str:
    data = prepared.data
    return (f"data: {len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test "
            f"samples; {prepared.steps_per_epoch} steps of {prepared.config.training.batch_size} an epoch")


def layers_table(prepared: Prepared) -> Table:
    """Prunable tensors, and how many parameters are not pruned."""
    table = _table("prunable weights")
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("shape", "weights", "share"):
        table.add_column(heading, justify="right")
    total = prepared.layout.num_prunable
    names = told_apart([layer.name for layer in prepared.layout.layers], 120)
    for layer, name in zip(prepared.layout.layers, names, strict=True):
        shape = " x ".join(str(extent) for extent in layer.shape)
        table.add_row(escape(name), layer.kind, shape, f"{layer.size:,}", percent(layer.size / total))
    table.add_section()
    table.add_row("all", "", "", f"{total:,}", "")
    table.add_row("not pruned", "", f"{len(prepared.layout.rest)} tensors", f"{prepared.layout.num_rest:,}", "")
    return table


def rounds_table(prepared: Prepared) -> Table:
    """What each round trains; the second column gives the share of all parameters that are pruned."""
    table = _table("rounds")
    costs = planned_costs(prepared)
    for heading in ("\nround", "\nsparsity", "\nof all", "weights\nleft", "\nparticles", "steps\neach",
                    "epochs\nin all", "one after\nthe other", "training\nFLOPs", "with the\nmask"):
        table.add_column(heading, justify="right")
    if prepared.dense is not None:
        steps = prepared.dense.num_steps
        table.add_row("dense", "0.0 %", "0.0 %", f"{prepared.layout.num_prunable:,}", "1", f"{steps:,}",
                      *_cost_cells(costs.dense))
    for plan, cost in zip(prepared.plan, costs.rounds, strict=True):
        programs = [prepared.program(plan.index, particle) for particle in range(plan.num_particles)]
        steps = [program.num_steps for program in programs for _ in range(program.num_replicas)]
        each = f"{steps[0]:,}" if len(set(steps)) == 1 else f"{min(steps):,} to {max(steps):,}"
        of_all = percent(prepared.layout.sparsity_of_all(plan.survivors))
        trunk = prepared.trunk(plan.index)
        shared = 0 if trunk is None else trunk.num_steps
        if trunk is not None:
            each = f"{shared:,} + {each}"
        table.add_row(str(plan.index), percent(plan.sparsity), of_all, f"{plan.survivors:,}", str(len(steps)),
                      each, *_cost_cells(cost))
    if prepared.plan[0].has_trunk:
        table.caption = "steps each: of the round's trunk, then of each particle that parts from it"
        table.caption_justify = "left"
    return table


def _cost_cells(cost: Cost) -> tuple[str, str, str, str]:
    return (f"{cost.total_epochs:g}", f"{cost.critical_epochs:g}", short_flops(cost.dense_flops),
            short_flops(cost.sparse_flops))


def cost_lines(prepared: Prepared) -> list[str]:
    """What the whole run costs, and what of it is not known."""
    costs = planned_costs(prepared)
    text = f"costs {cost_text(costs.whole.as_dict())}"
    if prepared.flops.network is None:
        return [escape(f"{text}: {prepared.flops.reason}")]
    return [text if costs.has_layer_densities else f"{text}; for the masks every layer is taken to be equally dense"]


def mask_lines(prepared: Prepared) -> list[str]:
    """How the mask before training is chosen; nothing where each round's mask follows from the one before it."""
    program = prepared.mask
    if program is None:
        return []
    where = "the initialisation" if prepared.dense is None else "the end of the dense phase"
    if prepared.config.brings_weights:
        where = "the weights of start_from"
    steps = "at once" if program.steps == 1 else f"in {program.steps} steps"
    seen = "no data"
    if program.score not in SEES_NO_DATA:
        batches = "1 batch" if program.num_batches == 1 else f"{program.num_batches} batches"
        seen = f"{batches} of {prepared.config.training.batch_size}"
    return [f"mask before training: {escape(program.score)} of {where}, {steps}, sees {seen}"]


def checkpoint_lines(prepared: Prepared) -> list[str]:
    """How good a checkpoint is that weights are taken from, before anything is pruned or trained.

    One that is not taken whole is measured whole, if all of it fits: with layers that are not trained yet it says
    nothing.
    """
    if prepared.config.start_from is None or not prepared.config.brings_weights:
        return []
    with computing(), applied(prepared.arithmetic.alone):
        model = initial_model(prepared.config, prepared.data)
        if not skips_own(prepared.config, model):
            return [_quality(prepared, prepared.initial, "the checkpoint as it is")]
        if take_whole_start_(prepared.config, model, prepared.layout):
            return [_quality(prepared, state_of(model), "the checkpoint as it is, with what start_from.skip names")]
    return []


def _quality(prepared: Prepared, state: State, what: str) -> str:
    trainer = ParticleTrainer(prepared.config, prepared.data, prepared.arithmetic.alone)
    given = {**state.parameters, **state.buffers}
    with torch.no_grad():
        for name, tensor in [*trainer.model.named_parameters(), *trainer.model.named_buffers()]:
            tensor.copy_(torch.tensor(given[clean_name(name)]))
    name = shown_primary(prepared.task)
    found = trainer.metrics(("validation", "test"))
    return f"{what}: {name} " + ", ".join(
        f"{number(metrics[name], name)} on {split}" for split, metrics in found.items())


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", header_style="bold")


def memory_line(prepared: Prepared) -> str:
    """What a particle, or a pack of them, takes up on its device."""
    masked = len(prepared.plan) > 1 or not bool(prepared.first_mask.all()) or prepared.config.changes_mask
    width = prepared.arithmetic.width
    who = "device memory of a particle" if width == 1 else f"device memory of {width} packed particles"
    try:
        found = estimate_memory(prepared.config, prepared.data, prepared.arithmetic, masked=masked, num_members=width)
    except Exception as error:  # whatever the network raises in a step of another size; the run itself may well do
        return escape(f"{who}: not known ({type(error).__name__}: {error})".splitlines()[0])
    step = "a training step" if width == 1 else "training steps"
    return (f"{who}: about {size(found.num_bytes)} (weights, optimiser and means {size(found.weights)}, {step} "
            f"{size(found.step)}, data {size(found.data)})")


def packed_bytes(prepared: Prepared, survivors: int) -> int:
    """Bytes of a particle's state: 4 x (survivors + other parameters)."""
    return 4 * (survivors + prepared.layout.num_rest)


def traffic_lines(prepared: Prepared) -> list[str]:
    """What travels through the object store."""
    first = prepared.plan[0]
    last = prepared.plan[-1]
    mask = math.ceil(prepared.layout.num_prunable / 8)
    return [
        f"travels: rewind weights {size(prepared.initial.num_bytes)} once; a round's mask {size(mask)}; "
        f"a particle's state {size(packed_bytes(prepared, first.survivors))} in round 0, "
        f"{size(packed_bytes(prepared, last.survivors))} in round {last.index}",
        *object_store_lines(prepared),
    ]


def object_store_lines(prepared: Prepared) -> list[str]:
    """What the first round, the largest, keeps in the object store of a node with one worker and with all states."""
    if prepared.config.execution.executor == "inline":
        return []
    needs = round_bytes(prepared, prepared.plan[0])
    most = prepared.plan[0].num_particles
    waiting = min(most, prepared.config.execution.max_waiting_states)
    return [f"object store of a node: at least {size(needs.needed(1, 0))} in round 0, "
            f"{size(needs.needed(1, waiting))} with {waiting} states that wait"]


def space_lines(prepared: Prepared) -> list[str]:
    """What the run writes, against what is free."""
    space = estimate(prepared)
    there = f", {size(space.present_bytes)} of it is there already" if space.present_bytes else ""
    line = (f"writes about {size(space.kept_bytes)}, at its peak {size(space.peak_bytes)} "
            f"(keep.particles: {prepared.config.keep.particles}){there}")
    free = "" if space.free_bytes is None else f"; {size(space.free_bytes)} are free in {prepared.config.storage}"
    return [line + free, *([] if space.fits else [f"[red]warning: {space.advice}[/red]"])]


def warnings(prepared: Prepared) -> list[str]:
    """What is odd about the data, what else metrics depend on, and layers that are sure to be emptied."""
    odd = [*prepared.data.warnings, *prepared.notes, *prepared.short_trainings, *prepared.unreached_stages]
    texts = [*odd, *([prepared.caution] if prepared.caution else [])]
    return [f"[yellow]warning: {escape(text)}[/yellow]" for text in texts] + _emptied(prepared)


def name_lines(prepared: Prepared, rundir: RunDir) -> list[str]:
    """Why ``swamp run`` would refuse the run's name: it was used with another recipe, other data or other code."""
    if prepared.open_packings:  # how particles are packed is measured as the run starts
        return []
    try:
        check_name(rundir, knowing_older_runs(prepared, rundir.place))
    except SwampError as error:
        return [f"[yellow]warning: swamp run would refuse this: {escape(str(error))}[/yellow]"]
    return []


def _emptied(prepared: Prepared) -> list[str]:
    config = prepared.config.pruning
    layers = prepared.layout.layers
    if config.scope == "global":
        share = prepared.plan[-1].survivors / len(layers)
        if share < 1:
            return ["[yellow]warning: fewer weights than layers are left at the target[/yellow]"]
        return []
    counts = [int(np.count_nonzero(prepared.first_mask[layer.span])) for layer in layers]
    budgets = layer_budgets(prepared.layout, counts, prepared.plan[-1].survivors, config.scope)
    empty = [layer.name for layer, budget in zip(layers, budgets, strict=True) if budget == 0]
    return [f"[yellow]warning: the target leaves no weight in {', '.join(empty)}[/yellow]"] if empty else []


def packing_lines(prepared: Prepared, place: Place) -> list[str]:
    """How a worker trains several particles at a time; nothing where it trains one after the other."""
    packing = prepared.arithmetic.packing
    if prepared.open_packings:
        recorded = recorded_choice(prepared, place)
        if not recorded:
            choices = ', '.join(prepared.open_packings)
            damaged = "; an earlier choice in the storage cannot be read" if recorded == "" else ""
            return [f"packing: chosen from {choices} by a short measurement when a run starts{damaged}"]
        packing = recorded
    elif packing == SINGLE:
        return [f"packing: particles train one by one: {prepared.unpackable}"] if prepared.unpackable else []
    if packing == SINGLE:
        return ["packing: particles train one by one, as was measured in this storage"]
    form, width = form_and_width(packing)
    padding = [f"{plan.num_particles} in round {plan.index}" for plan in prepared.plan
               if form == "stacked" and plan.num_particles * prepared.num_members > 1
               and plan.num_particles * prepared.num_members % width]
    note = f"; packs that are not full are padded ({padding[0]})" if padding else ""
    return [f"packing: a worker trains {width} particles at a time, {WORDS[form]}{note}"]


def workers_line(prepared: Prepared) -> str:
    """Workers and waves on this machine, or why the plan cannot run here."""
    execution = prepared.config.execution
    most = max(plan.num_particles for plan in prepared.plan)
    if execution.executor == "inline":
        return "executor inline: one job at a time, in this process"
    ranks = prepared.arithmetic.ranks
    each = "" if ranks == 1 else f", each of {ranks} ranks"
    if execution.address is not None:
        return f"workers: as the cluster at {execution.address} has room for, at most {most}{each}"
    try:
        workers = pool_size(execution, prepared.arithmetic.device, prepared.most_packs, [this_machine()], ranks)
    except SwampError as error:
        return f"[red]on this machine it cannot run: {error}[/red]"
    waves = math.ceil(prepared.most_packs / workers)
    return (f"on this machine: {workers} worker{'s' * (workers > 1)}{each}, "
            f"{waves} wave{'s' * (waves > 1)} a round of {most} particles")
