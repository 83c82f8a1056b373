"""A split of your own data: tables, lists, nests of arrays and torch datasets, as arrays where that is certain."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from swamp_ray.data.labels import LABEL_KEYS, is_texts
from swamp_ray.data.loader import collate
from swamp_ray.data.trees import leaves, named_leaves, tree_map
from swamp_ray.errors import UserError
from swamp_ray.reproducible import seeded
from swamp_ray.user_code.importing import own_traceback

MAX_MATERIALISED_BYTES = 2 * 2**30
NUM_PROBES = 16
"""Samples at the beginning that are read twice to see whether a dataset is random; as many are spread over the rest."""
ENDLESS = 2**31
"""A dataset with more samples is taken for one that never ends."""
_FORM = "a split must be a nest of arrays or tensors, or a map-style torch dataset"
_SHOWN = 5


class ListedSamples(Dataset[Any]):
    """A list of samples as a dataset."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class NestSamples(Dataset[Any]):
    """The rows of a nest of arrays as a dataset."""

    def __init__(self, nest: Any) -> None:
        self.nest, self.size = nest, len(leaves(nest)[0])

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return tree_map(lambda leaf: np.array(leaf[index]), self.nest)


@dataclass
class Tables:
    """What the tables of the training split say, so that those of other splits can be read alike.

    Attributes:
        columns: Names of the columns, by the table's place in the split.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)


# What a split is


def as_split(split: Any, label_column: Any, where: str) -> Any:
    """A split with lists of samples as datasets, and tables divided into inputs and labels."""
    if _is_table(split):
        if label_column is None:
            raise UserError("a table alone does not say which column holds the labels", where=where,
                            do="Return its name too, as label_column; or a pair of a table and a column.")
        if label_column not in split.columns:
            raise UserError("the table has no such column", got=label_column, where=f"{where}, label_column",
                            do=f"It has: {', '.join(map(str, list(split.columns)[:20]))}.")
        return split.drop(columns=label_column), split[label_column]
    if isinstance(split, list) and split and _is_sample(split[0]):
        return ListedSamples(split)
    return split


def _is_sample(entry: Any) -> bool:
    """Whether the entry of a list is a sample, and no part of all samples: it holds a single number or a text."""
    if not isinstance(entry, tuple | list | Mapping) or not entry:
        return False
    return any(isinstance(leaf, int | float | str | np.generic) or
               (isinstance(leaf, np.ndarray | Tensor) and not leaf.ndim) for leaf in leaves(entry))


def label_leaf(nest: Any) -> Any:
    """What stands where labels do: the second part of a pair, or ``labels`` or ``label`` of a mapping; else None."""
    if isinstance(nest, tuple) and len(nest) == 2:
        return nest[1]
    if isinstance(nest, Mapping):
        return next((nest[key] for key in LABEL_KEYS if key in nest), None)
    return None


def with_labels(nest: Any, labels: Any) -> Any:
    """The same nest with other labels."""
    if isinstance(nest, tuple):
        make: Any = type(nest)
        return make(nest[0], labels) if hasattr(nest, "_fields") else (nest[0], labels)
    key = next(key for key in LABEL_KEYS if key in nest)
    return {name: labels if name == key else value for name, value in nest.items()}


# Arrays and tables


def arrays_of(split: Any, tables: Tables, where: str) -> Any:
    """A nest of NumPy arrays: floats as float32, integer labels as int64, lists of parts as tuples.

    Labels may also be texts; they stay what they are.

    Raises:
        UserError: Some part is no array of finite numbers, parts differ in length, or a table does not fit the others.
    """
    nest = tuple(split) if isinstance(split, list) else split
    labels = label_leaf(nest)
    if isinstance(labels, list | tuple) and labels and not isinstance(labels[0], np.ndarray | Tensor | Mapping | tuple):
        listed = np.asarray(labels)
        nest, labels = with_labels(nest, listed), listed
    _refuse_form(nest, where)
    _check_rows(nest, where)
    found = iter([_array(leaf, leaf is labels, path, tables, where) for path, leaf in named_leaves(nest)])
    nest = tree_map(lambda _: next(found), nest)
    sizes = {path: len(leaf) for path, leaf in named_leaves(nest)}
    if not sizes or len(set(sizes.values())) != 1:
        got = ", ".join(f"{path or 'array'}: {size}" for path, size in list(sizes.items())[:_SHOWN])
        raise UserError("all parts of a split must have the same number of samples", got=got, where=where)
    if not next(iter(sizes.values())):
        raise UserError("there are no samples", where=where)
    return nest


def _refuse_form(nest: Any, where: str) -> None:
    parts = leaves(nest)
    if parts and all(isinstance(leaf, int | float | str | np.generic) for leaf in parts):
        raise UserError(_FORM, got=f"a list of {type(parts[0]).__name__}", where=where)


def _array(leaf: Any, is_label: bool, path: str, tables: Tables, where: str) -> np.ndarray:
    if _is_table(leaf):
        array: Any = _from_table(leaf, path, tables, where)
    elif _is_column(leaf):
        array = _from_column(leaf)
    else:
        array = _from_tensor(leaf, where) if isinstance(leaf, Tensor) else leaf
    if isinstance(array, np.ma.MaskedArray):
        array = _unmasked(array, where)
    if is_label and isinstance(array, np.ndarray) and array.dtype == object and _are_numbers(array):
        array = np.array(array.tolist())
    if is_label and is_texts(array) and array.ndim:
        return array
    if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in "fiub":
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(leaf).__name__
        raise UserError("the parts of a split must be arrays or tensors of numbers [N, ...]", got=got, where=where)
    if array.dtype.kind == "f":
        return _finite(array, is_label, where)
    if is_label and array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise UserError("labels must be numbers of classes", got=int(array.max()), where=where)
    if is_label and array.ndim == 1 and array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    return array


def _finite(array: np.ndarray, is_label: bool, where: str) -> np.ndarray:
    """Floating point as float32, in which all of it must be finite."""
    with np.errstate(over="ignore"):
        found = array.astype(np.float32, copy=False)
    good = np.isfinite(found)
    if not good.all():
        row = int(np.flatnonzero(~good.reshape(len(array), -1).all(axis=1))[0])
        what = "labels must be finite numbers" if is_label else "all numbers must be finite"
        is_large = bool(np.isfinite(array[row]).all())
        got = "a number that float32 cannot hold" if is_large else "NaN or infinity"
        raise UserError(what, got=f"{got} in sample {row}", where=where)
    return found


def _unmasked(array: Any, where: str) -> np.ndarray:
    """The values of a masked array that masks nothing."""
    if np.ma.is_masked(array):
        row = int(np.argwhere(np.ma.getmaskarray(array))[0][0])
        raise UserError("a masked array has values that do not count", got=f"a masked value in sample {row}",
                        where=where, do="Fill them in with .filled(), or leave such samples out.")
    return np.ma.getdata(array)


def _are_numbers(array: np.ndarray) -> bool:
    return array.ndim > 0 and all(isinstance(one, bool | int | float | np.number | np.bool_) for one in array.flat)


def _from_tensor(tensor: Tensor, where: str) -> np.ndarray:
    """A tensor's values; floating point of 8 and 16 bits, which NumPy may lack, as float32."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        got = "a tensor without values" if tensor.is_meta else f"a {tensor.layout} tensor of {tensor.dtype}"
        raise UserError("the parts of a split must be dense tensors", got=got, where=where,
                        do="Use .to_dense() or .dequantize().")
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() < 4:
        values = values.float()
    return values.numpy()


