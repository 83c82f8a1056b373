"""Samples read one by one: the same batches whoever reads them, processes that stay and that go, uploads ahead."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from swamp_ray.config.reading import build_config
from swamp_ray.config.sections import DataConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.datasets import load_data
from swamp_ray.data.loader import MAX_PART, DeviceCopies, Loader, divide, joined, loader_of
from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.errors import RunError, UserError
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import compact_state
from swamp_ray.training.arithmetic import resolve_arithmetic
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import TrainingRun, begin_training
from tests.helpers import TINY, command_line, descendants

CPU = torch.device("cpu")

# Python 3.12 and later warn when a process with threads forks, which is how a DataLoader starts its workers.
# Torch warns of more processes than cores.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create")


class Noisy(Dataset[Any]):
    """Random samples from all three generators that users draw from, and who has read them."""

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(2) + np.random.rand() + random.random()
        return {"x": noise, "index": index, "process": os.getpid()}


class Troubled(Noisy):
    """Something happens where sample 7 is read."""

    def __init__(self, trouble: Callable[[], Any]) -> None:
        self.trouble = trouble

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            self.trouble()
        return super().__getitem__(index)


class Slow(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.02)
        return index


def refuse() -> None:
    raise RunError("the image 7.jpg cannot be read")


def stumble() -> None:
    raise ZeroDivisionError("seven")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def batches_of(samples: LazySamples, loader: Loader) -> Batches:
    return Batches(samples, device=CPU, channels_last=True, on_device=False, loader=loader)


def processes_of(batches: list[Any]) -> set[int]:
    return {int(pid) for batch in batches for pid in batch["process"]}


def children() -> set[int]:
    return set(descendants(os.getpid()))


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 15
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def more_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are one a core at most; what they give must not depend on how many there are."""
    monkeypatch.setattr("swamp_ray.data.loader.usable_cores", lambda: 8)


@pytest.mark.usefixtures("more_cores")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_pass_is_that_of_the_slow_twin(workers: int) -> None:
    samples = LazySamples(Noisy(), np.arange(100, 300))
    source = batches_of(samples, Loader([samples], workers))
    for seed, first, share, size in [(None, 0, (0, 1), 50), (4, 0, (0, 1), 50), (4, 2, (0, 1), 50), (4, 1, (1, 2), 80),
                                     (2**63 - 1, 0, (2, 3), 66)]:
        order = samples.indices
        if seed is not None:
            order = order[torch.randperm(200, generator=torch.Generator().manual_seed(seed)).numpy()]
        part = size // share[1]
        found = list(source.one_pass(size, seed=seed, drop_last=True, first=first, share=share))
        assert len(found) == 200 // size - first
        for number, batch in enumerate(found, start=first):
            rows = order[number * size + share[0] * part:][:part]
            assert batch["index"].tolist() == rows.tolist()
            for row, value in zip(rows.tolist(), batch["x"], strict=True):
                with seeded(derive_seed(seed or 0, "sample", row)):
                    assert torch.equal(value, Noisy()[row]["x"])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_values_of_a_seed_are_frozen(workers: int) -> None:
    # Results in storage are named by the seed alone.
    samples = LazySamples(Noisy(), np.arange(5, 25))
    batch = next(batches_of(samples, Loader([samples], workers)).one_pass(3, seed=11, drop_last=True))
    assert batch["index"].tolist() == [6, 10, 13]
    values = [[1.412181, 1.027354], [2.454223, 2.524276], [1.513388, 1.860886]]
    np.testing.assert_allclose(batch["x"].numpy(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num", "processes", "sizes"), [
    (256, 2, [64] * 4), (128, 4, [32] * 4), (10, 4, [10]), (40, 16, [14, 13, 13]), (2048, 16, [64] * 32), (1, 3, [1]),
])
def test_batches_are_divided_evenly(num: int, processes: int, sizes: list[int]) -> None:
    parts = divide(np.arange(num), processes)
    assert [len(part) for part in parts] == sizes
    assert np.concatenate(parts).tolist() == list(range(num))


def test_parts_of_a_batch_are_put_together_by_name() -> None:
    one, two, three, four = (torch.tensor([number]) for number in (1, 2, 3, 4))
    whole = joined([{"a": one, "b": (two,)}, {"b": (three,), "a": four}])
    assert (whole["a"].tolist(), whole["b"][0].tolist()) == ([1, 4], [2, 3])
    assert isinstance(whole["b"], tuple)


