"""Labels of one's own data: what is certain is converted to the same numbers, the rest is refused with labels named."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from swamp_ray.config.sections import DataConfig, TaskConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import ArraySamples, Data, LazySamples
from swamp_ray.data.trees import leaves
from swamp_ray.errors import UserError

CPU = torch.device("cpu")
X = np.random.RandomState(0).randn(30, 4).astype(np.float32)
Y = np.arange(30) % 3
Give = Callable[[Callable[[], Any]], str]


@pytest.fixture
def give() -> Iterator[Give]:
    """Puts a function into a module of its own, and gives its import path."""
    module = types.ModuleType("given_data")
    sys.modules["given_data"] = module

    def put(function: Callable[[], Any]) -> str:
        module.made = function  # type: ignore[attr-defined]
        return "given_data:made"

    yield put
    del sys.modules["given_data"]


def load(name: str, task: str = "classification", **fields: Any) -> Data:
    return load_data(DataConfig(name=name, **fields), TaskConfig(name=task))


def splits(labels: Any, **more: Any) -> dict[str, Any]:
    return {"train": (X, labels), "test": (X, labels), **more}


def numbers(data: Data) -> list[int]:
    """The test split's labels as the task is given them."""
    source = Batches(data.test, device=CPU, channels_last=False, on_device=False)
    batches = [batch[1] for batch in source.one_pass(8, seed=None, drop_last=False)]
    assert all(batch.dtype == torch.int64 and batch.ndim == 1 for batch in batches)
    return torch.cat(batches).tolist()


class Rows(Dataset[Any]):
    """Samples that change whenever they are read, unless ``noise`` is 0."""

    def __init__(self, labels: Any, noise: float = 0.1, own: bool = False, inputs: np.ndarray = X) -> None:
        self.labels_given, self.noise, self.inputs = labels, noise, inputs
        self.generator = np.random.default_rng(0) if own else None

    def __len__(self) -> int:
        return len(self.labels_given)

    def __getitem__(self, index: int) -> Any:
        draw = torch.randn(4).numpy() if self.generator is None else self.generator.normal(size=4).astype(np.float32)
        return self.inputs[index] + self.noise * draw, self.labels_given[index]


CERTAIN: dict[str, Any] = {
    "int64": Y, "int32": Y.astype(np.int32), "uint8": Y.astype(np.uint8), "tensor": torch.from_numpy(Y),
    "column": Y[:, None], "float": Y.astype(np.float32), "double column": Y[:, None].astype(float),
    "one-hot": np.eye(3)[Y], "one-hot bool": np.eye(3, dtype=bool)[Y], "one-hot tensor": torch.eye(3).long()[Y],
    "bfloat16": torch.from_numpy(Y).bfloat16(), "list": Y.tolist(), "objects": Y.astype(object),
    "series": pd.Series(Y), "nullable": pd.Series(Y, dtype="Int64"), "index": pd.Index(Y),
    "categories of numbers": pd.Series(Y, dtype="category"), "one-hot table": pd.get_dummies(pd.Series(Y)),
}


@pytest.mark.parametrize("kind", CERTAIN)
def test_labels_whose_meaning_is_certain(kind: str, give: Give) -> None:
    data = load(give(lambda: splits(CERTAIN[kind])))
    assert numbers(data) == Y.tolist()
    assert data.num_classes == 3
    assert data.warnings == ()
    assert data.digest == load(give(lambda: splits(Y))).digest


@pytest.mark.parametrize("kind", ["int64", "int32", "column", "float", "one-hot", "bfloat16"])
def test_labels_that_are_read_while_training(kind: str, give: Give) -> None:
    labels = torch.as_tensor(CERTAIN[kind])
    data = load(give(lambda: {"train": Rows(labels), "test": Rows(labels), "num_classes": 3}), version="1")
    assert isinstance(data.train, LazySamples)
    assert numbers(data) == Y.tolist()


