"""Map-style torch datasets of the user's: probed, read into memory where they are constant and small, compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from swamp_ray.data.loader import collate
from swamp_ray.data.pairs import LABEL_KEYS, label_leaf, with_labels
from swamp_ray.data.trees import leaves, named_leaves, num_samples, tree_map
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.user_code.importing import own_traceback

MAX_MATERIALISED_BYTES = 2 * 2**30
NUM_PROBES = 16
"""Samples at the beginning that are read twice to see whether a dataset is random; as many are spread over the rest."""
ENDLESS = 2**31
"""A dataset with more samples is taken for one that never ends."""

Form = list[tuple[str, str, tuple[int, ...]]]
"""Path, type and shape of each part of a sample."""


class ListDataset(Dataset[Any]):
    """A list of samples as a dataset."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class ArrayDataset(Dataset[Any]):
    """The rows of a tree of arrays as a dataset."""

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays
        self.size = num_samples(arrays)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return tree_map(lambda leaf: np.array(leaf[index]), self.arrays)


@dataclass(frozen=True)
class ReadSplit:
    """What was found of a dataset.

    Attributes:
        tree: All samples stacked; None where they are to be read while training.
        random: Whether a sample changes when it is read again.
        repeatable: Whether it is the same when it is read under the same seeds.
        rows: The samples that were probed.
        probes: Stacked.
    """

    tree: Any
    random: bool
    repeatable: bool
    rows: list[int]
    probes: Any


def read_split(split: Any, where: str) -> ReadSplit:
    """Read a dataset into memory, unless it is random or takes too much.

    Raises:
        UserError: It has no length, no samples or no end, or its samples cannot be read and stacked.
    """
    size = length_of(split)
    if not size:
        raise UserError("there are no samples", where=where)
    if size > ENDLESS:
        raise UserError("a dataset must have an end", got=f"{size} samples", where=where)
    first = read_rows(split, [0], 1, where)
    rows = _probed_rows(size)
    probes = read_rows(split, rows, 1, where)
    if not _equal(probes, read_rows(split, rows, 2, where)):
        repeatable = _equal(probes, read_rows(split, rows, 1, where))
        return ReadSplit(None, random=True, repeatable=repeatable, rows=rows, probes=probes)
    tree = None
    if size * sum(leaf.nbytes for leaf in leaves(first)) <= MAX_MATERIALISED_BYTES:
        tree = read_rows(split, list(range(size)), 0, where)
    return ReadSplit(tree, random=False, repeatable=True, rows=rows, probes=probes)


def _probed_rows(size: int) -> list[int]:
    """The first samples, and as many spread over the rest."""
    rows = list(range(min(size, NUM_PROBES)))
    if size > NUM_PROBES:
        step = max(1, (size - NUM_PROBES) // NUM_PROBES)
        rows += list(range(NUM_PROBES, size, step))[:NUM_PROBES]
    return rows


def _equal(first: Any, second: Any) -> bool:
    return all(_same(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def _same(first: Any, second: Any) -> bool:
    """Whether two arrays or tensors hold the same values; NaN equals NaN."""
    if not isinstance(first, Tensor):
        return np.array_equal(first, second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        return torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(first, second)


def read_rows(split: Any, rows: list[int], seed: int, where: str) -> Any:
    """Some samples, read under a seed and stacked; labels that are texts become arrays of texts.

    Raises:
        UserError: They cannot be read and stacked.
    """
    texts: dict[str, int] = {}
    try:
        with seeded(seed):
            samples = [split[row] for row in rows]
            if isinstance(label_leaf(samples[0]), str):
                samples = [_with_coded_text(sample, texts) for sample in samples]
            batch = collate(samples)
    except Exception as error:
        raise UserError(f"samples {rows[0]} to {rows[-1]} cannot be read and stacked", where=where,
                        do=f"Their own error:\n{own_traceback(error)}") from error
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        raise UserError("samples must be nests of tensors, arrays and numbers", where=where,
                        got=", ".join(sorted({type(leaf).__name__ for leaf in leaves(batch)})))
    if not texts:
        return batch
    coded = label_leaf(batch).numpy()
    return with_labels(batch, np.array(list(texts))[coded])


def _with_coded_text(sample: Any, texts: dict[str, int]) -> Any:
    """A sample whose label is the number of its text; a new text gets the next number."""
    number = texts.setdefault(label_leaf(sample), len(texts))
    return with_labels(sample, number)


def length_of(split: Any) -> int:
    """How many samples a map-style dataset has.

    Raises:
        UserError: It is no map-style dataset.
    """
    try:
        if isinstance(split, IterableDataset):
            raise TypeError
        size = len(split)
    except Exception as error:  # whatever a length of the user's own raises
        has_no_length = isinstance(error, TypeError | NotImplementedError)
        reason = "" if has_no_length else f" Its own error:\n{own_traceback(error)}"
        raise UserError("a dataset must be map-style: with __len__ and __getitem__", got=type(split).__name__,
                        where="data.name", do=f"Wrap it, or return arrays.{reason}") from error
    return size


def attribute_labels(split: Any) -> np.ndarray | None:
    """Integer labels that a dataset has as an attribute, as torchvision's do in ``targets``."""
    for name in ("targets", *LABEL_KEYS):
        found = getattr(split, name, None)
        if isinstance(found, list | tuple | np.ndarray | Tensor) and len(found) == length_of(split):
            array = np.asarray(found)
            if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
                return array.astype(np.int64)
    return None


def form_of(tree: Any) -> Form:
    """Path, type and shape of a sample's parts."""
    form: Form = []
    for path, leaf in named_leaves(tree):
        form.append((path, str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape[1:])))
    return form


def form_text(form: Form) -> str:
    """A form in words."""
    return ", ".join(f"{path or 'array'}: {kind} {list(shape)}" for path, kind, shape in form)


def first_difference(first: Any, second: Any) -> int | None:
    """The first sample in which two equally long batches of labels differ."""
    one = torch.as_tensor(np.asarray(first))
    other = torch.as_tensor(np.asarray(second))
    if one.shape != other.shape:
        return 0
    differing = (one != other).reshape(len(one), -1).any(dim=1).nonzero()
    return int(differing[0]) if len(differing) else None
