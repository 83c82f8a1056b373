"""Batches: order, augmentation, layout, against a slow and obvious twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from swamp_ray.config.sections import DataConfig
from swamp_ray.data import batches as batches_module
from swamp_ray.data.augmentation import Draws
from swamp_ray.data.batches import Batches
from swamp_ray.data.datasets import load_data
from swamp_ray.data.loader import Loader
from swamp_ray.data.samples import ArraySamples, ImageSettings, LazySamples
from swamp_ray.data.trees import leaves
from swamp_ray.errors import RunError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

# Python 3.12 and later warn when a process with threads forks, which is how a DataLoader starts its workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def image_samples(num: int, height: int, width: int, channels: int, images: ImageSettings) -> ArraySamples:
    pixels = np.random.RandomState(1).randint(0, 256, (num, height, width, channels), dtype=np.uint8)
    pixels.setflags(write=False)
    labels = np.arange(num)
    labels.setflags(write=False)
    return ArraySamples((pixels, labels), images)


def batches_of(samples: Any, channels_last: bool = True, loader_workers: int = 0) -> Batches:
    loader = Loader([samples], loader_workers) if isinstance(samples, LazySamples) else None
    return Batches(samples, device=CPU, channels_last=channels_last, on_device=False, loader=loader)


def slow_epoch(samples: ArraySamples, seed: int | None) -> np.ndarray:
    """One image after the other: pad with black, cut, mirror, normalise; ``[N, C, H, W]``."""
    images, pixels = samples.images, samples.arrays[0]
    assert images is not None
    height, width = pixels.shape[1:3]
    draws = Draws.of(len(samples), images, seed)
    done = []
    for position in range(len(samples)):
        if draws is None:
            image = pixels[position]
        else:
            image = pixels[int(draws.order[position])]
            if draws.top is not None and draws.left is not None:
                image = np.pad(image, [(images.crop_padding,) * 2, (images.crop_padding,) * 2, (0, 0)])
                top, left = int(draws.top[position]), int(draws.left[position])
                image = image[top : top + height, left : left + width]
            if draws.flip is not None and draws.flip[position]:
                image = image[:, ::-1]
        done.append(((image / 255.0 - np.array(images.mean)) / np.array(images.std)).transpose(2, 0, 1))
    return np.stack(done)


@settings(max_examples=40)
@given(
    num=st.integers(1, 12), height=st.integers(1, 7), width=st.integers(1, 7), channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 3), crop=st.booleans(), flip=st.booleans(), channels_last=st.booleans(),
    batch_size=st.integers(1, 5), seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_batches_equal_the_slow_twin(
    num: int, height: int, width: int, channels: int, padding: int, crop: bool, flip: bool, channels_last: bool,
    batch_size: int, seed: int | None,
) -> None:
    images = ImageSettings(MEAN[:channels], STD[:channels], padding, flip, crop)
    samples = image_samples(num, height, width, channels, images)
    batches = list(batches_of(samples, channels_last).one_pass(batch_size, seed=seed, drop_last=False))
    inputs = torch.cat([batch[0] for batch in batches])
    np.testing.assert_allclose(inputs.numpy(), slow_epoch(samples, seed), rtol=1e-5, atol=1e-5)
    assert sorted(torch.cat([batch[1] for batch in batches]).tolist()) == list(range(num))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
def test_layout_and_types(channels_last: bool, seed: int | None) -> None:
    samples = image_samples(10, 6, 5, 3, ImageSettings(MEAN, STD, 2, True, True))
    for images, labels in batches_of(samples, channels_last).one_pass(4, seed=seed, drop_last=False):
        wanted = torch.channels_last if channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=wanted)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape[1:] == (3, 6, 5)


def test_seed_decides_everything_and_fixed_order_is_fixed() -> None:
    source = batches_of(image_samples(50, 4, 4, 1, ImageSettings((0.5,), (0.2,), 1, True, True)))

    def epoch(seed: int | None) -> torch.Tensor:
        torch.rand(3)
        return torch.cat([batch[0] for batch in source.one_pass(8, seed=seed, drop_last=False)])

    before = torch.get_rng_state()
    order = [batch[1] for batch in source.one_pass(8, seed=None, drop_last=False)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.cat(order).tolist() == list(range(50))
    assert torch.equal(epoch(7), epoch(7))
    assert not torch.equal(epoch(7), epoch(8))
    assert torch.equal(epoch(None), epoch(None))


def test_order_and_crops_do_not_depend_on_the_batch_size() -> None:
    source = batches_of(image_samples(24, 4, 4, 1, ImageSettings((0.5,), (0.2,), 1, True, True)))
    small, large = (torch.cat([b[0] for b in source.one_pass(size, seed=1, drop_last=True)]) for size in (4, 8))
    assert torch.equal(small, large)


@pytest.mark.parametrize(("num", "size", "drop_last", "count"), [(10, 4, True, 2), (10, 4, False, 3), (8, 4, False, 2)])
def test_number_of_batches(num: int, size: int, drop_last: bool, count: int) -> None:
    source = batches_of(ArraySamples((np.zeros((num, 2), np.float32), np.arange(num))))
    batches = list(source.one_pass(size, seed=0, drop_last=drop_last))
    assert len(batches) == source.num_batches(size, drop_last) == count


@pytest.mark.parametrize("seed", [None, 0])
def test_a_model_may_overwrite_its_batch(seed: int | None) -> None:
    inputs = np.ones((6, 2), np.float32)
    inputs.setflags(write=False)
    source = batches_of(ArraySamples({"x": inputs, "deep": ({"y": np.arange(6)},)}))
    for batch in source.one_pass(3, seed=seed, drop_last=True):
        batch["x"].zero_()
        batch["deep"][0]["y"].zero_()
    assert inputs.min() == 1


def read(source: Batches, **how: Any) -> list[Any]:
    return [(leaf, leaf.stride()) for batch in source.one_pass(6, **how) for leaf in leaves(batch)]


def assert_same_bits(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for (values, strides), (wanted, wanted_strides) in zip(found, expected, strict=True):
        assert torch.equal(values, wanted)
        assert strides == wanted_strides


PIPELINES = [ImageSettings(MEAN, STD, 2, True, True), ImageSettings(MEAN, STD, 2, False, True),
             ImageSettings(MEAN, STD)]
PASSES = [{"drop_last": False}, {"drop_last": True, "first": 2}, {"drop_last": True, "share": (1, 3), "first": 1}]


@pytest.mark.parametrize("images", PIPELINES)
@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("how", PASSES)
def test_batches_made_together_are_those_made_alone(
    images: ImageSettings, seed: int | None, how: dict[str, Any]
) -> None:
    samples = image_samples(41, 8, 16, 3, images)
    alone, together = batches_of(samples), batches_of(samples)
    expected = read(alone, seed=seed, **how)
    for together.group in (2, 3, 100):
        assert_same_bits(read(together, seed=seed, **how), expected)


def test_a_group_is_as_large_as_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = image_samples(40, 8, 16, 3, PIPELINES[0])
    made: list[int] = []
    pixels = batches_module.ImagePipeline.__call__

    def counted(self: Any, images: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        made.append(len(images))
        return pixels(self, images, draws)

    monkeypatch.setattr(batches_module.ImagePipeline, "__call__", counted)
    expected = read(batches_of(samples), seed=1, drop_last=False)
    monkeypatch.setitem(batches_module.GROUP_BYTES, "cpu", 2 * 6 * (8 * 16 * 3 * 4 + 8))
    assert_same_bits(read(batches_of(samples), seed=1, drop_last=False), expected)
    assert made == [6, 6, 6, 6, 6, 6, 4, 12, 12, 12, 4]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["images", "grey", "floats", "doubles", "nest"])
def test_what_is_kept_ready_is_what_is_made_anew(
    kind: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.RandomState(0)
    samples = {
        "images": lambda: image_samples(20, 5, 7, 3, PIPELINES[2]),
        "grey": lambda: image_samples(20, 5, 7, 1, ImageSettings((0.5,), (0.2,))),
        "floats": lambda: ArraySamples((draw.randn(20, 3, 4, 5).astype(np.float32), np.arange(20))),
        "doubles": lambda: ArraySamples((draw.randn(20, 7), draw.randn(20, 1))),
        "nest": lambda: ArraySamples({"x": (draw.randn(20, 2, 3, 3), np.arange(20)), "y": [np.arange(20) % 2 == 0]}),
    }[kind]()
    ready = batches_of(samples, channels_last)
    kept = read(ready, seed=3, drop_last=False)
    unshuffled = read(ready, seed=None, drop_last=False)
    monkeypatch.setitem(batches_module.KEPT_BYTES, "cpu", 0)
    assert_same_bits(kept, read(batches_of(samples, channels_last), seed=3, drop_last=False))
    assert_same_bits(unshuffled, read(batches_of(samples, channels_last), seed=None, drop_last=False))


def test_no_more_is_kept_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    samples = image_samples(20, 4, 4, 3, PIPELINES[2])
    monkeypatch.setattr(batches_module.LeafArray, "make_ready", lambda self: made.append(self.num_bytes))
    floats, labels = 20 * 4 * 4 * 3 * 4, 20 * 8
    for bound, expected in ((floats + labels, [labels, floats]), (floats + labels - 1, [labels]), (0, [])):
        monkeypatch.setitem(batches_module.KEPT_BYTES, "cpu", bound)
        made.clear()
        next(iter(batches_of(samples).one_pass(2, seed=0, drop_last=False)))
        assert made == expected
    monkeypatch.undo()
    made.clear()
    next(iter(batches_of(samples).one_pass(2, seed=None, drop_last=False)))
    assert not made


@pytest.mark.parametrize("seed", [None, 0])
def test_a_model_may_overwrite_one_of_several_batches(seed: int | None) -> None:
    source = batches_of(ArraySamples((np.ones((8, 64), np.float32), np.arange(8))))
    source.group = 4
    for _ in range(2):
        for inputs, _ in source.one_pass(2, seed=seed, drop_last=True):
            assert inputs.min() == 1
            inputs.zero_()


@pytest.mark.gpu
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_the_gpu_gets_the_same_batches(on_device: bool, seed: int | None) -> None:
    samples = image_samples(50, 8, 6, 3, ImageSettings(MEAN, STD, 2, True, True))
    source = Batches(samples, device=torch.device("cuda"), channels_last=True, on_device=on_device)
    theirs, mine = (list(f.one_pass(8, seed=seed, drop_last=False)) for f in (source, batches_of(samples)))
    assert len(theirs) == len(mine)
    for (images, labels), (expected, expected_labels) in zip(theirs, mine, strict=True):
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.cpu(), expected)
        assert torch.equal(labels.cpu(), expected_labels)


class Noisy(Dataset[Any]):
    """Random samples from all three generators that users draw from."""

    def __getitem__(self, index: int) -> Any:
        import random

        return {"x": torch.rand(2) + np.random.rand() + random.random(), "index": index}


def lazy_epoch(workers: int, seed: int | None) -> tuple[torch.Tensor, list[int]]:
    samples = LazySamples(Noisy(), np.arange(100, 113))
    batches = list(batches_of(samples, loader_workers=workers).one_pass(4, seed=seed, drop_last=False))
    return torch.cat([b["x"] for b in batches]), torch.cat([b["index"] for b in batches]).tolist()


@pytest.mark.parametrize("seed", [None, 11])
def test_loader_workers_change_nothing(seed: int | None) -> None:
    here, order = lazy_epoch(0, seed)
    there, same_order = lazy_epoch(2, seed)
    assert torch.equal(here, there)
    assert order == same_order
    assert sorted(order) == list(range(100, 113))
    assert (order == sorted(order)) == (seed is None)
    assert not torch.equal(here, lazy_epoch(0, 12)[0])


def image_folder(root: Path) -> DataConfig:
    from PIL import Image

    pixels = np.random.RandomState(0).randint(0, 256, (4, 20, 26, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                Image.fromarray(pixels[index]).save(root / split / name / f"{index}.png")
    return DataConfig(name="image_folder", root=str(root), image_size=8, resize=10, validation=0.25)


def test_image_folder_batches(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test), data.input_shape) == (6, 2, 8, (3, 8, 8))

    def epoch(split: Any, seed: int | None, workers: int = 0) -> torch.Tensor:
        source = batches_of(split, loader_workers=workers)
        return torch.cat([images for images, _ in source.one_pass(2, seed=seed, drop_last=False)])

    images = epoch(data.test, None)
    assert images.shape == (8, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, epoch(data.test, None))
    assert torch.equal(images[:4], images[4:])
    assert torch.equal(epoch(data.train, 5), epoch(data.train, 5, workers=1))
    assert not torch.equal(epoch(data.train, 5), epoch(data.train, 6))


def test_a_corrupt_file_in_a_folder_is_named(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path))
    (tmp_path / "test" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(RunError, match=r"dog/2\.png"):
        list(batches_of(data.test).one_pass(2, seed=None, drop_last=False))


@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_pass_can_begin_at_any_batch(lazy: bool, seed: int | None) -> None:
    images = image_samples(13, 4, 4, 1, ImageSettings((0.5,), (0.2,), 1, True, True))
    source = batches_of(LazySamples(Noisy(), np.arange(100, 113)) if lazy else images)
    rows = [batch["index"].tolist() if lazy else (batch[0].tolist(), batch[1].tolist())
            for batch in source.one_pass(4, seed=seed, drop_last=False)]
    for first in range(5):
        rest = [batch["index"].tolist() if lazy else (batch[0].tolist(), batch[1].tolist())
                for batch in source.one_pass(4, seed=seed, drop_last=False, first=first)]
        assert rest == rows[first:]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_shares_of_ranks_put_together_are_the_batches_of_one(lazy: bool, count: int) -> None:
    images = image_samples(27, 4, 4, 1, ImageSettings((0.5,), (0.2,), 1, True, True))
    source = batches_of(LazySamples(Noisy(), np.arange(100, 127)) if lazy else images)
    whole = list(source.one_pass(6, seed=5, drop_last=True, first=1))
    parts = [list(source.one_pass(6, seed=5, drop_last=True, first=1, share=(rank, count))) for rank in range(count)]
    assert len(whole) == 3
    for number, batch in enumerate(whole):
        for key in ("x", "index") if lazy else (0, 1):
            assert torch.equal(torch.cat([part[number][key] for part in parts]), batch[key])