TEXTS = np.array(["cat", "ape", "bee"])[Y]


@pytest.mark.parametrize("labels", [
    TEXTS, TEXTS.astype(object), TEXTS.astype("S3"), pd.Series(TEXTS), pd.Series(TEXTS, dtype="category"),
    TEXTS.tolist(), TEXTS[:, None]])
@pytest.mark.parametrize("task", ["classification", "builtins:object"])
def test_texts_are_classes_in_alphabetical_order(labels: Any, task: str, give: Give) -> None:
    data = load(give(lambda: splits(labels)), task)
    assert data.class_names == ("ape", "bee", "cat")
    assert isinstance(data.test, ArraySamples)
    assert data.test.arrays[1].tolist() == [(2, 0, 1)[label] for label in Y]


def test_texts_follow_the_names_that_are_given(give: Give) -> None:
    data = load(give(lambda: splits(TEXTS, class_names=np.array(["cat", "ape", "bee", "dog"]))))
    assert numbers(data) == Y.tolist()
    assert data.num_classes == 4
    assert "train has no sample of class 3" in data.warnings[0]


def test_texts_in_a_dataset(give: Give) -> None:
    rows = [(X[row], str(TEXTS[row])) for row in range(30)]
    assert numbers(load(give(lambda: {"train": rows, "test": Rows(TEXTS.tolist(), 0.0)}))) == [2, 0, 1] * 10


@pytest.mark.parametrize("more", [{"num_classes": 3}, {"class_names": ["a", "b", "c"]}, {"num_classes": np.int64(3)}])
def test_labels_from_1_are_taken_where_the_number_of_classes_is_known(more: dict[str, Any], give: Give) -> None:
    data = load(give(lambda: splits(Y + 1, **more)))
    assert numbers(data) == Y.tolist()
    assert data.num_classes == 3


def test_labels_from_1_that_are_read_while_training(give: Give) -> None:
    class Known(Rows):
        targets = (Y + 1).tolist()

    data = load(give(lambda: {"train": Known(Y + 1), "test": Known(Y + 1), "num_classes": 3}), version="1")
    assert numbers(data) == Y.tolist()


def test_labels_from_1_stay_with_a_task_of_ones_own(give: Give) -> None:
    data = load(give(lambda: splits(Y + 1)), "builtins:object")
    assert isinstance(data.test, ArraySamples)
    assert data.test.arrays[1].tolist() == (Y + 1).tolist()
    assert data.num_classes == 4


def changed(row: int, value: Any, kind: Any = float) -> np.ndarray:
    labels = Y.astype(kind)
    labels[row] = value
    return labels


