"""What names each result of a run: the dense phase, particles, averages and evaluations.

The driver names a result when its turn comes. `swamp check` and sweeps name all of them beforehand, as far as their
names follow from what is known. Both ask :class:`ResultNames`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from swamp_ray.method.events import DENSE, MASK, Job, RoundPlan, trunk_of
from swamp_ray.run.prepare import Prepared
from swamp_ray.storage.recipes import Named
from swamp_ray.training.arithmetic import SINGLE
from swamp_ray.training.program import Program


@dataclass(frozen=True)
class Origin:
    """What the results of a round are made from, as digests.

    Attributes:
        start: Of the rewind weights, or of the initialisation.
        mask: Of the round's mask.
        values: Of the surviving weights, where they are not rewound.
        trunk: Of the state from which the round's particles part; None without a trunk, and before it has trained.
    """

    start: str
    mask: str
    values: str | None = None
    trunk: str | None = None


@dataclass(frozen=True)
class NamedResult:
    """A result and its name; ``program`` and ``seed`` of a training run."""

    job: Job
    named: Named
    program: Program | None = None
    seed: int = 0


NamesUpTo = Generator[NamedResult, None, Origin | None]
"""Names results, and gives what the next are made from; None where that is not known."""


class KnownResults(Protocol):
    """What is known of a run's results before it has been carried out."""

    def state(self, result: NamedResult) -> str | None:
        """Digest of the state that a training run or an average has left; None if it is not known."""
        ...

    def best(self, states: Sequence[str]) -> str | None:
        """Digest of the state that goes on alone where the best one does; None if it is not known."""
        ...

    def soup(self, states: Sequence[str]) -> str | None:
        """Digest of what stands for the states that enter a greedy soup; None if it is not known which these are."""
        ...

    def own_mask(self, particle: NamedResult) -> str | None:
        """Digest of the mask that a training has ended with, where its mask changes; None if it is not known."""
        ...

    def next_mask(self, result: NamedResult) -> str | None:
        """Digest of the mask that was chosen from an average, or before training; None if it is not known."""
        ...


