"""One round's bytes through the real averaging actors: what each phase takes, and what it holds.

Particles are actors with a buffer of random numbers instead of a trained network. They give their states as workers do,
in a piece for each averaging actor, through the object store; at most two states are there at a time.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from _measuring import spread, timed
from _processes import Sampler, own_pid

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.method.events import Job
from swamp_ray.on_ray.actors import AveragingActor, elsewhere
from swamp_ray.on_ray.own_token import OwnToken
from swamp_ray.run.averager import Averager
from swamp_ray.run.messages import AverageSpec
from swamp_ray.run.shard import Shard
from swamp_ray.run.state import State
from swamp_ray.sparsity.bits import num_kept
from swamp_ray.sparsity.compact import CompactState, spans
from swamp_ray.sparsity.masks import Layer, Layout
from swamp_ray.sparsity.selection import Ask, here
from swamp_ray.storage.artifacts import ArtifactStore, FileEntry, Manifest
from swamp_ray.storage.recipes import Named

PARTICLES = 8
LAYERS = 20
ACTORS = 2
"""Processes that stand for the particles, in turn, so that eight buffers need not fit into memory."""
STEP = 64
"""Each particle's values begin so many numbers later in the buffer, so that no two are alike."""
GB = 1e9
PHASES = ("broadcast", "gather", "average", "close", "mask", "write")


