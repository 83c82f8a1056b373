"""Everything that is known, and checked, before any work starts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.credentials import concealed_tree
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.errors import RunError, UserError
from swamp_ray.method.events import RoundPlan
from swamp_ray.method.rounds import plan_rounds
from swamp_ray.process_state import computing, threads_of
from swamp_ray.run.first_mask import dynamic_first_mask, refuse_idle_updates
from swamp_ray.run.run_recipes import recipes_of
from swamp_ray.run.shared_code import NO_CODE, Code, import_paths, take_up
from swamp_ray.run.starting_weights import take_start_
from swamp_ray.run.state import State, state_of
from swamp_ray.run.trial_step import try_out
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.masks import Layout, clean_name, find_prunable, flatten, prunable_tensors, to_bits
from swamp_ray.sparsity.schedule import plan_survivors, survivors_at
from swamp_ray.sparsity.scores import Survivors, checked_scores, make_score
from swamp_ray.sparsity.structure import check_structure
from swamp_ray.sparsity.unit_selection import plan_units
from swamp_ray.storage.recipes import Recipes
from swamp_ray.structure import parse_structure
from swamp_ray.text.tables import counted
from swamp_ray.training.arithmetic import (
    SINGLE,
    Arithmetic,
    form_and_width,
    machine_facts,
    packings,
    resolve_arithmetic,
)
from swamp_ray.training.flops import CountedFlops
from swamp_ray.training.mask_before import MaskProgram, check_network_score, mask_program
from swamp_ray.training.network_scores import ONLY_BEFORE, make_network_score
from swamp_ray.training.normalisation import batch_statistics_warning, forward_batch
from swamp_ray.training.normalisation_checks import (
    small_batch,
)
from swamp_ray.training.packs.packable import why_unpackable
from swamp_ray.training.program import (
    Program,
    dense_phase,
    has_short_warmup,
    is_too_short,
    round_program,
    trunk_program,
)
from swamp_ray.training.state_dict import (
    StateDictContents,
    state_dict_contents,
    usage_facts,
)
from swamp_ray.training.tasks import build_task
from swamp_ray.training.trainer import initial_model, steps_per_epoch
from swamp_ray.user_code.importing import is_import_path, refuse_main


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: The run.
        data: Its decoded data.
        layout: Prunable weights and the rest.
        arithmetic: Device kind, precision, layout, threads.
        facts: Versions and hardware, recorded.
        initial: The network at its initialisation, or as ``start_from`` gave it.
        first_mask: Mask of round 0, or what a mask before training is chosen from, bool ``[P]``.
        plan: All rounds.
        mask: How the mask before training is chosen; None where each round's mask follows from the one before it.
        dense: Program of the dense phase; None if there is none.
        recipes: The names of results.
        tied: Names of parameters by the further names that the model knows them by.
        metrics: Names of the task's metrics.
        num_members: How many runs, which differ in their seed alone, share the workers.
        member: Which of them this is.
        open_packings: Forms and widths of packing that have to be chosen from; empty once it is decided.
        unpackable: Why some forms do not come into question for this network.
        notes: What is odd about the network's prunable weights, the checkpoint that it starts from, and user code.
        caution: What its user should know of the network's metrics; empty for most.
        code: The user code that every worker must have.
        contents: What the network's ``state_dict()``, and so a ticket, holds.
        flops: Of a forward pass of one sample, or why they cannot be counted.
    """

    config: SwampConfig
    data: Data
    layout: Layout
    arithmetic: Arithmetic
    facts: dict[str, str]
    initial: State
    first_mask: np.ndarray
    plan: list[RoundPlan]
    dense: Program | None
    steps_per_epoch: int
    recipes: Recipes
    tied: dict[str, str]
    task: Any
    metrics: tuple[str, ...] = ()
    num_members: int = 1
    member: int = 0
    open_packings: tuple[str, ...] = ()
    unpackable: str = ""
    mask: MaskProgram | None = None
    caution: str = ""
    notes: tuple[str, ...] = ()
    code: Code = NO_CODE
    contents: StateDictContents = field(default_factory=lambda: StateDictContents({}, {}))
    flops: CountedFlops = field(default_factory=CountedFlops)

    def program(self, round_index: int, particle: int) -> Program:
        """What a particle does; what follows the trunk, where its round has one."""
        return round_program(self.config, self.steps_per_epoch, round_index, particle, self._stage(round_index))

    def trunk(self, round_index: int) -> Program | None:
        """What a round's particles share: the training from whose end they part; None without a trunk."""
        return trunk_program(self.config, self.steps_per_epoch, round_index, self._stage(round_index))

    def _stage(self, round_index: int) -> float:
        """The sparsity by which a round's stage is found: half a weight is added, since a round keeps whole ones."""
        return self.plan[round_index].sparsity + 0.5 / self.layout.num_prunable

    @property
    def unreached_stages(self) -> list[str]:
        """What to say of stages by sparsity that no round reaches."""
        stages = {"particles.schedule": [stage.sparsity for stage in self.config.particles.schedule]}
        if isinstance(self.config.averaging.lr, tuple):
            stages["averaging.lr"] = [stage.sparsity for stage in self.config.averaging.lr]
        sparsest = self._stage(len(self.plan) - 1)
        found = []
        for option, sparsities in stages.items():
            for sparsity in sparsities:
                if sparsity > sparsest:
                    found.append(f"no round reaches the stage of {option} that begins at {sparsity:g}: the sparsest "
                                 f"has {self.plan[-1].sparsity:.4g}")
        return found

    @property
    def short_trainings(self) -> list[str]:
        """What to say where trainings are too short for the default snapshots or warm-up; empty where they are not."""
        first = self.plan[0]
        programs = [self.program(first.index, particle) for particle in range(first.num_particles)]
        short = [one.num_steps for one in programs if is_too_short(self.config, one)]
        cold = [one.num_steps for one in programs if has_short_warmup(self.config, one)]
        if cold:
            return [f"a training of {min(cold)} steps is too short for a warm-up of one epoch. Its first half is the "
                    "warm-up. Train longer, or set training.schedule.warmup"]
        if not short:
            return []
        forked = self.config.particles.fork_at > 0
        where = "what follows the fork" if forked else "its last quarter"
        options = "particles.fork_at and averaging.every" if forked else "averaging.start and averaging.every"
        every = self.config.averaging.every
        steps = counted(min(short), "step")
        return [f"a training of {steps} is too short for averaging.every: {every} in {where}. SWA takes one snapshot "
                f"there, the last weights. Train longer, or set {options}"]

    def packing(self, round_index: int) -> str:
        """How workers train the particles of a round: a single one is not stacked with padding."""
        arithmetic = self.arithmetic
        if arithmetic.form == "stacked" and self.plan[round_index].num_particles * self.num_members == 1:
            return SINGLE
        return arithmetic.packing

    def seat(self, round_index: int, particle: int) -> int:
        """Where a particle sits in its pack; those of the members follow each other."""
        width = self.arithmetic.packed(self.packing(round_index)).width
        return (self.member * self.plan[round_index].num_particles + particle) % width

    def named_packing(self, round_index: int, particle: int) -> str:
        """What of it enters a particle's name.

        The last bits of a stacked particle depend on its seat, because libraries treat the last of many channels in
        another way than those before; they do not depend on what its neighbours are. Graphs do not depend on either.
        """
        arithmetic = self.arithmetic.packed(self.packing(round_index))
        if arithmetic.form == "stacked":
            return f"{arithmetic.packing}:{self.seat(round_index, particle)}"
        return "graphs" if arithmetic.form == "graphs" else arithmetic.packing

    def tensors(self, state: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """What a ticket holds of a network's parameters and buffers."""
        return self.contents.tensors(state, lambda: initial_model(self.config, self.data))

    @property
    def use(self) -> dict[str, Any]:
        """What a ticket says of its network, for those who use it."""
        model = concealed_tree(self.config.model.model_dump(mode="json"))
        use = {"model": model, **usage_facts(self.config, self.data, self.task)}
        return use | ({"extra_state": dict(self.contents.plain)} if self.contents.plain else {})

    @property
    def most_jobs(self) -> int:
        """The most particles that are there to be trained at a time."""
        return max(plan.num_particles for plan in self.plan) * self.num_members

    @property
    def most_packs(self) -> int:
        """The most workers that have something to do at a time."""
        return max(math.ceil(plan.num_particles * self.num_members / self.arithmetic.packed(
            self.packing(plan.index)).width) for plan in self.plan)

    @property
    def whole_mask(self) -> np.ndarray:
        """Mask of the dense phase, bool ``[P]``."""
        return np.ones(self.layout.num_prunable, dtype=bool)

    def packed(self, packing: str) -> Prepared:
        """The same run, its packing decided."""
        arithmetic = self.arithmetic.packed(packing)
        return replace(self, arithmetic=arithmetic, open_packings=())

    def particle_seed(self, round_index: int, particle: int, attempt: int = 0) -> int:
        """The seed of a particle, or with round -1 of the dense phase; never a function of how many there are."""
        number = round_index if round_index < 0 else round_index + self.config.first_round
        return derive_seed(self.config.seed, "particle", number, particle, attempt)

    def trunk_seed(self, round_index: int, attempt: int = 0) -> int:
        """The seed of a round's trunk."""
        return derive_seed(self.config.seed, "trunk", round_index + self.config.first_round, attempt)


def device_kind(config: SwampConfig, num_gpus: float | None = None) -> str:
    """``"cuda"`` or ``"cpu"``: as configured, else whether the machine (or the cluster) has GPUs."""
    if config.execution.device != "auto":
        return config.execution.device
    if num_gpus is not None:
        return "cuda" if num_gpus > 0 else "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(
    config: SwampConfig, device: str | None = None, data: Data | None = None, num_members: int = 1
) -> Prepared:
    """Load the data, build the network, plan all rounds.

    Args:
        config: The run.
        device: Kind of device that particles will train on; default: what this machine has.
        data: What ``load_data`` gave for the same section before.
        num_members: How many runs, which differ in their seed alone, will share the workers.

    Raises:
        UserError: Whatever is wrong with config, data, network or task.
    """
    # Decompositions of matrices, as in orthogonal initialisation, have other last bits with other numbers of threads.
    with computing(), threads_of(config.execution.threads):
        return _prepare(config, device, data, num_members)


