"""The parts that the study is made of: each is done once a seed, and gives rows of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
from _study_frames import OVER_MEAN, WITH_AUGMENTATION
from _study_runs import DIVERGED, Attempt, Row, attempt, ensemble_rows, missing_rows, round_rows, row

from swamp_ray.analysis.bench import Bench, Point
from swamp_ray.analysis.paths import instability, line
from swamp_ray.analysis.sharpness import sharpness
from swamp_ray.analysis.swap import swap
from swamp_ray.config.reading import with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.storage.metrics import read_metrics

Frame = Any
"""A DataFrame or a Series."""
SECOND_SEED = 1000
"""Added to a study's seed for the second of two IMP solutions."""
SINGLE = {"particles.count": 1}
NO_SWA = {"averaging.within": "none", "averaging.lr": None}
IMP = SINGLE | NO_SWA


@dataclass(frozen=True)
class Context:
    """What a part works with.

    Attributes:
        base: The tier's config.
        arms: Its arms by name.
        chosen: Options that were chosen on validation, by the arm that takes them over.
    """

    base: SwampConfig
    arms: Mapping[str, Arm]
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def config_of(self, arm: Arm, seed: int, name: str | None = None, more: Mapping[str, Any] | None = None
                  ) -> SwampConfig:
        """The config of one run of an arm, with what was chosen for it.

        Args:
            arm: Which one.
            seed: The run's.
            name: Of the run; default: the arm's.
            more: Options that go before all others.
        """
        base = with_values(self.base, dict(self.chosen.get(arm.name, {})))
        return arm.config(base, seed, name, more)

    def run_of(self, arm: str, seed: int) -> Attempt:
        """The run of an arm; what the storage has of it is not trained again."""
        return attempt(self.config_of(self.arms[arm], seed))


class Part(Protocol):
    """Something to be done with a seed."""

    @property
    def name(self) -> str:
        """Its name in the results."""
        ...

    @property
    def stage(self) -> int:
        """Parts of a stage are done for all seeds before those of the next one begin."""
        ...

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """Its seeds; None: those of the tier."""
        ...

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Do it."""
        ...


@dataclass(frozen=True)
class Arm:
    """One way of pruning.

    Attributes:
        name: Of the arm.
        values: What differs from the tier's config.
        second: Whether a second run with another seed follows, for the ensemble of two solutions.
        lines: Whether lines between its networks are measured.
        stage, seeds: See :class:`Part`.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    second: bool = False
    lines: bool = False
    stage: int = 1
    seeds: tuple[int, ...] | None = None

    def config(self, base: SwampConfig, seed: int, name: str | None = None, more: Mapping[str, Any] | None = None
               ) -> SwampConfig:
        """The config of one run."""
        return with_values(base, {**self.values, **(more or {}), "seed": seed,
                                  "name": f"{name or self.name}-seed{seed}"})

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Its rounds, its lines, and the ensemble with its second solution."""
        done = attempt(context.config_of(self, seed))
        rows = _named(self.name, round_rows(done))
        if self.lines:
            rows += _named(self.name, line_rows(done))
        if self.second:
            other = attempt(context.config_of(self, seed + SECOND_SEED, f"{self.name}_second"))
            rows += _named(f"{self.name}_second", round_rows(other))
            rows += _named(f"{self.name}_ensemble", ensemble_rows(done, other))
        return rows


@dataclass(frozen=True)
class Choice:
    """One of the settings between which the study chooses, by an arm's accuracy on validation.

    Attributes:
        name: Of the part.
        question: What is chosen; settings of one question are compared with each other.
        arm: The arm that is trained with the setting, and with what earlier stages chose for it.
        setting: Options that the takers take over if this setting is chosen.
        takers: Arms that take it over.
        chain: Options of these short runs, e.g. the sparsities at which settings are compared.
        improves: An earlier question; its best setting stays if none of this one is better.
        stage, seeds: See :class:`Part`.
    """

    name: str
    question: str
    arm: str
    setting: Mapping[str, Any]
    takers: tuple[str, ...]
    chain: Mapping[str, Any]
    stage: int
    seeds: tuple[int, ...] | None = None
    improves: str | None = None

    def rows(self, context: Context, seed: int) -> list[Row]:
        """The rounds of its run."""
        config = context.config_of(context.arms[self.arm], seed, self.name.replace(" ", "-"),
                                   {**self.setting, **self.chain})
        return _named(self.name, round_rows(attempt(config)))


@dataclass(frozen=True)
class AsTrained:
    """What the networks of arms without SWA measure with the normalisation statistics that training left them."""

    arms: tuple[str, ...]
    stage: int
    name: str = "as_trained"
    seeds: tuple[int, ...] | None = None

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Means over particles, by round, split and metric."""
        rows = []
        for arm in self.arms:
            done = context.run_of(arm, seed)
            rows += _named(arm, missing_rows(done, ("as trained",)))
            if not done.records:
                continue
            frame: Frame = pd.DataFrame(read_metrics(done.rundir.metrics))
            means = frame[frame["kind"] == "particle_as_trained"].groupby("round").mean(numeric_only=True)
            for name in [name for name in means if "/" in name and means[name].notna().all()]:
                split, metric = name.split("/")
                rows += _named(arm, [row(record["round"], record["sparsity"], "as trained", split, metric,
                                         float(means[name][record["round"]])) for record in done.records])
        return rows