REFUSED: dict[str, tuple[Any, str]] = {
    "from 1": (splits(Y + 1), "labels must begin at 0, but got '1 to 3'.*num_classes: 3"),
    "from 5": (splits(Y + 5), "labels must begin at 0"),
    "minus 1": (splits(changed(4, -1, int), num_classes=3), r"labels must lie in \[0, 3\), but got '-1 in row 4'"),
    "minus 100": (splits(changed(4, -100, int)), "labels must lie in"),
    "plus and minus 1": (splits(Y % 2 * 2 - 1), "labels must lie in"),
    "too large": (splits(Y, num_classes=2), r"labels must lie in \[0, 2\)"),
    "nan": (splits(changed(7, np.nan)), "labels must be finite numbers.*sample 7"),
    "infinite": (splits(changed(7, np.inf)), "labels must be finite numbers"),
    "missing": (splits(pd.Series([None, 1, 2] * 10, dtype="Int64")), "labels must be finite numbers"),
    "missing text": (splits(pd.Series([None, "a", "b"] * 10)), "labels must be numbers, or all texts.*sample 0"),
    "halves": (splits(Y / 2), "labels of a classification must be whole numbers, but got '0.5 in sample 1'"),
    "soft": (splits(np.full((30, 3), 1 / 3)), "rows with a single 1"),
    "several": (splits(np.ones((30, 3), int)), "rows with a single 1"),
    "pixels": (splits(np.zeros((30, 4, 4), int)), "labels must be one number a sample, but got 'shape"),
    "complex": (splits(Y.astype(complex)), "arrays or tensors of numbers"),
    "dates": (splits(pd.Series(pd.date_range("2020", periods=30))), "labels must be numbers, or all texts"),
    "mixed": ({"train": (X, Y), "test": (X, TEXTS)}, "labels must be texts in all splits, or numbers in all"),
    "other text": ({"train": (X, TEXTS), "test": (X, np.array(["Cat", "ape", "bee"])[Y])},
                   "a label is not among the labels of train, but got 'Cat'"),
    "text without a name": (splits(TEXTS, class_names=["ape", "bee"]), "a label is not among class_names"),
    "widths": ({"train": (X, np.eye(3)[Y]), "test": (X, np.eye(4)[Y])}, "one number of classes in all splits"),
    "one class": (splits(np.zeros(30)), "at least two classes"),
    "three parts": ({"train": (X, Y, X), "test": (X, Y, X)}, "read pairs of inputs and labels.*but got '3 parts'"),
    "inputs alone": ({"train": X, "test": X}, "read pairs.*a single part"),
    "mask beside": ({"train": {"image": X, "label": Y, "mask": X}, "test": {"image": X, "label": Y, "mask": X}},
                    "a mapping with image, label, mask"),
    "nested labels": ({"train": (X, (Y, Y)), "test": (X, (Y, Y))}, "labels must be one array"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_may_mean_several_things_are_refused(kind: str, give: Give) -> None:
    made, text = REFUSED[kind]
    with pytest.raises(UserError, match=text):
        load(give(lambda: made))


@pytest.mark.parametrize(("labels", "text"), [
    (torch.full((30,), -100), "labels must lie in"), (torch.from_numpy(Y) + 1.5, "whole numbers"),
    (torch.from_numpy(Y) + 9, r"labels must lie in \[0, 3\)"), (torch.full((30, 3), 0.3), "rows with a single 1")])
def test_labels_that_are_read_while_training_are_looked_at_before(labels: Tensor, text: str, give: Give) -> None:
    with pytest.raises(UserError, match=text):
        numbers(load(give(lambda: {"train": Rows(labels), "test": Rows(labels), "num_classes": 3}), version="1"))


def test_every_batch_of_labels_is_looked_at(give: Give) -> None:
    labels = torch.from_numpy(np.arange(400) % 3)
    labels[393] = -100
    rows = Rows(labels, inputs=np.zeros((400, 4), np.float32))
    data = load(give(lambda: {"train": rows, "test": rows, "num_classes": 3}), version="1")
    with pytest.raises(UserError, match=r"labels must lie in \[0, 3\), but got '-100"):
        numbers(data)


@pytest.mark.parametrize(("train", "test", "text"), [
    (Y * 2, Y * 2, "train has no sample of the classes 1, 3 (of 5), which cannot be learnt"),
    (Y, Y % 2, "test has no sample of class 2"), (Y % 2, Y, "train has no sample of class 2")])
def test_classes_without_samples_are_told(train: Any, test: Any, text: str, give: Give) -> None:
    data = load(give(lambda: {"train": (X, train), "test": (X, test)}))
    assert any(text in one for one in data.warnings)


# Forms of samples -----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(("inputs", "labels"), [
    ("inputs", "labels"), ("image", "label"), ("pixel_values", "labels"), ("inputs", "label")])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_mappings_with_the_built_in_tasks(inputs: str, labels: str, task: str, give: Give) -> None:
    made = {inputs: X, labels: Y}
    data = load(give(lambda: {"train": made, "test": made}), task)
    assert data.digest == load(give(lambda: splits(Y)), task).digest
    assert data.input_shape == (4,)


