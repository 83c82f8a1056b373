"""The average and the next mask are the same bits, however many shards hold them."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, RunError, UserError
from swamp_ray.launch import run
from swamp_ray.run.averager import Averager, read_mask
from swamp_ray.run.messages import AverageSpec
from swamp_ray.run.shard import AUTO_ELEMENTS, Shard, num_shards
from swamp_ray.run.state import State
from swamp_ray.sparsity import compact as packing
from swamp_ray.sparsity.compact import CompactState, compact_state, spans
from swamp_ray.sparsity.masks import Layer, Layout, from_bits, layer_densities, to_bits
from swamp_ray.sparsity.scores import make_score
from swamp_ray.sparsity.selection import here
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.recipes import Named
from swamp_ray.storage.states import put_state, read_state, state_digest
from tests.helpers import ticket_digests, tiny
from tests.unit.sparsity.slices import mask_of, scores_of

SHAPES = ((5, 7), (13,), (3, 2, 2), (40,))
CHUNK = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", CHUNK)


def layout_of(shapes: tuple[tuple[int, ...], ...] = SHAPES, num_rest: int = 21) -> Layout:
    ends = list(accumulate((int(np.prod(shape)) for shape in shapes), initial=0))
    layers = tuple(Layer(f"layer{index}", shape, "linear", offset)
                   for index, (shape, offset) in enumerate(zip(shapes, ends[:-1], strict=True)))
    return Layout(layers, (("bias", (num_rest,)),) if num_rest else ())


def config_of(storage: Path, **values: Any) -> SwampConfig:
    tree: dict[str, Any] = {"storage": str(storage), "execution": {"executor": "inline"}}
    for key, value in values.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return build_config(tree)


class Round:
    """One round of particles that somebody else has trained."""

    def __init__(self, states: list[CompactState], mask: np.ndarray, layout: Layout,
                 start: dict[str, np.ndarray]) -> None:
        self.states, self.mask, self.layout = states, mask, layout
        self.start = State(start, {})
        self.survivors = int(mask.sum())

    def close(self, storage: Path, num: int, following: int | None, from_storage: bool = False,
              **values: Any) -> tuple[ArtifactStore, Manifest]:
        """Average with so many shards; the stored average."""
        config = config_of(storage, averaging__num_shards=num, **values)
        shards = [Shard(config, self.layout, str(storage), index) for index in range(num_shards(config, self.layout))]
        store = shards[0].store
        for particle, state in enumerate(self.states):
            self._add(store, shards, particle, state, from_storage)
        named = Named.of("average", {"states": [], "mask": ""})
        spec = AverageSpec(0, named, tuple(range(len(self.states))), self.survivors, following, seed=7)
        Averager(config, self.layout, store).finish(
            spec, self.start, to_bits(self.mask), [here(shard) for shard in shards])
        manifest = store.find(named.name)
        assert manifest is not None
        return store, manifest

    def _add(self, store: ArtifactStore, shards: list[Shard], particle: int, state: CompactState,
             from_storage: bool) -> None:
        name = f"{particle:x}" * 64
        digest = state_digest(put_state(store, name, state, {}, {}).files) if from_storage else ""
        parts = spans(state.size, len(shards))
        for shard, span in zip(shards, parts, strict=False):
            shard.add(0, particle, name, digest, state.size, None if from_storage else state.part(*span))


# Ties, denormals, zeros of both signs and huge numbers; their sums stay finite.
ODD = [0.0, -0.0, 1e-45, -3e-45, 1e-40, 0.5, -0.5, 0.5000001, 1e30, -1e30]


def drawn_round(data: st.DataObject, num_rest: int = 21) -> Round:
    layout = layout_of(num_rest=num_rest)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(layout.num_prunable) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    mask[0] = True
    kind = data.draw(st.sampled_from(["odd", "equal", "normal"]))

    def numbers(size: int) -> np.ndarray:
        if kind == "odd":
            return rng.choice(np.array(ODD, dtype=np.float32), size)
        return np.full(size, 0.25, np.float32) if kind == "equal" else rng.standard_normal(size).astype(np.float32)

    states = [CompactState(numbers(int(mask.sum())), numbers(num_rest)) for _ in range(data.draw(st.integers(1, 4)))]
    start = {layer.name: numbers(layer.size).reshape(layer.shape) for layer in layout.layers}
    start["bias"] = numbers(num_rest)
    return Round(states, mask, layout, start)


def expected_mask(one: Round, average: CompactState, following: int, score: str, scope: str) -> np.ndarray:
    """The slow twin: all scores and the whole mask in one place."""
    rewind = compact_state(one.start.parameters, one.layout, one.mask, drop_outside=True).values
    scores = scores_of(one.layout, one.mask, average.values, rewind, make_score(score, seed=7))
    return mask_of(one.layout, one.mask, scores, following, scope)


@pytest.mark.parametrize("score", ["magnitude", "movement", "random"])
@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_shards_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, scope: str, score: str, data: st.DataObject
) -> None:
    one = drawn_round(data, num_rest=data.draw(st.sampled_from([0, 21])))
    following = data.draw(st.integers(0, one.survivors))
    policy = {"pruning__score": score, "pruning__scope": scope}
    found = [one.close(tmp_path_factory.mktemp("shards"), num, following, from_storage, **policy)
             for num, from_storage in ((1, False), (2, True), (3, False), (8, True))]
    store, manifest = found[0]
    average = read_state(store, manifest)
    wide = [np.float64(state.values) for state in one.states]
    np.testing.assert_array_equal(average.values, np.float32(sum(wide[1:], start=wide[0]) / len(wide)))
    bits = read_mask(store, manifest)
    assert bits is not None
    np.testing.assert_array_equal(from_bits(bits, one.layout.num_prunable),
                                  expected_mask(one, average, following, score, scope))
    assert manifest.info["layer_densities"] == layer_densities(one.layout, one.mask)
    for _, other in found[1:]:
        assert other.files == manifest.files
        assert {**other.info, "seconds": 0} == {**manifest.info, "seconds": 0}


def simple_round(num: int = 3) -> Round:
    layout = layout_of()
    rng = np.random.default_rng(0)
    states = [CompactState(rng.standard_normal(layout.num_prunable).astype(np.float32), np.zeros(21, np.float32))
              for _ in range(num)]
    start = {layer.name: np.zeros(layer.shape, np.float32) for layer in layout.layers} | {"bias": np.zeros(21)}
    return Round(states, np.ones(layout.num_prunable, dtype=np.bool_), layout, start)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_the_shard_that_has_it(tmp_path: Path, num: int, bad: float) -> None:
    one = simple_round()
    one.states[1].values[37] = bad
    with pytest.raises(RunError, match="not finite"):
        one.close(tmp_path, num, 10)


def test_no_shard_holds_more_than_its_slice(tmp_path: Path) -> None:
    one = simple_round()
    config = config_of(tmp_path, averaging__num_shards=4)
    parts = spans(one.states[0].size, 4)
    assert max(last - first for first, last in parts) <= 3 * CHUNK < one.states[0].size / 2
    for index, span in enumerate(parts):
        shard = Shard(config, one.layout, str(tmp_path), index)
        shard.add(0, 0, "", "", one.states[0].size, one.states[0].part(*span))
        shard.close(0, (0,))
        shard.score(0, one.start, to_bits(one.mask))
        held = [value for value in vars(shard).values() if isinstance(value, np.ndarray | CompactState)]
        assert sum(value.size for value in held) <= 2 * (span[1] - span[0])


def test_a_state_with_other_bytes_is_refused(tmp_path: Path) -> None:
    one = simple_round()
    config = config_of(tmp_path, averaging__num_shards=2)
    shard = Shard(config, one.layout, str(tmp_path), 1)
    put_state(shard.store, "a" * 64, one.states[0], {}, {})
    with pytest.raises(CorruptArtifactError, match="is not in the storage any more"):
        shard.add(0, 0, "a" * 64, "b" * 64, one.states[0].size, None)


def test_a_round_must_be_complete_in_every_shard(tmp_path: Path) -> None:
    one = simple_round()
    config = config_of(tmp_path, averaging__num_shards=2)
    shards = [Shard(config, one.layout, str(tmp_path), index) for index in range(2)]
    for particle, state in enumerate(one.states):
        for shard, span in zip(shards, spans(state.size, 2), strict=True):
            if (particle, shard.index) != (2, 1):
                shard.add(0, particle, "", "", state.size, state.part(*span))
    spec = AverageSpec(0, Named.of("average", {}), (0, 1, 2), one.survivors, 10, 0)
    with pytest.raises(RunError, match=r"consists of particles \(0, 1, 2\), but \[0, 1\]"):
        Averager(config, one.layout, shards[0].store).finish(
            spec, one.start, to_bits(one.mask), [here(shard) for shard in shards])


def test_particles_that_are_added_again_begin_a_new_average(tmp_path: Path) -> None:
    one = simple_round()
    shard = Shard(config_of(tmp_path), one.layout, str(tmp_path))
    size = one.states[0].size
    for particle in (0, 1, 0, 1, 2):
        shard.add(0, particle, "", "", size, one.states[particle])
    assert shard.close(0, (0, 1, 2)).average == pytest.approx(
        packing_squares(np.mean([state.values for state in one.states], axis=0)))


def packing_squares(values: np.ndarray) -> list[float]:
    return [float(np.sum(np.float64(values[first:last]) ** 2)) for first, last in
            pairwise([*range(0, values.size, CHUNK), values.size])]


@pytest.mark.parametrize("changed", [
    {}, {"pruning__scope": "erk"}, {"particles__combine": "best"},
    *(pytest.param(changed, marks=pytest.mark.nightly) for changed in (
        {"pruning__score": "movement"}, {"rewind__weights": "none"}, {"execution__max_waiting_states": 0})),
])
def test_runs_end_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 500)
    for num in (1, 3):
        run(tiny(tmp_path / str(num), averaging__num_shards=num, **changed))
    assert ticket_digests(tmp_path / "1") == ticket_digests(tmp_path / "3")
    artifacts = [sorted(path.name for path in (tmp_path / num / "artifacts").rglob("*") if path.is_file())
                 for num in ("1", "3")]
    assert artifacts[0] == artifacts[1], "names and payloads"


def test_a_run_may_go_on_with_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", 500)
    run(tiny(tmp_path, averaging__num_shards=3, pruning__target=0.5))
    run(tiny(tmp_path, averaging__num_shards=2, name="further"))
    run(tiny(tmp_path / "at once"))
    assert ticket_digests(tmp_path, "further") == ticket_digests(tmp_path / "at once")


def test_how_many_shards_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of()
    assert num_shards(config_of(tmp_path), layout) == 1
    assert num_shards(config_of(tmp_path, averaging__num_shards=3), layout) == 3
    assert num_shards(config_of(tmp_path, averaging__num_shards=99), layout) == len(packing.chunks(121))
    monkeypatch.setattr(packing, "CHUNK", 1 << 24)
    large = layout_of(((10_000, 100_000),))
    assert num_shards(config_of(tmp_path), large) == -(-1_000_000_021 // AUTO_ELEMENTS) == 4
    own = {"pruning__score": "tests.helpers:tiny"}
    assert num_shards(config_of(tmp_path, **own), large) == 1
    with pytest.raises(UserError, match=r"must be auto or 1 with a pruning\.score of your own"):
        config_of(tmp_path, averaging__num_shards=2, **own)
