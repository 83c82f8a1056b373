"""Datasets of your own: ``package.module:function`` returns a mapping of splits."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..config import DataConfig
from ..errors import UserError
from ..importing import load_object, own_traceback
from .data_sources import Raw, check_labels
from .loading import collate
from .nests import leaves, named_leaves, tree_map
from .reproducible import seeded
from .samples import Data, LazySamples, channel_statistics, digest_of, first_rows, fixed_order, hold_out

MAX_MATERIALISED_BYTES = 2 * 2**30
NUM_PROBES = 16  # samples read twice to see whether a dataset is random
KNOWN_KEYS = ("train", "test", "validation", "num_classes", "class_names")
LABEL_KEYS = ("labels", "label")


def load_user_data(config: DataConfig) -> Raw | Data:
    """Call ``function(**data.options)`` and read the mapping that it returns.

    Keys ``train`` and ``test``, optionally ``validation``, ``num_classes`` and ``class_names``. Each split is a nest
    of arrays or tensors with equal first dimension, or a map-style torch dataset. A dataset whose samples are
    always the same and take up to 2 GiB is read into memory; another is read while training, and then needs
    ``data.version`` as its identity.

    A pair whose first part is uint8 ``[N, H, W, C]`` with 1 or 3 channels goes through the image pipeline; other
    arrays are used as they are, floating point as float32.

    Raises:
        UserError: The function fails (its own error is shown), or what it returns is no such mapping.
    """
    made = _call(config)
    splits = {name: made[name] for name in ("train", "validation", "test") if made.get(name) is not None}
    read = {name: _in_memory(split, f"{config.name}, {name}") if isinstance(split, Dataset) else split
            for name, split in splits.items()}
    if any(nest is None for nest in read.values()):
        return _lazy(config, made, splits)
    nests = {name: _arrays(split, f"{config.name}, {name}") for name, split in read.items()}
    return _raw(config, made, nests)


def _call(config: DataConfig) -> Mapping[str, Any]:
    function = load_object(config.name, "data.name")
    if not callable(function):
        raise UserError(f"{config.name} must be a function", got=type(function).__name__, where="data.name")
    try:
        inspect.signature(function).bind(**config.options)
    except TypeError as error:
        raise UserError(f"{config.name} cannot be called with the options {sorted(config.options)}: {error}",
                        where="data.options", do=f"Its signature is {inspect.signature(function)}.") from error
    try:
        with seeded(0):
            made = function(**config.options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config.name} failed", where="data.name",
                        do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(made, Mapping) or "train" not in made or "test" not in made:
        got = f"keys {sorted(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
        raise UserError(f"{config.name} must return a mapping with 'train' and 'test'", got=got, where="data.name")
    unknown = [str(key) for key in made if key not in KNOWN_KEYS]
    if unknown:
        raise UserError(f"{config.name} returns unknown keys {unknown}", where="data.name",
                        do=f"Known: {', '.join(KNOWN_KEYS)}.")
    return made


def _raw(config: DataConfig, made: Mapping[str, Any], nests: dict[str, Any]) -> Raw:
    forms = {name: [(path, leaf.dtype, leaf.shape[1:]) for path, leaf in named_leaves(nest)]
             for name, nest in nests.items()}
    for name, form in forms.items():
        if form != forms["train"]:
            raise UserError(f"{name} must have the form of train", got=_spelled(form), where=config.name,
                            do=f"train has {_spelled(forms['train'])}.")
    labels = {name: labels_of(nest) for name, nest in nests.items()}
    num_classes = _num_classes(config, made, labels)
    images = nests["train"][0] if isinstance(nests["train"], tuple) else None
    mean = std = None
    if isinstance(images, np.ndarray) and is_image_array(images):
        mean, std = channel_statistics(images)
    return Raw(
        train=nests["train"], test=nests["test"], validation=nests.get("validation"),
        train_labels=labels["train"], test_labels=labels["test"], num_classes=num_classes, mean=mean, std=std,
        class_names=_class_names(made, num_classes), source=config.name)


def _spelled(form: list[tuple[str, Any, tuple[int, ...]]]) -> str:
    return ", ".join(f"{path or 'array'}: {dtype} {list(shape)}" for path, dtype, shape in form)


def is_image_array(array: np.ndarray) -> bool:
    """Whether an array holds images as the pipeline reads them: uint8 ``[N, H, W, C]``, C 1 or 3."""
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in {1, 3}


def labels_of(nest: Any) -> np.ndarray | None:
    """Integer labels ``[N]``: the second part of a pair, or ``labels`` or ``label`` of a mapping."""
    found: Any = None
    if isinstance(nest, tuple) and len(nest) == 2:
        found = nest[1]
    elif isinstance(nest, Mapping):
        found = next((nest[key] for key in LABEL_KEYS if key in nest), None)
    is_labels = isinstance(found, np.ndarray) and found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    return found if is_labels else None


def _num_classes(config: DataConfig, made: Mapping[str, Any], labels: dict[str, np.ndarray | None]) -> int | None:
    present = {name: split for name, split in labels.items() if split is not None}
    given = made.get("num_classes")
    if not present:
        return None if given is None else int(given)
    num = int(given) if given is not None else max(int(split.max(initial=0)) for split in present.values()) + 1
    for name, split in present.items():
        if name == "train":
            check_labels(split, num, f"{config.name}, {name}")
        elif split.size and (split.min() < 0 or split.max() >= num):
            raise UserError(f"labels must lie in [0, {num})", got=f"{split.min()} to {split.max()}",
                            where=f"{config.name}, {name}")
    return num


def _class_names(made: Mapping[str, Any], num_classes: int | None) -> tuple[str, ...]:
    names = _listed_names(made.get("class_names"))
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f"there must be one name for each of {num_classes} classes", got=len(names),
                        where="class_names")
    return names


def _listed_names(given: Any) -> tuple[str, ...]:
    """Names as texts: from a list, a tuple, or an array of NumPy's or pandas'."""
    if given is None:
        return ()
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise UserError("must be a list of names in the order of the labels", got=type(given).__name__,
                        where="class_names")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given)


def _arrays(split: Any, where: str) -> Any:
    """A nest of NumPy arrays: floats as float32, labels as int64, lists of parts as tuples."""
    if isinstance(split, list) and split and not isinstance(split[0], np.ndarray | Tensor | Mapping | tuple | list):
        raise UserError("a split must be a nest of arrays or tensors, or a map-style torch dataset",
                        got=f"a list of {type(split[0]).__name__}", where=where)
    nest = tree_map(lambda leaf: _array(leaf, where), tuple(split) if isinstance(split, list) else split)
    sizes = {path: len(leaf) for path, leaf in named_leaves(nest)}
    if not sizes or len(set(sizes.values())) != 1:
        raise UserError("all parts of a split must have the same number of samples", got=str(sizes), where=where)
    if not next(iter(sizes.values())):
        raise UserError("there are no samples", where=where)
    labels = labels_of(nest)
    return tree_map(lambda leaf: leaf.astype(np.int64, copy=False) if leaf is labels else leaf, nest)


def _array(leaf: Any, where: str) -> np.ndarray:
    array = _numpy(leaf, where) if isinstance(leaf, Tensor) else leaf
    if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in "fiub":
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(leaf).__name__
        raise UserError("the parts of a split must be arrays or tensors of numbers [N, ...]", got=got, where=where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise UserError("all numbers must be finite", got=f"NaN or infinity in sample {row}", where=where)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _numpy(tensor: Tensor, where: str) -> np.ndarray:
    """A tensor's values; floating point of 8 and 16 bits, which NumPy may lack, as float32."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        got = "a tensor without values" if tensor.is_meta else f"a {tensor.layout} tensor of {tensor.dtype}"
        raise UserError("the parts of a split must be dense tensors", got=got, where=where,
                        do="Use .to_dense() or .dequantize().")
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() < 4:
        values = values.float()
    return values.numpy()