def test_processes_stay_between_passes_and_splits() -> None:
    splits = [LazySamples(Noisy(), np.arange(64)), LazySamples(Noisy(), np.arange(50, 114))]
    before = children()
    loader = Loader(splits, 2)
    sources = [batches_of(samples, loader) for samples in splits]
    assert children() == before, "processes must not start before they are needed"
    passes = [list(source.one_pass(32, seed=seed, drop_last=True)) for seed in (1, None) for source in sources]
    found = [processes_of(batches) for batches in passes]
    assert found[0] == found[1] == found[2] == found[3] == children() - before
    assert os.getpid() not in found[0]
    loader.close()
    assert children() == before
    again = list(sources[0].one_pass(32, seed=1, drop_last=True))
    assert torch.equal(again[1]["x"], passes[0][1]["x"])
    del loader, sources, again
    gc.collect()
    assert wait_until(lambda: children() == before), "processes outlive their loader"


def test_passes_at_the_same_time_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swamp_ray.data.loader.usable_cores", lambda: 2)
    samples = LazySamples(Noisy(), np.arange(64))
    before, loader = children(), Loader([samples], 2)
    source = batches_of(samples, loader)
    seeds = (1, 2, 1)
    alone = [[batch["x"] for batch in source.one_pass(16, seed=seed, drop_last=True)] for seed in seeds]
    together = zip(*(source.one_pass(16, seed=seed, drop_last=True) for seed in seeds), strict=True)
    for number, batches in enumerate(together):
        for one, batch in zip(alone, batches, strict=True):
            assert torch.equal(one[number], batch["x"])
        if number == 0:
            assert len(children() - before) == 2 + 1 + 1, "a pass beside others does not have as many processes again"
    loader.close()


def test_a_pass_that_is_given_up_costs_the_next_one_nothing() -> None:
    samples = LazySamples(Slow(), np.arange(10_000))
    loader = Loader([samples], 1)
    source = batches_of(samples, loader)
    batches = source.one_pass(MAX_PART, seed=3, drop_last=True)
    next(batches)
    del batches  # there are at least three parts on their way now, each of more than a second
    before, began = children(), time.perf_counter()
    rows = next(source.one_pass(2, seed=None, drop_last=True))
    assert time.perf_counter() - began < 1
    assert rows.tolist() == [0, 1]
    assert children() == before
    loader.close()


def test_a_large_listing_is_not_copied_for_a_pass() -> None:
    samples = LazySamples(Noisy(), np.arange(1_000_000))
    loader = Loader([samples], 1)
    source = batches_of(samples, loader)
    next(source.one_pass(8, seed=1, drop_last=True))
    (pool,) = loader._idle
    sent: list[Any] = []
    (queue,) = pool._processes._index_queues
    put = queue.put
    queue.put = lambda message: (sent.append(message), put(message))[1]
    next(source.one_pass(8, seed=2, drop_last=True))
    assert 1 < len(sent) < 10
    assert all(len(pickle.dumps(message)) < 2000 for message in sent)
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_with_words_for_the_user_comes_through_as_it_is(workers: int) -> None:
    samples = LazySamples(Troubled(refuse), np.arange(12))
    loader = Loader([samples], workers)
    with pytest.raises(RunError) as found:
        list(batches_of(samples, loader).one_pass(6, seed=None, drop_last=True))
    assert str(found.value) == "the image 7.jpg cannot be read"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_users_dataset_names_the_sample(workers: int) -> None:
    samples = LazySamples(Troubled(stumble), np.arange(12))
    loader = Loader([samples], workers)
    text = r"(?s)sample 7 of the dataset Troubled cannot be read.*ZeroDivisionError: seven$"
    with pytest.raises(UserError, match=text) as caught:
        list(batches_of(samples, loader).one_pass(6, seed=None, drop_last=True))
    assert "swamp_ray/" not in str(caught.value)