def _prepare(config: SwampConfig, device: str | None, data: Data | None, num_members: int) -> Prepared:
    code = take_up_code(config, data)
    task = build_task(config.task)
    check_score_name(config)
    data = data or load_data(config.data, config.task)
    steps = steps_per_epoch(config, data)
    model = initial_model(config, data)
    layout = find_prunable(model, config.pruning.include, config.pruning.exclude)
    contents = state_dict_contents(model, layout)
    if config.pruning.when == "rounds":
        _check_score(config, model, layout)
    metrics, kept, notes, flops, model = try_out(config, data, model, task, layout)
    if config.pruning.when == "before":
        check_network_score(config, data, layout, task, kept)
    first_mask, start_notes = take_start_(config, model, layout)
    if config.pruning.when == "dynamic":
        first_mask = dynamic_first_mask(config, layout, first_mask)
    initial = state_of(model)
    plan = _plan(config, layout, first_mask)
    device = device or device_kind(config)
    arithmetic = resolve_arithmetic(config.execution, device, model, config.particle.num_workers)
    most = max(one.num_particles for one in plan) * num_members
    choice, unpackable = _packings(config, device, most, (data, model, task))
    if len(choice) == 1:
        arithmetic = arithmetic.packed(choice[0])
    facts = machine_facts()
    prepared = Prepared(
        config=config, data=data, layout=layout, arithmetic=arithmetic, facts=facts, initial=initial,
        first_mask=first_mask, plan=plan, dense=dense_phase(config, steps), steps_per_epoch=steps,
        mask=mask_program(config, data, task, plan[0].survivors, steps),
        recipes=recipes_of(config, data, model, task, kept, layout, arithmetic, facts),
        tied=tied_names(model), task=task, metrics=metrics, num_members=num_members,
        open_packings=tuple(choice) if len(choice) > 1 else (), unpackable=unpackable,
        caution=batch_statistics_warning(model, forward_batch(config)), contents=contents,
        notes=(*notes, *start_notes, *_code_notes(config, code)),
        code=code_of_workers(code, config, data), flops=flops)
    _check_programs(prepared)
    code.check_unchanged()
    return prepared


