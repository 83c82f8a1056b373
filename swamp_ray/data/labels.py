"""Class labels of your own data: converted where their meaning is certain, else refused in words about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.data.builtin import check_labels
from swamp_ray.errors import UserError, nearest

INPUT_KEYS = ("inputs", "image", "pixel_values")
LABEL_KEYS = ("labels", "label")
_OWN_TASK = "or name a task of your own in task.name."
_SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """The labels of all splits, once it is clear what they mean.

    Attributes:
        labels: By split, int64 ``[N]`` in ``[0, num_classes)``.
        num_classes: How many classes there are.
        shift: What was subtracted from the labels that were given.
    """

    labels: dict[str, np.ndarray]
    num_classes: int
    shift: int = 0


def class_numbers(found: np.ndarray, where: str) -> tuple[np.ndarray, int | None]:
    """Labels as whole numbers.

    Whole numbers of any type, bools, ``[N, 1]`` and rows with a single 1 (one-hot) have one meaning.

    Args:
        found: ``[N, ...]``.
        where: Whose labels, for errors.

    Returns:
        int64 ``[N]``; and the number of classes where it follows from the form.

    Raises:
        UserError: They may mean several things, or nothing.
    """
    if found.dtype.kind not in "biuf":
        raise UserError("labels must be numbers, or all texts", got=str(found.dtype), where=where)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0])
        raise UserError("labels must be finite numbers", got=f"{found[row]} in sample {row}", where=where,
                        do="Leave samples without a label out.")
    if found.ndim > 1 and found.size == len(found):
        found = found.reshape(-1)
    if found.ndim == 2:
        return _from_one_hot(found, where), found.shape[1]
    if found.ndim != 1:
        raise UserError("labels must be one number a sample", got=f"shape {list(found.shape)}", where=where,
                        do=f"Return them as [N], {_OWN_TASK}")
    numbers = found.astype(np.int64)
    odd = np.flatnonzero(numbers != found)
    if odd.size:
        raise UserError("labels of a classification must be whole numbers", got=f"{found[odd[0]]} in sample {odd[0]}",
                        where=where, do="Return whole numbers, or set task.name: regression.")
    return numbers, None


def _from_one_hot(found: np.ndarray, where: str) -> np.ndarray:
    ones = found == 1
    if (ones | (found == 0)).all() and (ones.sum(axis=1) == 1).all():
        return ones.argmax(axis=1).astype(np.int64)
    raise UserError("labels must be one number a sample, or rows with a single 1 and else 0",
                    got=f"rows of {found.shape[1]} numbers that are neither", where=where,
                    do=f"Return the number of each sample's class, {_OWN_TASK}")


def settle(
    labels: Mapping[str, np.ndarray], num_classes: int | None, names: Sequence[str], where: str
) -> Classes:
    """Decide how many classes there are, and whether they are numbered from 0 or from 1.

    Labels from 1 to the number of classes that ``num_classes`` or ``names`` give are numbered from 1. Without either,
    labels of which none is 0 are refused: class 0 may as well have no sample.

    Args:
        labels: By split, int64 ``[N]``.
        num_classes: As given by the user; None: as many as ``names``, or as the largest label says.
        names: Of the classes; may be empty.
        where: The data's name, for errors.

    Raises:
        UserError: They do not fit.
    """
    least, largest = (function([function(split) for split in labels.values() if split.size]) for function in (min, max))
    expected = num_classes if num_classes is not None else len(names) or None
    shift = 0
    if least >= 1 and expected is None:
        raise UserError("labels must begin at 0", got=f"{least} to {largest}", where=where,
                        do=f"If they are numbered from 1, return them minus 1, or with num_classes: {largest}. If "
                           f"class 0 has no sample, return them with num_classes: {largest + 1}.")
    if least == 1 and largest == expected:
        shift = 1
    found = {name: split - shift for name, split in labels.items()}
    num = expected if expected is not None else int(largest) + 1
    check_classes(found, num, where)
    return Classes(found, num, shift)


def check_classes(labels: Mapping[str, np.ndarray], num_classes: int, where: str) -> None:
    """Refuse labels outside [0, num_classes), and a training split of a single class.

    Raises:
        UserError: Names the split, and the first such sample.
    """
    for name, split in labels.items():
        if name == "train":
            check_labels(split, num_classes, f"{where}, {name}")
        else:
            check_range(split, num_classes, f"{where}, {name}")


def check_range(labels: np.ndarray, num_classes: int | None, where: str) -> None:
    """Refuse labels below 0, or not below the number of classes where that is known.

    Raises:
        UserError: Names the first such sample.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= (num_classes if num_classes is not None else np.inf)))
    if bad.size:
        upper = "and up" if num_classes is None else f"to {num_classes - 1}"
        raise UserError(f"labels must lie in [0, {num_classes})" if num_classes is not None else
                        f"labels must be 0 {upper}", got=f"{labels[bad[0]]} in row {bad[0]}", where=where,
                        do="Leave samples without a class out." if labels[bad[0]] < 0 else "")


