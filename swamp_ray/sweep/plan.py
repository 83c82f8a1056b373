"""What a sweep would do, before it does it: which settings can run, what they share, how many workers each has.

Names of results depend on trained weights, which nobody knows yet. Here the *name* of a result stands for its bytes:
two particles have the same symbol exactly if they are made in the same way from the same starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep import SweepConfig
from swamp_ray.config.sweep_settings import Setting, Sweep, describe, label
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError, nearest
from swamp_ray.method.events import DENSE
from swamp_ray.on_ray.sending import sendable
from swamp_ray.run.capacity import Resources, capacity, pack_width, pool_size, worker_resources
from swamp_ray.run.costs import planned_costs
from swamp_ray.run.disk_space import RUN_BYTES, round_bytes, state_bytes, trunk_bytes
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.result_names import NamedResult, ResultNames
from swamp_ray.storage.names import name_of
from swamp_ray.storage.recipes import average_recipe
from swamp_ray.sweep.members import milestone_rounds
from swamp_ray.training.cost import Cost

TRIED = 20
"""An adaptive search's settings are not known beforehand: so many random ones are tried."""
SHOWN = 5
NETWORKS = ("average", "particles_mean", "particles_std")
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Training:
    """One training run that a sweep names; equal symbols are the same run."""

    symbol: str
    kind: str
    epochs: float
    num_bytes: int


@dataclass
class SweepPlan:
    """A sweep that can start.

    Attributes:
        settings: Those that can run, by label, in the order in which they should; empty for an adaptive search.
        invalid: Why the others cannot, by label.
        excluded: The settings of those.
        trainings: All that the settings name, dense phases included, by label; empty for an adaptive search.
        data: The decoded data by their section of the config.
        workers: Workers of each setting by label.
        remarks: What is odd about the data, the networks and the trainings of the settings, each once.
        num_milestones: Reports of a setting on its way; 0 where settings differ in it.
        example: One member of the sweep.
        is_exact: Whether equal symbols can be counted beforehand: not where the best particle goes on.
        record_bytes: What the runs' own files take up.
        costs: What one seed of each setting costs, by label; empty for an adaptive search.
    """

    settings: dict[str, Setting]
    example: Prepared
    num_milestones: int
    invalid: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, Setting] = field(default_factory=dict)
    trainings: dict[str, list[Training]] = field(default_factory=dict)
    data: dict[str, Data] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    is_exact: bool = True
    record_bytes: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)

    def named(self, kind: str) -> int:
        """How many trainings of a kind (``particle``, ``trunk``, ``dense``) the settings name."""
        return sum(one.kind == kind for found in self.trainings.values() for one in found)

    @property
    def distinct(self) -> dict[str, Training]:
        """Those that differ, by symbol."""
        return {one.symbol: one for found in self.trainings.values() for one in found}

    def num_distinct(self, kind: str) -> int:
        """How many trainings of a kind differ."""
        return sum(one.kind == kind for one in self.distinct.values())

    @property
    def distinct_epochs(self) -> float:
        """Epochs of the trainings that differ."""
        return sum(one.epochs for one in self.distinct.values())

    @property
    def num_bytes(self) -> int:
        """What the sweep writes at least: states, averages, tickets, records."""
        return sum(one.num_bytes for one in self.distinct.values()) + self.record_bytes

    def as_record(self) -> dict[str, int | float | bool]:
        """Plain values for ``sweep.json``."""
        return {
            "named": self.named("particle"), "distinct": self.num_distinct("particle"),
            "dense_named": self.named("dense"), "dense_distinct": self.num_distinct("dense"),
            "trunks_named": self.named("trunk"), "trunks_distinct": self.num_distinct("trunk"),
            "distinct_epochs": self.distinct_epochs, "bytes": self.num_bytes, "exact": self.is_exact,
        }


def _remarks(members: Iterable[Prepared]) -> list[str]:
    """What is odd about the data, the networks and the trainings of the settings, each once."""
    texts: dict[str, None] = {}
    for member in members:
        odd = [*member.data.warnings, *member.notes, *member.short_trainings, *member.unreached_stages]
        texts |= dict.fromkeys(odd)
        if member.caution:
            texts[member.caution] = None
    return list(texts)