@dataclass(frozen=True)
class Augmented:
    """What the networks of arms measure with normalisation statistics of augmented training images, as in training.

    Attributes:
        arms: Whose networks.
        name, stage, seeds: See :class:`Part`.
    """

    arms: tuple[str, ...]
    stage: int
    name: str = "augmented"
    seeds: tuple[int, ...] | None = None

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Accuracy of every round's network on validation and test."""
        rows = []
        for arm in self.arms:
            done = context.run_of(arm, seed)
            rows += _named(arm, missing_rows(done, (WITH_AUGMENTATION,)))
            if not done.records:
                continue
            bench = Bench(done.rundir, done.prepared.data)
            for index in bench.rounds:
                metrics = bench.measure(bench.average(index), ("validation", "test"), "augmented")
                rows += _named(arm, [row(index, bench.sparsity(index), WITH_AUGMENTATION, split, metric, value)
                                     for split, found in metrics.items() for metric, value in found.items()])
        return rows


@dataclass(frozen=True)
class Curvature:
    """Curvature at the sparsest round: of each arm's network, and of the first particle of one with several.

    Attributes:
        arms: Whose networks.
        num_images, num_directions: See :func:`swamp_ray.analysis.sharpness.sharpness`.
        name, stage, seeds: See :class:`Part`.
    """

    arms: tuple[str, ...]
    num_images: int
    num_directions: int
    stage: int
    name: str = "curvature"
    seeds: tuple[int, ...] | None = None

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Estimates, with their standard errors beside them."""
        rows = []
        for arm in self.arms:
            done = context.run_of(arm, seed)
            if not done.is_complete:
                rows += _named(arm, _diverged(done))
                continue
            bench = Bench(done.rundir, done.prepared.data)
            index = bench.rounds[-1]
            for network, point in _networks(bench, index).items():
                found = sharpness(bench, index, point, self.num_images, self.num_directions)
                values = {"loss": found.loss, "trace": found.trace.mean, "trace error": found.trace.standard_error,
                          "scaled trace": found.scaled.mean, "scaled trace error": found.scaled.standard_error,
                          "largest": found.largest.value, "largest residual": found.largest.residual}
                rows += _named(arm, [row(index, bench.sparsity(index), f"curvature of {network}", "train", name,
                                         value) for name, value in values.items()])
        return rows


def _networks(bench: Bench, index: int) -> dict[str, Point]:
    particles = bench.particles(index)
    return {"average": bench.average(index), **({"particle": particles[0]} if len(particles) > 1 else {})}


def _named(arm: str, rows: Sequence[Row]) -> list[Row]:
    return [{"arm": arm, **row} for row in rows]


def _diverged(done: Attempt) -> list[Row]:
    """Says that there is no sparsest network to measure."""
    last = done.prepared.plan[-1]
    return [row(last.index, last.sparsity, DIVERGED, "train", DIVERGED, 1.0)]


def line_rows(done: Attempt) -> list[Row]:
    """Barriers, and the deepest dips, between two particles of each round and between successive averages."""
    if not done.records:
        return []
    bench = Bench(done.rundir, done.prepared.data)

    def measure(point: Any) -> dict[str, dict[str, float]]:
        return bench.measure(point, ("test",))

    rows = []
    for index, kind, first, second in _lines(bench):
        found = line(measure, first, second)
        for metric in ("loss", "error"):
            excess = found.excess("test", metric)
            measured = {"barrier": excess.max(), "dip": excess.min(),
                        OVER_MEAN: instability(found.values("test", metric).tolist())}
            rows += [row(index, bench.sparsity(index), f"{what} between {kind}", "test", metric, float(value))
                     for what, value in measured.items()]
    return rows


def _lines(bench: Bench) -> Iterator[tuple[int, str, Point, Point]]:
    for index in bench.rounds:
        first, second = bench.particles(index)[:2]
        yield index, "particles", first, second
        if index + 1 in bench.rounds:
            yield index, "rounds", bench.average(index), bench.average(index + 1)


@dataclass(frozen=True)
class Swap:
    """C7: the masks of two arms, each trained in both ways, at the sparsest round; and the masks shuffled in layers.

    Attributes:
        first, second: The arms.
        name, stage, seeds: See :class:`Part`.
    """

    first: str
    second: str
    stage: int
    name: str = "swap"
    seeds: tuple[int, ...] | None = None

    def rows(self, context: Context, seed: int) -> list[Row]:
        """Metrics of every cell; the arm is that whose training it is."""
        arms = {"first": self.first, "second": self.second}
        done = [context.run_of(arm, seed) for arm in arms.values()]
        if not all(one.is_complete for one in done):
            return [{"arm": arm, **one} for arm, run in zip(arms.values(), done, strict=True) if not run.is_complete
                    for one in _diverged(run)]
        found = swap(done[0].rundir, done[1].rundir)
        return [{"arm": arms[cell["training"]],
                 **row(cell["round"], cell["sparsity"],
                        f"{'shuffled ' if cell['shuffled'] else ''}mask of {arms[cell['mask']]}", split, metric, value)}
                for cell in found.rows for split, values in cell["average"].items() for metric, value in values.items()]