def missing_classes(labels: Mapping[str, np.ndarray], num_classes: int, where: str) -> tuple[str, ...]:
    """What the user should know of classes that a split has no sample of."""
    present = {name: set(np.unique(split).tolist()) for name, split in labels.items() if name in ("train", "test")}
    every = set(range(num_classes))
    texts: list[str] = []
    for name, found in present.items():
        if gone := sorted(every - found):
            listed = ", ".join(map(str, gone[:_SHOWN])) + (f" and {len(gone) - _SHOWN} more" * (len(gone) > _SHOWN))
            follows = "cannot be learnt" if name == "train" else "count in no test metric"
            texts.append(f"{where}: {name} has no sample of {'class' if len(gone) == 1 else 'the classes'} {listed} "
                         f"(of {num_classes}), which {follows}")
    return tuple(texts)


def from_texts(
    labels: Mapping[str, np.ndarray], names: Sequence[str], where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels that are texts, as numbers.

    Args:
        labels: By split, arrays of texts ``[N]``.
        names: The classes in order; where empty, those of the training split in alphabetical order.
        where: The data's name, for errors.

    Returns:
        int64 ``[N]`` by split; the names of the classes.

    Raises:
        UserError: Some are no texts, or a split has a text that is no class.
    """
    found = {name: _texts(split, f"{where}, {name}") for name, split in labels.items()}
    classes = list(names) or sorted(set(found["train"]))
    places = {one: place for place, one in enumerate(classes)}
    numbers: dict[str, np.ndarray] = {}
    for name, split in found.items():
        odd = next((one for one in split if one not in places), None)
        if odd is not None:
            known = "class_names" if names else "the labels of train"
            raise UserError(f"a label is not among {known}", got=odd, where=f"{where}, {name}",
                            do=f"{nearest(odd, classes)} Return class_names with all classes.".strip())
        numbers[name] = np.array([places[one] for one in split], np.int64)
    return numbers, tuple(classes)


def is_texts(found: Any) -> bool:
    """Whether an array holds texts, or objects that are perhaps texts."""
    return isinstance(found, np.ndarray) and found.dtype.kind in "USOT"


def _texts(found: np.ndarray, where: str) -> list[str]:
    if not is_texts(found):
        raise UserError("labels must be texts in all splits, or numbers in all", got=str(found.dtype), where=where)
    flat = found.reshape(-1).tolist() if found.size == len(found) else None
    if flat is None:
        raise UserError("labels must be one text a sample", got=f"shape {list(found.shape)}", where=where)
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else one for one in flat]
    odd = next((row for row, one in enumerate(texts) if not isinstance(one, str)), None)
    if odd is not None:
        raise UserError("labels must be numbers, or all texts", got=f"{texts[odd]!r} in sample {odd}", where=where,
                        do="Leave samples without a label out.")
    return texts


def values_of(targets: torch.Tensor) -> np.ndarray:
    """The values of a tensor in the processor's memory; NumPy has no bfloat16."""
    return (targets.float() if targets.dtype == torch.bfloat16 else targets).numpy()


def built_in_pair(nest: Any, where: str) -> tuple[Any, Any]:
    """Inputs and targets, as the built-in tasks read them.

    Args:
        nest: A pair, or a mapping with one of ``inputs``, ``image``, ``pixel_values`` and one of ``labels``, ``label``.
        where: The data's name, for errors.

    Raises:
        UserError: It is neither.
    """
    if isinstance(nest, tuple | list) and len(nest) == 2:
        return nest[0], nest[1]
    if isinstance(nest, Mapping):
        keys = [[key for key in known if key in nest] for known in (INPUT_KEYS, LABEL_KEYS)]
        if [len(found) for found in keys] == [1, 1] and len(nest) == 2:
            return nest[keys[0][0]], nest[keys[1][0]]
        got = f"a mapping with {', '.join(map(str, nest))}"
    else:
        got = f"{len(nest)} parts" if isinstance(nest, tuple | list) else "a single part"
    raise UserError(
        "the built-in tasks read pairs of inputs and labels, or mappings with one of "
        f"{', '.join(INPUT_KEYS)} and one of {', '.join(LABEL_KEYS)}", got=got, where=where,
        do="Return such samples and nothing else, " + _OWN_TASK)


@dataclass(frozen=True)
class BuiltInForm:
    """Makes pairs that a built-in task reads of collated samples; for samples that are read while training.

    Attributes:
        where: The data's name, for errors.
        classes: Whether the targets are classes.
        num_classes: How many; None: not known.
        shift: To be subtracted from the labels.
    """

    where: str
    classes: bool
    num_classes: int | None = None
    shift: int = 0

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """The pair.

        Raises:
            UserError: A label does not fit.
        """
        inputs, targets = built_in_pair(batch, self.where)
        if not self.classes:
            return inputs, targets
        if not isinstance(targets, torch.Tensor):
            raise UserError("labels must be one number a sample", got=type(targets).__name__, where=self.where)
        numbers, _ = class_numbers(values_of(targets), self.where)
        numbers = numbers - self.shift
        check_range(numbers, self.num_classes, f"{self.where}, in a batch")
        return inputs, torch.from_numpy(numbers)