def _in_memory(split: Any, where: str) -> Any:
    """The samples of a dataset stacked; None where they are random or take too much memory."""
    size = _length(split)
    if not size:
        raise UserError("there are no samples", where=where)
    first = _read(split, [0], 1, where)
    if size * sum(leaf.nbytes for leaf in leaves(first)) > MAX_MATERIALISED_BYTES:
        return None
    probes = list(range(min(size, NUM_PROBES)))
    reads = [leaves(_read(split, probes, seed, where)) for seed in (1, 2)]
    if not all(torch.equal(a, b) for a, b in zip(*reads, strict=True)):
        return None
    return _read(split, list(range(size)), 0, where)


def _read(split: Any, rows: list[int], seed: int, where: str) -> Any:
    """Some samples, read under a seed and stacked."""
    try:
        with seeded(seed):
            batch = collate([split[row] for row in rows])
    except Exception as error:
        raise UserError(f"samples {rows[0]} to {rows[-1]} cannot be read and stacked", where=where,
                        do=f"Their own error:\n{own_traceback(error)}") from error
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        raise UserError("samples must be nests of tensors, arrays and numbers", where=where,
                        got=", ".join(sorted({type(leaf).__name__ for leaf in leaves(batch)})))
    return batch


def _length(split: Any) -> int:
    if isinstance(split, IterableDataset) or not hasattr(split, "__len__"):
        raise UserError("a dataset must be map-style: with __len__ and __getitem__", got=type(split).__name__,
                        where="data.name", do="Wrap it, or return arrays.")
    return len(split)