def plan_sweep(sweep: Sweep, device: str, nodes: Sequence[Resources]) -> SweepPlan:
    """Check all settings (of an adaptive search some), and see what they share.

    Args:
        sweep: The sweep.
        device: Kind of device that particles train on.
        nodes: Resources of each node.

    Raises:
        UserError: No setting is valid or fits the cluster; a milestone or the metric fits none of them.
    """
    tried = sweep.sample(TRIED) if sweep.config.is_adaptive else sweep.settings()
    data: dict[str, Data] = {}
    members: dict[str, Prepared] = {}
    settings: dict[str, Setting] = {}
    invalid: dict[str, str] = {}
    excluded: dict[str, Setting] = {}
    workers: dict[str, int] = {}
    for setting in tried:
        key = label(setting)
        try:
            member = _example(sweep, setting, device, data)
            workers[key] = setting_workers(sweep, setting, device, nodes)
            members[key], settings[key] = member, setting
        except UserError as error:
            invalid[key], excluded[key] = str(error), setting
    if not members:
        raise _nothing_works(excluded, invalid)
    example = next(iter(members.values()))
    check_metric(sweep.config, example)
    plan = SweepPlan(settings, example, _num_milestones(sweep, members, settings), invalid, excluded, data=data,
                     workers=workers, remarks=_remarks(members.values()))
    if sweep.config.is_adaptive:
        plan.settings = {}
        return plan
    for key, member in members.items():
        plan.trainings[key] = [one for number, seed in enumerate(sweep.config.seeds)
                               for one in trainings(member, seed, number % member.num_members)]
        plan.costs[key] = planned_costs(member).whole
        plan.is_exact = plan.is_exact and not _chooses(member)
        plan.record_bytes += len(sweep.config.seeds) * (
            RUN_BYTES + sum(round_bytes(member, one) for one in member.plan))
    plan.settings = {key: settings[key] for key in _leaders_first(plan.trainings)}
    return plan


def num_workers(config: SwampConfig, device: str, nodes: Sequence[Resources], num_seeds: int = 1,
                num_settings: int | None = None) -> int:
    """Workers of a setting: one for each particle of its largest round, as far as the cluster holds them.

    More, at most one for each particle of every seed, where the setting's share of the cluster is larger than that.

    Args:
        config: Any member of the setting.
        device: Kind of device that particles train on.
        nodes: Resources of each node.
        num_seeds: Seeds of the setting, whose particles share the workers.
        num_settings: How many share the cluster; None: very many.

    Raises:
        UserError: Not one fits, or not as many as ``execution.num_workers`` says.
    """
    if config.execution.executor == "inline":
        return 1
    stages = [stage.count for stage in config.particles.schedule if stage.sparsity <= config.pruning.target]
    particles = max([config.particles.count, *stages])
    execution = config.execution
    share = 0
    if execution.num_workers is not None:
        share = execution.num_workers
    elif num_settings is not None:
        share = capacity(nodes, worker_resources(execution, device)) // num_settings
    packs = [math.ceil(jobs / pack_width(execution)) for jobs in (particles, particles * num_seeds)]
    return pool_size(execution, device, min(packs[1], max(packs[0], share)), nodes)


def setting_workers(sweep: Sweep, setting: Setting, device: str, nodes: Sequence[Resources]) -> int:
    """Workers of a sweep's setting, see :func:`num_workers`."""
    config = sweep.config
    count = config.num_samples if config.is_adaptive else len(sweep.settings())
    at_a_time = min(count, config.execution.max_concurrent or count)
    return num_workers(sweep.member(setting, config.seeds[0]), device, nodes, len(config.seeds), at_a_time)


def data_key(config: SwampConfig) -> str:
    """What configs that read the same data in the same form have in common."""
    return f"{config.data.model_dump_json()} for {config.task.name}"


class _Symbols:
    """Names in place of digests: equal names stand for equal results, whatever these will be."""

    def state(self, result: NamedResult) -> str | None:
        """The name itself; of an average's weights, which do not depend on the next mask, a name of their recipe."""
        if result.job.kind == "average":
            return name_of("values", {"of": average_recipe(result.named)})
        return result.named.name

    def best(self, states: Sequence[str]) -> str | None:
        """A name of all that it is chosen from."""
        return name_of("best", {"of": list(states)})

    def soup(self, states: Sequence[str]) -> str | None:
        """A name of all that may enter."""
        return name_of("greedy", {"of": list(states)})

    def own_mask(self, particle: NamedResult) -> str | None:
        """A name of its own, made from the training's."""
        return name_of("own mask", {"of": particle.named.name})

    def next_mask(self, result: NamedResult) -> str | None:
        """The name of what it is chosen from, or chosen by."""
        return result.named.name


