"""Trunks and the particles that part from them: programs, and a state that lacks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.run.prepare import prepare
from swamp_ray.sparsity.averaging import SnapshotMean
from swamp_ray.sparsity.compact import compact_state
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.forks import put_fork, read_fork
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.fork import ForkPoint
from swamp_ray.training.program import Program, TrainingSpec, round_program, trunk_program
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import TrainingRun, begin_training
from tests.helpers import tiny

SPE = 6
"""Steps an epoch of the tiny run: 96 samples less a tenth, in batches of 16, are five; programs here count with six."""


def programs(**values: Any) -> tuple[Program | None, Program]:
    config = tiny("nowhere", **{"particles__fork_at": 0.5, "round__length": 4, "averaging__start": 0.75, **values})
    return trunk_program(config, SPE, 0), round_program(config, SPE, 0, 0)


def rates(program: Program) -> list[float]:
    return [program.rate.at(step) for step in range(program.num_steps)]


class TestPrograms:
    def test_without_a_fork_nothing_is_different(self) -> None:
        trunk, particle = programs(particles__fork_at=0.0)
        assert trunk is None
        assert particle.num_steps == 24
        assert particle.rate.offset == 0

    @pytest.mark.parametrize("name", ["cosine", "linear", "multistep", "constant"])
    def test_the_rate_goes_on_where_the_trunk_stopped(self, name: str) -> None:
        given = {"averaging__within": "none", "training__schedule__name": name}
        _, whole = programs(particles__fork_at=0.0, **given)
        trunk, particle = programs(**given)
        assert trunk is not None
        assert (trunk.num_steps, particle.num_steps) == (12, 12)
        assert rates(trunk) + rates(particle) == rates(whole)

    def test_with_swa_the_trunk_goes_to_its_rate_and_particles_stay_there(self) -> None:
        trunk, particle = programs(averaging__lr=0.02)
        assert trunk is not None
        assert trunk.averaging == "none", "snapshots are the particles'"
        assert rates(trunk)[0] == 0.05
        assert all(before > after > 0.02 for before, after in zip(rates(trunk), rates(trunk)[1:], strict=False))
        assert set(rates(particle)) == {0.02}
        taken = [step for step in range(1, particle.num_steps + 1) if particle.snapshot_after(step)]
        assert taken == [6, 12], "at the end of each of its epochs"

    def test_an_exponential_mean_begins_with_the_trunk(self) -> None:
        trunk, particle = programs(averaging__within="ema")
        assert trunk is not None
        assert trunk.averaging == particle.averaging == "ema"

    @pytest.mark.parametrize(("share", "length", "trunk_steps"), [
        (0.5, 4, 12), (0.75, 4, 18), (0.7, 4, 18), (0.01, 4, 6), (0.99, 4, 18), (0.5, 3, 12), (0.5, 1, 3),
        (0.9, "5 steps", 4), (0.01, "5 steps", 1), (0.5, "13 steps", 6), (0.9, "13 steps", 12)])
    def test_rounds_of_several_epochs_are_parted_between_two(
        self, share: float, length: Any, trunk_steps: int
    ) -> None:
        given = {"averaging__within": "none", "particles__fork_at": share, "round__length": length}
        trunk, particle = programs(**given)
        _, whole = programs(**{**given, "particles__fork_at": 0.0})
        assert trunk is not None
        assert trunk.num_steps == trunk_steps
        assert trunk.num_steps + particle.num_steps == whole.num_steps

    def test_retraining_is_parted_too(self) -> None:
        config = tiny("nowhere", particles__fork_at=0.5, averaging__within="none", averaging__start=0.75,
                      round__schedule="retrain", round__retrain_length=2)
        trunk, particle = trunk_program(config, SPE, 1), round_program(config, SPE, 1, 0)
        whole = round_program(config.model_copy(update={"particles": tiny("nowhere").particles}), SPE, 1, 0)
        assert trunk is not None
        assert rates(trunk) + rates(particle) == rates(whole)

    def test_the_rate_of_swa_may_depend_on_the_sparsity(self) -> None:
        config = tiny("nowhere", averaging__lr=[{"sparsity": 0.5, "lr": 0.02}, {"sparsity": 0.9, "lr": 0.01}])
        last = [round_program(config, SPE, 0, 0, sparsity).rate.final for sparsity in (0.0, 0.49, 0.5, 0.89, 0.9, 0.99)]
        assert last == [0.025, 0.025, 0.02, 0.02, 0.01, 0.01]

    @pytest.mark.parametrize(("values", "words"), [
        ({"round__length": "1 step", "averaging__within": "none"}, "at least two steps"),
        ({"particles__vary__lr": [0.1, 0.2]}, r"particles\.vary\.lr must be empty with particles\.fork_at"),
        ({"averaging__start": 0.6}, r"averaging\.start must be left out, or equal particles\.fork_at"),
        ({"averaging__lr": []}, "must be a rate above 0, or list stages by increasing sparsity"),
        ({"averaging__lr": [{"sparsity": 0.9, "lr": 0.1}, {"sparsity": 0.5, "lr": 0.1}]}, "by increasing sparsity"),
        ({"particles__fork_at": 1.0}, "less than 1"),
    ])
    def test_what_has_no_meaning_is_refused(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(UserError, match=words):
            programs(**values)


FORMS: dict[str, dict[str, Any]] = {
    "sgd": {}, "sgd with a mean": {"averaging__within": "ema"}, "plain sgd": {"training__momentum": 0.0},
    "adamw": {"training__optimizer": "adamw", "training__lr": 0.003},
    "unfused": {"execution__fused": False}, "rows first": {"execution__channels_last": False},
    "two groups": {"training__decay_norm_and_bias": False},
}


@pytest.fixture(params=FORMS)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ParticleTrainer, TrainingRun, np.ndarray, Any]:
    """A trunk that has come to its end under a mask of a half."""
    config = tiny(tmp_path, particles__fork_at=0.5, round__length=4, averaging__start=0.75, **FORMS[request.param])
    prepared = prepare(config)
    mask = np.random.default_rng(0).random(prepared.layout.num_prunable) < 0.5
    with applied(prepared.arithmetic):
        trainer = ParticleTrainer(config, prepared.data, prepared.arithmetic)
        start = compact_state(prepared.initial.parameters, prepared.layout, mask, drop_outside=True)
        program = prepared.trunk(0)
        assert program is not None
        trunk = begin_training(trainer, TrainingSpec("trunk", 1, program), start, mask, prepared.initial.buffers)
        while not trunk.done:
            trunk.epoch()
    return trainer, trunk, mask, prepared


def test_a_particle_goes_on_as_the_trunk_itself_would(
    trained: tuple[ParticleTrainer, TrainingRun, np.ndarray, Any], tmp_path: Path
) -> None:
    """Twin: the trunk's own network, optimiser and mean, which never left the memory, train on with equal batches."""
    trainer, trunk, mask, prepared = trained
    spec = TrainingSpec("particle", 2, prepared.program(0, 0))
    store = ArtifactStore(tmp_path)
    with applied(prepared.arithmetic):
        stored = put_fork(store, "f" * 64, trunk.fork(), {"kind": "trunk"}, {})
        live = trunk
        live.job, live.step, live.history = spec, 0, []
        if spec.program.averaging == "swa":
            live.mean = SnapshotMean(live.parameters)
        while not live.done:
            live.epoch()
        expected = live.finish()

        fork = read_fork(store, stored)
        run = begin_training(trainer, spec, fork.weights, mask, prepared.initial.buffers, fork=fork)
        first = run.epoch()
        assert first is not None
        assert first.epoch == 1
        checkpoint = run.checkpoint()
        resumed = begin_training(trainer, spec, fork.weights, mask, prepared.initial.buffers, checkpoint, fork)
        while not resumed.done:
            resumed.epoch()
        found = resumed.finish()
    np.testing.assert_array_equal(found.compact.values, expected.compact.values)
    np.testing.assert_array_equal(found.compact.rest, expected.compact.rest)
    assert found.evaluation.metrics == expected.evaluation.metrics
    assert found.history == expected.history