@pytest.mark.parametrize("make", [
    lambda x, y: {"image": x, "label": y}, lambda x, y: Pair(x, y), lambda x, y: [x, y]])
def test_samples_of_several_forms_that_are_read_while_training(make: Any, give: Give) -> None:
    class Formed(Rows):
        def __getitem__(self, index: int) -> Any:
            return make(*super().__getitem__(index))

    data = load(give(lambda: {"train": Formed(Y), "test": Formed(Y), "num_classes": 3}), version="1")
    assert numbers(data) == Y.tolist()
    assert data.input_shape == (4,)


def test_images_of_a_mapping_go_through_the_pipeline(give: Give) -> None:
    images = np.arange(30 * 48, dtype=np.uint8).reshape(30, 4, 4, 3)
    made = {"pixel_values": images, "labels": Y}
    data = load(give(lambda: {"train": made, "test": made}), augment="crop_flip")
    assert data.input_shape == (3, 4, 4)
    assert isinstance(data.train, ArraySamples)
    assert data.train.images is not None


def test_mappings_stay_what_they_are_for_a_task_of_ones_own(give: Give) -> None:
    made = {"image": X, "label": Y, "more": X}
    data = load(give(lambda: {"train": made, "test": made}), "builtins:object")
    assert isinstance(data.train, ArraySamples)
    assert list(data.train.arrays) == ["image", "label", "more"]


def test_a_regression_takes_its_targets_as_they_are(give: Give) -> None:
    data = load(give(lambda: splits((Y - 5)[:, None].astype(np.int32))), "regression")
    assert data.num_classes is None
    assert load(give(lambda: splits(Y - 5)), "regression").num_classes is None
    with pytest.raises(UserError, match="targets that are numbers"):
        load(give(lambda: splits(TEXTS)), "regression")


# Tables ---------------------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame(X, columns=list("abcd")).assign(e=np.arange(30), f=Y == 1)


def test_tables(give: Give) -> None:
    data = load(give(lambda: {"train": (TABLE, pd.Series(Y)), "test": (TABLE[list("fedcba")], pd.Series(Y))}))
    assert isinstance(data.test, ArraySamples)
    inputs = data.test.arrays[0]
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, TABLE.to_numpy(np.float32))
    whole = TABLE.assign(kind=TEXTS)
    named = load(give(lambda: {"train": whole, "test": whole, "label_column": "kind"}))
    assert named.class_names == ("ape", "bee", "cat")
    assert np.array_equal(leaves(named.test.arrays)[0], inputs)  # type: ignore[union-attr]


@pytest.mark.parametrize(("made", "text"), [
    ({"train": TABLE, "test": TABLE}, "does not say which column holds the labels"),
    ({"train": TABLE, "test": TABLE, "label_column": "z"}, "no such column, but got 'z'"),
    ({"train": (TABLE.assign(g=TEXTS), Y), "test": (TABLE.assign(g=TEXTS), Y)}, "hold numbers, but got 'others in g'"),
    ({"train": (TABLE, Y), "test": (TABLE[list("abc")], Y)}, "those of train, but got 'differences in d, e, f'"),
    ({"train": (TABLE, pd.Series(Y).iloc[::-1]), "test": (TABLE, Y)}, "in different orders"),
    ({"train": (TABLE.assign(a=np.nan), Y), "test": (TABLE, Y)}, "NaN or infinity in sample 0"),
    ({"train": (np.ma.masked_array(X, mask=X > 1), Y), "test": (X, Y)}, "masked value in sample"),
    ({"train": (X, np.ma.masked_array(Y, mask=Y == 2)), "test": (X, Y)}, "masked value in sample 2"),
    ({"train": (X.astype(np.float64) * 1e300, Y), "test": (X, Y)}, "float32 cannot hold in sample 0"),
    ({"train": (X, Y.astype(np.uint64) + np.uint64(2**63)), "test": (X, Y)}, "numbers of classes, but got 92233"),
    ({"train": (TABLE, Y[:9]), "test": (TABLE, Y)}, "same number of samples, but got '0: 30, 1: 9'"),
])
def test_tables_that_do_not_fit(made: Any, text: str, give: Give) -> None:
    with pytest.raises(UserError, match=text):
        load(give(lambda: made))