def _is_table(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _is_column(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series | pandas.Index | pandas.Categorical)


def _from_table(table: Any, path: str, tables: Tables, where: str) -> np.ndarray:
    """The columns of a table as float32 ``[N, columns]``, in the order that they have in the training split."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    odd = [str(name) for name, kind in table.dtypes.items() if not (is_numeric_dtype(kind) or is_bool_dtype(kind))]
    if odd or not table.columns.is_unique:
        raise UserError("the columns of a table must have different names and hold numbers", where=where,
                        got=f"others in {', '.join(odd[:_SHOWN])}" if odd else "a name twice",
                        do="Turn them into numbers first, or leave them out.")
    columns = tables.columns.setdefault(path, list(table.columns))
    if set(columns) != set(table.columns):
        differing = sorted(map(str, set(columns) ^ set(table.columns)))
        raise UserError("the columns of the table must be those of train", where=where,
                        got=f"differences in {', '.join(differing[:_SHOWN])}")
    return table[columns].to_numpy(dtype=np.float32, na_value=np.nan)


def _from_column(column: Any) -> np.ndarray:
    """A column of a table: numbers, or objects."""
    import pandas as pd

    series = pd.Series(column)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype if not series.isna().any() else object)
    if not (pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series)):
        return series.to_numpy(dtype=object)
    kind: Any = getattr(series.dtype, "numpy_dtype", series.dtype)
    return series.to_numpy(dtype=np.float64) if series.isna().any() else series.to_numpy(dtype=kind)


def _check_rows(nest: Any, where: str) -> None:
    """Refuse tables and columns of one split whose rows are the same in another order."""
    parts = [leaf for leaf in leaves(nest) if hasattr(leaf, "index") and (_is_table(leaf) or _is_column(leaf))]
    for part in parts[1:]:
        first = parts[0].index
        if len(first) == len(part.index) and not first.equals(part.index) and set(first) == set(part.index):
            raise UserError("the rows of the table and of its labels are in different orders", where=where,
                            do="Bring them into one order, e.g. labels.loc[table.index].")


# Datasets


@dataclass(frozen=True)
class ReadSplit:
    """What was found of a dataset.

    Attributes:
        nest: All samples stacked; None where they are to be read while training.
        random: Whether a sample is another one when it is read again.
        repeatable: Whether it is the same when it is read under the same seeds.
        rows: The samples that were probed.
        probes: Stacked.
    """

    nest: Any
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
    spread = range(NUM_PROBES, size, max(1, (size - NUM_PROBES) // NUM_PROBES)) if size > NUM_PROBES else ()
    rows = [*range(min(size, NUM_PROBES)), *list(spread)[:NUM_PROBES]]
    probes = read_rows(split, rows, 1, where)
    if not _equal(probes, read_rows(split, rows, 2, where)):
        return ReadSplit(None, True, _equal(probes, read_rows(split, rows, 1, where)), rows, probes)
    if size * sum(leaf.nbytes for leaf in leaves(first)) > MAX_MATERIALISED_BYTES:
        return ReadSplit(None, False, True, rows, probes)
    return ReadSplit(read_rows(split, list(range(size)), 0, where), False, True, rows, probes)


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
            coded = label_leaf(samples[0])
            if isinstance(coded, str):
                samples = [with_labels(one, texts.setdefault(label_leaf(one), len(texts))) for one in samples]
            batch = collate(samples)
    except Exception as error:
        raise UserError(f"samples {rows[0]} to {rows[-1]} cannot be read and stacked", where=where,
                        do=f"Their own error:\n{own_traceback(error)}") from error
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        raise UserError("samples must be nests of tensors, arrays and numbers", where=where,
                        got=", ".join(sorted({type(leaf).__name__ for leaf in leaves(batch)})))
    return with_labels(batch, np.array(list(texts))[label_leaf(batch).numpy()]) if texts else batch


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
        silent = isinstance(error, TypeError | NotImplementedError)
        reason = "" if silent else f" Its own error:\n{own_traceback(error)}"
        raise UserError("a dataset must be map-style: with __len__ and __getitem__", got=type(split).__name__,
                        where="data.name", do=f"Wrap it, or return arrays.{reason}") from error
    return size


def attribute_labels(split: Any) -> np.ndarray | None:
    """Integer labels that a dataset has at hand, as torchvision's do in ``targets``."""
    for name in ("targets", *LABEL_KEYS):
        found = getattr(split, name, None)
        if isinstance(found, list | tuple | np.ndarray | Tensor) and len(found) == length_of(split):
            array = np.asarray(found)
            if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
                return array.astype(np.int64)
    return None


def form_of(nest: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """Path, type and shape of a sample's parts."""
    return [(path, str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape[1:])) for path, leaf in named_leaves(nest)]


def spelled(form: list[tuple[str, str, tuple[int, ...]]]) -> str:
    """A form in words."""
    return ", ".join(f"{path or 'array'}: {kind} {list(shape)}" for path, kind, shape in form)


def first_difference(first: Any, second: Any) -> int | None:
    """The first sample in which two equally long batches of labels differ."""
    a, b = (torch.as_tensor(np.asarray(one)) for one in (first, second))
    if a.shape != b.shape:
        return 0
    differing = (a != b).reshape(len(a), -1).any(dim=1).nonzero()
    return int(differing[0]) if len(differing) else None
