"""Your own datasets: nests, images, regression, torch datasets, and what is said when they are wrong."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import ArraySamples, Data, LazySamples
from swamp_ray.errors import UserError

CPU = torch.device("cpu")


def load(name: str, **fields: Any) -> Data:
    return load_data(DataConfig(name=name, **fields))


def arrays(samples: Any) -> Any:
    assert isinstance(samples, ArraySamples)
    return samples.arrays


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "their_data.py").write_text(textwrap.dedent("""
        import numpy as np
        import torch
        from torch.utils.data import Dataset, TensorDataset

        def text(num=20):
            def split(n):
                return {"tokens": torch.arange(n * 3).view(n, 3), "more": (np.ones((n, 2)),),
                        "labels": torch.arange(n, dtype=torch.int32) % 2}
            return {"train": split(num), "test": split(6), "class_names": ["no", "yes"]}

        def images():
            def split(n):
                return np.arange(n * 48, dtype=np.uint8).reshape(n, 4, 4, 3), np.arange(n) % 4
            return {"train": split(40), "test": split(8), "validation": split(12)}

        def regression():
            return {"train": (np.random.rand(30, 4), np.random.rand(30, 1)), "test": [np.ones((5, 4)), np.ones((5, 1))]}

        def dataset():
            return {name: TensorDataset(torch.arange(float(n)).view(n, 1), torch.arange(n) % 3)
                    for name, n in (("train", 30), ("test", 9))}

        class Noisy(Dataset):
            targets = [0, 1] * 10
            def __len__(self):
                return 20
            def __getitem__(self, index):
                return torch.rand(1, 3, 3) + index + np.random.rand(), self.targets[index]

        def noisy():
            return {"train": Noisy(), "test": Noisy()}

        def broken():
            raise ZeroDivisionError("my very own mistake")

        def returns(what):
            good = (np.zeros((6, 2)), np.arange(6) % 2)
            return {
                "nothing": None,
                "no test": {"train": good},
                "extra": {"train": good, "test": good, "valid": good},
                "lengths": {"train": (np.zeros((5, 2)), np.arange(6)), "test": good},
                "forms": {"train": good, "test": (np.zeros((6, 3)), np.arange(6) % 2)},
                "strings": {"train": (np.array(["a", "b"]), np.arange(2)), "test": good},
                "empty": {"train": (np.zeros((0, 2)), np.zeros(0, int)), "test": good},
                "labels": {"train": good, "test": good, "num_classes": 1},
                "one class": {"train": (np.zeros((6, 2)), np.zeros(6, int)), "test": good},
                "names": {"train": good, "test": good, "class_names": ["a"]},
            }[what]
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_data"
    sys.modules.pop("their_data", None)


def test_user_nest_of_dicts_and_tuples(user_module: str) -> None:
    data = load(f"{user_module}:text", options={"num": 40})
    assert (len(data.train), len(data.validation), data.num_classes) == (36, 4, 2)
    assert data.input_shape is None
    batch = next(Batches(data.train, device=CPU, channels_last=True, on_device=False)
                 .one_pass(6, seed=1, drop_last=True))
    assert set(batch) == {"tokens", "more", "labels"}
    assert batch["tokens"].shape == (6, 3)
    assert batch["labels"].dtype == torch.int64
    assert batch["more"][0].dtype == torch.float32
    assert torch.equal(batch["tokens"][:, 0] // 3 % 2, batch["labels"])


def test_user_images_go_through_the_pipeline(user_module: str) -> None:
    data = load(f"{user_module}:images", augment="crop_flip")
    assert (len(data.train), len(data.validation), data.num_classes) == (40, 12, 4)
    assert data.input_shape == (3, 4, 4)
    assert data.train.images is not None
    assert data.train.images.flip


def test_user_regression_has_no_classes(user_module: str) -> None:
    data = load(f"{user_module}:regression")
    assert (data.num_classes, data.input_shape) == (None, (4,))
    assert arrays(data.train)[1].dtype == np.float32
    assert data.digest == load(f"{user_module}:regression").digest
    with pytest.raises(UserError, match="uint8 images"):
        load(f"{user_module}:regression", augment="crop")


def test_user_dataset_is_read_into_memory(user_module: str) -> None:
    data = load(f"{user_module}:dataset")
    inputs, labels = arrays(data.test)
    assert inputs.ravel().tolist() == list(range(9))
    assert labels.tolist() == [row % 3 for row in range(9)]


def test_random_user_dataset_stays_random_and_needs_a_version(user_module: str) -> None:
    with pytest.raises(UserError, match=r"data\.version"):
        load(f"{user_module}:noisy")
    data = load(f"{user_module}:noisy", version="1", validation=0.2)
    assert isinstance(data.train, LazySamples)
    assert (len(data.train), len(data.validation), data.num_classes, data.input_shape) == (16, 4, 2, (1, 3, 3))
    assert load(f"{user_module}:noisy", version="2", validation=0.2).digest != data.digest


def test_user_error_is_shown_below(user_module: str) -> None:
    with pytest.raises(UserError, match=r"(?s)failed.*their_data.py.*ZeroDivisionError: my very own mistake"):
        load(f"{user_module}:broken")
    with pytest.raises(UserError, match=r"data\.options.*'depth'"):
        load(f"{user_module}:broken", options={"depth": 3})


@pytest.mark.parametrize(("what", "text"), [
    ("nothing", "must return a mapping with 'train' and 'test', but got 'NoneType'"),
    ("no test", "'train' and 'test'"),
    ("extra", "unknown keys ['valid']"),
    ("lengths", "same number of samples"),
    ("forms", "test must have the form of train"),
    ("strings", "arrays or tensors of numbers"),
    ("empty", "there are no samples"),
    ("labels", "labels must lie in [0, 1)"),
    ("one class", "at least two classes"),
    ("names", "one name for each of 2 classes"),
])
def test_user_function_returns_something_else(what: str, text: str, user_module: str) -> None:
    with pytest.raises(UserError) as caught:
        load(f"{user_module}:returns", options={"what": what})
    assert text in str(caught.value)