@dataclass(frozen=True)
class Case:
    """Prunable weights and their sparsity."""

    weights: int
    sparsity: float

    @property
    def layout(self) -> Layout:
        """Equal layers of 1000 columns, and a bias for each thousand weights."""
        shape = (self.weights // LAYERS // 1000, 1000)
        layers = tuple(Layer(f"layer{index}", shape, "linear", index * shape[0] * shape[1]) for index in range(LAYERS))
        return Layout(layers, (("bias", (self.weights // 1000,)),))


def random_bits(case: Case) -> np.ndarray:
    """A mask that keeps each weight with the same probability."""
    if case.sparsity == 0:
        return np.packbits(np.ones(case.weights, dtype=np.bool_))
    generator, parts = np.random.default_rng(0), []
    for begin in range(0, case.weights, 1 << 23):
        chances = generator.random(min(1 << 23, case.weights - begin), dtype=np.float32)
        parts.append(np.packbits(chances >= case.sparsity))
    return np.concatenate(parts)


class Particle:
    """Stands for a worker that has trained: random values, made once."""

    def __init__(self, size: int, seed: int) -> None:
        self._buffer = np.random.default_rng(seed).standard_normal(size + PARTICLES * STEP, dtype=np.float32)

    def ready(self) -> int:
        """Its process."""
        return own_pid()

    def take(self, bits: np.ndarray) -> int:
        """Read the mask that was broadcast."""
        return int(np.bitwise_or.reduce(bits))

    def give(self, particle: int, survivors: int, rest: int, num_shards: int) -> Iterator[CompactState]:
        """A particle's state, in a piece for each averaging actor."""
        values = self._buffer[particle * STEP:][:survivors + rest]
        packed = CompactState(values[:survivors], values[survivors:])
        for span in spans(packed.size, num_shards):
            yield packed.part(*span)


class TimedActor(AveragingActor):
    """The real averaging actor, which says how long each part of closing a round took."""

    took: Mapping[str, float]

    def ready(self) -> int:
        """Its process."""
        return own_pid()

    def finish(self, member: int, spec: AverageSpec, start: State, mask_bits: np.ndarray, others: list[Any]) -> str:
        """As the real one does, with a stopwatch between it and its shards and storage."""
        own, watch = self._shards[member], Stopwatch()
        calls: list[Ask[Shard]] = [here(own), *(elsewhere(actor, member) for actor in others)]
        shards = [TimedCall(call, watch, index, len(calls)) for index, call in enumerate(calls)]
        store = TimedStore(own.store, watch)
        averager = TimedAverager(own.config, own.layout, store, watch)
        whole, name = timed(lambda: averager.finish(spec, start, mask_bits, shards))
        close, write = watch.seconds.get("close", 0.0), watch.seconds.get("write", 0.0)
        self.took = {"close": close, "write": write, "mask": whole - close - write, **{
            f"mask/{method}": watch.seconds.get(method, 0.0)
            for method in ("score", "upper_counts", "lower_counts", "keep")}}
        return name

    def last_took(self) -> Mapping[str, float]:
        """Seconds of the last call of `finish`."""
        return self.took


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began: dict[str, float] = {}

    def start(self, name: str) -> None:
        """Begin, if it has not begun."""
        self.began.setdefault(name, time.perf_counter())

    def stop(self, name: str) -> None:
        """End."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self.began.pop(name)


class TimedCall:
    """A shard; the time of a method is from the first shard's call to the last shard's answer."""

    def __init__(self, call: Ask[Shard], watch: Stopwatch, index: int, num: int) -> None:
        self._call, self._watch, self._first, self._last = call, watch, index == 0, index == num - 1

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """Begin."""
        if self._first:
            self._watch.start(method.__name__)
        wait = self._call(method, *args, **kwargs)

        def answer() -> Any:
            result = wait()
            if self._last:
                self._watch.stop(method.__name__)
            return result

        return answer


class TimedAverager(Averager):
    """As soon as the next mask is known it is only described and written."""

    def __init__(self, config: SwampConfig, layout: Layout, store: ArtifactStore, watch: Stopwatch) -> None:
        super().__init__(config, layout, store)
        self._watch = watch

    def _select(
        self, k: int, mask_bits: np.ndarray, shards: Sequence[Ask[Shard]], counts: Sequence[int]
    ) -> np.ndarray:
        following = super()._select(k, mask_bits, shards, counts)
        self._watch.start("write")
        return following


class TimedStore(ArtifactStore):
    """What the closing itself writes: the mask and the manifest."""

    def __init__(self, store: ArtifactStore, watch: Stopwatch) -> None:
        super().__init__(store.place)
        self._watch = watch

    def write(self, name: str, file: str, data: bytes) -> FileEntry:
        """Write a payload."""
        self._watch.start("write")
        entry = super().write(name, file, data)
        self._watch.stop("write")
        return entry

    def finish(self, name: str, files: Mapping[str, FileEntry], info: Mapping[str, object]) -> Manifest:
        """Write the manifest."""
        self._watch.start("write")
        manifest = super().finish(name, files, info)
        self._watch.stop("write")
        return manifest


class Movement:
    """Rounds of one case with so many averaging actors.

    Args:
        case: Weights and sparsity.
        bits: The mask of every round.
        particles: Actors of the class `Particle`.
        num_shards: Averaging actors.
        storage: Where averages are written, and removed after each round.
    """

    def __init__(self, case: Case, bits: np.ndarray, particles: list[Any], num_shards: int, storage: Path) -> None:
        self._layout, self._bits, self._particles, self._storage = case.layout, bits, particles, storage
        self.survivors, self._rest = num_kept(bits), self._layout.num_rest
        config: SwampConfig = build_config({"storage": str(storage), "averaging": {"num_shards": num_shards}})
        kind: Any = ray.remote(TimedActor)
        self._averagers = [kind.options(num_cpus=0).remote([config], self._layout, str(storage), index)
                           for index in range(num_shards)]
        self._start = ray.put(State({}, {}))
        self._num_shards, self._round = num_shards, 0
        self._pids = ray.get([actor.ready.remote() for actor in [*particles, *self._averagers]])

    @property
    def size(self) -> int:
        """Elements of a state."""
        return self.survivors + self._rest

    def sampler(self) -> Sampler:
        """Looks at the memory of all that takes part."""
        return Sampler([own_pid(), *self._pids])

    def round(self) -> dict[str, float]:
        """Seconds of each phase of a round, one phase after the other."""
        took: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        took["broadcast"], mask = timed(self._broadcast)
        waiting: list[list[Any]] = []
        for particle in range(PARTICLES):
            seconds, pieces = timed(lambda particle=particle: self._gather(particle))
            took["gather"] += seconds
            waiting.append(pieces)
            del pieces  # or the state would stay in the object store
            if particle:
                took["average"] += self._add(particle - 1, waiting)
        took["average"] += self._add(PARTICLES - 1, waiting)
        seconds, _ = timed(lambda: self._finish(mask))
        found: dict[str, float] = ray.get(self._averagers[0].last_took.remote())
        took |= found
        took["mask"] += seconds - found["close"] - found["mask"] - found["write"]
        self._round += 1
        shutil.rmtree(self._storage / "artifacts")
        return took

    def end(self) -> None:
        """Let the averaging actors go."""
        for actor in self._averagers:
            ray.kill(actor)

    def _broadcast(self) -> Any:
        mask = ray.put(self._bits)
        ray.get([self._particles[index % ACTORS].take.remote(mask) for index in range(PARTICLES)])
        return mask

    def _gather(self, particle: int) -> list[Any]:
        actor = self._particles[particle % ACTORS]
        return list(actor.give.options(num_returns="streaming").remote(
            particle, self.survivors, self._rest, self._num_shards))

    def _add(self, particle: int, waiting: list[list[Any]]) -> float:
        began = time.perf_counter()
        pieces = waiting.pop(0)
        calls = [actor.add.remote(0, Job("particle", self._round, particle), "", "", self.size, piece)
                 for actor, piece in zip(self._averagers, pieces, strict=False)]
        ray.get(calls)
        return time.perf_counter() - began

    def _finish(self, mask: Any) -> None:
        named = Named.of("average", {"states": [str(self._round)], "mask": ""})
        following = round(0.8 * self.survivors)
        spec = AverageSpec(self._round, named, tuple(range(PARTICLES)), self.survivors, following, 0)
        first, *others = self._averagers
        ray.get(first.finish.remote(0, spec, self._start, mask, others))


def yardsticks(num_bytes: int = 1 << 30, repeats: int = 5) -> dict[str, Any]:
    """GB/s of one core: reading memory once, and copying it (bytes read)."""
    numbers = np.ones(num_bytes // 8, dtype=np.uint64)
    copy = np.zeros_like(numbers)
    jobs = {"read": lambda: np.bitwise_or.reduce(numbers), "copy": lambda: np.copyto(copy, numbers)}
    return {f"{name}_gb_per_s": spread([num_bytes / GB / timed(job)[0] for _ in range(repeats)])
            for name, job in jobs.items()}


def measure(case: Case, shards: list[int], repeats: int) -> list[dict[str, Any]]:
    """A row for each number of averaging actors; for a process of its own."""
    speeds = yardsticks()
    bits = random_bits(case)
    size = num_kept(bits) + case.layout.num_rest
    with tempfile.TemporaryDirectory() as storage:
        OwnToken()
        ray.init(address="local", num_cpus=ACTORS, include_dashboard=False, log_to_driver=False,
                 logging_level=logging.ERROR, object_store_memory=max(1 << 28, 3 * 4 * size + case.weights))
        try:
            kind: Any = ray.remote(Particle)
            particles = [kind.options(num_cpus=0).remote(size, seed) for seed in range(ACTORS)]
            return [_row(case, bits, Movement(case, bits, particles, num, Path(storage)), speeds, num, repeats)
                    for num in shards if num == len(spans(size, num))]
        finally:
            ray.shutdown()


def _row(case: Case, bits: np.ndarray, movement: Movement, speeds: dict[str, Any], num: int, repeats: int
         ) -> dict[str, Any]:
    sampler = movement.sampler()
    before = sampler.now()
    with sampler:
        warm = movement.round()
    rounds = [movement.round() for _ in range(repeats)]
    with sampler:
        movement.round()
    movement.end()
    arriving = PARTICLES * 4 * movement.size
    read, copy = (speeds[f"{name}_gb_per_s"]["median"] * GB for name in ("read", "copy"))
    yardstick = (arriving + case.weights) / read
    target = [(one["average"] + one["close"] + one["mask"]) / yardstick for one in rounds]
    phases = {name: spread([one[name] for one in rounds]) for name in rounds[0]}
    copies = {"broadcast": bits.nbytes, "gather": arriving, "average": arriving, "mask": case.weights}
    return {
        "weights": case.weights, "sparsity": case.sparsity, "survivors": movement.survivors, "averaging_actors": num,
        "arriving_bytes": arriving, **speeds, "phases_s": phases, "first_round_s": warm,
        "against_a_copy": {name: phases[name]["median"] / (size / copy) for name, size in copies.items()},
        "yardstick_s": yardstick, "ratio": spread(target),
        "peak_bytes": {"most": sampler.most - before, "per_weight": (sampler.most - before) / case.weights,
                       "per_survivor": (sampler.most - before) / movement.survivors},
        "limits": limits(phases, arriving),
    }


def limits(phases: dict[str, Any], arriving: int) -> str:
    """Which phase of the target takes longest, and how fast it goes."""
    medians = {name: phases[name]["median"] for name in ("average", "close", "mask")}
    longest = max(medians, key=lambda name: medians[name])
    share = medians[longest] / sum(medians.values())
    return f"{longest} {share:.0%}, {arriving / GB / sum(medians.values()):.1f} GB/s of states"


HEAD = (f"{'weights':>13} {'sparsity':>8} {'actors':>6} {'broadcast':>9} {'gather':>7} {'average':>7} {'close':>6} "
        f"{'mask':>6} {'write':>6} {'ratio':>6} {'min-max':>10} {'B/weight':>8} {'B/surv.':>7}  longest")


def line(row: dict[str, Any]) -> str:
    """A row of the terminal's table."""
    seconds = [f"{row['phases_s'][name]['median']:>{width}.3f}" for name, width in
               zip(PHASES, (9, 7, 7, 6, 6, 6), strict=True)]
    ratio, peak = row["ratio"], row["peak_bytes"]
    return (f"{row['weights']:>13,} {row['sparsity']:>8g} {row['averaging_actors']:>6} {' '.join(seconds)} "
            f"{ratio['median']:>6.1f} {ratio['min']:>4.1f}-{ratio['max']:<5.1f} {peak['per_weight']:>8.1f} "
            f"{peak['per_survivor']:>7.1f}  {row['limits']}")