class ResultNames:
    """Names the results of one run."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def first_origin(self) -> Origin:
        """What the dense phase is made from, or where there is none the mask before training, or round 0."""
        prepared = self._prepared
        recipes = prepared.recipes
        mask = prepared.first_mask if prepared.dense is None else prepared.whole_mask
        initial = recipes.state_digest(prepared.initial.parameters, prepared.initial.buffers)
        return Origin(initial, recipes.mask_digest(mask))

    def training(self, job: Job, origin: Origin, reseed: int = 0) -> NamedResult:
        """The dense phase, a trunk or a particle; ``reseed``: how many of its seeds have diverged."""
        prepared = self._prepared
        if job.kind == "trunk":
            return self._trunk(job, origin, reseed)
        packing = SINGLE
        if job == DENSE:
            assert prepared.dense is not None
            program = prepared.dense
            seed = prepared.particle_seed(-1, 0, reseed)
        else:
            program = prepared.program(job.round, job.particle)
            seed = prepared.particle_seed(job.round, job.particle, reseed)
            packing = prepared.named_packing(job.round, job.particle)
        trunk = None if job == DENSE else origin.trunk
        named = prepared.recipes.training(
            program.as_dict(), seed, origin.start, origin.mask, origin.values, packing, trunk)
        return NamedResult(job, named, program, seed)

    def _trunk(self, job: Job, origin: Origin, reseed: int) -> NamedResult:
        program = self._prepared.trunk(job.round)
        assert program is not None
        seed = self._prepared.trunk_seed(job.round, reseed)
        named = self._prepared.recipes.training(
            program.as_dict(), seed, origin.start, origin.mask, origin.values, kind="trunk")
        return NamedResult(job, named, program, seed)

    def mask(self, origin: Origin) -> NamedResult:
        """The mask before training; its origin has the mask that survivors are chosen from."""
        program = self._prepared.mask
        assert program is not None
        named = self._prepared.recipes.mask(program.as_dict(), origin.mask, origin.start)
        return NamedResult(MASK, named, seed=program.seed)

    def average(self, index: int, states: Sequence[str], origin: Origin) -> NamedResult:
        """A round's average and its next mask, from the digests of the states that enter, in order."""
        seed = self._prepared.particle_seed(index, -1)
        following = self._prepared.plan[index].next_survivors
        named = self._prepared.recipes.average(list(states), origin.mask, origin.start, following, seed)
        return NamedResult(Job("average", index), named, seed=seed)

    def soup(self, job: Job, states: Sequence[str], origin: Origin) -> NamedResult:
        """The metrics of an average of some of a round's particles, from the digests of their states, in order."""
        return NamedResult(job, self._prepared.recipes.soup(list(states), origin.mask, origin.start))

    def evaluation(self, index: int, state: str, origin: Origin) -> NamedResult:
        """The metrics of a round's average, from the digest of its state."""
        named = self._prepared.recipes.evaluation(state, origin.mask, origin.start)
        return NamedResult(Job("evaluation", index), named)

    def in_order(self, known: KnownResults, first: Origin | None = None) -> Iterator[NamedResult]:
        """Name the run's results in the order in which it needs them, as far as they follow from what is known.

        Args:
            known: Asked for the digests that the next names depend on; with the first None the names end.
            first: What the first result is made from; default: the initialisation.
        """
        origin = yield from self._before_rounds(first or self.first_origin(), known)
        for plan in self._prepared.plan:
            if origin is None:
                return
            origin = yield from self._of_round(plan, origin, known)

    def _before_rounds(self, origin: Origin, known: KnownResults) -> NamesUpTo:
        """Name the dense phase and the mask that is chosen before training, where there are such."""
        prepared = self._prepared
        if prepared.dense is not None:
            dense = self.training(DENSE, origin)
            yield dense
            start = known.state(dense)
            if start is None:
                return None
            origin = Origin(start, prepared.recipes.mask_digest(prepared.first_mask))
        if prepared.mask is not None:
            chosen = self.mask(origin)
            yield chosen
            mask = known.next_mask(chosen)
            if mask is None:
                return None
            origin = replace(origin, mask=mask)
        return origin

    def _of_round(self, plan: RoundPlan, origin: Origin, known: KnownResults) -> NamesUpTo:
        """Name trunk, particles, average and evaluation of a round."""
        if plan.has_trunk:
            trunk = self.training(trunk_of(plan.index), origin)
            yield trunk
            origin = replace(origin, trunk=known.state(trunk))
            if origin.trunk is None:
                return None
        particles = [self.training(Job("particle", plan.index, n), origin) for n in range(plan.num_particles)]
        yield from particles
        entering = self._entering(particles, known)
        if entering is None:
            return None
        if any(particle.program is not None and particle.program.mask_updates for particle in particles):
            own_mask = known.own_mask(particles[0])
            if own_mask is None:
                return None
            origin = replace(origin, mask=own_mask)
        average = self.average(plan.index, entering, origin)
        yield average
        state = known.state(average)
        if state is None:
            return None
        yield self.evaluation(plan.index, state, origin)
        mask = known.next_mask(average)
        if mask is None:
            return None
        rewinds = self._prepared.config.rewind.weights != "none"
        return replace(origin, mask=mask, values=None if rewinds else state)

    def _entering(self, particles: Sequence[NamedResult], known: KnownResults) -> list[str] | None:
        """Digests of the states that enter a round's average; None if one is not known."""
        states: list[str] = []
        for particle in particles:
            state = known.state(particle)
            if state is None:
                return None
            states.append(state)
        combine = self._prepared.config.particles.combine
        if combine == "average" or len(states) == 1:
            return states
        chosen = known.best(states) if combine == "best" else known.soup(states)
        return None if chosen is None else [chosen]
