"""Ranks that train a particle together: real processes, gloo, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from swamp_ray.config.reading import build_config
from swamp_ray.errors import CorruptArtifactError, DivergedError
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import compact_state, to_bytes
from swamp_ray.training.arithmetic import applied
from swamp_ray.training.program import TrainingSpec
from swamp_ray.training.rank_following import follow
from swamp_ray.training.ranks import Ranks, ordered_mean, reduce_in_rank_order_
from swamp_ray.training.results import TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import TrainingRun, begin_training, never
from tests.unit.training.rank_processes import on_ranks

SMALL: dict[str, Any] = {
    "name": "ranks", "seed": 3, "particle": {"num_workers": 3},
    "data": {"name": "synthetic", "options": {"num_train": 80, "num_test": 20, "num_classes": 3, "shape": [1, 6, 6]},
             "augment": "crop_flip", "crop_padding": 1},
    "training": {"batch_size": 24, "lr": 0.05, "clip_norm": 1.0}, "round": {"length": 2},
    "averaging": {"within": "swa", "start": 0.5}, "particles": {"count": 1},
    "execution": {"device": "cpu"},
}


def digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def values_of(rank: int, num: int) -> Tensor:
    """Of sizes that differ by many orders of magnitude, so that the order of their sum shows."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(num, generator=generator) * 10.0 ** torch.randint(-6, 6, (num,), generator=generator)


LENGTHS = [1, 2, 3, 7, 300]


def train_in_buckets(rank: int, own: bool, bucket_mb: float) -> str:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 70), nn.ReLU(), nn.Linear(70, 30), nn.ReLU(), nn.Linear(30, 7))
    replica = (Ranks(bucket_mb).replicate(network, lambda: False) if own
               else DistributedDataParallel(network, bucket_cap_mb=bucket_mb))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(rank + 1)
    for _ in range(3):
        optimizer.zero_grad()
        replica(torch.randn(8, 50)).square().mean().backward()
        optimizer.step()
    return digest(network.parameters())