def test_masked_arrays_that_mask_nothing_are_ordinary(give: Give) -> None:
    made = splits(np.ma.masked_array(Y, mask=False), train=(np.ma.masked_array(X), Y))
    assert numbers(load(give(lambda: made))) == Y.tolist()


# Odd splits and options -----------------------------------------------------------------------------------------------


class Endless(Rows):
    def __len__(self) -> int:
        return 2**40


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield X[0], 0


class Ragged(Rows):
    def __getitem__(self, index: int) -> Any:
        return X[index][: 1 + index % 2], 0


@pytest.mark.parametrize(("made", "text"), [
    ({"train": Stream(), "test": (X, Y)}, "map-style"), ({"train": NoLength(), "test": (X, Y)}, "map-style"),
    ({"train": Endless(Y), "test": (X, Y)}, "must have an end"), ({"train": Rows([]), "test": (X, Y)}, "no samples"),
    ({"train": Ragged(Y), "test": (X, Y)}, "cannot be read and stacked"), ({"train": None, "test": (X, Y)}, "no train"),
    ({"train": (X[:1], Y[:1]), "test": (X, Y)}, "at least two classes"),
    ({"train": (X[:0], Y[:0]), "test": (X, Y)}, "no samples"),
    ({"train": iter([1]), "test": (X, Y)}, "arrays or tensors"),
    ({"train": (torch.eye(30).to_sparse(), Y), "test": (X, Y)}, "torch.sparse_coo"),
    ({"train": (np.array([None, {}]), Y[:2]), "test": (X, Y)}, "arrays or tensors of numbers"),
    (splits(Y, num_classes="three"), "num_classes: must be a whole number"), (splits(Y, num_classes=2.5), "2.5"),
    (splits(Y, num_classes=True), "num_classes"), (splits(Y, num_classes=np.arange(3)), "num_classes"),
    (splits(Y, class_names="abc"), "must be a list of names"), (splits(Y, class_names=3), "must be a list of names"),
    (splits(Y, class_names=["a", "b", "a"]), "class_names must differ"),
    (splits(Y, class_names=np.array(["a", "b"])), "labels must lie in"),
])
def test_odd_splits_are_refused(made: Any, text: str, give: Give) -> None:
    with pytest.raises(UserError, match=text):
        load(give(lambda: made), version="1")


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), pd.Index(["a", "b", "c"]), ("a", "b", "c"), [0, 1, 2]])
@pytest.mark.parametrize("num", [3, np.int64(3), np.array(3), torch.tensor(3), 3.0, None])
def test_names_and_numbers_of_several_kinds(names: Any, num: Any, give: Give) -> None:
    data = load(give(lambda: splits(Y, class_names=names, num_classes=num)))
    assert data.class_names == tuple(str(name) for name in names)
    assert data.num_classes == 3


# Random datasets ------------------------------------------------------------------------------------------------------


def read(samples: Any, seed: int | None) -> Tensor:
    source = Batches(samples, device=CPU, channels_last=False, on_device=False)
    return torch.cat([batch[0] for batch in source.one_pass(5, seed=seed, drop_last=False)])


def rows_of(samples: Any) -> Tensor:
    return torch.from_numpy(X[samples.indices])


def test_a_random_dataset_without_unchanged_samples_is_told(give: Give) -> None:
    data = load(give(lambda: {"train": Rows(Y), "test": Rows(Y, 0.0), "num_classes": 3}), version="1")
    [warning] = data.warnings
    assert "the validation samples that are held out of them" in warning
    assert "train_plain" in warning
    made = {"train": Rows(Y, own=True), "test": Rows(Y), "validation": Rows(Y, 0.0), "num_classes": 3}
    own = load(give(lambda: made), version="1").warnings
    assert len(own) == 3
    assert "validation samples" not in own[0]
    assert "the samples of test change" in own[1]
    assert "train differ even under the same seeds" in own[2]


