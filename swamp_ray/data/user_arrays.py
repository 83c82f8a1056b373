"""A split of the user's as NumPy arrays: from arrays, tensors, lists and pandas tables, where that is certain."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.data.labels import is_texts
from swamp_ray.data.pairs import label_leaf, with_labels
from swamp_ray.data.trees import leaves, named_leaves, with_leaves
from swamp_ray.errors import UserError

_FORM = "a split must be a nest of arrays or tensors, or a map-style torch dataset"
_SHOWN = 5


@dataclass
class TableColumns:
    """The columns of the training split's tables, whose order the tables of other splits are brought into.

    Attributes:
        columns: Names of the columns, by the table's place in the split.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)


def arrays_of(split: Any, tables: TableColumns, where: str) -> Any:
    """A tree of NumPy arrays: floats as float32, integer labels as int64, lists of parts as tuples.

    Labels may also be texts; they stay what they are.

    Args:
        split: As the user returned it.
        tables: Filled by the first split, which is the training split.
        where: Whose split, for errors.

    Raises:
        UserError: Some part is no array of finite numbers, parts differ in length, or a table does not fit the others.
    """
    tree = tuple(split) if isinstance(split, list) else split
    labels = label_leaf(tree)
    if isinstance(labels, list | tuple) and labels and not isinstance(labels[0], np.ndarray | Tensor | Mapping | tuple):
        labels = np.asarray(labels)
        tree = with_labels(tree, labels)
    _refuse_numbers(tree, where)
    _check_row_order(tree, where)
    arrays = []
    for path, leaf in named_leaves(tree):
        arrays.append(_array(leaf, leaf is labels, path, tables, where))
    tree = with_leaves(tree, arrays)
    sizes = {path: len(leaf) for path, leaf in named_leaves(tree)}
    if len(set(sizes.values())) != 1:
        got = ", ".join(f"{path or 'array'}: {size}" for path, size in list(sizes.items())[:_SHOWN])
        raise UserError("all parts of a split must have the same number of samples", got=got, where=where)
    if 0 in sizes.values():
        raise UserError("there are no samples", where=where)
    return tree


def _refuse_numbers(tree: Any, where: str) -> None:
    """Refuse a list of plain numbers or texts."""
    parts = leaves(tree)
    if parts and all(isinstance(leaf, int | float | str | np.generic) for leaf in parts):
        raise UserError(_FORM, got=f"a list of {type(parts[0]).__name__}", where=where)


def _array(leaf: Any, is_label: bool, path: str, tables: TableColumns, where: str) -> np.ndarray:
    """A leaf as an array of numbers, or labels as an array of texts."""
    array = _plain_array(leaf, path, tables, where)
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


def _plain_array(leaf: Any, path: str, tables: TableColumns, where: str) -> Any:
    """A leaf as a NumPy array of any type, where it can become one; others are returned as they are."""
    if is_table(leaf):
        return _from_table(leaf, path, tables, where)
    array = leaf
    if _is_column(leaf):
        array = _from_column(leaf)
    elif isinstance(leaf, Tensor):
        array = _from_tensor(leaf, where)
    return _unmasked(array, where) if isinstance(array, np.ma.MaskedArray) else array


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
    return array.ndim > 0 and all(isinstance(value, bool | int | float | np.number | np.bool_) for value in array.flat)


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


# Tables


def is_table(value: Any) -> bool:
    """Whether a value is a pandas table; where pandas was never imported, nothing is, and it need not be imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _is_column(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series | pandas.Index | pandas.Categorical)


def _from_table(table: Any, path: str, tables: TableColumns, where: str) -> np.ndarray:
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


def _check_row_order(tree: Any, where: str) -> None:
    """Refuse tables and columns of one split whose rows are the same in another order."""
    parts = [leaf for leaf in leaves(tree) if hasattr(leaf, "index") and (is_table(leaf) or _is_column(leaf))]
    for part in parts[1:]:
        first = parts[0].index
        if len(first) == len(part.index) and not first.equals(part.index) and set(first) == set(part.index):
            raise UserError("the rows of the table and of its labels are in different orders", where=where,
                            do="Bring them into one order, e.g. labels.loc[table.index].")