def _lazy(config: DataConfig, made: Mapping[str, Any], splits: dict[str, Any]) -> Data:
    if config.version is None:
        raise UserError(
            f"{config.name} returns datasets that are read while training, because they are random or take more "
            "than 2 GiB", where="data.version", do="Set data.version to name their content.")
    if not all(isinstance(split, Dataset) for split in splits.values()):
        raise UserError("either all splits must be torch datasets that are read while training, or none",
                        where=config.name)
    if config.augment.startswith("crop"):
        raise UserError("a dataset of your own augments by itself", got=config.augment, where="data.augment",
                        do="Leave data.augment at auto.")
    labels = {name: _attribute_labels(split) for name, split in splits.items()}
    rows = first_rows(_length(splits["train"]), labels["train"], config.limit_train)
    known = None if labels["train"] is None else labels["train"][rows]
    if "validation" in splits:
        chosen = {"train": fixed_order(rows, config.split_seed), "validation": np.arange(_length(splits["validation"]))}
    else:
        stays, held = hold_out(len(rows), known, config.validation, config.split_seed)
        chosen = {"train": rows[stays], "validation": rows[held]}
    chosen["test"] = first_rows(_length(splits["test"]), labels["test"], config.limit_test)
    samples = {name: LazySamples(splits.get(name, splits["train"]), rows) for name, rows in chosen.items()}
    first = _read(splits["train"], [0], 0, config.name)
    inputs = first[0] if isinstance(first, tuple) else first
    num_classes = _num_classes(config, made, labels)
    source = {"version": config.version, "name": config.name, "options": hashlib.sha256(
        repr(sorted(config.options.items())).encode()).hexdigest()}
    return Data(
        train=samples["train"], validation=samples["validation"], test=samples["test"], num_classes=num_classes,
        input_shape=tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None,
        class_names=_class_names(made, num_classes), digest=digest_of(chosen, source),
        description={"name": config.name, "source": f"{config.name} (read while training)", "sample": "dataset",
                     **{name: len(split) for name, split in samples.items()}},
    )


def _attribute_labels(split: Any) -> np.ndarray | None:
    """Labels that a dataset has at hand, as torchvision's do in ``targets``."""
    for name in ("targets", *LABEL_KEYS):
        found = getattr(split, name, None)
        if isinstance(found, list | tuple | np.ndarray | Tensor) and len(found) == _length(split):
            array = np.asarray(found)
            if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
                return array.astype(np.int64)
    return None