def trainings(example: Prepared, seed: int, member: int = 0) -> Iterator[Training]:
    """The training runs of a setting's member with some seed, by symbol."""
    prepared = replace(example, config=example.config.model_copy(update={"seed": seed}), member=member)
    names = ResultNames(prepared)
    first = names.first_origin()
    if not prepared.config.brings_weights:
        start = name_of("initialisation", {"seed": seed, "data": prepared.recipes.training_data})
        first = replace(first, start=start)
    for result in names.in_order(_Symbols(), first):
        if result.program is None:
            continue
        dense = result.job == DENSE
        survivors = prepared.layout.num_prunable if dense else prepared.plan[result.job.round].survivors
        epochs = result.program.num_replicas * result.program.num_steps / prepared.steps_per_epoch
        num_bytes = state_bytes(prepared, survivors)
        if result.job.kind == "trunk":
            num_bytes = trunk_bytes(prepared, prepared.plan[result.job.round])
        yield Training(result.named.name, result.job.kind, epochs, num_bytes)


def check_metric(config: SweepConfig, prepared: Prepared) -> None:
    """Refuse a metric that no member reports, or one that is compared the wrong way round.

    Raises:
        UserError: With the metrics that there are, or the mode that fits.
    """
    metric = config.metric
    task = prepared.task
    known = [f"{network}/{split}/{name}" for network in NETWORKS for split in SPLITS for name in prepared.metrics]
    if metric not in known:
        word = f"average/validation/{metric}" if metric in prepared.metrics else metric
        raise UserError("no setting reports this metric", got=metric, where="metric",
                        do=f"{nearest(word, known)} There are: {', '.join(known)}.".strip())
    name = metric.rpartition("/")[2]
    fits = {"loss": "min", task.primary: "max" if task.higher_is_better else "min"}.get(name, config.mode)
    if config.compares and not metric.startswith("particles_std/") and config.mode != fits:
        raise UserError(f"of {name} the {'highest' if fits == 'max' else 'lowest'} value is the best", got=config.mode,
                        where="mode", do=f"Set mode: {fits}.")


def _example(sweep: Sweep, setting: Setting, device: str, data: dict[str, Data]) -> Prepared:
    """A setting's first member, checked; data are read once."""
    config = sweep.member(setting, sweep.config.seeds[0])
    key = data_key(config)
    if key not in data:
        data[key] = load_data(config.data, config.task)
    num_members = members_of(config, len(sweep.config.seeds))
    return sendable(prepare(config, device, data[key], num_members))


def members_of(config: SwampConfig, num_seeds: int) -> int:
    """How many of a setting's seeds share workers: without Ray they run one after the other."""
    return 1 if config.execution.executor == "inline" else num_seeds


def _num_milestones(sweep: Sweep, members: Mapping[str, Prepared], settings: Mapping[str, Setting]) -> int:
    """Reports that all settings give on their way. Raises UserError if one gives fewer than there are milestones."""
    wanted = sweep.config.at_sparsity
    counts = {key: len(milestone_rounds(member.plan, wanted)) for key, member in members.items()}
    short = [key for key, count in counts.items() if wanted and count < len(wanted)]
    if short:
        member = members[short[0]]
        raise UserError(f"every setting must reach the sparsity {wanted[-1]:g}, but {describe(settings[short[0]])} "
                        f"ends at {member.plan[-1].sparsity:.4g}", where="at_sparsity",
                        do="Lower the last milestone, or raise pruning.target.")
    return max(counts.values()) if len(set(counts.values())) == 1 else 0


def _nothing_works(excluded: Mapping[str, Setting], invalid: Mapping[str, str]) -> UserError:
    lines = [f"{describe(excluded[key])}: {reason}" for key, reason in list(invalid.items())[:SHOWN]]
    more = f"\n  and {len(invalid) - SHOWN} more" if len(invalid) > SHOWN else ""
    tried = "none of its settings can run" if len(invalid) > 1 else "its only setting cannot"
    return UserError(f"the sweep cannot start, because {tried}:\n  " + "\n  ".join(lines) + f"{more}\n",
                     where="space")


def _chooses(prepared: Prepared) -> bool:
    """Whether some round goes on with some of its particles, and it is not known beforehand with which."""
    return prepared.config.particles.combine != "average" and any(plan.num_particles > 1 for plan in prepared.plan)


def _leaders_first(named: Mapping[str, list[Training]]) -> list[str]:
    """Long settings that share less than half of their work with those before come first, then the others.

    Two that share most of their work and run at the same time would wait for each other; one that comes later finds
    it done.
    """
    epochs = {key: sum(one.epochs for one in found) for key, found in named.items()}
    led: list[str] = []
    leading: list[str] = []
    taken: set[str] = set()
    for key in sorted(named, key=lambda key: -epochs[key]):
        shared = sum(one.epochs for one in named[key] if one.symbol in taken)
        if shared < epochs[key] / 2:
            leading.append(key)
            taken.update(one.symbol for one in named[key])
        else:
            led.append(key)
    return [*leading, *led]