@pytest.mark.parametrize("own", [False, True])
def test_unchanged_samples_serve_validation_and_clean_passes(own: bool, give: Give) -> None:
    made = {"train": Rows(Y, own=own), "train_plain": Rows(Y, 0.0), "test": Rows(Y, 0.0), "num_classes": 3}
    data = load(give(lambda: made), version="1")
    assert "no unchanged ones" not in "".join(data.warnings)
    assert torch.equal(read(data.validation, None), rows_of(data.validation))
    assert torch.equal(read(data.train, None), rows_of(data.train))
    assert not torch.equal(read(data.train, 1).sort(0)[0], rows_of(data.train).sort(0)[0])
    without = {name: split for name, split in made.items() if name != "train_plain"}
    assert load(give(lambda: without), version="1").digest != data.digest


def shifted(sample: Any) -> Any:
    return sample[0] + 1 + torch.rand(4).numpy(), sample[1]


@pytest.mark.parametrize("arrays", [False, True])
def test_a_transform_is_for_training_alone(arrays: bool, give: Give) -> None:
    train = (X, Y) if arrays else Rows(Y, 0.0)
    made = {"train": train, "test": (X, Y), "transform": shifted, "num_classes": 3}
    data = load(give(lambda: made), version="1")
    assert data.warnings == ()
    assert torch.equal(read(data.validation, None), rows_of(data.validation))
    assert torch.equal(read(data.train, None), rows_of(data.train))
    assert torch.equal(read(data.test, None), torch.from_numpy(X))
    assert (read(data.train, 1).sort(0)[0] > rows_of(data.train).sort(0)[0]).all()
    with pytest.raises(UserError, match=r"data\.version"):
        load(give(lambda: made))


def test_unchanged_samples_of_images_in_memory(give: Give) -> None:
    images = np.arange(30 * 16, dtype=np.uint8).reshape(30, 4, 4, 1)
    made = {"train": (images // 2, Y), "train_plain": (images, Y), "test": (images, Y)}
    data = load(give(lambda: made))
    assert isinstance(data.validation, ArraySamples)
    plain = {image.tobytes() for image in images}
    assert all(image.tobytes() in plain for image in data.validation.arrays[0])
    assert not torch.equal(read(data.train, None), read(ArraySamples(data.train.arrays, data.train.images), None))  # type: ignore[union-attr]


@pytest.mark.parametrize(("more", "text"), [
    ({"train_plain": Rows(Y)}, "must be the same whenever they are read"),
    ({"train_plain": Rows(Y[:20], 0.0)}, "20 samples instead of 30"),
    ({"train_plain": Rows(Y[::-1].copy(), 0.0)}, "in the same order, but the labels differ"),
    ({"train_plain": Rows(Y, 0.0, inputs=X.astype(np.float16))}, ""),
    ({"train_plain": (np.zeros((30, 5), np.float32), Y)}, "must have one form"),
    ({"train_plain": Rows(Y, 0.0), "transform": shifted}, "two ways"),
    ({"transform": 3}, "transform must be a function"),
    ({"train": (X, Y), "transform": lambda sample: sample.missing}, "the transform fails"),
    ({"transform": shifted}, "to which no transform is applied must be the same"),
])
def test_unchanged_samples_that_are_none(more: dict[str, Any], text: str, give: Give) -> None:
    made = {"train": Rows(Y), "test": Rows(Y, 0.0), "num_classes": 3, **more}
    if not text:
        load(give(lambda: made), version="1")
        return
    with pytest.raises(UserError, match=text):
        load(give(lambda: made), version="1")