def check_score_name(config: SwampConfig) -> None:
    """Refuse a score that does not exist, or not at the time when the run prunes.

    Raises:
        UserError: There is none, or it cannot be imported.
    """
    name = config.pruning.score
    if config.pruning.when == "before":
        make_network_score(name, seed=0)
    elif name in ONLY_BEFORE:
        raise UserError(f"{name} scores a network before it is trained", got="pruning.when: rounds",
                        where="pruning.score", do="Set pruning.when: before.")
    else:
        make_score(name, seed=0)


def _plan(config: SwampConfig, layout: Layout, mask: np.ndarray) -> list[RoundPlan]:
    """All rounds, from the first mask, or from what is pruned before the only round."""
    pruning = config.pruning
    start = int(mask.sum())
    structure = parse_structure(pruning.structure)
    if structure is not None:
        check_structure(layout, structure)
    if pruning.when == "before":
        survivors = [survivors_at(layout.num_prunable, pruning.target, start)]
    elif config.changes_mask:
        # The particles of a mask that changes are replicas in one training.
        return plan_rounds(layout.num_prunable, [survivors_at(layout.num_prunable, pruning.target, start)], [1])
    elif structure is not None:
        survivors = plan_units(layout, structure, pruning.scope, pruning.rate, pruning.target, mask)
    else:
        survivors = plan_survivors(layout.num_prunable, pruning.rate, pruning.target,
                                   None if start == layout.num_prunable else start)
    sparsities = [1 - kept / layout.num_prunable for kept in survivors]
    half_a_weight = 0.5 / layout.num_prunable + 1e-12
    counts = [config.particles.at(sparsity, half_a_weight) for sparsity in sparsities]
    return plan_rounds(layout.num_prunable, survivors, counts, has_trunk=config.particles.fork_at > 0)