def test_a_process_that_dies_is_told_and_replaced() -> None:
    samples = LazySamples(Troubled(die), np.arange(64))
    loader, before = Loader([samples], 1), children()
    source = batches_of(samples, loader)
    with pytest.raises(RunError, match="a process that reads samples died: DataLoader worker"):
        list(source.one_pass(6, seed=None, drop_last=True))
    assert wait_until(lambda: children() == before)
    samples.dataset.trouble = int
    assert len(list(source.one_pass(6, seed=None, drop_last=True))) == 10
    loader.close()


def test_a_process_that_dies_between_passes_is_replaced() -> None:
    samples = LazySamples(Noisy(), np.arange(64))
    loader = Loader([samples], 1)
    source = batches_of(samples, loader)
    first = list(source.one_pass(16, seed=1, drop_last=True))
    (pid,) = processes_of(first)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        killed(pid)
    second = list(source.one_pass(16, seed=1, drop_last=True))
    assert processes_of(second) != {pid}
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))
    loader.close()


def killed(pid: int) -> None:
    """Kill a process and wait for torch's signal handler, which raises wherever this process is."""
    os.kill(pid, signal.SIGKILL)
    time.sleep(10)


PROGRAM = """
    import os, signal, sys, time
    import numpy as np, torch
    from swamp_ray.data.batches import Batches
    from swamp_ray.data.loader import Loader
    from swamp_ray.data.samples import LazySamples

    class Slow(torch.utils.data.Dataset):
        def __getitem__(self, index):
            time.sleep(0.01)
            return index

    samples = LazySamples(Slow(), np.arange(10_000))
    source = Batches(samples, device=torch.device("cpu"), channels_last=True, on_device=False,
                     loader=Loader([samples], 2))
    batches = source.one_pass(16, seed=None, drop_last=True)
    next(batches)
    print("ready", flush=True)
    {rest}
"""


@pytest.mark.parametrize(("rest", "sent", "code"), [
    ("for _ in batches: pass", signal.SIGKILL, -signal.SIGKILL),
    # The first Ctrl-C is only noted, a step and another pass are finished, and processes are still there at the end.
    ("signal.signal(signal.SIGINT, lambda *_: print('noted')); time.sleep(1); next(batches); batches.close(); "
     "next(source.one_pass(16, seed=1, drop_last=True)); sys.exit(3)", signal.SIGINT, 3),
])
def test_no_process_outlives_the_one_that_asked(rest: str, sent: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM).format(rest=rest)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    below = descendants(process.pid)
    assert len(below) == 2
    time.sleep(0.3)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.kill()  # as a terminal does on Ctrl-C
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert output == ("noted\n" if sent == signal.SIGINT else "")
    assert wait_until(lambda: not any(command_line(pid) for pid in below)), "processes were left behind"


def test_an_interrupted_pass_ends_its_processes() -> None:
    samples, before = LazySamples(Slow(), np.arange(10_000)), children()
    loader = Loader([samples], 2)
    batches = loader.batches(samples, np.split(samples.indices, 100), None)
    next(batches)
    assert len(children() - before) == 2
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert children() == before
    assert time.perf_counter() - began < 2, "nobody waits for samples that nobody wants"


def test_uploading_ahead_changes_no_batch_and_no_order() -> None:
    batches = [[(torch.tensor([number]), torch.tensor([-number]))] * 2 for number in range(5)]
    given: list[int] = []

    def watched() -> Iterator[list[Any]]:
        for number, parts in enumerate(batches):
            given.append(number)
            yield parts

    for ahead in (0, 1, 3):
        given.clear()
        uploaded = DeviceCopies(CPU, ahead)(watched())
        for number in range(5):
            batch = next(uploaded)
            assert batch[0].tolist() == [number, number]
            assert batch[1].tolist() == [-number, -number]
            assert len(given) == min(5, number + ahead + 1)
        assert next(uploaded, None) is None
    assert list(DeviceCopies(CPU, 1)(iter([]))) == []


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_the_gpu_gets_the_same_batches(workers: int) -> None:
    rng = np.random.RandomState(0)
    pixels = torch.from_numpy(rng.randint(0, 256, (600, 64, 64, 3), dtype=np.uint8))
    samples = LazySamples(torch.utils.data.TensorDataset(pixels, torch.arange(600)), np.arange(600))
    device = torch.device("cuda")
    loader = Loader([samples], workers, pinned=True)
    source = Batches(samples, device=device, channels_last=True, on_device=False, loader=loader)
    weights = torch.randn(4096, 4096, device=device)
    for seed in (None, 1):
        expected = list(batches_of(samples, Loader([samples], 0)).one_pass(80, seed=seed, drop_last=False))
        found = []
        for images, labels in source.one_pass(80, seed=seed, drop_last=False):
            for _ in range(20):
                weights = torch.tanh(weights @ weights)  # the device is busy while the next batch is copied
            found.append((images.clone(), labels.clone()))
            images.zero_()
            labels.zero_()
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a.cpu(), b) for a, b in zip(mine, theirs, strict=True))
        plain = [tuple(leaf.to(device) for leaf in joined(parts))
                 for parts in loader.batches(samples, [np.arange(80)], None)]
        ahead = list(DeviceCopies(device)(loader.batches(samples, [np.arange(80)], None)))
        assert all(torch.equal(a, b) for a, b in zip(plain[0], ahead[0], strict=True))
    loader.close()