def test_only_survivors_are_stored(trained: tuple[ParticleTrainer, TrainingRun, np.ndarray, Any]) -> None:
    trainer, trunk, mask, _ = trained
    fork = trunk.fork()
    assert fork.weights.values.size == int(mask.sum())
    sizes = {layer.name: int(mask[layer.span].sum()) for layer in trainer.layout.layers}
    for key, array in fork.arrays.items():
        name = key.rpartition("/")[2]
        if name in sizes and array.ndim:
            assert array.shape == (sizes[name],), key


def test_equal_trunks_give_equal_bytes(trained: tuple[ParticleTrainer, TrainingRun, np.ndarray, Any], tmp_path: Path
                                       ) -> None:
    _, trunk, _, _ = trained
    fork = trunk.fork()
    backwards = ForkPoint(fork.weights, dict(reversed(list(fork.arrays.items()))))
    digests = set()
    for number, one in enumerate((fork, backwards)):
        manifest = put_fork(ArtifactStore(tmp_path / str(number)), "f" * 64, one, {"kind": "trunk"}, {})
        digests.add(manifest.files["state.safetensors"].sha256)
    assert len(digests) == 1


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, particles__fork_at=0.5, round__length=4, averaging__start=0.75)
    prepared = prepare(config)
    whole = prepared.whole_mask
    with applied(prepared.arithmetic):
        trainer = ParticleTrainer(config, prepared.data, prepared.arithmetic)
        start = compact_state(prepared.initial.parameters, prepared.layout, whole)
        spec = TrainingSpec("particle", 2, prepared.program(0, 0))
        buffers = {f"buffer/{name}": array for name, array in prepared.initial.buffers.items()}
        wrong = [{}, {**buffers, "optimizer/momentum_buffer/nothing.weight": np.zeros(3, np.float32)},
                 {**buffers, "optimizer/momentum_buffer/hidden.weight": np.zeros(3, np.float32)}]
        for arrays in wrong:
            with pytest.raises(CorruptArtifactError, match="the trunk's state does not fit"):
                begin_training(trainer, spec, start, whole, prepared.initial.buffers, fork=ForkPoint(start, arrays))
    assert torch.is_grad_enabled()