def take_up_code(config: SwampConfig, data: Data | None) -> Code:
    """The run's user code, imported as its files are now; that of data which are there already is not needed."""
    paths = import_paths(config)
    if data is not None and not isinstance(data.train, LazySamples):
        paths.pop("data.name", None)
    return take_up(paths)


def _code_notes(config: SwampConfig, code: Code) -> tuple[str, ...]:
    """Data are digested as they are, so that their code is in no name."""
    return code.notes({"model.name": config.model.version, "task.name": config.task.version,
                       "pruning.score": config.pruning.version})


def code_of_workers(code: Code, config: SwampConfig, data: Data) -> Code:
    """What of it workers run: of the data only what reads samples while training."""
    if not isinstance(data.train, LazySamples):
        code = code.without("data.name")
    if config.execution.executor == "ray":
        refuse_main(code.paths)
    return code


def tied_names(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters and the name that stands for each of them."""
    first = {id(parameter): clean_name(name) for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {clean_name(name): first[id(p)] for name, p in every if clean_name(name) != first[id(p)]}


def _check_programs(prepared: Prepared) -> None:
    """Every program of the run is built once, so that an impossible one is refused now and not in round 7."""
    for plan in prepared.plan:
        for particle in range(plan.num_particles):
            program = prepared.program(plan.index, particle)
            refuse_idle_updates(prepared.layout, prepared.first_mask, program)


def _check_score(config: SwampConfig, model: nn.Module, layout: Layout) -> None:
    """A score of the user's is tried on the initial weights, so that a broken one is not found after a round."""
    if not is_import_path(config.pruning.score):
        return
    weights = flatten(prunable_tensors(model, layout))
    everything = to_bits(np.ones(layout.num_prunable, dtype=bool))
    survivors = Survivors(layout, everything, weights, lambda layer: weights[layer.span])
    # Untrained weights may well give NaN, as a share of the change does: it counts only once there is training.
    with contextlib.suppress(RunError):
        checked_scores(make_score(config.pruning.score, seed=0), survivors)


def _packings(
    config: SwampConfig, device: str, num_jobs: int, parts: tuple[Data, nn.Module, Any]
) -> tuple[list[str], str]:
    """The forms and widths of packing that come into question, and why others do not; a single one is decided.

    Raises:
        UserError: Packing is asked for, and this network cannot be packed.
    """
    asked = packings(config.execution, device, num_jobs)
    data, model, task = parts
    possible = []
    reasons = {}
    for form in dict.fromkeys(form_and_width(packing)[0] for packing in asked):
        batch = small_batch(config, data) if form != "single" else None
        if form != "single" and (reason := why_unpackable(model, task, batch, form)) is not None:
            reasons[form] = reason
            continue
        possible += [packing for packing in asked if packing.startswith(f"{form}:")]
    if not possible:
        raise UserError(f"particles of {config.model.name} cannot be packed: {next(iter(reasons.values()))}",
                        where="execution.particles_per_worker", do="Set it to 1, or to auto.")
    return possible, next(iter(reasons.values()), "")