class PartlyUsed(nn.Module):
    """One of its layers is of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.width = nn.Linear(4, 4), nn.Linear(4, 4), 4

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def train_partly(rank: int) -> tuple[bool, str, int]:
    torch.manual_seed(0)
    network = PartlyUsed()
    replica = Ranks().replicate(network, lambda: True)
    torch.manual_seed(rank)
    for _ in range(2):
        replica(torch.randn(3, 4)).sum().backward()
    assert network.used.weight.grad is not None
    width = network.width if replica.used is network.used else 0
    return network.unused.weight.grad is None, digest([network.used.weight.grad]), width


def reductions(rank: int) -> dict[str, Any]:
    return {"means": [reduce_in_rank_order_(values_of(rank, num)).tolist() for num in LENGTHS],
            "partly": train_partly(rank),
            **{name: {train_in_buckets(rank, own, size) for size in (0.001, 0.005, 0.02, 25.0)}
               for name, own in (("ordered", True), ("torch", False))}}


def test_no_bit_of_a_gradient_depends_on_its_buckets_and_would_without_the_order_of_ranks() -> None:
    found = on_ranks(3, reductions)
    assert found[0] == found[1] == found[2]
    assert found[0]["means"] == [ordered_mean([values_of(rank, num) for rank in range(3)]).tolist() for num in LENGTHS]
    assert found[0]["means"][-1] != ordered_mean([values_of(rank, 300) for rank in (2, 1, 0)]).tolist()
    assert found[0]["partly"][::2] == (True, 4), "no gradient stays none, and a task may read attributes"
    assert len(found[0]["ordered"]) == 1
    assert len(found[0]["torch"]) > 1, "torch's own reduction depends on buckets: else this test could not fail"


def start(prepared: Prepared, ranks: Ranks | None) -> Callable[..., TrainingRun]:
    """Begins a job from a checkpoint, or None, and with another learning rate; half of the weights are pruned."""
    trainer = ParticleTrainer(prepared.config, prepared.data, prepared.arithmetic, None, ranks)
    mask = np.random.default_rng(0).random(prepared.layout.num_prunable) < 0.5
    packed = compact_state(prepared.initial.parameters, prepared.layout, mask, drop_outside=True)

    def begin(checkpoint: bytes | None, lr: float | None = None) -> TrainingRun:
        program = prepared.program(0, 0)
        if lr is not None:
            program = replace(program, rate=replace(program.rate, base=lr, final=lr))
        job = TrainingSpec("particle", 11, program)
        return begin_training(trainer, job, packed, mask, prepared.initial.buffers, checkpoint)

    return begin


def carry_on(run: TrainingRun, stop: Callable[[], bool]) -> TrainedParticle | bytes:
    """To the end, or to where it is stopped, as a worker does."""
    while not run.done:
        progress = run.epoch(stop)
        if not run.done and (progress is None or stop()):
            return run.checkpoint()
    return run.finish()


def lead_or_follow(rank: int, works: list[tuple[dict[str, Any], Callable[..., Any]]], bucket_mb: float = 0.01) -> Any:
    """What each of the works gives on rank 0, done with its config; on the others the weights that each ended with."""
    ranks = Ranks(bucket_mb)
    found = []
    for config, lead in works:
        prepared = prepare(build_config(config))
        with applied(prepared.arithmetic):
            if ranks.leads:
                found.append(lead(prepared, ranks))
                ranks.send_instruction(None)
                continue
            trainer = ParticleTrainer(prepared.config, prepared.data, prepared.arithmetic, None, ranks)
            follow(ranks, {0: trainer}.__getitem__)
            found.append(digest(trainer.model.parameters()))
    return found


def facts(result: TrainedParticle) -> dict[str, Any]:
    return {"state": hashlib.sha256(to_bytes(result.compact, {})).hexdigest(), "history": result.history,
            "metrics": result.evaluation.metrics, "values": result.compact.values[:10_000].tolist()}


def stop_at_once() -> bool:
    return True


def must_end(result: TrainedParticle | bytes) -> TrainedParticle:
    assert isinstance(result, TrainedParticle)
    return result


def one_job_after_the_other(prepared: Prepared, ranks: Ranks) -> dict[str, Any]:
    """The same job three times on warm ranks: whole, diverging, and stopped after its first step."""
    begin = start(prepared, ranks)
    whole = facts(must_end(carry_on(begin(None), ranks.shared_stop(never))))
    with pytest.raises(DivergedError) as diverged:
        carry_on(begin(None, lr=1e30), ranks.shared_stop(never))
    checkpoint = carry_on(begin(None), ranks.shared_stop(stop_at_once))
    assert isinstance(checkpoint, bytes)
    with pytest.raises(CorruptArtifactError):
        begin(checkpoint[:-100])
    run = begin(checkpoint)
    stopped_at = run.step
    resumed = facts(must_end(carry_on(run, ranks.shared_stop(never))))
    return {"whole": whole, "diverged": diverged.value.epoch, "stopped_at": stopped_at, "resumed": resumed}


def train(prepared: Prepared, ranks: Ranks | None) -> dict[str, Any]:
    stop = never if ranks is None else ranks.shared_stop(never)
    return facts(must_end(carry_on(start(prepared, ranks)(None), stop)))


def plain(micro_batch: int | None, num_workers: int = 3, sam_rho: float | None = None) -> dict[str, Any]:
    """Without normalisation over a batch, ranks compute what one would, but for the last bits."""
    return {**SMALL, "model": {"name": "mlp"},
            "training": {**SMALL["training"], "micro_batch": micro_batch, "sam_rho": sam_rho},
            "particle": {"num_workers": num_workers}}


@pytest.fixture(scope="module")
def trained() -> list[list[Any]]:
    """By rank: what jobs on warm ranks gave, one after the other."""
    found = on_ranks(3, lead_or_follow, [
        (SMALL, one_job_after_the_other), (plain(None), train), (plain(4), train), (plain(4, sam_rho=0.2), train)])
    for rank in found:
        assert isinstance(rank, list), rank
    return found


def test_ranks_that_were_stopped_in_an_epoch_go_on_with_the_same_bits(trained: list[list[Any]]) -> None:
    lead = trained[0][0]
    assert (lead["stopped_at"], lead["diverged"]) == (1, 0)
    assert lead["resumed"] == lead["whole"]


@pytest.mark.parametrize(("index", "micro_batch", "sam_rho"), [(1, None, None), (2, 4, None), (3, 4, 0.2)])
def test_ranks_train_on_what_one_would_train_on(
    trained: list[list[Any]], index: int, micro_batch: int | None, sam_rho: float | None
) -> None:
    found = trained[0][index]
    prepared = prepare(build_config(plain(micro_batch, 1, sam_rho)))
    with applied(prepared.arithmetic):
        alone = train(prepared, None)
    for one, other in zip(found["history"], alone["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    np.testing.assert_allclose(found["values"], alone["values"], rtol=1e-3, atol=1e-6)
    assert found["state"] != alone["state"], "the number of ranks decides the last bits, and is in the name"


def write_checkpoints(prepared: Prepared, ranks: Ranks, path: str) -> dict[str, Any]:
    """From the checkpoint, if there is one; one is written after each epoch."""
    file = Path(path)
    run = start(prepared, ranks)(file.read_bytes() if file.exists() else None)
    stop, began = ranks.shared_stop(never), run.step
    while not run.done:
        run.epoch(stop)
        if not run.done:
            stop()
            file.write_bytes(run.checkpoint())
    return {**facts(run.finish()), "began": began}


@pytest.mark.slow
def test_a_rank_that_is_killed_changes_no_bit_of_a_network_of_many_buckets(tmp_path: Path) -> None:
    marker, checkpoint = tmp_path / "marker", tmp_path / "checkpoint"
    marker.touch()
    config = {**SMALL, "model": {"name": "mlp", "options": {"hidden": [2600, 2600]}}, "round": {"length": 3},
              "task": {"name": "tests.faults:Faulty",
                       "options": {"kills": [derive_seed(11, "epoch", 1, 1)], "marker": str(marker)}}}
    assert prepare(build_config(config)).layout.num_prunable * 4 > 25 * 2**20, "more than a bucket of torch's default"
    works = [(config, partial(write_checkpoints, path=str(checkpoint)))]
    whole = on_ranks(3, lead_or_follow, works, 25.0)
    checkpoint.unlink()
    marker.unlink()
    broken = on_ranks(3, lead_or_follow, works, 25.0)
    assert broken[1] is None, "the process was killed"
    assert "LostRankError: rank 0 of 3 lost another one" in broken[0]
    resumed = on_ranks(3, lead_or_follow, works, 25.0)
    assert (whole[0][0].pop("began"), resumed[0][0].pop("began")) == (0, 3)
    assert resumed == whole