def image_folder(root: Path, num: int = 12) -> DataConfig:
    from PIL import Image

    pixels = np.random.RandomState(0).randint(0, 256, (num, 20, 26, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                Image.fromarray(pixels[index]).save(root / split / name / f"{index}.png")
    return DataConfig(name="image_folder", root=str(root), image_size=8, resize=10, validation=0.25)


def test_splits_of_a_dataset_share_their_processes(tmp_path: Path) -> None:
    before, data = children(), load_data(image_folder(tmp_path))
    loader = loader_of(data, 1, pinned=False)
    assert loader is loader_of(data, 1, pinned=False)
    assert loader is not loader_of(replace(data), 1, pinned=False)
    for split in (data.train, data.validation, data.test):
        assert isinstance(split, LazySamples)
        assert len(list(batches_of(split, loader).one_pass(4, seed=None, drop_last=False))) > 0
    assert len(children() - before) == 1
    del data, loader, split
    gc.collect()
    assert wait_until(lambda: children() == before), "processes outlive the data"


def weights_after_an_epoch(data: Data, config: DataConfig, workers: int, stop_after: int | None) -> bytes:
    """Trains with gradient micro-batches; stopped after a step, it goes on from a checkpoint in another trainer."""
    tree = {**TINY, "data": {**config.model_dump(), "loader_workers": workers}, "model": {"name": "digits_cnn"},
            "training": {"batch_size": 20, "micro_batch": 10, "lr": 0.05, "schedule": {"warmup": 0}},
            "round": {"length": 1}, "averaging": {"within": "none"}}
    run_config = build_config(tree)
    arithmetic = resolve_arithmetic(run_config.execution, "cpu", initial_model(run_config, data))

    def begin(checkpoint: bytes | None) -> TrainingRun:
        trainer = ParticleTrainer(run_config, data, arithmetic)
        model = initial_model(run_config, data)
        mask = np.ones(trainer.layout.num_prunable, dtype=bool)
        packed = compact_state(dict(model.named_parameters()), trainer.layout, mask)
        job = TrainingSpec("dense", 3, round_program(run_config, trainer.steps_per_epoch, 0, 0))
        buffers = {name: b.numpy() for name, b in model.named_buffers()}
        return begin_training(trainer, job, packed, mask, buffers, checkpoint)

    run = begin(None)
    if stop_after is not None:
        assert run.epoch(stop=lambda: run.step == stop_after) is None
        run = begin(run.checkpoint())
    while not run.done:
        run.epoch()
    result = run.finish()
    return result.compact.values.tobytes() + repr(sorted(result.evaluation.metrics.items())).encode()


@pytest.mark.usefixtures("more_cores")
def test_a_training_ends_with_the_same_bits_whoever_reads(tmp_path: Path) -> None:
    config = image_folder(tmp_path, 42)
    data = load_data(config)
    expected = weights_after_an_epoch(data, config, 0, None)
    before = children()
    for workers, stop_after in [(0, 2), (1, None), (2, 1)]:
        assert weights_after_an_epoch(data, config, workers, stop_after) == expected
    assert len(children() - before) == 1 + 2, "training, re-estimation, validation and test share processes"
    loader_of(data, 1, pinned=False).close()
    loader_of(data, 2, pinned=False).close()
