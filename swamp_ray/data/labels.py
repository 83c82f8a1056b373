"""Class labels of your own data: converted where their meaning is certain, else refused in words about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.data.pairs import OWN_TASK, built_in_pair, integer_labels, label_leaf, with_labels
from swamp_ray.errors import UserError, nearest

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
                        do=f"Return them as [N], {OWN_TASK}")
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
                    do=f"Return the number of each sample's class, {OWN_TASK}")


def decide_classes(
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


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels outside [0, num_classes), no labels at all, and a single class.

    Raises:
        UserError: Names the first offending row.
    """
    if not len(labels):
        raise UserError("there are no samples", where=where)
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise UserError(f"labels must lie in [0, {num_classes})", got=f"{labels[bad[0]]} in row {bad[0]}", where=where)
    if labels.min() == labels.max():
        raise UserError("there must be at least two classes", got=f"only label {labels[0]}", where=where)


@dataclass(frozen=True)
class TargetInfo:
    """What is known of the targets.

    Attributes:
        num_classes: None where they are no classes.
        class_names: In label order; may be empty.
        warnings: What the user should know of them.
        shift: What was subtracted from the labels that were given.
    """

    num_classes: int | None
    class_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    shift: int = 0


def number_of_classes(value: Any) -> int | None:
    """The number of classes that was given, from any kind of whole number.

    Raises:
        UserError: It is none.
    """
    if value is None:
        return None
    try:
        number = value if isinstance(value, int | float) else value.item()
    except (AttributeError, ValueError, RuntimeError, TypeError):  # a text, or more than one number
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number) or number < 1:
        raise UserError("must be a whole number of classes", got=str(value), where="num_classes")
    return int(number)


def class_names_of(value: Any, num_classes: int | None) -> tuple[str, ...]:
    """Names in label order, from any sequence: a list, an array, an index.

    Raises:
        UserError: They are no names, or not one for each class.
    """
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping | set | frozenset) or not hasattr(value, "__iter__"):
        raise UserError("must be a list of names in the order of the labels", got=type(value).__name__,
                        where="class_names")
    names = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in value)
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f"there must be one name for each of {num_classes} classes", got=len(names),
                        where="class_names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError("class_names must differ", got=f"{twice!r} twice", where="class_names")
    return names


def with_classes(
    source: str, task: str | None, nests: dict[str, Any], num_classes: int | None, names: tuple[str, ...]
) -> tuple[dict[str, Any], TargetInfo]:
    """Nests whose labels are numbers of classes where that is what they mean, and what is known of these.

    Raises:
        UserError: The labels do not fit, or may mean several things.
    """
    labels: dict[str, Any] = {name: label_leaf(nest) for name, nest in nests.items()}
    if any(is_texts(found) for found in labels.values()):
        if task == "regression":
            raise UserError("a regression needs targets that are numbers", got="texts", where=source,
                            do="Set task.name: classification, if they are classes.")
        labels, names = from_texts(labels, names, source)
        nests = {name: with_labels(nest, labels[name]) for name, nest in nests.items()}
        names = class_names_of(names, num_classes)
    if task == "classification":
        for name, split in labels.items():
            if not isinstance(split, np.ndarray):
                raise UserError("labels must be one array", got=type(split).__name__, where=f"{source}, {name}")
        found = {name: class_numbers(split, f"{source}, {name}") for name, split in labels.items()}
        widths = {width for _, width in found.values()}
        if len(widths) > 1 or (num_classes is not None and not widths <= {None, num_classes}):
            raise UserError("labels must have one form and one number of classes in all splits", where=source,
                            got=", ".join(f"{name}: {list(split.shape)}" for name, split in labels.items()))
        classes = decide_classes({name: split for name, (split, _) in found.items()},
                         num_classes if widths == {None} else widths.pop(), names, source)
        nests = {name: with_labels(nest, classes.labels[name]) for name, nest in nests.items()}
        names = class_names_of(names, classes.num_classes)
        odd = missing_classes(classes.labels, classes.num_classes, source)
        return nests, TargetInfo(classes.num_classes, names, odd, classes.shift)
    if task == "regression":
        return nests, TargetInfo(num_classes, names)
    own = {name: split for name, nest in nests.items() if (split := integer_labels(nest)) is not None}
    if own and num_classes is None:
        num_classes = max(int(split.max(initial=0)) for split in own.values()) + 1
    if own and num_classes is not None:
        check_classes(own, num_classes, source)
    return nests, TargetInfo(num_classes, class_names_of(names, num_classes))
